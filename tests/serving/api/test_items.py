"""Routes of items: pages of the catalogue, states of many items, categories, removed items."""

import json

import numpy as np
import pytest
from fastapi.testclient import TestClient

from sigma_jax.serving.api.app import create_app
from sigma_jax.serving.api.context import Tenant
from sigma_jax.serving.api.keys import Keys
from sigma_jax.serving.api.service import TenantService
from sigma_jax.serving.engine import RecommendationEngine

LINES = {"Content-Type": "application/x-ndjson"}


def test_pages_of_items(client, engine, items):
    catalogue = engine.current.version.catalogue
    found, after = [], ""
    while page := client.get("/v1/items", params={"after": after, "count": 7}).json()["items"]:
        found += page
        after = page[-1]["item_id"]
    assert [one["item_id"] for one in found] == items
    assert [one["title"] for one in found] == catalogue.titles(np.arange(len(items)))
    names = catalogue.categories.to_pylist()
    expected = [names[one] if one >= 0 else "" for one in catalogue.category]
    assert [one["category"] for one in found] == expected
    assert all(one["is_active"] for one in found)
    assert client.get("/v1/items", params={"after": "none"}).status_code == 404


def test_an_item_and_its_state(client, items):
    item = items[3]
    found = client.get(f"/v1/items/{item}").json()
    assert found["item_id"] == item and found["is_active"] and found["is_shown"]
    assert found["state"] == {"hidden": False, "stock": None, "expires": None}
    client.put(f"/v1/items/{item}/state", json={"stock": 0})
    found = client.get(f"/v1/items/{item}").json()
    assert found["state"]["stock"] == 0 and found["is_active"] and not found["is_shown"]
    for path in ("/v1/items/nope", "/v1/items/nope/state"):
        assert client.get(path).status_code == 404


def test_states_of_many_items(client, items):
    rows = [{"item_id": items[0], "stock": 0}, {"item_id": items[1], "hidden": True}]
    rows.append({"item_id": "nope", "hidden": True})

    def put(rows):
        content = "\n".join(map(json.dumps, rows))
        return client.put("/v1/items/states", content=content, headers=LINES)

    assert put(rows).json() == {"stored": 2, "unknown_items": 1}
    state = {"hidden": False, "stock": None, "expires": None}
    expected = {items[0]: state | {"stock": 0}, items[1]: state | {"hidden": True}}
    assert client.get("/v1/items/states").json() == expected
    shown = client.get("/v1/popular", params={"count": 100}).json()["items"]
    assert not {items[0], items[1]} & {one["item_id"] for one in shown}
    wrong = put([rows[0], {"item_id": items[2], "stock": -1}])
    assert wrong.status_code == 422 and wrong.json()["error"].startswith("line 2: stock ")
    assert set(client.get("/v1/items/states").json()) == set(expected)


def test_categories(client, engine):
    catalogue = engine.current.version.catalogue
    found = client.get("/v1/categories").json()["categories"]
    counts = np.bincount(catalogue.category[catalogue.category >= 0]).tolist()
    expected = dict(zip(catalogue.categories.to_pylist(), counts, strict=True))
    assert {one["name"]: one["items"] for one in found} == expected
    assert [one["items"] for one in found] == sorted(counts, reverse=True)


@pytest.mark.slow
def test_a_removed_item_is_restored(export_copy, store, items):
    service = TenantService(RecommendationEngine(export_copy), store.tenant("shop"))
    tenants = {"shop": Tenant.of("shop", export_copy, service)}
    app = create_app(tenants, store, Keys({}, "shop"), host="testserver")
    with TestClient(app, raise_server_exceptions=False) as client:
        path = f"/v1/catalogue/items/{items[0]}"
        assert client.post(path + "/restore").status_code == 400  # it was not removed
        assert client.delete(path).status_code == 200
        assert not client.get(f"/v1/items/{items[0]}").json()["is_active"]
        answer = client.post(path + "/restore")
        assert answer.status_code == 200 and answer.json()["is_active"]
        assert client.get(f"/v1/items/{items[0]}").json()["is_active"]
        assert client.post("/v1/catalogue/items/nope/restore").status_code == 404
