"""Explained answers, the tree of prefixes, previews and models over HTTP."""

import shutil
import threading

import numpy as np
import pytest
from fastapi.testclient import TestClient
from small_export import with_other_weights

from sigma_jax.serving.api.app import create_app
from sigma_jax.serving.api.context import Tenant
from sigma_jax.serving.api.keys import Keys
from sigma_jax.serving.api.service import TenantService
from sigma_jax.serving.engine import RecommendationEngine
from sigma_jax.serving.nearline import NearlineSettings, NearlineWorker
from sigma_jax.serving.stores.base import Event

ASK = {
    "user_id": "ann",
    "instruction": "tea",
    "count": 5,
    "explain": True,
    "deadline_ms": 60_000,
}


@pytest.fixture
def ann(shop, engine):
    items = engine.current.version.catalogue.table["item_id"].to_pylist()
    shop.add_events([Event("ann", item, 1_699_000_000 + n) for n, item in enumerate(items[:4])])


def test_an_explanation_leads_to_the_probability(client, ann, engine):
    answer = client.post("/v1/recommendations", json=ASK).json()
    plain = client.post("/v1/recommendations", json=ASK | {"explain": False}).json()
    ids = [item["item_id"] for item in answer["items"]]
    assert ids == [item["item_id"] for item in plain["items"]]
    assert not plain["beams"] and all(item["explanation"] is None for item in plain["items"])
    scores = [beam["score"] for beam in answer["beams"]]
    assert scores == sorted(scores, reverse=True) and len(scores) > 1
    constants = []
    for place, item in enumerate(answer["items"], 1):
        steps = item["explanation"]
        assert steps["place"] == place
        assert steps["probability"] == pytest.approx(item["probability"], abs=1e-5)
        assert steps["network"] == pytest.approx(
            np.exp(steps["beam_score"]) * steps["in_prefix"], rel=1e-4
        )
        of_sum = sum(feature["contribution"] for feature in steps["features"])
        assert steps["score"] == pytest.approx(of_sum, rel=1e-4, abs=1e-4)
        constants.append(np.log(steps["summed"]) - np.log(steps["network"]) - steps["score"])
        if item["details"]["prefix"]:
            beam = answer["beams"][item["details"]["prefix"] - 1]
            assert steps["codes"] == beam["codes"]
            assert steps["beam_score"] == pytest.approx(beam["score"], rel=1e-4, abs=1e-4)
    np.testing.assert_allclose(constants, constants[0], atol=1e-3)
    assert answer["model"] == engine.current.model


def test_rules_keep_the_explanation_and_its_place(client, ann):
    first, *_, last = client.post("/v1/recommendations", json=ASK).json()["items"]
    rule = {"kind": "pin", "items": [last["item_id"]], "place": 1}
    client.put("/v1/rules/top", json=rule)
    client.put("/v1/rules/less", json={"kind": "bury", "items": [first["item_id"]]})
    pinned, *_ = items = client.post("/v1/recommendations", json=ASK).json()["items"]
    assert pinned["item_id"] == last["item_id"] and pinned["reasons"] == ["pinned (top)"]
    assert pinned["explanation"]["place"] == 5
    buried = [item for item in items if item["item_id"] == first["item_id"]]
    assert all(item["reasons"] == ["bury x0.5 (less)"] for item in buried)


def test_lists_of_the_index_are_explained_if_the_worker_explains(client, ann, engine, shop):
    for explains in (False, True):
        settings = NearlineSettings(count=5, period=0.01, explains=explains)
        worker = NearlineWorker(engine, shop, "w", settings)
        shop.add_events([Event("ann", "i5", 1_699_000_100)])
        worker.run_once()
        answer = client.get("/v1/users/ann/recommendations", params={"explain": True}).json()
        assert answer["source"] == "index" and answer["model"] == engine.current.model
        assert all((item["explanation"] is not None) == explains for item in answer["items"])


def test_the_tree_has_every_prefix_and_item(client, engine):
    tree = client.get("/v1/catalogue/tree").json()
    version = engine.current.version
    codes = np.asarray(version.semantic_ids.codes)[version.is_active]
    first = [prefix for prefix in tree["prefixes"] if len(prefix["codes"]) == 1]
    values, counts = np.unique(codes[:, 0], return_counts=True)
    assert [prefix["codes"][0] for prefix in first] == values.tolist()
    assert [prefix["items"] for prefix in first] == counts.tolist()
    assert tree["depth"] == version.trie.depth and tree["items"] == len(codes)
    names = version.catalogue.categories.to_pylist()
    for prefix in first:
        of_prefix = np.asarray(version.catalogue.category)[codes[:, 0] == prefix["codes"][0]]
        assert names.index(prefix["label"]) == np.bincount(of_prefix).argmax()


def test_a_tree_too_large_to_draw_shows_its_first_levels(engine, monkeypatch):
    from sigma_jax.serving.api import tree

    version = engine.current.version
    monkeypatch.setattr(tree, "MOST_PREFIXES", 1)
    assert tree.tree_of(engine.current).prefixes == []
    monkeypatch.setattr(tree, "MOST_PREFIXES", 10_000)
    monkeypatch.setattr(tree, "CHUNK", 7)
    found = tree.tree_of(engine.current).prefixes
    depth, codes = version.trie.depth, np.asarray(version.semantic_ids.codes)[version.is_active]
    expected = {tuple(row[:level]) for row in codes.tolist() for level in range(1, depth + 1)}
    assert {tuple(prefix.codes) for prefix in found} == expected


def test_a_preview_answers_by_another_version(client, ann, exported, engine):
    same = client.post("/v1/preview", json=ASK | {"version": engine.current.name}).json()
    active = client.post("/v1/recommendations", json=ASK).json()
    assert [item["item_id"] for item in same["items"]] == [
        item["item_id"] for item in active["items"]
    ]
    assert client.post("/v1/preview", json=ASK | {"version": "9999"}).status_code == 404
    assert client.post("/v1/preview", json=ASK | {"export": "none"}).status_code == 400
    assert client.post("/v1/preview", json=ASK | {"export": "../x"}).status_code == 400


@pytest.fixture
def two_exports(exported, store, shop, tmp_path):
    """A client of a service over the first of two exports."""
    for name in ("one", "one-new"):
        shutil.copytree(exported, tmp_path / "exports" / name)
    with_other_weights(tmp_path / "exports" / "one-new", "another training")
    first = tmp_path / "exports" / "one"
    tenant = Tenant.of("shop", first, TenantService(RecommendationEngine(first), shop))
    app = create_app({"shop": tenant}, store, Keys({}, "shop"), host="testserver")
    with TestClient(app) as client:
        yield client


def test_models_are_activated_and_rolled_back(two_exports, keyed):
    def active() -> list[str]:
        models = two_exports.get("/v1/models").json()["models"]
        assert [model["name"] for model in models] == ["one", "one-new"]
        return [model["name"] for model in models if model["is_active"]]

    assert active() == ["one"]
    assert two_exports.post("/v1/preview", json=ASK | {"export": "one-new"}).status_code == 200
    assert active() == ["one"]
    assert two_exports.post("/v1/models/one-new/activate").json()["is_active"]
    assert active() == ["one-new"] and two_exports.get("/v1/popular").status_code == 200
    assert two_exports.post("/v1/models/rollback").json()["name"] == "one"
    assert active() == ["one"]
    assert two_exports.post("/v1/models/none/activate").status_code == 404
    assert two_exports.post("/v1/models/rollback").status_code == 400
    headers = {"Authorization": "Bearer write"}
    assert keyed.post("/v1/models/rollback", headers=headers).status_code == 403
    assert keyed.post("/v1/preview", json=ASK, headers=headers).status_code == 403


def test_no_call_fails_while_models_change(two_exports, ann):
    """Each answer is that of one of the models, whole; calls go on all the time."""

    def answer() -> tuple[int, str, tuple[str, ...]]:
        found = two_exports.post("/v1/recommendations", json=ASK | {"explain": False})
        body = found.json()
        return found.status_code, body["model"], tuple(i["item_id"] for i in body["items"])

    one = answer()
    two_exports.post("/v1/models/one-new/activate")
    other = answer()
    assert one[0] == other[0] == 200 and other[1] == "another training" and one[2] != other[2]
    stop, found = threading.Event(), []

    def call() -> None:
        while not stop.is_set():
            found.append(answer())

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for path in ("rollback", "one-new/activate", "rollback"):
        assert two_exports.post(f"/v1/models/{path}").status_code == 200
        seen = len(found)
        while len(found) < seen + 4 and all(thread.is_alive() for thread in threads):
            stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(found) == {one, other} and found[-1] == one
