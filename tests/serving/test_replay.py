"""A replay of a log: histories first, then each event at its time, once, with one clock for all."""

import threading
import time

import numpy as np
import pytest

from sigma_jax.schema import DAY
from sigma_jax.serving import replay
from sigma_jax.serving.replay import LogReplay, ReplayClock, clock_of, read_log, wait_for_clock
from sigma_jax.serving.stores.base import Event, StoreError, open_store


@pytest.fixture
def shop(tmp_path):
    store = open_store(str(tmp_path / "store.db"))
    yield store.tenant("shop")
    store.close()


@pytest.fixture(scope="module")
def log(trained):
    return read_log(trained[1])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(replay, "STEP_SECONDS", 0.01)


def stored(shop):
    """(user, item, time) of all events of a store, sorted."""
    users = shop.users("", 999)
    events = [event for user in users for event in shop.events(user, 999)[0]]
    return sorted((event.user_id, event.item_id, event.time) for event in events)


def expected(log, is_in):
    """The same of the rows of a log whose times are in it."""
    histories = log.histories
    owner = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    users = log.users.table["user_id"].to_pylist()
    items = log.catalogue.table["item_id"].to_pylist()
    rows = zip(owner, histories.item, histories.time, strict=True)
    return sorted((users[user], items[item], int(when)) for user, item, when in rows if is_in(when))


def test_all_events_come_once_and_in_time(shop, log):
    last = int(log.histories.time.max())
    first = last - 20 * DAY
    slow = LogReplay(log, shop, speed=1.0, days=20, users=999)
    assert stored(shop) == expected(log, lambda when: when < first)
    time.sleep(0.05)
    assert slow.clock() == first and clock_of(shop) is time.time  # it waits until the API is ready
    slow.start()
    time.sleep(0.05)
    assert first < slow.clock() < first + 60 and not slow.clock.is_over
    assert shop.user(shop.users("", 1)[0]) is not None
    # Another process has the same clock, and goes on where it is.
    fields = shop.document(replay.REPLAY, replay.REPLAY)
    shop.put_document(replay.REPLAY, replay.REPLAY, fields | {"began": time.time() - 10 * DAY})
    again = LogReplay(log, shop, speed=9.0, days=3, users=999)
    assert again.clock.replay.first == first and again.clock.replay.speed == 1.0
    stop = threading.Event()
    thread = threading.Thread(target=again.run, args=(stop,))
    thread.start()
    middle = expected(log, lambda when: when <= first + 10 * DAY)
    until = time.monotonic() + 30
    while stored(shop) != middle and time.monotonic() < until:
        time.sleep(0.02)
    stop.set()
    thread.join(10)
    assert stored(shop) == middle and len(middle) < len(log.histories.time)
    fast = LogReplay(log, shop, speed=1.0, days=3, users=999)
    fast.clock = ReplayClock(replay.Replay(0.0, first, last + 1, 1e9))
    fast.run(threading.Event())
    assert stored(shop) == expected(log, lambda when: True)
    assert fast.clock.is_over and fast.clock() == last + 1


def test_a_store_that_fails_loses_no_event(shop, log, monkeypatch):
    sent = LogReplay(log, shop, speed=1e9, days=20, users=999)
    failures = iter([StoreError("full"), StoreError("busy")])
    add_events = type(shop).add_events

    def failing(self, events):
        if error := next(failures, None):
            raise error
        return add_events(self, events)

    monkeypatch.setattr(type(shop), "add_events", failing)
    sent.run(threading.Event())
    assert stored(shop) == expected(log, lambda when: True)


def test_the_most_active_users_are_replayed(shop, log):
    LogReplay(log, shop, speed=1e9, days=20, users=3).run(threading.Event())
    first = log.histories.time.max() - 20 * DAY
    counts = {}
    for user, _, _ in expected(log, lambda when: when >= first):
        counts[user] = counts.get(user, 0) + 1
    most = sorted(counts.values(), reverse=True)[:3]
    assert sorted((counts[user] for user in shop.users("", 99)), reverse=True) == most


def test_a_worker_waits_for_the_clock(shop, log):
    stop = threading.Event()
    found = []
    thread = threading.Thread(target=lambda: found.append(wait_for_clock(shop, stop)))
    thread.start()
    LogReplay(log, shop, speed=1.0, days=1, users=2).start()
    thread.join(10)
    assert found[0] == clock_of(shop) and isinstance(found[0], ReplayClock)
    assert clock_of(open_store(str(shop.store.path)).tenant("other")) is time.time


def test_a_replay_touches_no_other_store(shop, log, tmp_path):
    shop.put_users({"ann": {}})
    shop.add_events([Event("ann", "tea", 5)])
    with pytest.raises(ValueError, match="holds users of its own; give the demo another --store"):
        LogReplay(log, shop, 1.0, 1.0, 9)
    assert shop.users("", 9) == ["ann"]
    with pytest.raises(ValueError, match="--demo_speed=0"):
        LogReplay(log, shop, 0.0, 1.0, 9)
    with pytest.raises(ValueError, match="holds no prepared data; give a workdir"):
        read_log(tmp_path)
