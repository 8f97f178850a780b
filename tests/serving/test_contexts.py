"""Kept contexts: a growing history is answered as if all were computed from the beginning."""

import dataclasses
import os
import time

import numpy as np
import pytest

from sigma_jax.generation.contexts import Context, ContextCache, ContextFiles
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.engine import CatalogueSnapshot, SnapshotSettings

NOW, COUNT, STEP = 1_700_000_000, 8, 4


def snapshot_of(exported, **settings):
    fields = SnapshotSettings("recommend something", beams=8, window_step=STEP, **settings)
    return CatalogueSnapshot.load(Bundle.open(exported), settings=fields)


@pytest.fixture(scope="module")
def plain(exported):
    """Computes everything from the beginning."""
    return snapshot_of(exported)


@pytest.fixture
def keeping(exported, tmp_path):
    return snapshot_of(exported, kept_bytes=2**24)


@pytest.fixture(scope="module")
def items(plain):
    return plain.version.catalogue.table["item_id"].to_pylist()


def row(user, items, instruction="", start=0):
    history = [
        {"item_id": item, "timestamp": NOW + n, "session_id": f"s{n // 2}"}
        for n, item in enumerate(items, start)
    ]
    return {
        "user_id": user,
        "history": history,
        "instruction": instruction,
        "timestamp": NOW + 10**6,
    }


def assert_same(plain, keeping, rows):
    answers = [
        one.recommend(one.parser.parse(rows), RecommendOptions(COUNT)) for one in (plain, keeping)
    ]
    np.testing.assert_array_equal(answers[1].items, answers[0].items)
    np.testing.assert_allclose(answers[1].log_probs, answers[0].log_probs, atol=1e-4)
    np.testing.assert_allclose(answers[1].beam_scores, answers[0].beam_scores, atol=1e-4)


def test_a_growing_history_computes_its_end_only(plain, keeping, items):
    """Also beyond the longest history, where the beginning moves now and then."""
    contexts = keeping.recommender.contexts
    computed = []
    longest = plain.recommender.spec.layout.history_length
    for size in range(longest - 4, longest + 3 * STEP):
        before = contexts.new_columns
        assert_same(plain, keeping, [row("ann", items[:size])])
        computed.append(contexts.new_columns - before)
    assert len(contexts) == 1 and computed[0] > 20  # the whole prompt
    moved = [place for place, columns in enumerate(computed[1:], 1) if columns > 12]
    assert len(moved) == 3 and set(np.diff(moved)) == {STEP}
    assert contexts.kept_columns > contexts.new_columns


def test_requests_of_many_users_and_instructions(plain, keeping, items):
    users = {"ann": 5, "bob": 0, "cy": 11}
    for more in (0, 1, 3):
        rows = [
            row(user, items[first : first + first + more], instruction, first)
            for user, first in users.items()
            for instruction in ("tea", "recommend something", "something for christmas")
        ]
        assert_same(plain, keeping, rows)
    assert 0 < len(keeping.recommender.contexts) <= 3


def test_other_pasts_are_not_mixed_up(plain, keeping, items):
    assert_same(plain, keeping, [row("ann", items[:8])])
    assert_same(plain, keeping, [row("ann", items[8:16])])  # another history
    assert_same(plain, keeping, [row("ann", [*items[8:12], *items[:3]])])  # the same beginning
    assert_same(plain, keeping, [row("ann", items[8:10])])  # a shorter one
    assert_same(plain, keeping, [row("ann", items[8:12]) | {"city": "Oslo"}])  # another profile
    assert_same(plain, keeping, [row("ann", [])])


def test_memory_is_bounded_and_the_rest_goes_to_disk(plain, exported, items, tmp_path):
    rows = [row(f"user {n}", items[n : n + 8]) for n in range(6)]
    one = snapshot_of(exported, kept_bytes=2**24)
    assert_same(plain, one, rows[:1])
    size = one.recommender.contexts._kept["user 0"].bytes
    small = snapshot_of(exported, kept_bytes=int(2.5 * size), spill=tmp_path / "spill")
    for request in rows:
        assert_same(plain, small, [request])
    contexts = small.recommender.contexts
    assert list(contexts._kept) == ["user 4", "user 5"] and contexts._bytes <= 2.5 * size
    before = contexts.new_columns
    assert_same(plain, small, [row("user 0", items[:9])])
    assert 0 < contexts.new_columns - before < 12  # its context was on disk
    [path, *_] = (tmp_path / "spill").glob("*-0001/*")
    path.write_bytes(b"damaged")
    for request in rows:
        assert_same(plain, small, [request])


def some_context(seed=0) -> Context:
    keys = np.random.default_rng(seed).normal(size=(1, 3, 1, 4)).astype(np.float32)
    return Context(np.arange(3), np.array([-1, 7, 8]), keys, keys)


def test_files_are_bounded_and_found_again(tmp_path):
    one = ContextFiles(tmp_path, 10**9)
    one.write("ann", some_context())
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    small = ContextFiles(tmp_path, int(2.5 * size))
    small.write("bob", some_context(1))
    assert small.read("ann") is not None  # now bob is the least recently used
    small.write("cy", some_context(2))
    assert small.read("bob") is None
    np.testing.assert_array_equal(small.read("cy").keys, some_context(2).keys)
    assert len(list(tmp_path.iterdir())) == 2
    small.delete("cy")
    small.delete("nobody")
    assert small.read("cy") is None and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_a_context_out(tmp_path, monkeypatch):
    def full(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    files = ContextFiles(tmp_path, 10**9)
    monkeypatch.setattr(np, "savez", full)
    files.write("ann", some_context())
    assert files.read("ann") is None and not list(tmp_path.iterdir())


def test_a_user_is_dropped_from_memory_and_disk(plain, exported, items, tmp_path):
    one = snapshot_of(exported, kept_bytes=1, spill=tmp_path)  # everything goes to the disk
    assert_same(plain, one, [row("ann", items[:4])])
    contexts = one.recommender.contexts
    assert contexts._get("ann") is not None
    contexts.drop("ann")
    assert contexts._get("ann") is None


def test_files_of_versions_that_nobody_uses_are_deleted(exported, tmp_path):
    for name, age in (("old", 10 * 86_400), ("young", 10)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    snapshot_of(exported, kept_bytes=2**24, spill=tmp_path)
    assert not (tmp_path / "old").exists() and (tmp_path / "young").exists()


def test_nothing_is_kept_of_unknown_users(exported, items):
    one = snapshot_of(exported, kept_bytes=2**24)
    batch = one.parser.parse([row("ann", items[:4])])
    requests = dataclasses.replace(batch.requests, user=np.array([-1], np.int32))
    one.recommend(dataclasses.replace(batch, requests=requests), RecommendOptions(COUNT))
    assert len(one.recommender.contexts) == 0


def test_the_common_beginning():
    keys = np.zeros((1, 3, 1, 1), np.float32)
    context = Context(np.array([1, 2, 3]), np.array([-1, 7, 8]), keys, keys)
    assert context.common(np.array([1, 2, 3, 4]), np.array([-1, 7, 8, 9])) == 3
    assert context.common(np.array([1, 2, 3]), np.array([-1, 7, 9])) == 2
    assert context.common(np.array([5]), np.array([-1])) == 0
    assert context.common(np.array([1, 2]), np.array([-1, 7])) == 2
    assert len(ContextCache(10)) == 0
