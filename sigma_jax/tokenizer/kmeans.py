"""Residual k-means in JAX: the start of the codebooks, and the alternative to the RQ-VAE."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

BLOCK = 8192  # points compared with all centres at a time; distances take [BLOCK, C] memory


@functools.partial(jax.jit, static_argnames=("levels", "count", "iterations"))
def residual_kmeans(
    points: Float[Array, "N H"], levels: int, count: int, iterations: int, key: PRNGKeyArray
) -> Float[Array, "L C H"]:
    """L = `levels` codebooks of C = `count` centres, by k-means of the points and of residuals."""

    def level(residual, key):
        centres = kmeans(residual, count, iterations, key)
        return residual - centres[nearest(residual, centres)], centres

    return jax.lax.scan(level, points, jax.random.split(key, levels))[1]


def kmeans(
    points: Float[Array, "N H"], count: int, iterations: int, key: PRNGKeyArray
) -> Float[Array, "C H"]:
    """C = `count` centres by Lloyd's k-means from a k-means++ start.

    A centre without points stays where it is. With fewer distinct points than centres some centres
    are equal, and points go to the lower one.
    """

    def iterate(_, centres):
        totals, sizes = cluster_sums(points, centres)
        return jnp.where(sizes[:, None] > 0, totals / jnp.maximum(sizes, 1)[:, None], centres)

    return jax.lax.fori_loop(0, iterations, iterate, plus_plus(points, count, key))


def plus_plus(points: Float[Array, "N H"], count: int, key: PRNGKeyArray) -> Float[Array, "C H"]:
    """Centres by k-means++ (Arthur and Vassilvitskii 2007).

    Each centre is a point drawn by its squared distance to the nearest centre so far.
    """
    first, key = jax.random.split(key)

    def distances(centre):
        return jnp.square(points - centre).sum(-1)

    def add(number, state):
        centres, distance = state
        total = jnp.cumsum(distance)
        draw = jax.random.uniform(jax.random.fold_in(key, number)) * total[-1]
        row = jnp.minimum(jnp.searchsorted(total, draw, side="right"), len(points) - 1)
        return centres.at[number].set(points[row]), jnp.minimum(distance, distances(points[row]))

    start = points[jax.random.randint(first, (), 0, len(points))]
    centres = jnp.zeros((count, points.shape[1]), points.dtype).at[0].set(start)
    return jax.lax.fori_loop(1, count, add, (centres, distances(start)))[0]


def cluster_sums(
    points: Float[Array, "N H"], centres: Float[Array, "C H"]
) -> tuple[Float[Array, "C H"], Float[Array, " C"]]:
    """Sum and number of the points that are nearest to each centre."""
    blocks, is_point = _blocks(points)

    def add(state, block):
        points, is_point = block
        assigned = jax.nn.one_hot(_nearest(points, centres), len(centres)) * is_point[:, None]
        totals = jnp.matmul(assigned.T, points, precision=jax.lax.Precision.HIGHEST)
        return (state[0] + totals, state[1] + assigned.sum(0)), None

    start = (jnp.zeros(centres.shape, jnp.float32), jnp.zeros(len(centres), jnp.float32))
    return jax.lax.scan(add, start, (blocks, is_point))[0]


def nearest(points: Float[Array, "N H"], centres: Float[Array, "C H"]) -> Array:
    """Number of the centre nearest to each point, the lower one on ties."""
    blocks, _ = _blocks(points)
    return jax.lax.map(lambda block: _nearest(block, centres), blocks).reshape(-1)[: len(points)]


def _nearest(points, centres):
    products = jnp.matmul(points, centres.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.square(centres).sum(-1) - 2 * products, axis=-1)


def _blocks(points: Float[Array, "N H"]) -> tuple[Array, Array]:
    """The points in padded blocks of equal size, and which rows are points."""
    size = min(BLOCK, len(points))
    padding = -len(points) % size
    padded = jnp.pad(points, ((0, padding), (0, 0)))
    is_point = jnp.arange(len(padded)) < len(points)
    return padded.reshape(-1, size, points.shape[1]), is_point.reshape(-1, size)
