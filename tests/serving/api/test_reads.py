"""Plain reads of the index: answered as the route of FastAPI answers them, only sooner."""

import random
import time

import pytest

from sigma_jax.serving.api import reads
from sigma_jax.serving.api.service import Filters
from sigma_jax.serving.stores.base import StoredList, StoreError

USERS = ["ann", "bob", "no list", "a%b", "ü ñ", "x" * 256]
QUERIES = ["", "count=1", "count=100", "count=07", "explain=true", "explain=1", "task=tea"]
QUERIES += ["task=", "count=0"]
QUERIES += [
    "count=3&count=2",
    "count=2&explain=false&task=home",
    "seen=show",
    "count=2&",
    "count=0",
]
QUERIES += ["count=%32", "task=a%20b", "other=1", "&count=2", "count=2&task=none&explain=true"]
EXPLAINED = Filters(10, explain=True)


@pytest.fixture
def filled(client, shop, engine):
    """A client of a service with some lists and a rule."""
    items = engine.current.version.catalogue.table["item_id"].to_pylist()

    def a_list(ids):
        rows = [
            {"item_id": one, "title": f"T {one}", "probability": 0.5 / (n + 1), "cosine": 0.25}
            for n, one in enumerate(ids)
        ]
        return StoredList(tuple(rows), time.time() - 5, "m1", "0001", 1)

    lists = {user: {"home": a_list(items[:20]), "tea": a_list(items[5:9])} for user in USERS}
    del lists["no list"]
    shop.put_lists(lists, 600)
    client.put("/v1/rules/r", json={"kind": "pin", "items": items[-1:], "place": 2})
    client.put(f"/v1/items/{items[3]}/state", json={"hidden": True})
    return client


def compared(client, user, query):
    """The answer of a read, after the time that passes."""
    path = f"/v1/users/{user.replace('%', '%25').replace('ü', '%C3%BC')}/recommendations"
    answer = client.get(f"{path}?{query}" if query else path)
    body = answer.json()
    if "age_seconds" in body:
        assert 5 <= body.pop("age_seconds") < 60 or body["source"] == "popular"
    return answer.status_code, answer.headers["content-type"], body


def test_both_ways_answer_the_same(filled, monkeypatch):
    calls = [(user, query) for user in USERS for query in QUERIES]
    found = [compared(filled, *call) for call in calls]
    monkeypatch.setattr(reads, "read_of", lambda scope: None)  # all go to the route
    assert found == [compared(filled, *call) for call in calls]
    assert {status for status, _, _ in found} == {200, 422}


@pytest.mark.parametrize(
    "path, query, expected",
    [
        ("/v1/users/ann/recommendations", b"", ("ann", "home", Filters(10))),
        ("/v1/users/ann/recommendations", b"count=100&task=tea", ("ann", "tea", Filters(100))),
        ("/v1/users/a b/recommendations", b"explain=true", ("a b", "home", EXPLAINED)),
        ("/v1/users/a/b/recommendations", b"", None),
        ("/v1/users//recommendations", b"", None),
        ("/v1/users/recommendations", b"", None),
        ("/v1/users/a\0/recommendations", b"", None),
        ("/v1/users/ann/recommendations", b"count=101", None),
        ("/v1/users/ann/recommendations", b"count=1&count=2", None),
        ("/v1/users/ann/recommendations", b"seen=hide", None),
        ("/v1/users/ann/recommendations", b"count=5&", None),
        ("/v1/users/ann/events", b"", None),
    ],
)
def test_what_a_plain_read_is(path, query, expected):
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query}
    read = reads.read_of(scope)
    assert (read and (read.user_id, read.name, read.filters)) == expected
    assert reads.read_of(scope | {"method": "POST"}) is None


def test_random_queries_are_read_as_the_route_reads_them(filled, monkeypatch):
    chance = random.Random(0)
    parts = ["count=5", "count=", "count=100", "task=tea", "explain=true", "explain=", "&", "=", ""]
    queries = ["&".join(chance.choices(parts, k=chance.randrange(1, 4))) for _ in range(60)]
    found = [compared(filled, "ann", query) for query in queries]
    monkeypatch.setattr(reads, "read_of", lambda scope: None)
    assert found == [compared(filled, "ann", query) for query in queries]


def test_plain_reads_need_a_key_and_are_measured(keyed):
    path = "/v1/users/ann/recommendations"
    assert keyed.get(path).status_code == 401
    assert keyed.get(path).json()["error"] == "the key is missing or unknown"
    assert keyed.get(path, headers={"X-API-Key": "other"}).status_code == 401
    codes = [keyed.get(path, headers={"X-API-Key": "read"}).status_code for _ in range(20)]
    assert codes[:10] == [200] * 10 and codes[-1] == 429
    text = keyed.get("/metrics").text
    route = 'route="/v1/users/{user_id}/recommendations",status="429"'
    assert f'sigma_request_seconds_count{{method="GET",{route}}}' in text
    assert 'sigma_answers_total{source="popular",tenant="shop"}' in text


def fail(*_):
    raise StoreError("it hangs")


@pytest.fixture
def broken(filled, shop):
    """A service whose store has stopped to answer after some calls."""
    assert filled.get("/v1/users/ann/recommendations").json()["source"] == "index"
    names = ("lists_of", "list_of", "states", "documents", "seen_items", "events", "add_events")
    for name in names:
        object.__setattr__(shop, name, fail)
    return filled


def test_reads_go_on_while_the_store_does_not_answer(broken, service):
    service.forget_settings()
    answer = broken.get("/v1/users/ann/recommendations").json()
    assert answer["source"] == "popular" and len(answer["items"]) == 10
    pinned = broken.get("/v1/users/ann/recommendations", params={"explain": True}).json()
    assert pinned["items"][1]["reasons"] == ["pinned (r)"]  # the last known rules
    for seen in ("hide", "own"):
        wrong = broken.get("/v1/users/ann/recommendations", params={"seen": seen})
        assert wrong.status_code == 503 and "does not answer" in wrong.json()["error"]
    event = {"events": [{"user_id": "ann", "item_id": "i"}]}
    assert broken.post("/v1/events", json=event).status_code == 503
    assert broken.get("/healthz").status_code == 200


def test_hidden_items_that_were_never_read_are_not_guessed(client, shop):
    for name in ("lists_of", "states"):
        object.__setattr__(shop, name, fail)
    answer = client.get("/v1/users/ann/recommendations")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


def test_a_store_that_takes_no_writes_is_ready_to_read(client, store, monkeypatch):
    monkeypatch.setattr(store, "check", lambda: "disk full")
    answer = client.get("/readyz")
    assert answer.status_code == 200 and answer.json()["status"] == "ready to read, not to write"
    monkeypatch.setattr(store, "check", fail)
    assert client.get("/readyz").status_code == 503
