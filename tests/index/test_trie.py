"""Promises of sigma_jax/index/trie.py and trie_build.py."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_jax.index.trie import Trie, child_of, children, leaves_of, padded_size
from sigma_jax.index.trie_build import (
    KEY_BITS,
    build_trie,
    mark_active,
    nodes_of_leaves,
    sort_order,
    with_spare_capacity,
)

STEP = jax.jit(children, static_argnums=1)
LEAVES = jax.jit(leaves_of)
HAS_NODES = jax.jit(lambda active, nodes: active.has_nodes(nodes))


def walk(trie: Trie, active=None) -> list[tuple[tuple[int, ...], int]]:
    """(path, leaf) of every path from the root to a leaf, found by `children` alone."""
    paths = [((), 0)]
    for level in range(trie.depth):
        nodes = np.full(64, -1, np.int32)
        nodes[: len(paths)] = [node for _, node in paths]
        codes, below, is_child = jax.device_get(STEP(trie, level, nodes))
        if active is not None:
            is_child = is_child & np.asarray(HAS_NODES(active, below))
        paths = [
            ((*path, int(codes[row, column])), int(below[row, column]))
            for row, (path, _) in enumerate(paths)
            for column in np.flatnonzero(is_child[row])
        ]
    nodes = np.full(64, -1, np.int32)
    nodes[: len(paths)] = [node for _, node in paths]
    leaves = np.asarray(LEAVES(trie, nodes))
    return [(path, int(leaf)) for (path, _), leaf in zip(paths, leaves, strict=False)]


@st.composite
def semantic_ids(draw):
    """(codes, depth, codebook size) of 1 to 25 items."""
    levels = draw(st.integers(1, 5))
    size = draw(st.sampled_from([1, 2, 5, 300]))
    rows = draw(
        st.lists(
            st.lists(st.integers(0, size - 1), min_size=levels, max_size=levels),
            min_size=1,
            max_size=25,
        )
    )
    return np.int32(rows), draw(st.integers(1, levels)), size


@settings(deadline=None, max_examples=30)
@given(semantic_ids())
def test_paths_are_the_prefixes_of_all_items_and_leaves_hold_their_items(example):
    codes, depth, size = example
    trie = build_trie(codes, depth, size)
    paths = walk(trie)
    prefixes = sorted({tuple(row[:depth]) for row in codes.tolist()})
    assert [path for path, _ in paths] == prefixes  # each once, in sorted order
    assert [leaf for _, leaf in paths] == list(range(trie.num_leaves))
    for path, leaf in paths:
        items = trie.sorted_items[trie.leaf_start[leaf] : trie.leaf_start[leaf + 1]]
        assert items.tolist() == [i for i, row in enumerate(codes) if tuple(row[:depth]) == path]
    assert trie.num_items == len(codes)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(semantic_ids(), st.data())
def test_active_items_keep_their_paths_and_rows_and_no_others(example, data):
    codes, depth, size = example
    trie = build_trie(codes, depth, size)
    flags = st.lists(st.booleans(), min_size=len(codes), max_size=len(codes)).filter(any)
    is_active = np.array(data.draw(flags))
    active = mark_active(trie, is_active)
    found = walk(trie, active)
    assert [path for path, _ in found] == sorted(
        {tuple(row[:depth]) for row in codes[is_active].tolist()}
    )
    assert set(found) <= set(walk(trie))
    rows = np.arange(len(codes))
    np.testing.assert_array_equal(active.has_rows(rows), is_active[trie.sorted_items[rows]])


def test_mark_active_needs_an_active_item_and_a_flag_for_each_item():
    trie = build_trie(np.int32([[0, 0], [0, 1]]), 2, 2)
    with pytest.raises(ValueError, match="False for all items"):
        mark_active(trie, np.zeros(2, bool))
    with pytest.raises(ValueError, match="3 entries, but the trie has 2 items"):
        mark_active(trie, np.ones(3, bool))


@settings(deadline=None, max_examples=30)
@given(semantic_ids())
def test_nodes_of_leaves_are_the_nodes_above_each_leaf(example):
    codes, depth, size = example
    trie = build_trie(codes, depth, size)
    prefixes = sorted({tuple(row[:depth]) for row in codes.tolist()})
    above = nodes_of_leaves(trie)
    for level in range(1, depth + 1):
        shorter = [path[: level - 1] for path in prefixes]
        nodes = sorted({p[:level] for p in prefixes if shorter.count(p[: level - 1]) > 1})
        if level == 1:
            nodes = sorted({p[:1] for p in prefixes})
        expected = [nodes.index(p[:level]) if p[:level] in nodes else -1 for p in prefixes]
        assert above[level - 1].tolist() == expected


def test_the_worked_example_of_the_docstring_holds():
    trie = build_trie(np.int32([[3, 1, 5], [0, 2, 4], [3, 1, 5], [3, 0, 6]]), 3, 8)
    assert trie.edge_code[:4].tolist() == [0, 3, 0, 1]
    assert trie.edge_start[:6].tolist() == [0, 2, 2, 4, 4, 4]
    assert trie.level_start.tolist() == [0, 1, 3, 5, 5]
    assert trie.node_leaf[:5].tolist() == [0, 0, 1, 1, 2]
    assert trie.leaf_codes[:3].tolist() == [[2, 4], [0, 6], [1, 5]]
    assert trie.leaf_start[:4].tolist() == [0, 1, 2, 4]
    assert trie.sorted_items[:4].tolist() == [1, 3, 0, 2]
    assert trie.widths == (2, 2, 1) and trie.largest_leaf == 2 and trie.num_leaves == 3


@pytest.mark.parametrize("levels, size, spread", [(5, 2, 2), (9, 300, 3), (16, 65_536, 2)])
def test_sort_order_is_that_of_codes_and_then_of_rows(levels, size, spread, monkeypatch):
    """It holds for keys with many codes, with few codes and several passes, and with none."""
    codes = np.random.default_rng(0).integers(0, spread, (3_000, levels)).astype(np.uint16)
    codes[::7] = codes[0]
    expected = np.lexsort(codes.T[::-1])
    for bits in (KEY_BITS, 32, 16):
        monkeypatch.setattr("sigma_jax.index.trie_build.KEY_BITS", bits)
        np.testing.assert_array_equal(sort_order(codes, size), expected)


@pytest.mark.parametrize("levels, size", [(16, 65_536), (1, 65_536), (16, 2), (4, 256)])
def test_paths_are_right_for_extreme_levels_and_codebooks(levels, size):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, size, (50, levels)).astype(np.int32)
    codes[0], codes[1] = size - 1, 0
    trie = build_trie(codes, levels, size)
    assert [path for path, _ in walk(trie)] == sorted({tuple(row) for row in codes.tolist()})


def test_an_absent_beam_has_no_children():
    trie = build_trie(np.int32([[0, 0], [0, 1]]), 2, 2)
    codes, nodes, is_valid = STEP(trie, 0, np.int32([-1, 0]))
    assert is_valid.tolist() == [[False], [True]]
    assert codes.tolist() == [[-1], [0]] and nodes.tolist() == [[-1], [1]]


def test_a_saved_trie_is_loaded_memory_mapped_and_equal(tmp_path):
    trie = build_trie(np.random.default_rng(1).integers(0, 9, (40, 3)), 2, 9)
    trie.save(tmp_path)
    loaded = Trie.load(tmp_path)
    assert isinstance(loaded.sorted_items, np.memmap)
    assert jax.tree.structure(loaded) == jax.tree.structure(trie)
    jax.tree.map(np.testing.assert_array_equal, loaded, trie)
    assert walk(jax.device_put(loaded)) == walk(trie)
    (tmp_path / "trie.json").unlink()
    with pytest.raises(ValueError, match=r"trie\.json is missing"):
        Trie.load(tmp_path)


def test_similar_catalogues_share_one_compiled_program():
    steps = jax.jit(lambda *args: children(*args), static_argnums=1)
    rng = np.random.default_rng(2)
    # 1000 and 1001 items over the same 8 x 8 prefixes: same padded sizes and widths.
    grid = np.indices((8, 8)).reshape(2, -1).T
    for count in (1000, 1001):
        codes = np.concatenate([grid, rng.integers(0, 8, (count - 64, 2))]).astype(np.int32)
        steps(build_trie(codes, 2, 8), 1, np.int32([1, 2]))
    assert steps._cache_size() == 1


def test_a_catalogue_that_grows_a_little_keeps_its_shapes():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 30, (5_000, 4)).astype(np.int32)
    more = np.concatenate([codes, rng.integers(0, 30, (50, 4)).astype(np.int32)])
    first = with_spare_capacity(build_trie(codes, 4, 30))
    second = with_spare_capacity(build_trie(more, 4, 30, first), first)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert first.dense.keys() == {"0", "1"} and first.first_tail_level == 2
    for before, after in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert before.shape == after.shape
    for trie, rows in ((first, codes), (second, more)):
        plain = build_trie(rows, 4, 30)
        nodes = np.arange(plain.level_start[2], plain.level_start[3], dtype=np.int32)
        for found, expected in zip(STEP(trie, 2, nodes), STEP(plain, 2, nodes), strict=True):
            width = expected.shape[1]
            np.testing.assert_array_equal(found[:, :width], expected)
        assert (trie.num_leaves, trie.num_items) == (plain.num_leaves, len(rows))


def test_child_of_finds_the_child_of_each_code():
    codes = np.random.default_rng(4).integers(0, 9, (300, 3)).astype(np.int32)
    trie = build_trie(codes, 3, 9)
    for level in range(3):
        nodes = np.arange(trie.level_start[level], trie.level_start[level + 1], dtype=np.int32)
        found_codes, found, is_valid = (np.asarray(a) for a in STEP(trie, level, nodes))
        is_valid = is_valid & (np.diff(trie.edge_start)[nodes] > 0)[:, None]  # without tails
        above = np.broadcast_to(nodes[:, None], found.shape)[is_valid]
        np.testing.assert_array_equal(child_of(trie, above, found_codes[is_valid]), found[is_valid])


def test_padded_size_wastes_at_most_a_quarter():
    sizes = [padded_size(n) for n in range(8, 5000)]
    assert all(n <= size <= 1.25 * n for n, size in enumerate(sizes, 8))
    assert len(set(sizes)) < 60


@pytest.mark.parametrize(
    "codes, depth, size, message",
    [
        (np.zeros((0, 2), np.int32), 1, 4, "no items"),
        (np.zeros((3, 17), np.int32), 1, 4, "17 levels"),
        (np.zeros((3, 2), np.int32), 3, 4, "depth=3"),
        (np.zeros((3, 2), np.int32), 1, 70_000, "codebook_size=70000"),
        (np.full((3, 2), 4, np.int32), 1, 4, "4..4"),
        (np.full((3, 2), -1, np.int32), 1, 4, "-1..-1"),
        (np.zeros((3, 2), np.float32), 1, 4, "float32"),
    ],
)
def test_an_error_names_impossible_sids(codes, depth, size, message):
    with pytest.raises(ValueError, match=message):
        build_trie(codes, depth, size)
