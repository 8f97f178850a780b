"""Thousands of wrong calls: each gets a 4xx and one line that names what is wrong."""

import copy
import json
import math
import random

import pytest

IDS = [5, None, "", "x" * 257, "a\0", "\ud800", [], {}, True, 1.5, math.nan, 10**30]
TEXTS = [5, None, "x" * 257, "a\0b", "\udfff", [], {"a": 1}, True, -math.inf]
WHOLE = ["five", "", None, 1.5, [], {}, -1, 10**30, -(10**4000), math.nan, math.inf, "1e3"]
NUMBERS = ["x", [], {}, -0.5, math.nan, -math.inf, 10**400]
FLAGS = ["maybe", 2, [], None, -1, 0.5]
WORDS = ["other", 1, None, "", ["show"], "PIN"]
SEQUENCES = [5, None, "text", {}, [5], [""], ["a\0"], [["a"]], ["x" * 300], [None]]
JSON = {"Content-Type": "application/json"}
EVENT = {"user_id": "ann", "item_id": "i1", "timestamp": 5, "event": "view", "event_id": "e"}
ASK = {"user_id": "ann", "instruction": "tea", "count": 3, "categories": ["a"], "exclude": ["b"]}
# Method, path, a right body, and per field (a path in the body) wrong values of it.
CALLS = [
    (
        "POST",
        "/v1/events",
        {"events": [EVENT, {**EVENT}]},
        {
            ("events",): [None, 5, [], {}, "x", [5], [[]]],
            ("events", 1, "user_id"): IDS,
            ("events", 0, "item_id"): IDS,
            ("events", 1, "timestamp"): WHOLE,
            ("events", 0, "event"): TEXTS,
            ("events", 0, "event_id"): TEXTS,
            ("events", 1, "session_id"): TEXTS,
        },
    ),
    (
        "POST",
        "/v1/recommendations",
        ASK,
        {
            ("user_id",): TEXTS,
            ("instruction",): [5, None, "x" * 100_001, "a\0", "\ud9ab", []],
            ("count",): [*WHOLE, 0, 101],
            ("categories",): SEQUENCES,
            ("exclude",): SEQUENCES,
            ("seen",): WORDS,
            ("explain",): FLAGS,
            ("deadline_ms",): [*WHOLE, 0, 60_001],
        },
    ),
    (
        "POST",
        "/v1/jobs",
        {"requests": [ASK]},
        {("requests",): [None, [], {}, [5]], ("requests", 0, "count"): [*WHOLE, 0, 101]},
    ),
    (
        "PUT",
        "/v1/users/ann",
        {"profile": {"city": "Oslo"}},
        {
            ("profile",): [5, "x", [], None],
            ("profile", "age"): [[], {}, math.nan, math.inf, [1]],
            ("profile", "x" * 257): [1],
            ("profile", "a\0"): [1],
        },
    ),
    (
        "PUT",
        "/v1/items/i1/state",
        {"hidden": True, "stock": 3, "expires": 9.5},
        {
            ("hidden",): FLAGS,
            ("stock",): [x for x in WHOLE if x is not None] + [2**31 + 1],
            ("expires",): NUMBERS,
        },
    ),
    (
        "PUT",
        "/v1/rules/r",
        {"kind": "pin", "items": ["i1"]},
        {
            ("kind",): WORDS,
            ("items",): SEQUENCES,
            ("categories",): SEQUENCES,
            ("place",): [*WHOLE, 0, 101],
            ("factor",): [*NUMBERS, 0, 10**7, None],
            ("count",): [*WHOLE, 101],
        },
    ),
    (
        "POST",
        "/v1/catalogue/items",
        {"items": [{"item_id": "new"}], "comment": "new ones"},
        {("items",): [None, 5, [], {}, "x", [5], ["a"]], ("comment",): TEXTS},
    ),
]
RAW = [
    b"",
    b"{",
    b'{"events": [}',
    b"\xff\xfe{}",
    b'{"events": "\xc3\x28"}',
    b"[" * 100_000,
    b'{"events": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
    b"NaN",
    b"null",
    b"1e999",
    b'"' + b"\x00" * 50 + b'"',
    b"user_id=ann&item_id=i1",
    b'{"events": [{"user_id": "a", "item_id": "b", "timestamp": ' + b"9" * 5_000 + b"}]}",
]
PAGES = [
    ("GET", "/v1/users/" + "x" * 257 + "/recommendations"),
    ("GET", "/v1/users/ann/recommendations?count=0"),
    ("GET", "/v1/users/ann/recommendations?count=1e2"),
    ("GET", "/v1/users/ann/recommendations?count=5&count="),
    ("GET", "/v1/users/ann/recommendations?explain=maybe"),
    ("GET", "/v1/users/ann/recommendations?seen=never"),
    ("GET", "/v1/users/ann/recommendations?task="),
    ("GET", "/v1/users/a%00b/recommendations"),
    ("GET", "/v1/users?count=5000"),
    ("GET", "/v1/users?after=" + "x" * 300),
    ("GET", "/v1/users/ann/events?count=-1"),
    ("GET", "/v1/popular?categories="),
    ("GET", "/v1/items/none/similar"),
    ("PATCH", "/v1/users/ann"),
    ("GET", "/v1/jobs/none"),
    ("DELETE", "/v1/rules/none"),
    ("POST", "/v1/catalogue/versions/none/activate"),
    ("GET", "/v1/../etc/passwd"),
]


def changed(body, field, value):
    """A copy of a body with another value at a path."""
    body = copy.deepcopy(body)
    place = body
    for part in field[:-1]:
        place = place[part]
    place[field[-1]] = value
    return body


def wrong_call(chance):
    """(method, path, content, the field that its error names or "")."""
    kind = chance.random()
    if kind < 0.1:
        return (*chance.choice(PAGES), None, "")
    method, path, body, fields = chance.choice(CALLS)
    if kind < 0.2:
        return method, path, chance.choice(RAW), ""
    if kind < 0.3:
        name = chance.choice(["price", "tenant", "__proto__", "İd", "user_id "])
        return method, path, json.dumps({**body, name: chance.choice(IDS)}), name
    if kind < 0.4 and method == "POST" and "events" in body:
        name = chance.choice(["user_id", "item_id"])
        row = {key: value for key, value in EVENT.items() if key != name}
        if chance.random() < 0.5:
            return method, "/v1/events/bulk", json.dumps(EVENT) + "\n" + json.dumps(row), name
        return method, path, json.dumps({"events": [EVENT, row]}), name
    field = chance.choice(list(fields))
    content = json.dumps(changed(body, field, chance.choice(fields[field])))
    return method, path, content, ".".join(map(str, field))


def check(client, chance):
    method, path, content, field = wrong_call(chance)
    headers = {"Content-Type": chance.choice(["application/json"] * 9 + ["text/plain", "a/b;c"])}
    answer = client.request(method, path, content=content, headers=headers)
    said = f"{method} {path[:80]} {str(content)[:200]} -> {answer.status_code} {answer.text[:300]}"
    assert 400 <= answer.status_code < 500, said
    body = answer.json()
    assert set(body) == {"error", "where"} and body["error"], said
    assert len(answer.content) < 2_000 and "Traceback" not in answer.text, said
    if headers["Content-Type"] == "application/json":
        assert field[:200] in f"{body['where']} {body['error']}", (field, said)


def check_many(client, shop, count):
    chance = random.Random(count)
    for _ in range(count):
        check(client, chance)
    assert shop.users("", 9) == [] and shop.queue().size == 0  # nothing was stored
    assert shop.states() == {} and shop.documents("rule") == {} and shop.documents("job") == {}


def test_wrong_calls(client, shop):
    check_many(client, shop, 400)


@pytest.mark.slow
@pytest.mark.nightly
def test_ten_thousand_wrong_calls(client, shop):
    check_many(client, shop, 10_000)


@pytest.mark.parametrize(
    "text",
    ["я хочу чай " * 9_000, "お茶とお菓子", "\u202e\u0007\x1b[31mtea\r\n\t", "tea\U0001f375" * 500],
    ids=["100 kB", "japanese", "control", "emoji"],
)
def test_any_instruction_is_answered(client, text):
    answer = client.post("/v1/recommendations", json={"instruction": text, "deadline_ms": 60_000})
    assert answer.status_code == 200 and len(answer.json()["items"]) == 10
    assert answer.json()["instruction"] == text.strip()


def test_of_equal_keys_the_last_counts(client, shop):
    content = '{"events": [{"user_id": "ann", "user_id": "bob", "item_id": "i1"}]}'
    assert client.post("/v1/events", content=content, headers=JSON).json()["stored"] == 1
    assert shop.events("ann", 9)[0] == [] and len(shop.events("bob", 9)[0]) == 1
