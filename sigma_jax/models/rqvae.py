"""RQ-VAE: a vector to L codes, each quantising what the codes before it left over.

Section 2.2 of SIGMA. Codebooks follow running averages of the vectors given to each code, not
gradients: they need no learning rate, and a code that nothing chooses can be set anew in the step
that notices. Without encoder and decoder the same step is mini-batch residual k-means.

Encoder and decoder are an MLP beside a linear path. The linear path starts at the principal axes of
the data and the MLP at zero, so that training sets out from residual k-means and improves on it;
from a random start it takes thousands of steps to get that far.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

# Of products that choose a code: a TPU would round the factors to bfloat16 and choose others.
HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class RqVaeConfig:
    """Sizes and weights. ValueError where they make no sense."""

    levels: int
    codebook_size: int
    latent_size: int  # without an encoder the vectors' own
    hidden_sizes: tuple[int, ...]  # of the encoder; the decoder has them in reverse
    commitment: float  # weight of the pull of latents towards their codes
    decay: float  # of the running averages, a step
    revive_below: float  # a code used less than this share of an even use is set anew; 0: never

    def __post_init__(self):
        for name, most in (("levels", 16), ("codebook_size", 65_536), ("latent_size", 2**16)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"model.{name}={getattr(self, name)}; use 1 to {most}.")
        if not 0 < self.decay < 1:
            raise ValueError(f"model.decay={self.decay} is not within 0..1; use 0.99.")
        if not 0 <= self.revive_below < 1:
            raise ValueError(f"model.revive_below={self.revive_below}; use 0 <= revive_below < 1.")


class CodebookState(nnx.Variable):
    """Of a codebook; changed by the step itself, not by gradients."""


class LinearAndMlp(nnx.Module):
    """x W + MLP(x), the MLP's last layer starting at zero."""

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
    """Encoder, residual quantiser, decoder."""

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
        self.counts = CodebookState(jnp.zeros(shape))  # average uses a step

    def encode(self, vectors: Float[Array, "B D"]) -> Float32[Array, "B H"]:
        """Latents."""
        vectors = vectors.astype(jnp.float32)
        return self.encoder(vectors) if self.has_encoder else vectors

    def decode(self, latents: Float[Array, "B H"]) -> Float32[Array, "B D"]:
        """Vectors."""
        return self.decoder(latents) if self.has_encoder else latents

    def assign(self, vectors: Float[Array, "B D"]) -> Int32[Array, "B L"]:
        """Codes."""
        return quantise(self.encode(vectors), self.codebooks[...])[0]

    def start_encoder(self, vectors: Float[Array, "N D"]) -> None:
        """Sets the linear paths: onto the principal axes of `vectors`, and back."""
        if not self.has_encoder:
            return
        vectors = vectors.astype(jnp.float32)
        _, axes = jnp.linalg.eigh(jnp.matmul(vectors.T, vectors, precision=HIGHEST))
        axes = axes[:, ::-1][:, : self.latent_size]  # the largest first
        axes = jnp.pad(axes, ((0, 0), (0, self.latent_size - axes.shape[1])))
        self.encoder.linear[...] = axes
        self.decoder.linear[...] = axes.T

    def start_codebooks(self, codebooks: Float[Array, "L C H"], batch_rows: int) -> None:
        """Sets the codebooks; each code counts as used evenly by a batch of `batch_rows`."""
        self.codebooks[...] = codebooks
        even = batch_rows / self.config.codebook_size
        self.counts[...] = jnp.full(self.counts.shape, even, jnp.float32)

    def loss(
        self, vectors: Float[Array, "B D"], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Reconstruction + commitment, batch means of squared distances; moves the codebooks.

        Gradients reach the encoder through the reconstruction (straight through the quantiser)
        and through the commitment.
        """
        vectors = vectors.astype(jnp.float32)
        latents = self.encode(vectors)
        codes, residuals = quantise(latents, self.codebooks[...])
        # residuals[:, l] is what level l quantised; the last is what all levels left over.
        left_over = residuals[:, 1:]
        commitment = jnp.square(left_over).sum((1, 2)).mean()
        straight_through = latents - jax.lax.stop_gradient(left_over[:, -1])
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
        """Running averages, then dead codes set to residuals of the batch; how many were dead."""
        config = self.config
        chosen = jax.nn.one_hot(codes, config.codebook_size)
        fresh_counts = chosen.sum(0)
        sums = jnp.einsum("BLC,BLH->LCH", chosen, residuals, precision=HIGHEST)
        old_counts, books = self.counts[...], self.codebooks[...]
        counts = config.decay * old_counts + (1 - config.decay) * fresh_counts
        totals = config.decay * old_counts[..., None] * books + (1 - config.decay) * sums
        books = jnp.where(
            counts[..., None] > 0, totals / jnp.maximum(counts, 1e-20)[..., None], books
        )
        even = residuals.shape[0] / config.codebook_size
        is_dead = counts < config.revive_below * even
        rows = jax.random.randint(key, counts.shape, 0, residuals.shape[0])
        spare = jnp.take_along_axis(residuals.swapaxes(0, 1), rows[..., None], axis=1)
        self.codebooks[...] = jnp.where(is_dead[..., None], spare, books)
        self.counts[...] = jnp.where(is_dead, even, counts)
        return is_dead.sum()


def quantise(
    latents: Float[Array, "B H"], codebooks: Float[Array, "L C H"]
) -> tuple[Int32[Array, "B L"], Float32[Array, "B L+1 H"]]:
    """(codes, residuals): residual 0 is the latent, residual l + 1 what codes 0..l left over.

    The nearest code of each level, the lower one on ties. Gradients pass to the latents only.
    """

    def step(residual, codebook):
        products = jnp.matmul(residual, codebook.T, precision=HIGHEST)
        code = jnp.argmin(jnp.square(codebook).sum(-1) - 2 * products, axis=-1)
        left_over = residual - codebook[code]
        return left_over, (code.astype(jnp.int32), left_over)

    _, (codes, left_over) = jax.lax.scan(step, latents, jax.lax.stop_gradient(codebooks))
    residuals = jnp.concatenate([latents[:, None], left_over.swapaxes(0, 1)], axis=1)
    return codes.T, residuals


def _entropy(codes: Int32[Array, "B L"], size: int) -> Float[Array, " L"]:
    share = jax.nn.one_hot(codes, size).mean(0)
    return -(share * jnp.log(jnp.maximum(share, 1e-20))).sum(-1)
