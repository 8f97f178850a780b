"""Experiments in the service: lists, rules, exports and instructions by the user's arms."""

import json
import shutil
import threading
import time

import pytest
from fastapi.testclient import TestClient

from sigma_jax.serving.api.app import create_app
from sigma_jax.serving.api.context import Tenant
from sigma_jax.serving.api.keys import Keys
from sigma_jax.serving.api.service import Filters, TenantService
from sigma_jax.serving.bundle import MANIFEST
from sigma_jax.serving.engine import RecommendationEngine, SnapshotSettings
from sigma_jax.serving.experiments.assignment import Arm, Experiment
from sigma_jax.serving.nearline import NearlineSettings, NearlineWorker
from sigma_jax.serving.stores.base import StoreError

NOW = 1_700_000_000
ARMS = [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5}]


@pytest.fixture(scope="module")
def other(exported, tmp_path_factory):
    """Another model of the same items, with one beam."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("exports") / "few")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["fingerprints"]["sft"] = "m2"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return RecommendationEngine(folder, SnapshotSettings(beams=1))


@pytest.fixture
def client(service, other, shop, store, exported):
    """A client of a service with a second export, `few`."""
    others = {"few": TenantService(other, shop, clock=lambda: NOW)}
    tenant = Tenant.of("shop", exported, service, others)
    app = create_app({"shop": tenant}, store, Keys({}, "shop"), host="testserver")
    with TestClient(app, raise_server_exceptions=False) as client:
        client.tenant = tenant
        yield client


@pytest.fixture
def worker(engine, other, shop):
    settings = NearlineSettings(count=20, period=0.01)
    return NearlineWorker(engine, shop, "w1", settings, lambda: NOW, {"few": other})


def users_of(name):
    """(a user of arm a, a user of arm b) of an experiment with ARMS."""
    experiment = Experiment(name, (Arm("a", 0.5), Arm("b", 0.5)))
    arms = {experiment.arm_of(f"u{n}").name: f"u{n}" for n in range(50)}
    return arms["a"], arms["b"]


def start(client, name, **changes):
    body = {"arms": [ARMS[0], ARMS[1] | changes]}
    answer = client.put(f"/v1/experiments/{name}", json=body)
    assert answer.status_code == 201, answer.text
    return users_of(name)


def bought(client, worker, users, items):
    events = [{"user_id": user, "item_id": item} for user in users for item in items[:3]]
    client.post("/v1/events", json={"events": events})
    time.sleep(0.02)
    worker.run_once()


def read(client, user, **params):
    answer = client.get(f"/v1/users/{user}/recommendations", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def logged(client, shop, name):
    client.tenant.arms.exposures.flush()
    return shop.exposures(name, "", 99)


def test_worker_and_api_use_the_export_of_the_arm(client, worker, shop, items, engine, other):
    control, treated = start(client, "beams", export="few")
    bought(client, worker, (control, treated), items)
    assert shop.list_of(control, "home").model == engine.current.model
    assert shop.list_of(treated, "home").model == "m2"
    assert read(client, control)["arms"] == {"beams": "a"}
    answer = read(client, treated, count=4)
    assert answer["arms"] == {"beams": "b"} and answer["source"] == "index"
    events = client.get(f"/v1/users/{treated}/events").json()["events"]
    history = [{"item_id": one["item_id"], "timestamp": one["timestamp"]} for one in events]
    row = {"user_id": treated, "history": history, "timestamp": NOW}
    [expected] = other.recommend([row])
    assert ids(answer) == [item["item_id"] for item in expected["items"]][:4]
    computed = client.post("/v1/recommendations", json={"user_id": treated, "count": 4}).json()
    assert ids(computed) == ids(answer) and computed["arms"] == {"beams": "b"}


def test_exposures_are_logged_once_and_only_for_lists_of_the_arm(client, worker, shop, items):
    bought(client, worker, ["u0", *users_of("lists")], items)
    control, treated = start(client, "lists", lists={"home": "tea"})
    old = read(client, treated)
    assert old["arms"] == {} and read(client, "nobody")["source"] == "popular"
    assert logged(client, shop, "lists") == []  # the list is of before the experiment
    read(client, control)
    time.sleep(0.02)
    assert worker.run_once() == 2  # both are computed again, without an event
    new = read(client, treated, count=5)
    assert new["arms"] == {"lists": "b"} and ids(new) != ids(old)[:5]
    read(client, treated, count=3)  # the same hour
    read(client, control, is_shown=False)
    [exposure] = logged(client, shop, "lists")
    assert (exposure.user_id, exposure.arm, exposure.list_name) == (treated, "b", "home")
    assert exposure.items == tuple(ids(new)) and exposure.time == NOW
    read(client, control)
    client.post("/v1/recommendations", json={"user_id": treated, "instruction": "soap"})
    client.post("/v1/recommendations", json={"user_id": treated, "is_shown": False})
    client.post("/v1/recommendations", json={"instruction": "soap"})  # nobody
    found = {(one.user_id, one.list_name) for one in logged(client, shop, "lists")}
    assert found == {(treated, "home"), (control, "home"), (treated, "instruction")}


def test_after_the_end_no_list_of_an_arm_stays(client, worker, shop, items):
    _, treated = start(client, "lists", lists={"home": "tea"})
    bought(client, worker, [treated], items)
    assert read(client, treated)["arms"] == {"lists": "b"}
    stopped = client.post("/v1/experiments/lists/stop").json()
    assert stopped["stopped"] == NOW
    read(client, treated)
    time.sleep(0.02)
    assert worker.run_once() == 1
    assert read(client, treated)["arms"] == {}
    assert len(logged(client, shop, "lists")) == 1


def test_rules_and_ranking_of_an_arm(client, worker, shop, items, engine):
    control, treated = start(client, "rules", rules={"no i": {"kind": "at_most", "count": 0}})
    bought(client, worker, (control, treated), items)
    assert len(ids(read(client, control))) == 10
    without = ids(read(client, treated))
    assert all(engine.current.version.catalogue.category[items.index(one)] < 0 for one in without)
    assert ids(client.post("/v1/recommendations", json={"user_id": treated}).json()) == without
    start(client, "own", ranking={"exclude_seen": True})
    _, again = users_of("own")
    bought(client, worker, [again], items)
    assert not set(items[:3]) & set(ids(read(client, again, count=20)))
    seen = client.post("/v1/recommendations", json={"user_id": again, "count": 50}).json()
    assert not set(items[:3]) & set(ids(seen))


def test_a_late_answer_exposes_what_was_shown(client, worker, shop, items):
    _, treated = start(client, "lists", lists={"home": "tea"})
    bought(client, worker, [treated], items)
    batcher = client.tenant.batcher
    compute, is_done = batcher._compute, threading.Event()

    def late(asks, load):
        time.sleep(0.3)
        found = compute(asks, load)
        is_done.set()
        return found

    batcher._compute = late
    body = {"user_id": treated, "deadline_ms": 20}
    assert client.post("/v1/recommendations", json=body).json()["source"] == "index"
    assert is_done.wait(60)
    assert [one.list_name for one in logged(client, shop, "lists")] == ["home"]


def test_a_store_that_is_full_is_read_all_the_same(client, worker, shop, items, monkeypatch):
    bought(client, worker, [users_of("lists")[1]], items)
    _, treated = start(client, "lists", lists={"home": "tea"})

    def fail(self, rows):
        raise StoreError("full")

    monkeypatch.setattr(type(shop), "ask_again", fail)
    assert read(client, treated)["source"] == "index"


def test_jobs_expose_nobody(client, shop):
    _, treated = start(client, "lists", lists={"home": "tea"})
    job = client.post("/v1/jobs", json={"requests": [{"user_id": treated}]}).json()
    for _ in range(200):
        if client.get(f"/v1/jobs/{job['job_id']}").json()["state"] == "done":
            break
        time.sleep(0.05)
    assert client.get(f"/v1/jobs/{job['job_id']}").json()["answers"][0]["arms"] == {"lists": "b"}
    assert logged(client, shop, "lists") == []


def test_a_report_over_http(client, worker, items):
    users = start(client, "lists", lists={"home": "tea"})
    bought(client, worker, users, items)
    shown = {user: ids(read(client, user)) for user in users}
    client.tenant.arms.exposures.flush()
    event = {"user_id": users[1], "item_id": shown[users[1]][0], "timestamp": NOW + 60}
    client.post("/v1/events", json={"events": [event]})
    params = {"window_hours": 1}
    report = client.get("/v1/experiments/lists/report", params=params).json()
    assert [arm["waiting"] for arm in report["arms"]] == [1, 1]  # the clock stands still
    client.tenant.service.clock = lambda: NOW + 3601
    report = client.get("/v1/experiments/lists/report", params=params).json()
    assert [arm["hits"] for arm in report["arms"]] == [0, 1]
    assert report["comparisons"][0]["difference"] == 1.0


def test_wrong_experiments_are_refused(client):
    def put(name, *arms, **fields):
        answer = client.put(f"/v1/experiments/{name}", json={"arms": list(arms), **fields})
        return answer.status_code, answer.json().get("error", "")

    few = ARMS[1] | {"export": "few"}
    assert put("x", ARMS[0])[0] == 422
    assert put("x", ARMS[0], ARMS[0])[1].endswith("name two or more.")
    assert "--arm_exports=new=FOLDER" in put("x", ARMS[0], ARMS[1] | {"export": "new"})[1]
    beams = ARMS[1] | {"ranking": {"num_beams": 2}}
    assert put("x", ARMS[0], beams)[1].startswith("ranking.num_beams is unknown")
    cold = ARMS[1] | {"ranking": {"temperature": -1}}
    assert put("x", ARMS[0], cold)[0] == 400
    assert put("x", ARMS[0], ARMS[1] | {"ranking": {"temperature": "hot"}})[0] == 400
    assert put("x", ARMS[0], few) == (201, "")
    assert put("x", ARMS[0], few)[0] == 409
    assert put("y", ARMS[0], few) == (
        400,
        "experiment 'x' runs and changes the export too; stop it first.",
    )
    assert client.delete("/v1/experiments/x").status_code == 409
    assert client.get("/v1/experiments").json()["x"]["stopped"] is None
    assert client.post("/v1/experiments/x/stop").status_code == 200
    assert client.delete("/v1/experiments/x").status_code == 204
    for method, path in (("POST", "none/stop"), ("DELETE", "none"), ("GET", "none/report")):
        assert client.request(method, f"/v1/experiments/{path}").status_code == 404


def test_a_process_without_the_export_of_an_arm_serves_its_own(
    client, engine, shop, service, exported, items
):
    _, treated = start(client, "beams", export="few")
    worker = NearlineWorker(engine, shop, "w9", NearlineSettings(count=9, period=0.01), lambda: NOW)
    bought(client, worker, [treated], items)
    assert shop.list_of(treated, "home").arms == {}
    assert shop.list_of(treated, "home").model == engine.current.model
    assert read(client, treated)["source"] == "index"
    assert logged(client, shop, "beams") == []
    lone = Tenant.of("shop", exported, service)
    answer = lone.arms.recommendations(treated, "home", Filters(5))
    assert answer.source == "index"
