"""What callers filter by: categories that are filled up, pins that obey, parameters that exist."""

import time
from collections import Counter

import numpy as np
import pytest

from sigma_jax.serving.api.service import FILLED_UP
from sigma_jax.serving.stores.base import Event, StoredList


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


@pytest.fixture
def catalogue(engine):
    return engine.current.version.catalogue


@pytest.fixture
def of_category(catalogue, items):
    """Category -> its items, the most popular ones first."""
    popularity = np.asarray(catalogue.popularity)
    order = np.argsort(-popularity, kind="stable")
    return {
        name: [items[item] for item in order if catalogue.category[item] == number]
        for number, name in enumerate(catalogue.categories.to_pylist())
    }


@pytest.fixture
def listed(client, shop, items, engine):
    """A client of a service where ann has a list of four items."""
    rows = [
        {"item_id": one, "title": one, "probability": 0.1 / (n + 1)}
        for n, one in enumerate(items[:4])
    ]
    current = engine.current
    one = StoredList(tuple(rows), time.time(), current.model, current.name, 1)
    shop.put_lists({"ann": {"home": one}}, 600)
    return client


LIST = "/v1/users/ann/recommendations"


def test_a_category_is_filled_up_from_its_popular_items(listed, items, of_category):
    for name, members in of_category.items():
        query = {"categories": [name], "count": 5, "explain": True}
        answer = listed.get(LIST, params=query)
        own = [item for item in items[:4] if item in members]
        more = [item for item in members if item not in own]
        assert ids(answer) == (own + more)[:5]
        reasons = [item["reasons"] for item in answer.json()["items"]]
        assert reasons == [[]] * len(own) + [[FILLED_UP]] * (len(reasons) - len(own))
        del query["explain"]
        assert ids(listed.get("/v1/popular", params=query)) == members[:5]
    some = list(of_category)[:2]
    found = ids(listed.get(LIST, params={"categories": some, "count": 100}))
    assert set(found) == {item for name in some for item in of_category[name]}


@pytest.mark.parametrize("seen", ["show", "hide"])
def test_a_list_that_its_filters_empty_is_filled_up(listed, shop, items, catalogue, seen):
    left_out = items[:4] if seen == "show" else items[:3]
    query = {"exclude": left_out, "seen": seen, "count": 6, "explain": True}
    if seen == "hide":
        shop.add_events([Event("ann", items[3], 5)])
    answer = listed.get(LIST, params=query)
    order = np.argsort(-np.asarray(catalogue.popularity), kind="stable")
    assert ids(answer) == [items[item] for item in order if items[item] not in items[:4]][:6]
    assert all(item["reasons"] == [FILLED_UP] for item in answer.json()["items"])
    # Nothing is added where no filter took anything, and to similar items.
    assert ids(listed.get(LIST, params={"count": 6})) == items[:4]
    similar = f"/v1/items/{items[0]}/similar"
    alike = ids(listed.get(similar, params={"count": 100}))
    assert ids(listed.get(similar, params={"count": 100, "exclude": alike[:3]})) == alike[3:]


def test_what_fills_up_obeys_the_other_filters(listed, shop, of_category):
    name, members = max(of_category.items(), key=lambda one: len(one[1]))
    shop.add_events([Event("ann", members[0], 5)])
    listed.put(f"/v1/items/{members[1]}/state", json={"hidden": True})
    query = {"categories": [name], "count": 100, "exclude": [members[2]], "seen": "hide"}
    assert set(ids(listed.get(LIST, params=query))) == set(members[3:])
    assert ids(listed.get(LIST, params=query | {"seen": "own"})) == members[:1]


def test_filled_up_items_stay_behind_the_list_under_boosts(listed, items, of_category, catalogue):
    name = next(name for name, members in of_category.items() if items[0] in members)
    listed.put("/v1/rules/r", json={"kind": "boost", "items": [items[0]]})
    found = ids(listed.get(LIST, params={"categories": [name], "count": 10}))
    own = [item for item in items[:4] if item in of_category[name]]
    assert found[: len(own)] == own


@pytest.mark.parametrize("source", ["similar", "trending", "computed"])
def test_other_answers_have_the_whole_category(client, source, items, of_category):
    for name, members in of_category.items():
        count = min(len(members) - 1, 10)
        query = {"categories": [name], "count": count}
        if source == "computed":
            body = query | {"user_id": "ann", "deadline_ms": 60_000, "explain": True}
            answer = client.post("/v1/recommendations", json=body)
            assert answer.json()["source"] == source
            assert all(item["probability"] > 0 for item in answer.json()["items"])
        else:
            path = {"similar": f"/v1/items/{items[0]}/similar", "trending": "/v1/trending"}
            answer = client.get(path[source], params=query)
        found = ids(answer)
        assert len(found) == len(set(found)) == count and set(found) <= set(members)


def test_requests_that_are_computed_together_keep_their_categories(service, of_category):
    from sigma_jax.serving.api.models import Ask

    first, second = list(of_category)[:2]
    asks = [Ask(count=3, categories=one) for one in ([first], [], [second], ["none"], [first])]
    answers = service.compute(asks)
    assert isinstance(answers.pop(3), ValueError)
    for answer, one in zip(answers, (first, None, second, first), strict=True):
        found = {item.item_id for item in answer.items}
        assert len(found) == 3 and (one is None or found <= set(of_category[one]))
    assert answers[0].items == answers[3].items


@pytest.mark.parametrize("source", ["list", "popular", "trending", "similar", "ask"])
def test_unknown_categories_are_refused(listed, source, items, of_category):
    name = next(iter(of_category))
    wrong = name[:-1] + "?"
    if source == "ask":
        answer = listed.post("/v1/recommendations", json={"categories": [wrong]})
    else:
        similar = f"/v1/items/{items[0]}/similar"
        path = {"list": LIST, "similar": similar}.get(source, f"/v1/{source}")
        answer = listed.get(path, params={"categories": [name, wrong]})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error.startswith(f"the catalogue has no category {wrong!r}; near names are {name!r}")
    assert "GET /v1/categories" in error


def test_pins_obey_the_filters_of_the_caller(listed, shop, items, of_category, catalogue):
    pinned = items[30]
    listed.put("/v1/rules/pin", json={"kind": "pin", "items": [pinned]})

    def first(**query):
        return ids(listed.get(LIST, params=query))[:1]

    assert first() == [pinned]
    assert first(exclude=[pinned]) == [items[0]]
    assert first(seen="own") == []
    shop.add_events([Event("ann", pinned, 5)])
    assert first(seen="own") == [pinned] and first(seen="hide") == [items[0]]
    for name, members in of_category.items():
        assert (pinned in ids(listed.get(LIST, params={"categories": [name]}))) <= (
            pinned in members
        )
    ask = {"exclude": [pinned], "deadline_ms": 60_000}
    assert pinned not in ids(listed.post("/v1/recommendations", json=ask))


def test_similar_items_have_no_pins(client, items):
    before = ids(client.get(f"/v1/items/{items[0]}/similar"))
    client.put("/v1/rules/pin", json={"kind": "pin", "items": [items[0], items[30]]})
    assert ids(client.get(f"/v1/items/{items[0]}/similar")) == before
    client.put("/v1/rules/bury", json={"kind": "bury", "items": before[:1], "factor": 1e6})
    assert ids(client.get(f"/v1/items/{items[0]}/similar"))[0] == before[1]


@pytest.mark.parametrize(
    "kind, field, value",
    [
        ("boost", "count", 3),
        ("bury", "place", 2),
        ("pin", "factor", 3.0),
        ("at_most", "factor", 5.0),
    ],
)
def test_rules_have_the_fields_of_their_kind(client, items, kind, field, value):
    rule = {"kind": kind, "items": items[:1]}
    answer = client.put("/v1/rules/r", json=rule | {field: value})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"rule 'r': {kind} has no {field}; it has items, ")
    arms = [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5}]
    arms[1]["rules"] = {"r": rule | {field: value}}
    assert client.put("/v1/experiments/x", json={"arms": arms}).status_code == 400
    assert client.put("/v1/rules/r", json=rule).status_code == 200
    # A caller may write back what it has read.
    stored = client.get("/v1/rules").json()["r"]
    assert client.put("/v1/rules/r", json=stored).status_code == 200


@pytest.mark.parametrize(
    "path, name, remedy",
    [
        (LIST + "?category=NOPE&count=3", "category", "did you mean 'categories'?"),
        (LIST + "?limit=3", "limit", "It has categories, count, exclude, explain, is_shown, seen"),
        (LIST + "?count=3&Count=4", "Count", "did you mean 'count'?"),
        ("/v1/popular?task=home", "task", "It has categories, count, exclude."),
        ("/v1/users?limit=3", "limit", "It has after, count."),
        ("/v1/rules?count=3", "count", "remove it"),
        ("/readyz?is_warm=true", "is_warm", "did you mean 'is_warmed_up'?"),
    ],
)
def test_unknown_parameters_are_refused(client, path, name, remedy):
    answer = client.get(path)
    assert answer.status_code == 422 and answer.json()["where"] == f"query.{name}"
    assert remedy in answer.json()["error"]


def test_parameters_are_told_to_callers_with_a_key_alone(keyed):
    assert keyed.get("/v1/popular?limit=3").status_code == 401
    assert keyed.get("/v1/popular?limit=3", headers={"X-API-Key": "read"}).status_code == 422


def test_at_most_n_of_a_brand(client, service, items):
    """Items hold their brand in the text; it counts like a category."""
    shown = ids(client.get("/v1/popular", params={"count": 100}))
    brands = {item: service.value_of(item, "brand") for item in shown}
    first = {brand: item for item, brand in reversed(brands.items())}  # of each brand
    assert max(Counter(brands.values()).values()) > 1 and all(brands.values())
    rule = {"kind": "at_most", "count": 1, "column": "brand"}
    assert client.put("/v1/rules/brands", json=rule).status_code == 200
    kept = ids(client.get("/v1/popular", params={"count": 20}))
    assert kept == [item for item in shown if first[brands[item]] == item]
    found = [service.value_of(item, "brand") for item in kept]
    assert len(found) == len(set(found)) > 1
    answer = client.put("/v1/rules/r", json=rule | {"column": "brnad"})
    assert answer.status_code == 400 and "no column 'brnad'; use one of" in answer.json()["error"]
    assert service.value_of("nobody's", "brand") == service.value_of(items[0], "none") == ""
