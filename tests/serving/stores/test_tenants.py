"""Tenants: each sees what it would see alone; scopes bound what a key may do."""

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sigma_jax.serving.api.app import create_app
from sigma_jax.serving.api.context import Tenant
from sigma_jax.serving.api.keys import SCOPES, Caller, Keys, sha256
from sigma_jax.serving.api.service import TenantService
from sigma_jax.serving.engine import RecommendationEngine
from sigma_jax.serving.nearline import HOME
from sigma_jax.serving.stores.base import StoredList, open_store

TENANTS = ("shop", "sh{o}p", "shop:4.user")
USERS, ITEMS = ("ann", "bob", "4.user:3.ann"), ("i000", "i001", "i007")
NAMES = ("r1", "a:b")
# (scope that it needs, method, path, body)
CALLS = st.one_of(
    st.tuples(
        st.just("write"),
        st.just("PUT"),
        st.sampled_from(USERS).map("/v1/users/{}".format),
        st.sampled_from(["x", "y"]).map(lambda city: {"profile": {"city": city}}),
    ),
    st.tuples(
        st.just("write"), st.just("DELETE"), st.sampled_from(USERS).map("/v1/users/{}".format)
    ),
    st.tuples(
        st.just("write"),
        st.just("POST"),
        st.just("/v1/events"),
        st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), st.sampled_from(["", "e1"])).map(
            lambda one: {
                "events": [
                    {"user_id": one[0], "item_id": one[1], "event_id": one[2], "timestamp": 5}
                ]
            }
        ),
    ),
    st.tuples(
        st.just("write"),
        st.just("PUT"),
        st.sampled_from(ITEMS).map("/v1/items/{}/state".format),
        st.booleans().map(lambda hidden: {"hidden": hidden}),
    ),
    st.tuples(
        st.just("admin"),
        st.just("PUT"),
        st.sampled_from(NAMES).map("/v1/rules/{}".format),
        st.sampled_from(ITEMS).map(lambda item: {"kind": "pin", "items": [item]}),
    ),
    st.tuples(
        st.just("admin"), st.just("DELETE"), st.sampled_from(NAMES).map("/v1/rules/{}".format)
    ),
    st.tuples(st.just("list"), st.sampled_from(USERS), st.sampled_from(ITEMS)),
    st.tuples(st.just("take")),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(TENANTS), st.sampled_from(SCOPES), CALLS), min_size=4, max_size=14
)
READS = [
    "/v1/users",
    "/v1/rules",
    *(f"/v1/users/{user}" for user in USERS),
    *(f"/v1/users/{user}/events" for user in USERS),
    *(f"/v1/users/{user}/recommendations?count=3" for user in USERS),
    *(f"/v1/users/{user}/recommendations?count=3&seen=own" for user in USERS),
    *(f"/v1/items/{item}/state" for item in ITEMS),
]
KEYS = Keys(
    {
        sha256(f"{tenant} {scope}"): Caller(tenant, frozenset([scope]), scope)
        for tenant in TENANTS
        for scope in SCOPES
    }
)


@pytest.fixture(scope="module")
def engine(exported):
    return RecommendationEngine(exported)


class Shops:
    """A service with several tenants on a store; `prefix` makes their rows its own."""

    def __init__(self, store, engine, folder, prefix):
        self.rows = {name: store.tenant(prefix + name) for name in TENANTS}
        services = {name: TenantService(engine, rows) for name, rows in self.rows.items()}
        tenants = {name: Tenant.of(name, folder, one) for name, one in services.items()}
        self.client = TestClient(create_app(tenants, store, KEYS), raise_server_exceptions=False)

    def get(self, tenant, path):
        """What the tenant's reader is answered, without the time that passes."""
        answer = self.client.get(path, headers={"X-API-Key": f"{tenant} read"})
        body = answer.json()
        body.pop("age_seconds", None) if isinstance(body, dict) else None
        return answer.status_code, body

    def do(self, tenant, scope, step):
        """One step; calls without the scope must be refused."""
        if step[0] == "list":
            row = {"item_id": step[2], "title": step[2], "probability": 0.5}
            one = StoredList((row,), 5.0, tenant, "0001", 0)
            self.rows[tenant].put_lists({step[1]: {HOME: one}}, 60)
        elif step[0] == "take":
            self.rows[tenant].done(self.rows[tenant].take("w", 9))
        else:
            needs, method, path, *body = step
            headers = {"X-API-Key": f"{tenant} {scope}"}
            content = {"json": body[0]} if body else {}
            status = self.client.request(method, path, headers=headers, **content).status_code
            if SCOPES.index(scope) < SCOPES.index(needs):
                assert status == 403, (step, scope)
            else:
                assert status in (200, 204, 404), (step, scope)

    def view(self, tenant):
        """All that the tenant can see."""
        rows = self.rows[tenant]
        queue = [work.user_id for work in rows.take("view", 99, lease=0.0)]
        return [self.get(tenant, path) for path in READS], sorted(queue)


# The store is kept between examples: each example has rows of its own. A tenant that is alone has a
# store that no other ever wrote to.
@settings(
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # a failure is not made smaller: that takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(steps=STEPS, number=st.uuids())
def test_each_tenant_sees_what_it_would_see_alone(
    store, engine, exported, tmp_path_factory, steps, number
):
    together = Shops(store, engine, exported, f"{number} together ")
    with together.client:
        for step in steps:
            together.do(*step)
        found = {tenant: together.view(tenant) for tenant in TENANTS}
    for tenant in TENANTS:
        apart = open_store(str(tmp_path_factory.mktemp("alone") / "store.db"))
        alone = Shops(apart, engine, exported, "")
        with alone.client:
            for step in steps:
                if step[0] == tenant:
                    alone.do(*step)
            assert alone.view(tenant) == found[tenant]
        apart.close()


# Parts of paths that change how a tenant is served.
ADMIN = ("/rules/", "/catalogue/", "/experiments/", "/models/", "/preview", "/drain")


def test_a_key_without_a_scope_is_refused_everywhere(store, engine, exported):
    """Each route of the description, with a key of each lower scope and with none."""
    shops = Shops(store, engine, exported, "")
    routes = [
        (path.format(user_id="ann", item_id="i000", job_id="j", name="r", event_id="e"), method)
        for path, methods in shops.client.app.openapi()["paths"].items()
        for method in methods
        if path.startswith("/v1/")
    ]
    allowed = {}
    for path, method in routes:
        for scope in ("", *SCOPES[:-1]):
            headers = {"X-API-Key": f"shop {scope}"} if scope else {}
            # Without a body nothing is changed.
            answer = shops.client.request(method, path, headers=headers)
            allowed[path, method, scope] = answer.status_code not in (401, 403)
    assert len(routes) > 20 and not any(allowed[path, method, ""] for path, method in routes)
    for path, method in routes:
        is_report = path.endswith("/report")  # it reads all exposures
        is_read = method == "get" and not is_report
        is_read |= path == "/v1/recommendations"
        assert allowed[path, method, "read"] == is_read, (path, method)
        is_admin = any(part in path for part in ADMIN) and method != "get"
        assert allowed[path, method, "write"] == (not is_admin and not is_report), (path, method)
