"""Quality of semantic IDs: code use, perplexity, collisions, neighbours. NumPy only."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from sigma_jax.data.vectors import unit_rows

HISTOGRAM_BINS = 10  # the last bin is "10 or more"


def code_use(codes: Int[np.ndarray, "I L"], size: int) -> tuple[np.ndarray, np.ndarray]:
    """By level: the number of distinct codes, and the perplexity exp(entropy) of their use."""
    counts = np.stack([np.bincount(column, minlength=size) for column in codes.T])
    return (counts > 0).sum(1), perplexities(counts)


def perplexities(counts: Int[np.ndarray, "L C"]) -> Float[np.ndarray, " L"]:
    """Perplexity exp(entropy) of the codes of each level; C if all C codes are equally frequent."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return np.exp(-(share * np.log(np.where(share > 0, share, 1))).sum(1))


def prefix_sizes(codes: Int[np.ndarray, "I L"]) -> list[np.ndarray]:
    """For each depth 1..L, the number of items of each distinct prefix of that length."""
    group = np.zeros(len(codes), np.int64)
    sizes = []
    for column in codes.T:
        pair = group * (int(column.max()) + 1) + column
        _, group, counts = np.unique(pair, return_inverse=True, return_counts=True)
        sizes.append(counts)
    return sizes


def collision_histogram(sid_sizes: Int[np.ndarray, " sids"]) -> dict[str, int]:
    """Number of SIDs with 1, 2, 3 ... items; `sid_sizes` are the sizes of full-length prefixes.

    Worked example: sizes [1, 1, 3] -> {"1": 2, "3": 1}.
    """
    counts = np.bincount(np.minimum(sid_sizes, HISTOGRAM_BINS))
    names = {
        n: str(n) if n < HISTOGRAM_BINS else f"{n} or more" for n in range(1, HISTOGRAM_BINS + 1)
    }
    return {names[n]: int(count) for n, count in enumerate(counts) if n and count}


def neighbour_share(
    vectors: Float[np.ndarray, "N D"],
    first_codes: Int[np.ndarray, " N"],
    queries: Int[np.ndarray, " Q"],
    neighbours: int = 10,
) -> float:
    """Share of the nearest other items (by cosine) that have the first code of their query.

    `queries` are rows of `vectors`; 1 if there is no other item.
    """
    neighbours = min(neighbours, len(vectors) - 1)
    if neighbours < 1:
        return 1.0
    unit = unit_rows(vectors)
    hits = 0
    for rows in np.array_split(queries, -(-len(queries) // 256)):  # memory [256, N]
        cosines = unit[rows] @ unit.T
        cosines[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argpartition(-cosines, neighbours - 1, axis=1)[:, :neighbours]
        hits += (first_codes[nearest] == first_codes[rows, None]).sum()
    return float(hits / (len(queries) * neighbours))
