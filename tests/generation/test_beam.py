"""Promises of `select` in sigma_jax/generation/beam.py, for logits from a table."""

import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_jax.generation.beam import first_state, select
from sigma_jax.index.trie import leaves_of
from sigma_jax.index.trie_build import build_trie, mark_active

LOGITS = np.random.default_rng(0).normal(size=(2, 97, 7)).astype(np.float32)


def place_of(path: tuple[int, ...]) -> int:
    """The row of LOGITS after `path`."""
    return functools.reduce(lambda place, code: (place * 31 + code + 1) % 97, path, 0)


def naive(paths: set[tuple[int, ...]], row: int, depth: int, beams: int) -> dict:
    """{path: log-probability} of the best paths, by a plain beam search over Python tuples."""
    best = {(): 0.0}
    for level in range(depth):
        children = {}
        for path, score in best.items():
            logits = LOGITS[row, place_of(path)].astype(np.float64)
            log_p = logits - math.log(np.exp(logits).sum())
            for code in {p[level] for p in paths if p[:level] == path}:
                children[(*path, code)] = score + log_p[code]
        best = dict(sorted(children.items(), key=lambda entry: -entry[1])[:beams])
    return best


@functools.partial(jax.jit, static_argnums=1)
def run_search(trie, beams, active):
    """The state after the last level, for both rows of LOGITS."""
    state, after = first_state(2), np.zeros((2, 1), np.int32)
    for level in range(trie.depth):
        logits = jax.vmap(lambda table, rows: table[rows])(jax.numpy.asarray(LOGITS), after)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        state = select(state, logits, trie, level, beams, normaliser, active=active)
        after = np.zeros((2, 1), np.int32)
        for step in range(level + 1):
            after = (after * 31 + state.codes[:, :, step] + 1) % 97
    return state, leaves_of(trie, state.nodes)


@st.composite
def corpora(draw):
    """(codes, is_active, beams): 1 to 20 items with repeats; `is_active` may be None."""
    depth = draw(st.integers(1, 4))
    size = draw(st.sampled_from([1, 2, 7]))
    code = st.integers(0, size - 1)
    rows = draw(st.lists(st.lists(code, min_size=depth, max_size=depth), min_size=1, max_size=20))
    is_active = draw(
        st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)).filter(any) | st.none()
    )
    return np.int32(rows), is_active, draw(st.sampled_from([1, 3, 32]))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(corpora())
def test_beams_equal_those_of_a_plain_search_of_the_active_items(example):
    codes, is_active, beams = example
    trie = build_trie(codes, codes.shape[1], 7)
    active = mark_active(trie, np.array(is_active)) if is_active is not None else None
    state, leaves = jax.device_get(run_search(trie, beams, active))
    kept = codes if is_active is None else codes[np.array(is_active)]
    paths = set(map(tuple, kept.tolist()))
    prefixes = sorted(set(map(tuple, codes.tolist())))
    for row in range(2):
        expected = naive(paths, row, codes.shape[1], beams)
        found = np.isfinite(state.scores[row])
        assert found.sum() == len(expected)
        chosen = [tuple(path) for path in state.codes[row][found].tolist()]
        assert chosen == list(expected)
        np.testing.assert_allclose(state.scores[row][found], list(expected.values()), atol=1e-5)
        assert [prefixes[leaf] for leaf in leaves[row][found]] == chosen
        assert (leaves[row][~found] == -1).all()


def test_probabilities_of_all_prefixes_sum_to_one():
    codes = np.indices((7, 7, 7)).reshape(3, -1).T.astype(np.int32)
    state, leaves = run_search(build_trie(codes, 3, 7), len(codes), None)
    for row in np.asarray(leaves):
        assert sorted(row) == list(range(len(codes)))
    np.testing.assert_allclose(np.exp(state.scores).sum(axis=1), 1, atol=1e-5)
