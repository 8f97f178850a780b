"""A service over the export of the tiny shop, on a SQLite store, and a client of it."""

import pytest
from fastapi.testclient import TestClient
from served import served

from sigma_jax.serving.api.app import create_app
from sigma_jax.serving.api.context import Tenant
from sigma_jax.serving.api.keys import Caller, Keys, sha256
from sigma_jax.serving.api.service import TenantService
from sigma_jax.serving.engine import RecommendationEngine
from sigma_jax.serving.nearline import NearlineSettings, NearlineWorker
from sigma_jax.serving.stores.base import open_store

NOW = 1_700_000_000  # after the log of the shop


@pytest.fixture(scope="module")
def engine(exported):
    return RecommendationEngine(exported)


@pytest.fixture
def port(app):
    """The port of the service, over real connections."""
    with served(app) as port:
        yield port


@pytest.fixture(scope="module")
def shared_port(engine, exported, tmp_path_factory):
    """The port of a service that the tests of a file share."""
    store = open_store(str(tmp_path_factory.mktemp("shared") / "store.db"))
    service = TenantService(engine, store.tenant("shop"), clock=lambda: NOW)
    service.is_warmed_up = True
    tenants = {"shop": Tenant.of("shop", exported, service)}
    with served(create_app(tenants, store, Keys({}, "shop"))) as port:
        yield port
    store.close()


@pytest.fixture
def shop(store):
    return store.tenant("shop")


@pytest.fixture
def service(engine, shop):
    return TenantService(engine, shop, clock=lambda: NOW)


@pytest.fixture
def worker(engine, shop):
    settings = NearlineSettings(count=20, period=0.01)
    return NearlineWorker(engine, shop, "w1", settings, clock=lambda: NOW)


@pytest.fixture
def app(service, store, exported):
    tenants = {"shop": Tenant.of("shop", exported, service)}
    return create_app(tenants, store, Keys({}, "shop"), host="testserver")


@pytest.fixture
def client(app):
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def keyed(service, store, exported):
    """A client of a service that asks for keys; the key of each scope is its name."""
    callers = {
        sha256(scope): Caller("shop", frozenset([scope]), scope)
        for scope in ("read", "write", "admin")
    }
    callers[sha256("other")] = Caller("elsewhere", frozenset(["admin"]), "other")
    app = create_app({"shop": Tenant.of("shop", exported, service)}, store, Keys(callers), 5.0)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
