"""The routes of the service: what they answer, and what they say to wrong calls."""

import dataclasses
import errno
import json
import re
import threading
import time

import jax
import pytest

from sigma_jax.serving.api.models import Ask
from sigma_jax.serving.api.routes import admin, jobs
from sigma_jax.serving.load import BeamChooser, FewerBeams, Load
from sigma_jax.serving.nearline import NearlineSettings, NearlineWorker
from sigma_jax.serving.stores.base import Event

EVENTS = [
    {"user_id": "ann", "item_id": "i1", "timestamp": 1_699_000_000, "event_id": "e1"},
    {"user_id": "ann", "item_id": "i2", "timestamp": 1_699_000_100, "event": "view"},
    {"user_id": "bob", "item_id": "i3"},
]
LINES = {"Content-Type": "application/x-ndjson"}


def ids(answer):
    return [item["item_id"] for item in answer.json()["items"]]


@pytest.fixture
def listed(client, worker, items):
    """A client of a service whose worker has computed the lists of ann."""
    events = [{"user_id": "ann", "item_id": item} for item in items[:3]]
    assert client.post("/v1/events", json={"events": events}).json()["stored"] == 3
    time.sleep(0.02)
    assert worker.is_due() and worker.run_once() == 1
    return client


def test_users(client):
    assert client.get("/v1/users/ann").status_code == 404
    body = {"profile": {"city": "Łódź", "age": 3}}
    assert client.put("/v1/users/ann", json=body).json() == {"user_id": "ann", **body}
    lines = b'{"user_id": "bob", "profile": {}}\n\n{"user_id": "c y/1", "profile": {"a": null}}\n'
    assert client.post("/v1/users/bulk", content=lines, headers=LINES).json() == {"stored": 2}
    assert client.get("/v1/users").json() == {"user_ids": ["ann", "bob", "c y/1"]}
    assert client.get("/v1/users", params={"after": "ann", "count": 1}).json()["user_ids"] == [
        "bob"
    ]
    assert client.get("/v1/users/ann").json()["profile"] == body["profile"]
    assert client.delete("/v1/users/ann").status_code == 204
    assert client.delete("/v1/users/ann").status_code == 404


def test_users_with_events_alone_are_users(client):
    assert client.put("/v1/users/bob", json={"profile": {"age": 3}}).status_code == 200
    for user in ("ann", "bob", "cy"):
        body = {"events": [{"user_id": user, "item_id": "i1"}]}
        assert client.post("/v1/events", json=body).status_code == 200
    assert client.get("/v1/users").json() == {"user_ids": ["ann", "bob", "cy"]}
    assert client.get("/v1/users/ann").json() == {"user_id": "ann", "profile": {}}
    assert client.get("/v1/users/dan").status_code == 404


def test_names_that_nothing_has_are_said(client, worker, items):
    events = [{"user_id": "ann", "item_id": item} for item in (items[0], "nothing", "nowhere")]
    answer = client.post("/v1/events", json={"events": events})
    assert answer.json() == {"stored": 3, "unknown_items": 2}
    lines = "\n".join(json.dumps(event) for event in events[:2])
    answer = client.post("/v1/events/bulk", content=lines, headers=LINES)
    assert answer.json() == {"stored": 2, "unknown_items": 1}
    answer = client.put("/v1/items/nothing/state", json={"hidden": True})
    assert answer.status_code == 404 and "no item 'nothing' in the cat" in answer.json()["error"]
    path = "/v1/users/bob/recommendations"
    assert client.get(path, params={"task": "hom"}).json()["source"] == "popular"  # nobody reports
    worker.report()
    time.sleep(1.1)  # what the service knows may be a second old
    for more in ({}, {"seen": "hide"}):  # the short way, and that of the route
        answer = client.get(path, params={"task": "hom", **more})
        assert answer.status_code == 404
        assert answer.json()["error"] == "there is no list 'hom', only home"
        assert client.get(path, params={"task": "home", **more}).json()["source"] == "popular"


def test_events(client):
    assert client.post("/v1/events", json={"events": EVENTS}).json()["stored"] == 3
    assert client.post("/v1/events", json={"events": EVENTS[:1]}).json()["stored"] == 0
    lines = "\n".join(map(json.dumps, EVENTS[:1] + [EVENTS[0] | {"event_id": "e9"}]))
    assert client.post("/v1/events/bulk", content=lines, headers=LINES).json()["stored"] == 1
    found = client.get("/v1/users/ann/events").json()["events"]
    assert [one["item_id"] for one in found] == ["i1", "i1", "i2"]
    assert found[-1] == {
        "item_id": "i2",
        "title": "",
        "timestamp": 1_699_000_100,
        "event": "view",
        "event_id": "",
        "session_id": "",
    }
    [of_bob] = client.get("/v1/users/bob/events").json()["events"]
    assert of_bob["timestamp"] == 1_700_000_000  # the time of the service


@pytest.mark.parametrize(
    "timestamp, message",
    [
        (17_145_666_000, "17145666000 is after the year 2100; send unix seconds, not milliseco"),
        (1_714_566_600_000, "1714566600000 is after the year 2100; send unix seconds"),
        (20_240_501, "20240501 reads as a day, YYYYMMDD; send unix seconds"),
        (1_700_090_000, "1700090000 is 1.0 days ahead of the service's clock; send unix seconds"),
    ],
)
def test_times_that_no_request_can_hold_are_refused(client, shop, timestamp, message):
    event = {"user_id": "ann", "item_id": "i1", "timestamp": timestamp}
    answer = client.post("/v1/events", json={"events": [EVENTS[2], event]})
    assert answer.status_code == 422 and answer.json()["error"].startswith(message)
    assert answer.json()["where"] == "body.events.1.timestamp"
    lines = "\n".join(map(json.dumps, [EVENTS[2], event]))
    answer = client.post("/v1/events/bulk", content=lines, headers=LINES)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(f"line 2: timestamp {message}")
    assert shop.users("", 9) == []
    event["timestamp"] = 1_700_080_000  # less than a day
    assert client.post("/v1/events", json={"events": [event]}).status_code == 200


def test_events_with_unreadable_times_are_left_out(client, shop, worker, items, caplog):
    """Stores of before times were checked may hold them."""
    times = (17_145_666_000, 20_240_501, 253_402_300_799, 1_699_000_000)
    shop.add_events([Event("ann", items[n], time) for n, time in enumerate(times)])
    shop.add_events([Event("bob", items[3], times[3])])
    body = {"count": 5, "deadline_ms": 60_000}
    answers = [
        client.post("/v1/recommendations", json=body | {"user_id": user}) for user in ("ann", "bob")
    ]
    assert ids(answers[0]) == ids(answers[1]) and answers[0].json()["source"] == "computed"
    assert "user 'ann': 3 events are left out" in caplog.text
    time.sleep(0.02)
    assert worker.run_once() == 2 and worker.totals.failed == 0
    assert client.get("/v1/users/ann/recommendations").json()["source"] == "index"


def test_a_changed_profile_renews_the_list(client, worker, shop):
    assert client.put("/v1/users/ann", json={"profile": {"age": 3}}).status_code == 200
    lines = b'{"user_id": "bob"}\n{"user_id": "cy", "profile": {"age": 4}}'
    assert client.post("/v1/users/bulk", content=lines, headers=LINES).json() == {"stored": 2}
    time.sleep(0.02)
    assert worker.run_once() == 3
    for user in ("ann", "bob", "cy"):
        answer = client.get(f"/v1/users/{user}/recommendations")
        assert answer.json()["source"] == "index"
    made = shop.list_of("ann", "home").made
    client.put("/v1/users/ann", json={"profile": {"age": 9}})
    time.sleep(0.02)
    assert worker.run_once() == 1 and shop.list_of("ann", "home").made > made


@pytest.mark.parametrize(
    "row",
    [
        {"user_id": ""},
        {"user_id": "x" * 257},
        {"user_id": "a\0b"},
        {"user_id": "ann", "profile": {"a": {"b": 1}}},
        {"user_id": "ann", "profile": {"a": [1]}},
        {"user_id": "ann", "profile": {"": 1}},
        {"user_id": "ann", "profile": {str(n): n for n in range(101)}},
        {"user_id": "ann", "age": 3},
        {"profile": {}},
    ],
    ids=str,
)
def test_rows_of_many_users_are_checked(client, shop, row):
    lines = '{"user_id": "bob"}\n' + json.dumps(row)
    answer = client.post("/v1/users/bulk", content=lines, headers=LINES)
    assert answer.status_code == 422 and answer.json()["error"].startswith("line 2: ")
    assert shop.users("", 9) == []


def test_events_are_deleted_and_read_as_lines(client, shop, worker):
    client.post("/v1/events", json={"events": EVENTS})
    lines = client.get("/v1/events")
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    rows = [json.loads(line) for line in lines.text.splitlines()]
    assert rows[:2] == EVENTS[:2]  # no field that is empty
    assert [(one["user_id"], one["item_id"]) for one in rows] == [
        ("ann", "i1"),
        ("ann", "i2"),
        ("bob", "i3"),
    ]
    assert client.post("/v1/events/bulk", content=lines.text, headers=LINES).status_code == 200
    later = client.get("/v1/events", params={"since": 1_699_000_050}).text.splitlines()
    assert {json.loads(line)["item_id"] for line in later} == {"i2", "i3"}
    assert '"ann"' not in client.get("/v1/events", params={"after": "ann"}).text
    assert client.delete("/v1/users/ann/events/e1").json() == {"deleted": 1}
    assert client.delete("/v1/users/ann/events/e1").status_code == 404
    assert client.delete("/v1/users/ann/events").json() == {"deleted": 2}
    answer = client.delete("/v1/users/ann/events")
    assert answer.status_code == 404 and answer.json()["error"] == "user 'ann' has no event"
    assert client.get("/v1/users/ann/events").json()["events"] == []


def test_the_description_says_how_to_call(app):
    found = app.openapi()
    schemes = found["components"]["securitySchemes"]
    assert schemes["HTTPBearer"]["scheme"] == "bearer"
    assert schemes["APIKeyHeader"]["name"] == "X-API-Key"
    for path, methods in found["paths"].items():
        for operation in methods.values():
            assert bool(operation.get("security")) == path.startswith("/v1/")
    for path, method in (("users/bulk", "post"), ("events/bulk", "post"), ("items/states", "put")):
        body = found["paths"][f"/v1/{path}"][method]["requestBody"]
        row = body["content"]["application/x-ndjson"]["schema"]
        assert body["required"] and row["type"] == "object" and "line" in body["description"]
        assert {"user_id", "item_id"} & set(row["properties"])


def test_a_user_with_events_gets_a_list_of_the_index(listed, worker):
    answer = listed.get("/v1/users/ann/recommendations", params={"count": 5})
    body = answer.json()
    assert answer.status_code == 200 and body["source"] == "index" and len(body["items"]) == 5
    assert 0 <= body["age_seconds"] < 60 and body["version"] == "0001"
    probabilities = [item["probability"] for item in body["items"]]
    assert probabilities == sorted(probabilities, reverse=True) and probabilities[0] > 0
    assert body["items"][0]["reasons"] == [] and body["items"][0]["details"] == {}
    explained = listed.get("/v1/users/ann/recommendations", params={"explain": True}).json()
    assert set(explained["items"][0]["details"]) == {"prefix", "cosine"}
    assert worker.run_once() == 0 and worker.totals.users == 1
    missing = listed.get("/v1/users/ann/recommendations", params={"task": "other"}).json()
    assert missing["source"] == "popular"


def test_an_unknown_user_gets_popular_items(client, engine, items):
    answer = client.get("/v1/users/nobody/recommendations", params={"count": 7})
    popularity = engine.current.version.catalogue.popularity
    assert answer.json()["source"] == "popular" and len(ids(answer)) == 7
    shown = [int(popularity[items.index(item)]) for item in ids(answer)]
    assert shown == sorted(popularity.tolist(), reverse=True)[:7]
    assert ids(client.get("/v1/popular", params={"count": 7})) == ids(answer)


def test_filters(listed, engine, items):
    def get(**params):
        return listed.get("/v1/users/ann/recommendations", params={"count": 20} | params)

    everything = ids(get())
    popular = ids(listed.get("/v1/popular", params={"count": 100}))
    filled_up = everything + [item for item in popular if item not in everything]
    left = [item for item in filled_up if item not in everything[:2]]
    assert ids(get(exclude=everything[:2])) == left[:20]
    own = set(items[:3])
    assert ids(get(seen="own")) == [item for item in filled_up if item in own]
    assert ids(get(seen="hide")) == [item for item in filled_up if item not in own][:20]
    catalogue = engine.current.version.catalogue
    names = catalogue.categories.to_pylist()
    category = names[catalogue.category[items.index(everything[0])]]
    found = ids(get(categories=[category]))
    assert found and set(found) == {
        item for item in items if names[catalogue.category[items.index(item)]] == category
    }


def test_hidden_items_vanish_at_once(listed):
    first, second, third, *_ = before = ids(listed.get("/v1/users/ann/recommendations"))
    assert listed.put(f"/v1/items/{first}/state", json={"hidden": True}).status_code == 200
    listed.put(f"/v1/items/{second}/state", json={"stock": 0})
    listed.put(f"/v1/items/{third}/state", json={"expires": time.time() - 1})
    after = ids(listed.get("/v1/users/ann/recommendations"))
    assert after[:7] == before[3:]
    computed = ids(listed.post("/v1/recommendations", json={"user_id": "ann", "count": 50}))
    assert computed and not {first, second, third} & set(computed)
    assert listed.get(f"/v1/items/{second}/state").json() == {
        "hidden": False,
        "stock": 0,
        "expires": None,
    }
    listed.put(f"/v1/items/{first}/state", json={})
    assert first in ids(listed.get("/v1/users/ann/recommendations"))


def test_items_that_a_newer_version_lacks_leave_the_lists(listed, service, engine, monkeypatch):
    first, second, *_ = ids(listed.get("/v1/users/ann/recommendations"))
    is_active = engine.current.version.is_active.copy()
    is_active[engine.current.parser.item_index.find(first)] = False
    version = dataclasses.replace(engine.current.version, is_active=is_active)
    newer = dataclasses.replace(engine.current, name="0002", version=version)
    monkeypatch.setattr(engine, "current", newer)
    assert ids(listed.get("/v1/users/ann/recommendations"))[0] == second
    assert listed.get("/v1/users/ann/recommendations").json()["version"] == "0001"


def test_an_instruction_is_answered_at_once(listed, engine, items):
    answer = listed.post("/v1/recommendations", json={"user_id": "ann", "instruction": "soap"})
    assert answer.json()["source"] == "computed" and answer.json()["instruction"] == "soap"
    row = {"user_id": "ann", "instruction": "soap", "timestamp": 1_700_000_000}
    history = listed.get("/v1/users/ann/events").json()["events"]
    row["history"] = [{"item_id": e["item_id"], "timestamp": e["timestamp"]} for e in history]
    row["timestamp"] = max(1_700_000_000, *(event["timestamp"] for event in history))
    [expected] = engine.recommend([row])
    assert ids(answer) == [item["item_id"] for item in expected["items"]]
    anyone = listed.post("/v1/recommendations", json={"count": 3}).json()
    assert anyone["user_id"] == "" and len(anyone["items"]) == 3


def test_a_late_answer_comes_from_the_index(listed, service, app, monkeypatch):
    compute = service.compute
    app.state.context.tenants["shop"].batcher._compute = lambda asks, load: (
        time.sleep(0.3) or compute(asks)
    )
    body = {"user_id": "ann", "deadline_ms": 20}
    answer = listed.post("/v1/recommendations", json=body).json()
    assert answer["source"] == "index" and answer["is_late"]
    answer = listed.post("/v1/recommendations", json=body | {"deadline_ms": 60_000}).json()
    assert answer["source"] == "computed" and not answer["is_late"]
    text = listed.get("/metrics").text
    assert 'sigma_late_answers_total{tenant="shop"} 1.0' in text


def test_similar_items(client, engine, items):
    version = engine.current.version
    answer = client.get(f"/v1/items/{items[4]}/similar", params={"count": 6})
    cosines = version.fused @ version.fused[4]
    cosines[4] = -2
    assert ids(answer) == [items[n] for n in (-cosines).argsort(kind="stable")[:6]]
    assert answer.json()["items"][0]["probability"] is None
    assert client.get("/v1/items/none/similar").status_code == 404


def test_jobs(client):
    asks = [{"instruction": "tea"}, {"user_id": "ann", "count": 2}]
    job = client.post("/v1/jobs", json={"requests": asks})
    assert job.status_code == 202
    for _ in range(200):
        found = client.get(f"/v1/jobs/{job.json()['job_id']}").json()
        if found["state"] == "done":
            break
        time.sleep(0.05)
    assert [len(answer["items"]) for answer in found["answers"]] == [10, 2]
    assert client.get("/v1/jobs/none").status_code == 404


def test_rules(listed, items):
    def get():
        return listed.get("/v1/users/ann/recommendations", params={"explain": True})

    first, second, *_ = before = ids(get())
    pinned = next(item for item in items if item not in before)
    listed.put("/v1/rules/a pin", json={"kind": "pin", "items": [pinned], "place": 2})
    assert ids(get())[:3] == [first, pinned, second]
    assert get().json()["items"][1]["reasons"] == ["pinned (a pin)"]
    listed.put("/v1/rules/bury", json={"kind": "bury", "items": [first], "factor": 1e6})
    assert ids(get())[:2] == [second, pinned]
    assert set(listed.get("/v1/rules").json()) == {"a pin", "bury"}
    assert listed.delete("/v1/rules/bury").status_code == 204
    assert listed.delete("/v1/rules/bury").status_code == 404
    assert ids(get())[0] == first


def test_rules_name_what_the_catalogue_has(client, items):
    def refusal(**rule):
        answer = client.put("/v1/rules/r", json=rule)
        return answer.status_code, answer.json()["error"]

    status, error = refusal(kind="boost", items=[items[0], "itme"], categories=["no such"])
    assert status == 400 and "'itme', 'no such', 2 unknown of 3 names" in error
    for wrong in ({}, {"items": items[:1], "categories": ["tea"]}):
        assert refusal(kind="pin", **wrong) == (422, "a pin needs items, and takes no categories")
    arms = [
        {"name": "a", "share": 0.5},
        {"name": "b", "share": 0.5, "rules": {"r": {"kind": "bury", "items": ["itme"]}}},
    ]
    answer = client.put("/v1/experiments/e", json={"arms": arms})
    assert answer.status_code == 400 and "rule 'r'" in answer.json()["error"]
    assert client.get("/v1/rules").json() == {} == client.get("/v1/experiments").json()


def test_operations(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    text = client.get("/metrics").text
    assert "sigma_request_seconds_bucket" in text and 'sigma_store_up{tenant="shop"} 1.0' in text
    assert 'sigma_warmed_up{tenant="shop"} 0.0' in text
    assert client.post("/v1/drain").json() == {"status": "draining"}
    assert client.get("/readyz").status_code == 503
    assert client.get("/v1/popular").status_code == 200


@pytest.mark.parametrize(
    "method, path, body, status, where",
    [
        ("POST", "/v1/events", {"events": []}, 422, "body.events"),
        ("POST", "/v1/events", {"events": [{"user_id": "a"}]}, 422, "body.events.0.item_id"),
        (
            "POST",
            "/v1/events",
            {"events": [{"user_id": "", "item_id": "i"}]},
            422,
            "body.events.0.user_id",
        ),
        (
            "POST",
            "/v1/events",
            {"events": [{"user_id": "a\0", "item_id": "i"}]},
            422,
            "body.events.0.user_id",
        ),
        (
            "POST",
            "/v1/events",
            {"events": [EVENTS[0] | {"price": 2}]},
            422,
            "body.events.0.price",
        ),
        (
            "POST",
            "/v1/events",
            {"events": [EVENTS[0] | {"timestamp": -1}]},
            422,
            "body.events.0.timestamp",
        ),
        ("POST", "/v1/recommendations", {"count": 0}, 422, "body.count"),
        ("POST", "/v1/recommendations", {"seen": "maybe"}, 422, "body.seen"),
        ("POST", "/v1/recommendations", {"instruction": "x" * 100_001}, 422, "body.instruction"),
        ("PUT", "/v1/items/i/state", {"stock": -1}, 422, "body.stock"),
        ("PUT", "/v1/rules/r", {"kind": "delete"}, 422, "body.kind"),
        ("GET", "/v1/users/a/recommendations?count=1000", None, 422, "query.count"),
        ("GET", "/v1/nothing", None, 404, ""),
        ("DELETE", "/v1/popular", None, 405, ""),
    ],
)
def test_wrong_calls_get_one_clear_line(client, method, path, body, status, where):
    answer = client.request(method, path, json=body)
    assert answer.status_code == status
    assert answer.json()["where"] == where and answer.json()["error"]


def test_bodies_that_are_no_json(client):
    for content in (b"{", b"\xff\xfe", b"[]", b'"text"', b'{"events": NaN}'):
        answer = client.post("/v1/events", content=content)
        assert 400 <= answer.status_code < 500 and answer.json()["error"], content
    answer = client.post(
        "/v1/events/bulk", content=b'{"user_id": "a", "item_id": "b"}\n{', headers=LINES
    )
    assert answer.status_code == 422 and answer.json()["error"].startswith("line 2: ")
    assert client.post("/v1/events/bulk", content=b"", headers=LINES).status_code == 422
    assert client.get("/v1/users/a/events").json()["events"] == []


def test_a_body_that_is_too_long(client):
    answer = client.post("/v1/events/bulk", content=b"x" * (8 * 2**20 + 1), headers=LINES)
    assert answer.status_code == 413 and "more than 8388608 bytes" in answer.json()["error"]

    def parts():
        for _ in range(9):
            yield b"x" * 2**20

    assert client.post("/v1/events/bulk", content=parts(), headers=LINES).status_code == 413


def test_a_store_that_fails_is_a_503(client, store, monkeypatch):
    store.path.unlink()
    store.close()
    store.path.mkdir()
    answer = client.get("/v1/users")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert "store.db" not in answer.text
    assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
    assert 'sigma_store_up{tenant="shop"} 0.0' in client.get("/metrics").text


def test_an_error_of_the_service_shows_no_trace(client, service, monkeypatch):
    def fail(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(service, "popular", fail)
    answer = client.get("/v1/popular")
    assert answer.status_code == 500 and "secret" not in answer.text


def test_scopes(keyed):
    def status(method, path, key, **body):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return keyed.request(method, path, headers=headers, **body).status_code

    event = {"events": EVENTS[2:]}
    rule = {"kind": "at_most"}
    assert status("GET", "/v1/popular", "") == 401
    assert status("GET", "/v1/popular", "unknown") == 401
    assert status("GET", "/v1/popular", "other") == 401  # of a tenant that is not here
    assert status("GET", "/v1/popular", "read") == 200
    assert status("POST", "/v1/events", "read", json=event) == 403
    assert status("POST", "/v1/events", "write", json=event) == 200
    assert status("PUT", "/v1/rules/r", "write", json=rule) == 403
    assert status("PUT", "/v1/rules/r", "admin", json=rule) == 200
    assert status("GET", "/v1/popular", "admin") == 200
    assert keyed.get("/v1/popular", headers={"X-API-Key": "read"}).status_code == 200
    assert keyed.get("/healthz").status_code == 200


def test_too_many_calls_of_a_caller(keyed):
    headers = {"X-API-Key": "read"}
    codes = [keyed.get("/v1/rules", headers=headers).status_code for _ in range(20)]
    assert codes[:10] == [200] * 10 and 429 in codes
    assert keyed.get("/v1/rules", headers={"X-API-Key": "write"}).status_code == 200


def test_a_job_whose_process_died_is_begun_again(client, app, service, monkeypatch):
    body = {"requests": [{"instruction": "tea"}]}
    monkeypatch.setattr(jobs, "start_job", lambda *_: None)  # it dies at once
    path = f"/v1/jobs/{client.post('/v1/jobs', json=body).json()['job_id']}"
    service.store.put_document(jobs.JOB_RUN, path[9:], 1, 600)  # another process runs it
    monkeypatch.undo()
    assert [client.get(path).json()["state"] for _ in range(3)] == ["waiting"] * 3
    service.store.delete_document(jobs.JOB_RUN, path[9:])
    for _ in range(200):
        found = client.get(path).json()
        if found["state"] == "done" and not app.state.context.jobs:
            break
        time.sleep(0.05)
    assert len(found["answers"]) == 1 and len(found["answers"][0]["items"]) == 10
    assert not app.state.context.jobs
    assert service.store.document(jobs.JOB_REQUESTS, path[9:]) is None


def test_seen_looks_at_all_events(client, shop, worker, items):
    shop.add_events([Event("ann", items[0], 1)])
    old, new = items[0], items[1]
    shop.add_events([Event("ann", new, 2 + n) for n in range(1_100)])
    worker.run_once()
    for path in ("/v1/users/ann/recommendations", None):
        for seen in ("hide", "own"):
            if path:
                found = client.get(path, params={"seen": seen, "count": 100})
            else:
                ask = {"user_id": "ann", "seen": seen, "count": 100}
                found = client.post("/v1/recommendations", json=ask)
            assert (old in ids(found)) <= (seen == "own")
            assert not {old, new} & set(ids(found)) or seen == "own"


def test_the_description_needs_no_network(client):
    for path in ("/docs", "/redoc"):
        page = client.get(path).text
        for link in re.findall(r'(?:src|href)="([^"]+)"', page):
            assert link.startswith("/") and client.get(link).status_code == 200, link
    assert "swagger-ui-bundle.js" in client.get("/docs").text


def test_a_full_disk_is_said(client, service, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(service, "popular", fail)
    answer = client.get("/v1/popular")
    assert answer.status_code == 507 and "disk of the service is full" in answer.json()["error"]


def test_answers_under_load_have_fewer_beams_and_say_so(client, service, engine):
    """Of 32 beams the tiny shop has use for 8; a sixteenth searches 2 prefixes."""
    service.chooser = BeamChooser(FewerBeams.read(["3:0.0625"]))
    asks = [Ask(user_id="ann", instruction="tea", count=20, explain=True)]

    def prefixes(answer):
        return {item.details["prefix"] for item in answer.items} - {0}

    [whole] = service.compute(asks, load=Load(99))  # not compiled yet
    assert whole.num_beams == 32 and max(prefixes(whole)) > 2
    stop = threading.Event()
    stop.set()
    service.warm_fewer_beams([1], stop)
    assert service.compute(asks, load=Load(3))[0].num_beams == 32  # not all are compiled
    service.warm_fewer_beams([1], threading.Event())
    [less] = service.compute(asks, load=Load(3))
    assert less.num_beams == 2 and 1 <= max(prefixes(less)) <= 2
    [calm] = service.compute(asks, load=Load(2))
    assert calm.num_beams == 32 and calm.items == whole.items
    answer = client.post("/v1/recommendations", json={"user_id": "ann", "deadline_ms": 60_000})
    assert answer.json()["num_beams"] == 32
    metric = 'sigma_computed_answers_total{beams="32",tenant="shop"} 1.0'
    assert metric in client.get("/metrics").text
    assert client.get("/v1/popular").json()["num_beams"] is None
    # A new version of the catalogue answers these before it goes live.
    assert {1.0, 0.0625} <= {one.options.beam_share for one in engine._recent.values()}


@pytest.mark.slow
def test_a_warmed_service_compiles_no_large_program_for_any_request(service, client, items, caplog):
    stop = threading.Event()
    stop.set()
    service.warm_rest([1, 2, 4], stop)
    assert client.get("/readyz?is_warmed_up=true").status_code == 503
    service.warm_rest([1, 2, 4], threading.Event())
    assert 'sigma_warmed_up{tenant="shop"} 1.0' in client.get("/metrics").text
    assert client.get("/readyz?is_warmed_up=true").status_code == 200
    sentences = ("", "tea", "a thing without tea", "something warm for a long evening at home")
    asks = [
        [Ask(user_id=user, instruction=f"{sentence} {n}") for n in range(size)]
        for sentence in sentences
        for size in (1, 2, 3)
        for user in ("ann", "nobody")
    ]
    for number, item in enumerate(items[:5]):
        event = {"user_id": "ann", "item_id": item, "timestamp": 1_699_000_000 + number}
        assert client.post("/v1/events", json={"events": [event]}).json()["stored"] == 1
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for ask in asks:
            assert all(len(answer.items) == 10 for answer in service.compute(ask))
    compiled = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    assert not {"rank", "search_beams", "answer_instructions", "all_candidates"} & set(compiled)


def test_errors_of_new_items_name_no_file_of_the_service(client):
    answer = client.post("/v1/catalogue/items", json={"items": [{"title": "a new tea"}]})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error.startswith("items: column 'item_id' is missing")
    assert "/" not in error.partition(";")[0]


@pytest.mark.parametrize("path", ["rollback", "versions/0001/activate", "items"])
def test_a_read_only_export_is_not_changed_and_the_caller_is_told(client, monkeypatch, path):
    def locked(folder):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(admin, "locked", locked)
    answer = client.post(f"/v1/catalogue/{path}", json={"items": [{"item_id": "new"}]})
    assert answer.status_code == 409 and "sigma_jax.catalogue" in answer.json()["error"]


def test_metrics_tell_workers_and_the_time_from_event_to_list(client, engine, shop, items):
    worker = NearlineWorker(engine, shop, "w1", NearlineSettings(count=4, period=0.01))
    assert 'sigma_workers{tenant="shop"} 0.0' in client.get("/metrics").text
    shop.add_events([Event("ann", items[0], 1_699_000_000)])
    worker.run_once()
    worker.report()
    lines = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['sigma_workers{tenant="shop"}'] == "1.0"
    of_worker = 'tenant="shop",worker="w1"'
    assert values[f"sigma_worker_batches{{{of_worker}}}"] == "1.0"
    name = "sigma_event_to_list_seconds"
    assert float(values[f"{name}_count{{{of_worker}}}"]) == 1
    assert 0 < float(values[f"{name}_sum{{{of_worker}}}"]) < 60
    buckets = [float(value) for key, value in values.items() if key.startswith(f"{name}_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == 1 and len(buckets) == 13
