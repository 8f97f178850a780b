"""What every store promises; each test runs on SQLite and on Redis."""

import threading
import time

import pytest

from sigma_jax.serving.stores.base import (
    Event,
    Exposure,
    ItemState,
    StoredList,
    StoreError,
    open_store,
)


def event(user="ann", item="tea", when=100, **fields):
    return Event(user, item, when, **fields)


def a_list(newest=0, item="tea"):
    items = ({"item_id": item, "title": "Thé", "probability": 0.5},)
    return StoredList(items, made=12.5, model="m1", version="0001", newest=newest)


def test_events_of_a_deleted_user_may_be_stored_again(shop):
    events = [Event("ann", "tea", 100, event_id="order-1")]
    assert shop.add_events(events) == 1 and shop.add_events(events) == 0
    shop.delete_user("ann")
    assert shop.add_events(events) == 1 and len(shop.events("ann", 9)[0]) == 1


def test_users(shop):
    assert shop.user("ann") is None and shop.users("", 9) == []
    shop.put_users({"ann": {"city": "Łódź"}, "bob": {}, "cy": {"n": 1}})
    shop.put_users({"bob": {"age": 3}})
    assert shop.user("ann") == {"city": "Łódź"} and shop.user("bob") == {"age": 3}
    assert shop.users("", 2) == ["ann", "bob"] and shop.users("bob", 2) == ["cy"]
    shop.add_events([event()])
    shop.put_lists({"ann": {"home": a_list()}}, 60)
    assert shop.delete_user("ann") and not shop.delete_user("nobody")
    assert shop.user("ann") is None and shop.events("ann", 9) == ([], 0)
    assert shop.list_of("ann", "home") is None and shop.users("", 9) == ["bob", "cy"]


def test_events_come_in_the_order_of_time(shop):
    late = event(item="milk", when=300, kind="view", session_id="s")
    assert shop.add_events([late, event(when=100), event(item="soap", when=200)]) == 3
    found, newest = shop.events("ann", 9)
    assert [one.item_id for one in found] == ["tea", "soap", "milk"] and found[-1] == late
    assert [one.item_id for one in shop.events("ann", 2)[0]] == ["soap", "milk"]
    shop.add_events([event(item="old", when=1)])
    assert shop.events("ann", 9)[1] > newest
    assert shop.events("bob", 9) == ([], 0)


def test_equal_times_keep_the_order_of_arrival(shop):
    for number in range(12):
        shop.add_events([event(item=str(number))])
    assert [one.item_id for one in shop.events("ann", 20)[0]] == [str(n) for n in range(12)]


def test_a_repeated_event_is_stored_once(shop):
    one = event(event_id="e1")
    assert shop.add_events([one, one]) == 1
    assert shop.add_events([one, event(event_id="e2"), event(user="bob", event_id="e1")]) == 1
    assert len(shop.events("ann", 9)[0]) == 2
    assert shop.add_events([event(), event()]) == 2  # without an id


def test_deleted_events_leave_no_trace_in_lists(shop):
    one, other = event(event_id="e1"), event(item="milk", event_id="e2", when=200)
    shop.add_events([one, other, event(item="milk", when=300), event(user="bob")])
    shop.done(shop.take("w1", 5))
    shop.put_lists({"ann": {"home": a_list(newest=shop.events("ann", 9)[1])}}, 60)
    assert shop.delete_events("ann", "nothing") == shop.delete_events("cy") == 0
    assert shop.queue().size == 0 and shop.list_of("ann", "home") is not None
    assert shop.delete_events("ann", "e2") == 1
    assert [found.item_id for found in shop.events("ann", 9)[0]] == ["tea", "milk"]
    assert shop.seen_items("ann") == {"tea", "milk"}  # another event has it
    assert shop.list_of("ann", "home") is None
    [work] = shop.take("w1", 5)
    shop.put_lists({"ann": {"home": a_list(newest=work.newest)}}, 60)
    shop.put_lists({"ann": {"home": a_list(work.newest - 1, "old")}}, 60)  # of a slower worker
    assert shop.list_of("ann", "home").items[0]["item_id"] == "tea"
    assert shop.delete_events("ann", "e1") == 1 and shop.seen_items("ann") == {"milk"}
    shop.done([work])
    assert shop.queue().size == 1  # the list is out of date again
    assert shop.delete_events("ann") == 1
    assert shop.seen_items("ann") == set() and shop.events("ann", 9) == ([], 0)
    assert shop.users("", 9) == ["bob"]
    assert shop.add_events([one, other]) == 2  # the same may be sent again


def test_a_user_with_a_profile_stays_without_events(shop):
    shop.put_users({"ann": {"age": 3}})
    shop.add_events([event()])
    assert shop.delete_events("ann") == 1
    assert shop.users("", 9) == ["ann"] and shop.user("ann") == {"age": 3}


def test_who_is_asked_again_while_computed_waits_again(shop):
    """The lists that are computed at this moment know the old profile."""
    shop.ask_again(["ann"])
    works = shop.take("w1", 5)
    shop.ask_again(["ann"])
    shop.done(works)
    [work] = shop.take("w1", 5)
    shop.done([work])
    assert work.user_id == "ann" and shop.queue().size == 0


def test_a_user_with_new_events_is_taken_once(shop):
    assert shop.take("w1", 5) == [] and shop.queue().size == 0
    before = time.time()
    shop.add_events([event(), event(item="milk"), event(user="bob")])
    works = shop.take("w1", 5)
    assert [work.user_id for work in works] == ["ann", "bob"]
    assert all(before <= work.since <= time.time() for work in works)
    assert works[0].newest == shop.events("ann", 9)[1]
    assert shop.take("w2", 5) == []
    assert shop.queue().size >= 2 and shop.queue().oldest == works[0].since
    shop.done(works)
    assert shop.queue().size == 0 and shop.queue().oldest is None
    assert shop.take("w1", 5) == []
    shop.done([])


def test_those_who_wait_longest_come_first(shop):
    for user in "cab":
        shop.add_events([event(user=user)])
        time.sleep(0.01)
    assert [work.user_id for work in shop.take("w1", 2)] == ["c", "a"]
    assert [work.user_id for work in shop.take("w1", 2)] == ["b"]


def test_events_during_the_work_are_not_lost(shop):
    shop.add_events([event()])
    works = shop.take("w1", 5)
    shop.add_events([event(item="milk")])
    shop.done(works)
    [again] = shop.take("w1", 5)
    assert again.user_id == "ann" and again.newest > works[0].newest
    shop.done([again])
    assert shop.queue().size == 0


def test_the_work_of_a_dead_worker_is_taken_by_another(shop):
    shop.add_events([event()])
    [dead] = shop.take("w1", 5, lease=0.2)
    assert shop.take("w2", 5, lease=0.2) == []
    time.sleep(0.3)
    [work] = shop.take("w2", 5, lease=0.2)
    assert (work.user_id, work.newest) == (dead.user_id, dead.newest)
    shop.done([work])
    assert shop.queue().size == 0


def test_lists(shop):
    assert shop.list_of("ann", "home") is None and shop.count_lists() == 0
    shop.put_lists({"ann": {"home": a_list(5), "summer": a_list(5, "ice")}}, 60)
    assert shop.list_of("ann", "home") == a_list(5)
    assert shop.list_of("ann", "summer").items[0]["item_id"] == "ice"
    shop.put_lists({"ann": {"home": a_list(4, "older")}}, 60)
    assert shop.list_of("ann", "home") == a_list(5)
    shop.put_lists({"ann": {"home": a_list(5, "again")}}, 60)
    assert shop.list_of("ann", "home").items[0]["item_id"] == "again"
    shop.put_lists({"bob": {"home": a_list()}}, 0.05)
    assert shop.count_lists() == 2
    time.sleep(0.1)
    assert shop.list_of("bob", "home") is None


def test_users_with_lists_are_read_page_by_page(store, shop):
    def listed(tenant) -> list[str]:
        found, cursor = tenant.listed("", 3)
        while cursor:
            more, cursor = tenant.listed(cursor, 3)
            found += more
        return sorted(set(found))

    users = [f"user {number}.*[{number}]" for number in range(7)]
    shop.put_lists({user: {"home": a_list(1), "tea": a_list(1)} for user in users}, 60)
    store.tenant("else*").put_lists({"other": {"home": a_list(1)}}, 60)
    assert listed(shop) == users
    assert listed(store.tenant("else*")) == ["other"] and listed(store.tenant("nobody")) == []


def test_states_and_documents(shop):
    shop.put_states({"tea": ItemState(stock=0), "milk": ItemState(True), "ice": ItemState()})
    shop.put_states({"milk": ItemState(expires=50.0)})
    shop.put_states({})
    states = shop.states()
    assert states == {
        "tea": ItemState(stock=0),
        "milk": ItemState(expires=50.0),
        "ice": ItemState(),
    }
    assert [states[name].is_shown(49) for name in ("tea", "milk", "ice")] == [False, True, True]
    assert not states["milk"].is_shown(50) and not ItemState(True).is_shown(0)
    shop.put_document("rule", "b", {"n": [1, None]})
    shop.put_document("rule", "a", "x", keep_seconds=0.05)
    shop.put_document("job", "a", 3)
    assert shop.document("rule", "b") == {"n": [1, None]} and shop.document("rule", "c") is None
    assert shop.documents("rule") == {"a": "x", "b": {"n": [1, None]}}
    time.sleep(0.1)
    assert shop.documents("rule") == {"b": {"n": [1, None]}} and shop.document("rule", "a") is None
    assert shop.delete_document("rule", "b") and not shop.delete_document("rule", "b")
    assert shop.documents("rule") == {} and shop.document("job", "a") == 3


@pytest.mark.parametrize("name", ["shop2", "", "s:hop", "sh{o}p", "shop:6.stream"])
def test_tenants_see_nothing_of_each_other(store, shop, name):
    other = store.tenant(name)
    shop.put_users({"ann": {"a": 1}})
    shop.add_events([event(event_id="e")])
    shop.put_lists({"ann": {"home": a_list()}}, 60)
    shop.put_states({"tea": ItemState(True)})
    shop.put_document("rule", "r", 1)
    assert other.user("ann") is None and other.users("", 9) == [] and other.events("ann", 9)[1] == 0
    assert other.take("w", 9) == [] and other.queue().size == 0
    assert other.list_of("ann", "home") is None and other.count_lists() == 0
    assert other.states() == {} and other.documents("rule") == {} and not other.delete_user("ann")
    assert other.add_events([event(event_id="e")]) == 1
    assert len(shop.events("ann", 9)[0]) == 1


@pytest.mark.parametrize("text", ["a'b\"c;--", "\n\t", "日本", "x" * 5000, ":", "a\x00b"])
def test_any_text_is_a_name(shop, text):
    shop.put_users({text: {"k": text}})
    shop.add_events([event(user=text, item=text, kind=text, session_id=text, event_id=text)])
    shop.put_lists({text: {text: a_list(1, text)}}, 60)
    shop.put_document(text, text, text)
    assert shop.user(text) == {"k": text}
    [found], _ = shop.events(text, 9)
    assert (found.item_id, found.kind, found.event_id) == (text, text, text)
    assert shop.list_of(text, text).items[0]["item_id"] == text
    assert shop.documents(text) == {text: text}
    assert [work.user_id for work in shop.take("w", 9)] == [text]


def test_many_writers_lose_nothing(url):
    """Four threads, each with a store of its own, as four processes have."""

    def write(writer):
        store = open_store(url)
        for number in range(25):
            store.tenant("shop").add_events([event(item=f"{writer}-{number}")])
        store.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = open_store(url)
    assert len(store.tenant("shop").events("ann", 999)[0]) == 100
    store.check()
    store.close()


def test_stores_that_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match=r"is of no known kind; use redis, rediss, sqlite"):
        open_store("mysql://here")
    with pytest.raises(StoreError, match=r"redis: .*refused"):
        open_store("redis://127.0.0.1:1/0")
    (tmp_path / "text.db").write_text("this is no database, but long enough to be read " * 99)
    with pytest.raises(StoreError, match=r"text.db: file is not a database"):
        open_store(str(tmp_path / "text.db"))


def exposure(user="ann", bucket=1, when=100, **fields):
    given = {"experiment": "beams", "arm": "a", "list_name": "home", "items": ("tea", "milk")}
    return Exposure(user_id=user, bucket=bucket, time=when, **given | fields)


def test_a_repeated_exposure_is_stored_once(shop):
    first, second = exposure(), exposure(bucket=2, when=4000, items=())
    shop.add_exposures([first, second, exposure(when=105, items=("ice",))])
    shop.add_exposures([exposure(when=110, arm="b"), exposure("bob"), exposure(list_name="summer")])
    shop.add_exposures([])
    found = shop.exposures("beams", "", 1)
    assert sorted(found, key=lambda one: (one.list_name, one.bucket)) == [
        first,
        second,
        exposure(list_name="summer"),
    ]
    assert shop.exposures("beams", "ann", 9) == [exposure("bob")]
    assert shop.exposures("beams", "bob", 9) == [] and shop.exposures("other", "", 9) == []


def test_exposures_end_with_their_user_and_their_experiment(shop):
    shop.add_exposures([exposure(), exposure("bob"), exposure(experiment="rules")])
    assert shop.delete_user("ann")
    assert [one.user_id for one in shop.exposures("beams", "", 9)] == ["bob"]
    assert shop.exposures("rules", "", 9) == []
    shop.add_exposures([exposure(experiment="rules")])
    shop.delete_exposures("beams")
    assert shop.exposures("beams", "", 9) == [] and len(shop.exposures("rules", "", 9)) == 1


def test_events_are_counted_by_hour_once(shop):
    one = event(when=7200, event_id="e1")
    shop.add_events([one, one, event(when=7300), event(item="milk", when=10_799)])
    shop.add_events([one, event(user="bob", when=10_800), event(when=90_000)])
    assert shop.event_counts(2, 3) == {2: {"tea": 2, "milk": 1}, 3: {"tea": 1}}
    assert shop.event_counts(4, 24) == {}


def test_a_user_may_be_computed_again_without_an_event(shop):
    shop.add_events([event()])
    [work] = shop.take("w1", 5)
    shop.put_lists({"ann": {"home": a_list(work.newest)}}, 60)
    shop.done([work])
    shop.ask_again(["ann", "bob"])
    works = {work.user_id: work for work in shop.take("w1", 5)}
    assert set(works) == {"ann", "bob"}
    shop.put_lists({"ann": {"home": a_list(work.newest, "again")}}, 60)
    assert shop.list_of("ann", "home").items[0]["item_id"] == "again"
    shop.done(list(works.values()))
    assert shop.queue().size == 0
    shop.ask_again(["ann"])
    shop.add_events([event(when=500)])  # the event counts, however the user came into the queue
    assert max(work.newest for work in shop.take("w1", 5)) == shop.events("ann", 9)[1]


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@127.0.0.1:1/0",
        "redis://user:sec/secret@127.0.0.1:1/0",
        "redis://127.0.0.1:port/0?password=secret",
        "rediss://:secret@127.0.0.1:x",
        "postgres://user:secret@host/db",
        "valkey://:secret@127.0.0.1:1/0",
    ],
)
def test_no_error_shows_a_password(url):
    with pytest.raises((ValueError, StoreError)) as caught:
        open_store(url)
    assert "secret" not in str(caught.value) and "sec/" not in str(caught.value)
    assert caught.value.__cause__ is None or "secret" not in str(caught.value.__cause__)


def test_valkey_is_redis(redis_url):
    store = open_store(redis_url.replace("redis://", "valkey://") + "/0")
    assert store.check() == ""
    store.close()
