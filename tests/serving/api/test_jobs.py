"""Jobs: each request has its own answer or error; a full queue is waited for."""

import threading
import time

import pytest
from fastapi.testclient import TestClient

from sigma_jax.serving import batcher
from sigma_jax.serving.api.app import create_app
from sigma_jax.serving.api.context import Tenant
from sigma_jax.serving.api.keys import Keys
from sigma_jax.serving.api.routes import jobs
from sigma_jax.serving.api.service import TenantService


def done(client, asks, key=""):
    headers = {"X-API-Key": key} if key else {}
    job = client.post("/v1/jobs", json={"requests": asks}, headers=headers)
    assert job.status_code == 202, job.text
    path = f"/v1/jobs/{job.json()['job_id']}"
    for _ in range(400):
        found = client.get(path, headers=headers).json()
        if found["state"] not in ("waiting", "running"):
            return found
        time.sleep(0.05)
    raise TimeoutError(found["state"])


def test_each_request_has_its_own_error(client, service, monkeypatch):
    asks = [{"count": 2}, {"categories": ["nope"], "user_id": "ann"}, {"count": 3}]
    found = done(client, asks)
    assert found["state"] == "done" and found["error"] == ""
    assert [len(answer["items"]) for answer in found["answers"]] == [2, 0, 3]
    first, wrong, _ = found["answers"]
    assert first["error"] == "" and wrong["user_id"] == "ann"
    assert wrong["error"].startswith("the catalogue has no category 'nope'")

    def fail(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(service, "_compute", fail)
    found = done(client, asks[:1])
    assert found["state"] == "done"
    assert found["answers"][0]["error"] == "an error of the service; its log says more"


def test_several_requests_of_a_job_are_computed_together(client, app):
    sizes = []
    app.state.context.tenants["shop"].batcher.on_batch = sizes.append
    found = done(client, [{"count": 1}] * 24)
    assert len(found["answers"]) == 24 and sum(sizes) == 24
    assert max(sizes) > 1 and max(sizes) <= jobs.OF_A_JOB_AT_ONCE


def test_jobs_wait_while_the_queue_is_full(client, monkeypatch):
    monkeypatch.setattr(jobs, "FULL_SECONDS", 0.05)
    monkeypatch.setattr(batcher, "MOST_WAITING", 0)
    timer = threading.Timer(0.3, monkeypatch.setattr, (batcher, "MOST_WAITING", 1_000))
    timer.start()
    found = done(client, [{"count": 1}] * 3)
    assert [answer["error"] for answer in found["answers"]] == [""] * 3
    timer.join()


def test_the_index_answers_while_the_queue_is_full(client, monkeypatch):
    monkeypatch.setattr(batcher, "MOST_WAITING", 0)
    answer = client.post("/v1/recommendations", json={"count": 3})
    assert answer.status_code == 200 and answer.json()["is_late"]
    assert answer.json()["source"] == "popular" and len(answer.json()["items"]) == 3
    assert 'sigma_late_answers_total{tenant="shop"} 1.0' in client.get("/metrics").text


@pytest.fixture
def two(engine, exported, store):
    """A client of a service of two tenants, with keys of each."""
    from sigma_jax.serving.api.keys import Caller, sha256

    names = ("shop", "books")
    tenants = {
        name: Tenant.of(name, exported, TenantService(engine, store.tenant(name))) for name in names
    }
    callers = {sha256(f"{name} admin"): Caller(name, frozenset(["admin"])) for name in names}
    app = create_app(tenants, store, Keys(callers))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_tenants_have_limits_of_their_own(two, monkeypatch):
    monkeypatch.setattr(jobs, "MOST_JOBS", 1)
    body = {"requests": [{"count": 1}]}
    two.app.state.context.jobs["shop", "long"] = None
    answer = two.post("/v1/jobs", json=body, headers={"X-API-Key": "shop admin"})
    assert answer.status_code == 503 and answer.json()["error"] == "too busy: 1 jobs wait"
    assert done(two, body["requests"], "books admin")["state"] == "done"
    del two.app.state.context.jobs["shop", "long"]


def test_one_tenant_drains_no_process_of_several(two):
    answer = two.post("/v1/drain", headers={"X-API-Key": "shop admin"})
    assert answer.status_code == 403 and "serves 2 tenants" in answer.json()["error"]
    assert two.get("/readyz").status_code == 200


def test_jobs_need_the_scope_write(keyed):
    body = {"requests": [{"count": 1}]}
    assert keyed.post("/v1/jobs", json=body, headers={"X-API-Key": "read"}).status_code == 403
    assert keyed.post("/v1/jobs", json=body, headers={"X-API-Key": "write"}).status_code == 202
