"""Stores on a disk that is full, a server that hangs or is killed, and clocks that jump."""

import signal
import time

import pytest

from sigma_jax.serving.nearline import NearlineSettings, NearlineWorker
from sigma_jax.serving.stores import base
from sigma_jax.serving.stores.base import Event, StoredList, StoreError, open_store

DAY = 86_400.0


def event(number, user="ann", item="tea"):
    return Event(user, item, 100 + number, event_id=f"e{number}")


def a_list(newest=0):
    return StoredList(({"item_id": "tea"},), 0.0, "m1", "0001", newest)


def fill(shop):
    """Stores events until the disk is full; returns the number of stored ones, and the error."""
    for number in range(2_000):
        try:
            assert shop.add_events([event(number, f"u{number % 9}", "x" * 20_000)]) == 1
        except StoreError as error:
            return number, str(error)
    raise AssertionError("the disk was not full")


@pytest.mark.parametrize("kind, message", [("sqlite", "disk"), ("redis", "MISCONF")])
def test_a_full_disk_is_said_and_loses_nothing(small_disk, own_redis, kind, message):
    if kind == "sqlite":
        url = f"sqlite:///{small_disk / 'store.db'}"
    else:
        # With appendfsync always, Redis ends itself on a full disk.
        options = ("--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0")
        url, _ = own_redis(small_disk, *options)
    store = open_store(url)
    shop = store.tenant("shop")
    shop.put_lists({"ann": {"home": a_list()}}, 600)
    (small_disk / "ballast").write_bytes(b"x" * 2**20)
    stored, error = fill(shop)
    assert message in error and stored > 10
    # Everything can still be read, and the check says why nothing can be written.
    assert sum(len(shop.events(f"u{n}", 999)[0]) for n in range(9)) == stored
    assert shop.list_of("ann", "home") == a_list() and message in store.check()
    with pytest.raises(StoreError):
        shop.take("w1", 5)
    (small_disk / "ballast").unlink()
    until = time.monotonic() + 10
    while store.check() and time.monotonic() < until:
        time.sleep(0.1)  # Redis tries to write every second
    assert shop.add_events([event(stored, f"u{stored % 9}")]) == 1  # the caller repeats it
    assert shop.add_events([event(n, f"u{n % 9}") for n in range(stored)]) == 0
    assert shop.queue().size == 9 and len(shop.take("w1", 99)) == 9
    store.close()


def test_a_server_that_hangs_is_asked_by_one_call_at_a_time(tmp_path, own_redis):
    url, process = own_redis(tmp_path)
    store = open_store(url)
    shop = store.tenant("shop")
    shop.add_events([event(1)])
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"[Tt]imeout"):
        shop.add_events([event(2)])
    assert 1 < time.monotonic() - began < 4
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(StoreError, match="no answer within 2 s a moment ago"):
            shop.events("ann", 9)
    assert time.monotonic() - began < 0.5
    process.send_signal(signal.SIGCONT)
    time.sleep(1.1)
    shop.add_events([event(2), event(3)])  # 2 may have been stored by the call that failed
    assert [one.event_id for one in shop.events("ann", 9)[0]] == ["e1", "e2", "e3"]
    store.close()


def test_a_killed_server_keeps_what_it_acknowledged(tmp_path, own_redis):
    url, process = own_redis(tmp_path)
    store = open_store(url)
    shop = store.tenant("shop")
    shop.add_events([event(n) for n in range(50)])
    process.kill()
    process.wait()
    with pytest.raises(StoreError, match="redis: "):
        shop.events("ann", 99)
    own_redis(tmp_path, port=int(url.split(":")[-1].split("/")[0]))
    assert len(shop.events("ann", 99)[0]) == 50  # by the connections of before
    assert [work.user_id for work in shop.take("w", 9)] == ["ann"]
    store.close()


@pytest.mark.parametrize("jump", [400 * DAY, -400 * DAY])
def test_a_clock_that_jumps_changes_nothing(shop, monkeypatch, jump):
    shop.put_lists({"ann": {"home": a_list()}}, 30 * DAY)
    shop.add_events([event(1)])
    [work] = shop.take("w1", 9)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    assert shop.take("w2", 9) == []  # the lease holds
    shop.put_lists({"bob": {"home": a_list()}}, 30 * DAY)
    assert shop.list_of("ann", "home") == a_list() and shop.list_of("bob", "home") == a_list()
    shop.done([work])
    assert shop.queue().size == 0


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_processes_with_different_clocks_leave_no_user_behind(shop, monkeypatch, jump):
    """A worker with a clock a day ahead or behind has taken a user, and is dead."""
    worker = NearlineWorker(None, shop, "w1", NearlineSettings(period=600.0))
    began = base._STARTED
    monkeypatch.setattr(base, "_STARTED", (began[0] + jump, began[1]))
    shop.add_events([event(1)])
    assert not worker.is_due()
    assert len(shop.take("dead", 9, lease=0.2)) == 1
    monkeypatch.setattr(base, "_STARTED", began)
    time.sleep(0.3)
    assert worker.is_due()
    assert [work.user_id for work in shop.take("w2", 9, lease=0.2)] == ["ann"]


def test_all_items_that_a_user_had_are_known(shop):
    count = base.MOST_EVENTS + 100
    shop.add_events([event(n, item=f"i{n}") for n in range(count)])
    assert shop.seen_items("ann") == {f"i{n}" for n in range(count)}
    assert shop.seen_items("bob") == set()
    shop.delete_user("ann")
    assert shop.seen_items("ann") == set()


def test_a_waiting_user_counts_once(shop):
    shop.add_events([event(n) for n in range(1, 9)] + [event(9, "bob")])
    assert shop.queue().size == 2
    works = shop.take("w", 2)
    assert [work.user_id for work in works] == ["ann", "bob"]
    shop.add_events([event(10)])
    assert shop.queue().size == 2
    shop.done(works)
    assert shop.queue().size == 1
    shop.done(shop.take("w", 2))
    assert shop.queue().size == 0


def test_lists_are_read_together(shop):
    shop.put_lists({"ann": {"home": a_list(1), "tea": a_list(2)}, "bob": {"home": a_list(3)}}, 60)
    wanted = [("bob", "home"), ("cy", "home"), ("ann", "tea"), ("bob", "tea"), ("bob", "home")]
    found = shop.lists_of(wanted)
    assert [one and one.newest for one in found] == [3, None, 2, None, 3]
    assert shop.lists_of([]) == []


def test_a_commit_that_fails_leaves_no_open_transaction(tmp_path):
    store = open_store(str(tmp_path / "store.db"))
    with store.reading() as con:
        con.execute("PRAGMA foreign_keys = ON")
        con.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        con.execute("CREATE TABLE child (of REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(StoreError, match="FOREIGN KEY"), store.transaction() as con:
        con.execute("INSERT INTO child VALUES (99)")  # the commit fails, not this
    assert store.tenant("shop").add_events([event(1)]) == 1
    store.close()
