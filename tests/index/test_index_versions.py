"""Promises of HostIndex for a catalogue that changes: saved, loaded and updated."""

import numpy as np
import pytest
from small_index import LEAVES, agreement, clustered

from sigma_jax.index import scann_searcher
from sigma_jax.index.candidates import SearchInputs
from sigma_jax.index.host_index import HostIndex


def of_catalogue(leaf, vectors, is_active):
    """(vector of each active item, leaf of each active item), which `agreement` takes."""
    items = np.flatnonzero(is_active).tolist()
    return {item: vectors[item] for item in items}, {item: int(leaf[item]) for item in items}


def test_an_updated_index_finds_the_items_of_its_version_also_when_loaded(tmp_path):
    vectors, rng = clustered(1_800), np.random.default_rng(1)
    leaf = rng.choice(LEAVES, 1_800, p=[0.5, 0.35, 0.14, 0.01]).astype(np.int32)
    index = HostIndex(leaf[:1_500], vectors[:1_500], count=10, scann_above=400)
    assert set(index.recall) == {0, 1}
    is_active = np.ones(1_500, bool)
    index.save(tmp_path / "0")
    # In each step leaves get other numbers, and new items are added. Some items are removed, also
    # new ones.
    steps = [
        (np.arange(1_800) < 1_550, np.arange(1_800) % 40 == 0),
        (np.ones(1_800, bool), (leaf == 1) & (np.arange(1_800) % 3 == 0)),
        (np.ones(1_800, bool), np.arange(1_800) % 40 == 1),
    ]
    number = np.array([0, 1, 2, 3], np.int32)
    for step, (known, removed) in enumerate(steps, 1):
        before = HostIndex.load(tmp_path / str(step - 1), vectors[: len(is_active)], is_active)
        number, size = rng.permutation(LEAVES).astype(np.int32), int(known.sum())
        is_active = (known & ~removed)[:size]
        rebuilt = before.update_to(number[leaf[:size]], vectors[:size], is_active)
        assert (number[1] in rebuilt) == (step == 2 or step == 3)
        assert number[0] not in rebuilt or step > 1
        before.save(tmp_path / str(step))
        after = HostIndex.load(tmp_path / str(step), vectors[:size], is_active)
        kept = of_catalogue(number[leaf], vectors, is_active)
        queries, leaves = clustered(50, 3), np.arange(50, dtype=np.int32) % LEAVES
        for left, right in zip(
            *(i.search(queries, leaves, 10) for i in (before, after)), strict=True
        ):
            np.testing.assert_array_equal(left, right)
        for searched in (before, after):
            assert agreement((searched, *kept)) >= 0.95
        beam_queries, beam_leaves = queries[:8].reshape(2, 4, -1), leaves[:8].reshape(2, 4)
        inverse_temperature = np.array([4.0, 6.0], np.float32)
        inputs = SearchInputs(beam_queries, beam_leaves, beam_leaves >= 0, inverse_temperature)
        normaliser = after.search_beams(inputs, 10).log_normaliser
        for row, beam in np.ndindex(2, 4):  # removed items keep their probability
            inside = vectors[known & (number[leaf] == beam_leaves[row, beam])]
            exact = np.log(
                np.exp(inside @ beam_queries[row, beam] * inverse_temperature[row]).sum()
            )
            assert normaliser[row, beam] == pytest.approx(exact, abs=0.1)
        some = is_active & (np.arange(size) % 2 == 0)
        assert (
            agreement((after.restrict_to(some), *of_catalogue(number[leaf], vectors, some))) >= 0.95
        )
        assert after.recall == before.recall


def test_versions_share_the_files_of_searchers_that_did_not_change(tmp_path):
    vectors, leaf = clustered(600), np.zeros(600, np.int32)
    HostIndex(leaf, vectors, count=10, scann_above=400).save(tmp_path / "0")
    index = HostIndex.load(tmp_path / "0", vectors, np.ones(600, bool))
    assert index.update_to(leaf, vectors, np.arange(600) > 5) == []
    index.save(tmp_path / "1")
    pairs = [tuple((tmp_path / n / "0" / "dataset.npy").stat().st_ino for n in "01")]
    assert all(one == other for one, other in pairs)


def test_loading_without_scann_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    vectors = clustered(600)
    HostIndex(np.zeros(600, np.int32), vectors, scann_above=400).save(tmp_path / "0")
    monkeypatch.setattr(scann_searcher, "HAS_SCANN", False)
    with pytest.raises(ValueError, match="scann, which is not installed"):
        HostIndex.load(tmp_path / "0", vectors, np.ones(600, bool))
