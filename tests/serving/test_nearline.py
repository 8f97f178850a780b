"""The nearline worker: from events to lists, on a SQLite store and a real recommender."""

import dataclasses
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.serving import nearline
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.catalogue_update import set_active
from sigma_jax.serving.engine import RecommendationEngine
from sigma_jax.serving.nearline import HOME, NearlineSettings, NearlineWorker, request_row
from sigma_jax.serving.stores.base import Event, ItemState, StoreError, open_store

NOW = 1_700_000_000  # after the log of the shop


@pytest.fixture(scope="module")
def engine(exported):
    return RecommendationEngine(exported)


@pytest.fixture
def shop(tmp_path):
    store = open_store(str(tmp_path / "store.db"))
    yield store.tenant("shop")
    store.close()


def worker_of(engine, shop, name="w1", **settings):
    fields = {"count": 8, "period": 0.01} | settings
    return NearlineWorker(engine, shop, name, NearlineSettings(**fields), lambda: NOW)


def bought(user, items, first=NOW - 1000):
    return [Event(user, item, first + n, "buy", session_id=item) for n, item in enumerate(items)]


def wait_for_list(shop):
    """Waits until ann has a list, for ten seconds at most."""
    for _ in range(500):
        if shop.list_of("ann", HOME) is not None:
            return
        time.sleep(0.02)


def test_lists_are_those_of_the_engine(engine, shop, items):
    lists = {HOME: "recommend something", "tea": "tea"}
    worker = worker_of(engine, shop, lists=lists)
    shop.put_users({"ann": {"city": "Oslo"}})
    shop.add_events(bought("ann", items[:4]) + bought("bob", ["gone", items[5]]))
    assert worker.run_once() == 2
    for user in ("ann", "bob"):
        events, newest = shop.events(user, 99)
        row = request_row(engine, user, shop.user(user) or {}, events, NOW)
        for name, instruction in lists.items():
            found = shop.list_of(user, name)
            [expected] = engine.recommend([row | {"instruction": instruction}], RecommendOptions(8))
            assert [item["item_id"] for item in found.items] == [
                item["item_id"] for item in expected["items"]
            ]
            probabilities = [item["probability"] for item in found.items]
            np.testing.assert_allclose(
                probabilities, [item["probability"] for item in expected["items"]], rtol=1e-4
            )
            made_by = (found.model, found.version)
            assert made_by == (engine.current.model, "0001") and found.newest == newest
            assert abs(found.made - time.time()) < 60
    assert worker.run_once() == 0 and shop.queue().size == 0
    totals = worker.totals
    assert (totals.users, totals.lists, totals.batches, totals.failed) == (2, 4, 1, 0)
    assert 0 < totals.staleness < 60
    assert sum(totals.stale) == 2 and 0 < totals.stale_seconds < 120


def test_a_row_holds_profile_history_and_time(engine, items):
    events = [Event("ann", items[0], 100, session_id="s"), Event("ann", "gone", NOW + 5)]
    row = request_row(engine, "ann", {"city": "Oslo", "history": "no column"}, events, NOW)
    history = [{"item_id": items[0], "timestamp": 100, "session_id": "s"}]
    assert row == {"user_id": "ann", "city": "Oslo", "history": history, "timestamp": NOW + 5}
    assert request_row(engine, "ann", {}, [], NOW)["timestamp"] == NOW


def test_kinds_of_events_that_the_training_left_out_are_no_history(engine, items):
    """An event without a kind counts: many shops send one kind."""
    events = [Event("ann", items[0], 100, kind) for kind in ("buy", "view", "")]
    current = dataclasses.replace(engine.current, event_kinds=frozenset(["buy"]))
    row = request_row(engine.at(current), "ann", {}, events, NOW)
    assert len(row["history"]) == 2
    assert len(request_row(engine, "ann", {}, events, NOW)["history"]) == 3


def test_a_user_whose_row_fails_keeps_no_other_waiting(engine, shop, items, monkeypatch):
    answer_each = engine.answer_each.__func__

    def failing(self, rows, *arguments):
        if any(row["user_id"] == "bad" for row in rows):
            raise RuntimeError("out of memory")
        return answer_each(self, rows, *arguments)

    monkeypatch.setattr(RecommendationEngine, "answer_each", failing)
    worker = worker_of(engine, shop, lease=0.1)
    for user in ("ann", "bad", "bob"):
        shop.add_events(bought(user, items[:2]))
    assert worker.run_once() == 3
    assert [shop.list_of(user, HOME) is not None for user in ("ann", "bad", "bob")] == [
        True,
        False,
        True,
    ]
    assert worker.totals.failed == 1 and shop.queue().size == 1
    for tries in (2, 3):
        time.sleep(0.11)  # until the lease ends
        assert worker.run_once() == 1 and worker.totals.failed == tries
    assert shop.queue().size == 0


def test_a_user_who_is_deleted_meanwhile_gets_no_list(engine, shop, items):
    worker = worker_of(engine, shop)
    compute = worker._lists_of

    def deleting(newest):
        found = compute(newest)
        shop.delete_user("ann")
        return found

    worker._lists_of = deleting
    shop.add_events(bought("ann", items[:2]) + bought("bob", items[:2]))
    assert worker.run_once() == 2
    assert shop.list_of("ann", HOME) is None and shop.list_of("bob", HOME) is not None


def test_new_events_change_the_list(engine, shop, items):
    worker = worker_of(engine, shop)
    shop.add_events(bought("ann", items[:2]))
    worker.run_once()
    before = shop.list_of("ann", HOME)
    shop.add_events(bought("ann", [items[30]] * 3, NOW - 10))
    worker.run_once()
    after = shop.list_of("ann", HOME)
    assert after.newest > before.newest and after.items != before.items


def test_hidden_items_are_not_listed(engine, shop, items):
    worker = worker_of(engine, shop)
    shop.add_events(bought("ann", items[:2]))
    worker.run_once()
    first = shop.list_of("ann", HOME).items[0]["item_id"]
    shop.put_states({first: ItemState(is_hidden=True), "gone": ItemState(stock=0)})
    shop.add_events(bought("ann", items[2:3]))
    worker.run_once()
    assert first not in [item["item_id"] for item in shop.list_of("ann", HOME).items]


def test_a_batch_begins_by_number_or_by_time(engine, shop, items):
    worker = worker_of(engine, shop, users_at_once=2, period=0.3)
    assert not worker.is_due()
    shop.add_events(bought("ann", items[:1]))
    assert not worker.is_due()
    time.sleep(0.35)
    assert worker.is_due()  # by time
    worker.run_once()
    shop.add_events(bought("ann", items[:1]) + bought("bob", items[:1]))
    assert worker.is_due()  # by number
    shop.add_events(bought("cy", items[:1]))
    assert worker.run_once() == 2 and worker.run_once() == 1


def test_those_who_waited_longest_are_left_out_of_a_queue_that_is_too_long(engine, shop, items):
    worker = worker_of(engine, shop, most_waiting=2)
    for user in "abcd":
        shop.add_events(bought(user, items[:1]))
        time.sleep(0.01)
    assert worker.run_once() == 2 and worker.totals.shed == 2
    assert [shop.list_of(user, HOME) is not None for user in "abcd"] == [False, False, True, True]
    shop.add_events(bought("a", items[1:2]))
    worker.run_once()
    assert shop.list_of("a", HOME) is not None


def test_one_request_that_fails_spoils_no_other(engine, shop, items, monkeypatch):
    worker = worker_of(engine, shop)
    recommend = engine.recommend

    def failing(rows, *arguments):
        if any(row["user_id"] == "bad" for row in rows):
            raise ValueError("its profile cannot be read")
        return recommend(rows, *arguments)

    monkeypatch.setattr(engine, "recommend", failing)
    shop.add_events(bought("ann", items[:1]) + bought("bad", items[:1]))
    assert worker.run_once() == 2
    assert shop.list_of("ann", HOME) is not None and shop.list_of("bad", HOME) is None
    assert worker.totals.failed == 1 and shop.queue().size == 0


def test_a_worker_goes_on_after_errors_of_the_store(engine, shop, items, monkeypatch):
    monkeypatch.setattr(nearline, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(nearline, "POLL_SECONDS", 0.02)
    worker = worker_of(engine, shop)
    failures = iter([StoreError("full"), StoreError("busy")])
    take = worker.store.take

    def failing(*arguments):
        if error := next(failures, None):
            raise error
        return take(*arguments)

    object.__setattr__(worker.store, "take", failing)
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    shop.add_events(bought("ann", items[:1]))
    wait_for_list(shop)
    stop.set()
    thread.join(10)
    assert not thread.is_alive() and shop.list_of("ann", HOME) is not None
    report = shop.documents("worker")["w1"]
    assert report["users"] == 1 and abs(report["time"] - time.time()) < 30


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"lists": {}}, "lists is empty"),
        ({"count": 0}, "count=0; use 1 or more"),
        ({"period": 0.0}, "period=0.0; use more than 0 seconds"),
        ({"period": float("nan")}, "period=nan; use more than 0 seconds"),
    ],
)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        NearlineSettings(**fields)


def test_a_batch_that_fails_ends_no_worker(engine, shop, items, monkeypatch):
    monkeypatch.setattr(nearline, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(nearline, "POLL_SECONDS", 0.02)
    failures = iter([RuntimeError("out of memory"), OSError("disk full")])
    recommend = engine.recommend

    def failing(*arguments):
        if error := next(failures, None):
            raise error
        return recommend(*arguments)

    def damaged():
        raise ValueError("the new version is damaged")

    monkeypatch.setattr(engine, "recommend", failing)
    monkeypatch.setattr(engine, "refresh", damaged)  # the running version goes on
    worker, stop = worker_of(engine, shop, lease=0.1), threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    shop.add_events(bought("ann", items[:1]))
    thread.start()
    wait_for_list(shop)
    stop.set()
    thread.join(10)
    assert shop.list_of("ann", HOME) is not None and next(failures, None) is None


def test_a_deleted_user_gets_no_list(engine, shop, items):
    worker = worker_of(engine, shop)
    shop.add_events(bought("ann", items[:1]) + bought("bob", items[:1]))
    take = shop.take

    def deleting(*arguments):
        works = take(*arguments)
        shop.delete_user("ann")
        return works

    object.__setattr__(shop, "take", deleting)
    worker.run_once()
    assert shop.list_of("ann", HOME) is None and shop.list_of("bob", HOME) is not None


def test_a_new_version_of_the_catalogue_renews_lists_if_it_should(export_copy, shop, items):
    engine = RecommendationEngine(export_copy)
    worker, slow = worker_of(engine, shop), worker_of(engine, shop, renews_versions=False)
    shop.add_events(bought("ann", items[:2]))
    worker.run_once()
    for one in (worker, slow):
        while one.renew():
            pass
    bundle = Bundle.open(export_copy)
    bundle.add_version(set_active(engine.current.version, items[:1], False), "one out")
    bundle.activate("0002")
    assert worker.follow()
    while slow.renew():
        pass
    assert shop.list_of("ann", HOME).version == "0001" and slow.totals.renewed == 0
    while worker.renew():
        pass
    assert shop.list_of("ann", HOME).version == "0002" and worker.totals.renewed == 1


def test_a_worker_gives_a_sign_of_life_that_a_probe_reads(engine, shop, tmp_path):
    path, stop = tmp_path / "heartbeat", threading.Event()
    command = [sys.executable, "-m", "sigma_jax.serving.heartbeat", str(path), "60"]
    assert subprocess.run(command).returncode == 1
    thread = threading.Thread(target=worker_of(engine, shop).run, args=(stop, path))
    thread.start()
    while not path.exists():
        time.sleep(0.02)
    assert subprocess.run(command).returncode == 0
    stop.set()
    thread.join(10)
    os.utime(path, (time.time() - 100,) * 2)
    assert subprocess.run(command).returncode == 1
