"""Tests of batches of pairs: seed and step decide them; training pairs in the set mixture."""

import dataclasses

import numpy as np
import pytest

from sigma_jax.grounding.pairs import PairBatches, held_out, mixture
from sigma_jax.grounding.texts import token_table
from sigma_jax.schema import VIEWS

BOTH = {"search": 3.0, "co_occurrence": 1.0, "theme": 5.0, "visual": 0.0}


def make(data, tmp_path, pairs=64, seed=0):
    table = token_table(data, tmp_path / "cache", 16, 1.0, "")
    return PairBatches(data, table, mixture(BOTH, data), data.id_vectors, pairs, seed)


def test_a_batch_depends_on_seed_and_step_only(data, tmp_path):
    batches = make(data, tmp_path).dataset()
    later = batches[5]
    again = make(data, tmp_path).dataset()
    again[0]
    for name, array in again[5].items():
        np.testing.assert_array_equal(array, later[name])
    assert not np.array_equal(batches[6]["key"], later["key"])
    assert not np.array_equal(make(data, tmp_path, seed=1).dataset()[5]["key"], later["key"])


def test_a_host_can_make_its_rows_of_a_batch_only(data, tmp_path):
    batches, rows = make(data, tmp_path), np.array([0, 5, 127])
    for name, array in batches.dataset(rows)[5].items():
        np.testing.assert_array_equal(array, batches.dataset()[5][name][rows])


def test_a_run_can_start_in_the_middle(data, tmp_path):
    batches = make(data, tmp_path).dataset()
    iterator = iter(batches.to_iter_dataset())
    iterator.set_state({"next_index": 7})
    np.testing.assert_array_equal(next(iterator)["tokens"], batches[7]["tokens"])


def test_pairs_are_training_pairs_of_their_view(data, tmp_path):
    batches = make(data, tmp_path)
    pairs = {}
    for view in ("search", "co_occurrence"):
        source = data.pairs[view]
        offset = 48 if view == "search" else 0
        keep = ~source.is_heldout
        left, right = source.left[keep] + offset, source.right[keep]
        pairs[VIEWS.index(view)] = set(zip(left, right, strict=True))
    seen = []
    for step in range(8):
        for view, left, right in zip(*batches.draw(step), strict=True):
            assert (left, right) in pairs[view]
            seen.append(view)
    assert abs(np.mean(np.array(seen) == VIEWS.index("search")) - 0.75) < 0.1


def test_a_batch_has_views_keys_and_id_vectors_of_its_rows(data, tmp_path):
    batches = make(data, tmp_path)
    view, left, right = batches.draw(3)
    batch = batches.batch(3)
    rows = np.concatenate([left, right])
    assert {len(array) for array in batch.values()} == {128}
    np.testing.assert_array_equal(batch["has_id"], rows < 48)  # queries have no ID vector
    np.testing.assert_array_equal(batch["view"], np.concatenate([view, view]))
    is_item = batch["has_id"]
    np.testing.assert_array_equal(batch["id_vectors"][is_item], data.id_vectors[rows[is_item]])
    assert not batch["id_vectors"][~is_item].any()
    np.testing.assert_array_equal(batch["key"], np.where(rows == 47, 5, rows))  # equal texts


def test_held_out_pairs_are_held_out(data, tmp_path):
    table = make(data, tmp_path).table
    left, right = held_out(data.pairs["search"], table, 10, 0)
    source = data.pairs["search"]
    heldout = zip(source.left[source.is_heldout] + 48, source.right[source.is_heldout], strict=True)
    assert len(left) == 10 and set(zip(left, right, strict=True)) <= set(heldout)


def test_the_mixture_is_over_views_that_exist(data):
    assert mixture(BOTH, data) == {"search": 0.75, "co_occurrence": 0.25}
    with pytest.raises(ValueError, match="no relevance pairs to train on"):
        mixture({"theme": 1.0}, data)
    pairs = data.pairs["search"]
    held = dataclasses.replace(pairs, is_heldout=np.ones(len(pairs.right), bool))
    only = dataclasses.replace(data, pairs={"search": held})
    with pytest.raises(ValueError, match="no relevance pairs to train on"):
        mixture({"search": 1.0}, only)
