"""RQ-VAE: the L codes of a vector, each of which quantises the residual of the codes before it.

Section 2.2 of SIGMA; Lee et al. 2022. A code's vector is the running average of the residuals
assigned to it and has no gradient. So codebooks need no learning rate, and a step can replace a
code that it finds unused. Without encoder and decoder the same step is mini-batch residual k-means.

Encoder and decoder are each the sum of an MLP and a linear path. The linear path starts at the
principal axes of the data and the MLP at zero, so training starts as good as residual k-means. From
a random start it takes thousands of steps to reach that.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

# Precision of products that choose a code: a TPU would round the factors to bfloat16 and choose
# other codes.
HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class RqVaeConfig:
    """Sizes and weights of an RQ-VAE. ValueError if one is out of its range."""

    levels: int  # L, codes of a semantic ID
    codebook_size: int  # C, codes of each level
    latent_size: int  # without an encoder latents have the size of the vectors
    hidden_sizes: tuple[int, ...]  # of the encoder; the decoder has them in reverse
    commitment: float  # weight of the squared distance of latents from their codes
    decay: float  # of the running averages, per step
    # A code is replaced if its uses fall below this share of a uniform use. 0: never.
    revive_below: float

    def __post_init__(self):
        for name, limit in (("levels", 16), ("codebook_size", 65_536), ("latent_size", 2**16)):
            if not 1 <= getattr(self, name) <= limit:
                raise ValueError(f"model.{name}={getattr(self, name)}; use 1 to {limit}.")
        if not 0 < self.decay < 1:
            raise ValueError(f"model.decay={self.decay} is not between 0 and 1; use 0.99.")
        if not 0 <= self.revive_below < 1:
            raise ValueError(f"model.revive_below={self.revive_below}; use 0 <= revive_below < 1.")


class CodebookState(nnx.Variable):
    """A variable of the codebooks, which the loss updates; it has no gradient."""


class LinearAndMlp(nnx.Module):
    """x W + MLP(x); the MLP's last layer starts at zero."""

    def __init__(self, sizes: tuple[int, ...], *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.linear = nnx.Param(init(rngs.params(), (sizes[0], sizes[-1])))
        pairs = itertools.pairwise(sizes)
        last = nnx.Linear(sizes[-2], sizes[-1], kernel_init=nnx.initializers.zeros, rngs=rngs)
        inner = [nnx.Linear(before, after, rngs=rngs) for before, after in list(pairs)[:-1]]
        self.layers = nnx.List([*inner, last])

    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B H"]:
        hidden = x
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden if number == 0 else jax.nn.gelu(hidden))
        return x @ self.linear[...] + hidden


class RqVae(nnx.Module):
    """Encoder, residual quantiser and decoder; without encoder, the quantiser alone."""

    def __init__(self, config: RqVaeConfig, input_size: int, has_encoder: bool, *, rngs: nnx.Rngs):
        self.config = config
        self.input_size = input_size
        self.has_encoder = has_encoder
        self.latent_size = config.latent_size if has_encoder else input_size
        if has_encoder:
            sizes = (input_size, *config.hidden_sizes, config.latent_size)
            self.encoder = LinearAndMlp(sizes, rngs=rngs)
            self.decoder = LinearAndMlp(sizes[::-1], rngs=rngs)
        shape = (config.levels, config.codebook_size)
        self.codebooks = CodebookState(jnp.zeros((*shape, self.latent_size)))
        self.counts = CodebookState(jnp.zeros(shape))  # running average of uses per step

    def encode(self, vectors: Float[Array, "B D"]) -> Float32[Array, "B H"]:
        """Latents of `vectors`, float32."""
        vectors = vectors.astype(jnp.float32)
        return self.encoder(vectors) if self.has_encoder else vectors

    def decode(self, latents: Float[Array, "B H"]) -> Float32[Array, "B D"]:
        """Vectors of `latents`, float32."""
        return self.decoder(latents) if self.has_encoder else latents

    def assign(self, vectors: Float[Array, "B D"]) -> Int32[Array, "B L"]:
        """The codes of `vectors`: their SIDs."""
        return quantise(self.encode(vectors), self.codebooks[...])[0]

    def start_encoder(self, vectors: Float[Array, "N D"]) -> None:
        """Sets the linear paths to the projection onto principal axes of `vectors`, and back."""
        if not self.has_encoder:
            return
        vectors = vectors.astype(jnp.float32)
        _, axes = jnp.linalg.eigh(jnp.matmul(vectors.T, vectors, precision=HIGHEST))
        axes = axes[:, ::-1][:, : self.latent_size]  # the largest first
        axes = jnp.pad(axes, ((0, 0), (0, self.latent_size - axes.shape[1])))
        self.encoder.linear[...] = axes
        self.decoder.linear[...] = axes.T

    def start_codebooks(self, codebooks: Float[Array, "L C H"], batch_rows: int) -> None:
        """Sets the codebooks, and the counts to a uniform use by batches of `batch_rows`."""
        self.codebooks[...] = codebooks
        uniform_use = batch_rows / self.config.codebook_size
        self.counts[...] = jnp.full(self.counts.shape, uniform_use, jnp.float32)

    def loss(
        self, vectors: Float[Array, "B D"], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Loss and metrics of a batch; updates the codebooks.

        The loss is the batch mean of the squared reconstruction error plus `commitment` times the
        squared distances of residuals from their codes. Gradients reach the encoder through the
        reconstruction (straight through the quantiser) and through the commitment.
        Metrics: `reconstruction`, `commitment`, `revived_codes` (the number of replaced codes) and
        `perplexity_1`.. by level.
        """
        vectors = vectors.astype(jnp.float32)
        latents = self.encode(vectors)
        codes, residuals = quantise(latents, self.codebooks[...])
        # residuals[:, l] is the input of level l; the last is the residual of all levels.
        later = residuals[:, 1:]
        commitment = jnp.square(later).sum((1, 2)).mean()
        straight_through = latents - jax.lax.stop_gradient(later[:, -1])
        error = jnp.square(self.decode(straight_through) - vectors).sum(-1).mean()
        revived = self._move_codebooks(jax.lax.stop_gradient(residuals[:, :-1]), codes, key)
        loss = error + self.config.commitment * commitment
        perplexity = jnp.exp(_entropy(codes, self.config.codebook_size))
        metrics = {
            "reconstruction": error,
            "commitment": commitment,
            "revived_codes": revived,
            **{f"perplexity_{level + 1}": value for level, value in enumerate(perplexity)},
        }
        return loss, metrics

    def _move_codebooks(
        self, residuals: Float[Array, "B L H"], codes: Int32[Array, "B L"], key: PRNGKeyArray
    ) -> Array:
        """Updates the running averages. Returns the number of unused codes.

        Each unused code is replaced by a random residual of the batch.
        """
        config = self.config
        assigned = jax.nn.one_hot(codes, config.codebook_size)
        batch_counts = assigned.sum(0)
        sums = jnp.einsum("BLC,BLH->LCH", assigned, residuals, precision=HIGHEST)
        old_counts, codebooks = self.counts[...], self.codebooks[...]
        counts = config.decay * old_counts + (1 - config.decay) * batch_counts
        totals = config.decay * old_counts[..., None] * codebooks + (1 - config.decay) * sums
        codebooks = jnp.where(
            counts[..., None] > 0, totals / jnp.maximum(counts, 1e-20)[..., None], codebooks
        )
        uniform_use = residuals.shape[0] / config.codebook_size
        is_unused = counts < config.revive_below * uniform_use
        rows = jax.random.randint(key, counts.shape, 0, residuals.shape[0])
        replacements = jnp.take_along_axis(residuals.swapaxes(0, 1), rows[..., None], axis=1)
        self.codebooks[...] = jnp.where(is_unused[..., None], replacements, codebooks)
        self.counts[...] = jnp.where(is_unused, uniform_use, counts)
        return is_unused.sum()


def quantise(
    latents: Float[Array, "B H"], codebooks: Float[Array, "L C H"]
) -> tuple[Int32[Array, "B L"], Float32[Array, "B L+1 H"]]:
    """Codes of `latents`, and residuals: number 0 is the latent, l + 1 is that minus codes 0..l.

    Each level takes the code nearest to its residual, the lower one on ties. Gradients pass to the
    latents only.
    """

    def step(residual, codebook):
        products = jnp.matmul(residual, codebook.T, precision=HIGHEST)
        code = jnp.argmin(jnp.square(codebook).sum(-1) - 2 * products, axis=-1)
        residual = residual - codebook[code]
        return residual, (code.astype(jnp.int32), residual)

    _, (codes, later) = jax.lax.scan(step, latents, jax.lax.stop_gradient(codebooks))
    residuals = jnp.concatenate([latents[:, None], later.swapaxes(0, 1)], axis=1)
    return codes.T, residuals


def _entropy(codes: Int32[Array, "B L"], size: int) -> Float[Array, " L"]:
    """Entropy (nats) of the codes of each level."""
    share = jax.nn.one_hot(codes, size).mean(0)
    return -(share * jnp.log(jnp.maximum(share, 1e-20))).sum(-1)
