"""Stage `tokenizer`: semantic IDs of items by RQ-VAE or residual k-means (section 2.2 of SIGMA).

The item vectors are those of texts (as in the paper), collaborative vectors, or both concatenated.
With both, items share codes if they have similar texts and the same users. The artifact has the
SIDs, codebooks.npy and the encoder, which gives later items their SIDs (assign.py).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import grain
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Int64

from sigma_jax.data.vectors import item_vectors, join_vectors
from sigma_jax.models.item_encoder import PRETRAINED
from sigma_jax.models.rqvae import RqVae, RqVaeConfig
from sigma_jax.runtime.config import OptimizerConfig, TrainConfig, check_at_least
from sigma_jax.schema import SemanticIds
from sigma_jax.tokenizer import quality
from sigma_jax.tokenizer.assign import assign_codes, save_tokenizer
from sigma_jax.tokenizer.kmeans import residual_kmeans

NEIGHBOUR_QUERIES = 512  # items whose nearest neighbours a report compares


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Fields of configs/tokenizer.py."""

    method: Literal["rqvae", "kmeans"]  # kmeans: without encoder; steps are mini-batch k-means
    # Names out of "text", "id", "image". Those that exist are concatenated.
    inputs: tuple[str, ...]
    optimizer: OptimizerConfig
    train: TrainConfig
    model: RqVaeConfig
    kmeans_rows: int  # size of the sample of items from which the codebooks start
    kmeans_iterations: int  # of the k-means that starts each level
    encode_rows: int  # items encoded at a time
    report_rows: int  # size of the sample of items of a report
    min_code_use: float  # least share of the usable codes that each level must use; 0: no check

    def __post_init__(self):
        check_at_least(1, self, "kmeans_rows", "encode_rows", "report_rows")
        check_at_least(0, self, "kmeans_iterations")
        if unknown := set(self.inputs) - set(PRETRAINED):
            raise ValueError(
                f"inputs has {sorted(unknown)}; use names out of {', '.join(PRETRAINED)}."
            )
        if not 0 <= self.min_code_use <= 1:
            raise ValueError(f"min_code_use={self.min_code_use}; use a share, 0 to 1.")


class TokenizerTask:
    """The stage as a Task: RQ-VAE or residual k-means over the item vectors of the catalogue."""

    def __init__(
        self, config: TokenizerConfig, workdir: Path, seed: int, mesh: Mesh | None = None
    ) -> None:
        self.config = config
        self.seed = seed
        self.batch_rows = config.train.batch_size
        tables = item_vectors(workdir)
        chosen = {name: tables[name] for name in config.inputs if name in tables}
        self.vectors = join_vectors(chosen)
        if self.vectors is None:
            raise ValueError(
                f"inputs={config.inputs} but {workdir} has vectors of {sorted(tables)}; run the "
                "stages before this one, or use names of vectors that exist."
            )
        if len(self.vectors) == 0:
            raise ValueError(
                f"the vectors of {config.inputs} have no items; prepare data with items."
            )

    def batches(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """Element s is {"vectors": [B, D]} of B random items, or `rows` of it."""

        def batch(step: int) -> dict[str, np.ndarray]:
            rng = np.random.default_rng((self.seed, step))
            items = rng.integers(0, len(self.vectors), self.batch_rows)
            items = items if rows is None else items[rows]
            return {"vectors": np.asarray(self.vectors[items], np.float32)}

        return grain.MapDataset.range(sys.maxsize).map(batch)

    @property
    def epoch_steps(self) -> float:
        """Number of steps that draw as many items as the catalogue has."""
        return len(self.vectors) / self.batch_rows

    def model(self, rngs: nnx.Rngs) -> RqVae:
        """The model before its first step.

        Encoder and decoder start from principal axes, codebooks from k-means of the latents.
        """
        config = self.config
        model = RqVae(config.model, self.vectors.shape[1], config.method == "rqvae", rngs=rngs)
        sample = self.vectors[self._sample_rows(config.kmeans_rows)]
        if not np.isfinite(sample).all():
            raise ValueError(
                f"the vectors of {self.config.inputs} are not finite; run the stages that made "
                "them again."
            )
        sample = jnp.asarray(sample)
        model.start_encoder(sample)
        sizes = (config.model.levels, config.model.codebook_size, config.kmeans_iterations)
        codebooks = residual_kmeans(model.encode(sample), *sizes, rngs.params())
        model.start_codebooks(codebooks, self.batch_rows)
        return model

    def tables(self) -> dict[str, np.ndarray]:
        """None: the vectors come with the batch."""
        return {}

    def param_group(self, path: tuple[str, ...]) -> str:
        """The optimizer's group of every parameter: "base"."""
        return "base"

    def loss(
        self, model: RqVae, tables: dict, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The RQ-VAE's loss of a batch and its metrics; updates the codebooks."""
        loss, metrics = model.loss(batch["vectors"], key)
        return loss, {"loss": loss, **metrics}

    def report(self, model: RqVae, tables: dict) -> dict[str, float]:
        """Code use and quality of a sample of the items."""
        rows = self._sample_rows(self.config.report_rows)
        vectors = np.asarray(self.vectors[rows], np.float32)
        codes = assign_codes(model, vectors, self.config.encode_rows)
        return {**self._use(codes), **self._quality(model, vectors, codes)}

    def finalize_on_all_hosts(self, model: RqVae, mesh: Mesh) -> None:
        """Nothing: `finish` needs one process."""

    def refit(self) -> None:
        """None: nothing is trained after this task."""

    def finish(self, model: RqVae, tables: dict, folder: Path) -> dict[str, Any]:
        """Writes the SIDs of all items and the tokenizer; returns the metrics of the manifest.

        Raises:
          ValueError: a level uses less than the share `min_code_use` of its usable codes.
        """
        codes = assign_codes(model, self.vectors, self.config.encode_rows)
        self._check_use(codes)
        SemanticIds(codes, self.config.model.codebook_size).save(folder)
        save_tokenizer(model, folder)
        sizes = quality.prefix_sizes(codes)
        rows = self._sample_rows(self.config.report_rows)
        return {
            **self._quality(model, np.asarray(self.vectors[rows], np.float32), codes[rows]),
            **self._use(codes),
            **{f"largest_prefix_{depth}": int(n.max()) for depth, n in enumerate(sizes, 1)},
            **{f"prefixes_{depth}": len(n) for depth, n in enumerate(sizes, 1)},
            "collision_histogram": quality.collision_histogram(sizes[-1]),
        }

    def _use(self, codes: Int32[np.ndarray, "N L"]) -> dict[str, float]:
        """Share of used codes and perplexity by level, and share of items that share their SID."""
        size = self.config.model.codebook_size
        used, perplexity = quality.code_use(codes, size)
        sid_sizes = quality.prefix_sizes(codes)[-1]
        metrics = {}
        for level in range(len(used)):
            metrics[f"use_{level + 1}"] = float(used[level] / size)
            metrics[f"perplexity_{level + 1}"] = float(perplexity[level])
        # Only the item token can distinguish items that share a SID.
        metrics["collided_items"] = float(sid_sizes[sid_sizes > 1].sum() / len(codes))
        return metrics

    def _quality(
        self, model: RqVae, vectors: Float[np.ndarray, "N D"], codes: Int32[np.ndarray, "N L"]
    ) -> dict[str, float]:
        """Squared error relative to the variance of `vectors`, and the share of kept neighbours."""
        error = 0.0
        for start in range(0, len(vectors), self.config.encode_rows):
            block = slice(start, start + self.config.encode_rows)
            error += float(_squared_error(model, vectors[block], codes[block]))
        variance = float(np.square(vectors - vectors.mean(0)).sum())
        queries = np.random.default_rng(self.seed).permutation(len(vectors))[:NEIGHBOUR_QUERIES]
        return {
            "relative_mse": error / variance if variance > 0 else 0.0,
            "neighbour_share": quality.neighbour_share(vectors, codes[:, 0], queries),
        }

    def _check_use(self, codes: Int32[np.ndarray, "I L"]) -> None:
        """ValueError if a level uses too few of its codes, because its codebook collapsed."""
        config = self.config
        used, _ = quality.code_use(codes, config.model.codebook_size)
        usable_codes = self._usable_codes(codes)
        for level, (count, usable) in enumerate(zip(used, usable_codes, strict=True), 1):
            if count < config.min_code_use * usable:
                raise ValueError(
                    f"level {level} of the SIDs uses {count} of {usable} usable codes, less than "
                    f"min_code_use={config.min_code_use} of them; train longer, lower "
                    "model.codebook_size or set method='kmeans'."
                )

    def _usable_codes(self, codes: Int32[np.ndarray, "I L"]) -> list[int]:
        """Number of codes that each level could use: at most one per vector that needs a code.

        On level 1 these are the distinct vectors, on later levels the vectors that share their
        codes so far. Worked example: of 300 items and 256 codes most have a code of their own after
        level 1. The count is over a sample, so it may be too low but not too high.
        """
        rows = self._sample_rows(self.config.report_rows)
        _, first = np.unique(self.vectors[rows], axis=0, return_index=True)
        sizes = quality.prefix_sizes(codes[rows[first]])
        needed = [len(first)] + [int(n[n > 1].sum()) for n in sizes[:-1]]
        return [min(self.config.model.codebook_size, count) for count in needed]

    def _sample_rows(self, count: int) -> np.ndarray:
        """A random sample of `count` items, the same at each call; all items if they are fewer."""
        if count >= len(self.vectors):
            return np.arange(len(self.vectors))
        rng = np.random.default_rng(self.seed)
        return np.sort(rng.choice(len(self.vectors), count, replace=False, shuffle=False))


@nnx.jit
def _squared_error(model: RqVae, vectors: Array, codes: Array) -> Array:
    """Sum of the squared distances between the vectors and the decodings of their codes."""
    levels = jnp.arange(codes.shape[1])
    latents = model.codebooks[...][levels, codes].sum(1)
    return jnp.square(model.decode(latents) - vectors).sum()
