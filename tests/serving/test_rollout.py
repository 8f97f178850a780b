"""Another model goes live beside requests, and back, and all processes agree on it."""

import shutil
import threading
from pathlib import Path

import pytest
from small_export import with_other_weights

from sigma_jax.serving.engine import SnapshotSettings
from sigma_jax.serving.nearline import NearlineSettings, NearlineWorker
from sigma_jax.serving.rollout import open_active
from sigma_jax.serving.stores.base import Event, open_store

NOW = 1_700_000_000
ROW = {"user_id": "ann", "history": [], "instruction": "tea", "timestamp": NOW}


@pytest.fixture(scope="module")
def exports(exported, tmp_path_factory):
    """A folder with the exports `one` and `one-new`."""
    folder = tmp_path_factory.mktemp("exports")
    for name in ("one", "one-new", "onebis"):  # the last one is of another tenant
        shutil.copytree(exported, folder / name)
    with_other_weights(folder / "one-new", "another training")
    return folder


@pytest.fixture
def store(tmp_path):
    store = open_store(str(tmp_path / "store.db"))
    yield store.tenant("shop")
    store.close()


@pytest.fixture
def rollout(exports, store):
    return open_active(exports / "one", store)


def answer(rollout) -> tuple[str, tuple[str, ...]]:
    """(the model, the items) of an answer."""
    [found] = rollout.engine.recommend([ROW])
    return found["model"], tuple(item["item_id"] for item in found["items"])


def test_requests_go_on_while_models_change(rollout):
    first = answer(rollout)
    rollout.activate("one-new")
    second = answer(rollout)
    rollout.rollback()
    assert first != second and second[0] == "another training" and first[1] != second[1]
    stop, found, errors = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            try:
                found.append(answer(rollout))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    rollout.engine._other = None  # so that the first change loads the export
    for change in (lambda: rollout.activate("one-new"), rollout.rollback) * 3:
        change()
        seen = len(found)
        while len(found) < seen + 6 and not errors:
            stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert set(found) == {first, second}, "each answer is that of one model, whole"
    assert found[-1] == first


def test_a_model_that_was_replaced_keeps_no_contexts(exports, store):
    rollout = open_active(exports / "one", store, SnapshotSettings(kept_bytes=10**8))
    item = rollout.engine.current.version.catalogue.table["item_id"][0].as_py()
    history = [{"item_id": item, "timestamp": NOW - 9}]
    rollout.engine.recommend([ROW | {"history": history}])
    contexts = rollout.engine.current.recommender.contexts
    assert len(contexts) == 1
    rollout.activate("one-new")
    assert len(contexts) == 0
    rollout.engine.recommend([ROW | {"history": history}])
    assert len(rollout.engine.current.recommender.contexts) == 1


def test_processes_agree_by_the_store(exports, store, rollout):
    """Another process is an engine of its own on the same store."""
    other = open_active(exports / "one", store)
    assert not other.follow() and other.active() == "one"
    rollout.activate("one-new")
    assert other.active() == "one-new" and other.follow() and not other.follow()
    assert other.engine.current.model == "another training"
    assert open_active(exports / "one", store).engine.current.model == "another training"
    assert other.rollback() == "one" and rollout.follow()
    assert answer(rollout) == answer(other) and rollout.engine.folder.name == "one"


def test_what_cannot_be_loaded_never_becomes_active(exports, store, rollout):
    assert rollout.names() == ["one", "one-new"]
    for name in ("none", "../exports", "", "onebis", "one/../one-new"):
        with pytest.raises(ValueError, match="has no export"):
            rollout.activate(name)
    with pytest.raises(ValueError, match="no model was active before one"):
        rollout.rollback()
    damaged = Path(shutil.copytree(exports / "one-new", exports / "one-damaged"))
    (damaged / "model" / "reranker" / "reranker.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        rollout.activate("one-damaged")
    shutil.rmtree(damaged)
    assert rollout.active() == "one" and answer(rollout)[0] != "another training"


def test_a_worker_computes_the_lists_of_another_model_anew(exports, store, rollout):
    def worker(name: str, of=None) -> NearlineWorker:
        of = of or open_active(exports / "one", store)
        settings = NearlineSettings(count=5, period=0.01, users_at_once=2)
        return NearlineWorker(of.engine, store, name, settings, lambda: NOW, rollout=of)

    def models() -> list[str]:
        return [store.list_of(user, "home").model for user in users]

    users = [f"user {number}" for number in range(5)]
    store.add_events([Event(user, "i1", NOW) for user in users])
    first, second = worker("w1", rollout), worker("w2")
    while first.run_once():
        pass
    before = store.list_of(users[0], "home")
    assert models() == [rollout.engine.current.model] * 5
    rollout.activate("one-new")
    first.report(), second.report()
    assert first.follow() is False and second.follow()  # the first was there at once
    while first.renew() + second.renew():
        pass
    assert models() == ["another training"] * 5
    renewed = (first.totals.renewed, second.totals.renewed)
    assert sum(renewed) == 5 and min(renewed) > 0, "workers share the users"
    after = store.list_of(users[0], "home")
    assert after.newest == before.newest and after.items != before.items


def test_a_batch_of_a_model_that_was_replaced_meanwhile_is_not_stored(exports, store, rollout):
    settings = NearlineSettings(count=5, period=0.01)
    worker = NearlineWorker(rollout.engine, store, "w", settings, lambda: NOW, rollout=rollout)
    store.add_events([Event("ann", "i1", NOW)])
    elsewhere, lists_of = open_active(exports / "one", store), worker._lists_of

    def slow(newest):
        found = lists_of(newest)
        if elsewhere.active() == "one":
            elsewhere.activate("one-new")
        return found

    worker._lists_of = slow
    assert worker.run_once() == 1
    assert store.list_of("ann", "home").model == "another training"


def test_a_damaged_export_of_an_arm_keeps_no_other_model_from_its_place(rollout, store):
    """The worker follows its own export, and says that something has changed."""

    class Damaged:
        def refresh(self):
            raise ValueError("damaged")

    settings = NearlineSettings(count=3, period=0.01)
    others = {"broken": Damaged()}
    worker = NearlineWorker(rollout.engine, store, "w", settings, lambda: NOW, others, rollout)
    before = rollout.engine.current.model
    other = next(name for name in rollout.names() if name != rollout.active())
    content = {"active": other, "before": [rollout.active()]}
    store.put_document("model", rollout.first.absolute().name, content)
    assert worker.follow() and rollout.engine.current.model != before
    assert not worker.follow()
