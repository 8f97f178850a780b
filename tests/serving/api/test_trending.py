"""Trending items: decayed counts of live events and of the training."""

import numpy as np
import pytest

from sigma_jax.serving import popularity
from sigma_jax.serving.popularity import HALF_LIVES, training_counts, trending_scores
from sigma_jax.serving.stores.base import HOUR, Event

NOW = 1_710_000_000 // HOUR * HOUR  # long after the log of the shop, at a full hour


def buy(shop, item, hours_ago, times=1):
    shop.add_events([Event("ann", item, NOW - int(hours_ago * HOUR))] * times)


def test_events_weigh_half_after_each_half_life(engine, shop, items):
    buy(shop, items[7], 0.5, 4)
    buy(shop, items[9], 12.5, 8)
    buy(shop, items[11], HALF_LIVES * 6 + 2, 1_000)  # too old
    buy(shop, "unknown", 0.5, 100)
    buy(shop, items[13], -1.5, 100)  # not yet
    scores = trending_scores(engine.current, shop, NOW, 6.0)
    assert scores[7] == pytest.approx(4 * 0.5 ** (0.5 / 6), rel=1e-4)
    assert scores[9] == pytest.approx(8 * 0.5 ** (12.5 / 6), rel=1e-4)
    assert np.argsort(-scores)[:2].tolist() == [7, 9] and scores[11] < 1e-5
    assert np.argsort(-trending_scores(engine.current, shop, NOW, 168.0))[0] == 11


def test_the_training_counts_at_its_own_time(engine, shop):
    trends = engine.current.recommender.parts.reranker.tables.trends
    now = float(np.median(trends.time)) // HOUR * HOUR + 7 * HOUR + 1800
    scores = trending_scores(engine.current, shop, now, 24.0)
    expected = np.zeros(len(scores))
    assert trends.number.max() > 1
    for item, when, number in zip(trends.item, trends.time, trends.number, strict=True):
        hour = when // HOUR
        middle = min(hour * HOUR + 1800, (hour * HOUR + now) / 2)
        if when <= now and hour >= now // HOUR - HALF_LIVES * 24:
            expected[item] += number * 0.5 ** ((now - middle) / 86_400)
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    assert expected.max() > 1 and len(training_counts(engine.current, 0, 0).hour) == 0


def test_a_history_that_is_sent_again_counts_once(engine, shop, items):
    trends = engine.current.recommender.parts.reranker.tables.trends
    now = float(trends.time.max()) + 60
    before = trending_scores(engine.current, shop, now, 24.0)
    rows = np.repeat(np.arange(len(trends.time)), trends.number)
    shop.add_events(
        [
            Event("ann", items[trends.item[row]], int(trends.time[row]), event_id=f"e{n}")
            for n, row in enumerate(rows)
        ]
    )
    np.testing.assert_allclose(trending_scores(engine.current, shop, now, 24.0), before)
    shop.add_events([Event("ann", items[5], int(now))] * 50)
    assert np.argmax(trending_scores(engine.current, shop, now, 24.0)) == 5


def test_the_route(client, service, shop, items, monkeypatch):
    service.clock = lambda: NOW
    popular = client.get("/v1/popular", params={"count": 5}).json()["items"]
    answer = client.get("/v1/trending", params={"count": 5}).json()
    assert answer["source"] == "trending" and answer["items"] == popular  # no events lately
    buy(shop, items[7], 1, 3)
    assert client.get("/v1/trending", params={"count": 5}).json() == answer  # of a minute ago
    monkeypatch.setattr(popularity, "TIE", 0.0)
    ids = [
        item["item_id"]
        for item in client.get("/v1/trending", params={"half_life_hours": 3}).json()["items"]
    ]
    assert ids[0] == items[7] and len(ids) == 10
    assert items[7] not in str(
        client.get("/v1/trending", params={"half_life_hours": 3, "exclude": items[7]}).json()
    )
    for half_life in (0.5, 200, "x"):
        answer = client.get("/v1/trending", params={"half_life_hours": half_life})
        assert answer.status_code == 422


def test_the_clock(client, shop):
    assert client.get("/v1/clock").json() == {
        "now": 1_700_000_000,
        "speed": 1.0,
        "is_replay": False,
        "is_over": False,
    }
