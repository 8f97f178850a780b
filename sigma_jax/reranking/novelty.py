"""Novelty: whether an instruction asks for something that no instruction of training asked for.

The reranking weights of a task are fitted on instructions whose queries, categories and themes are
those of training. There the network and the words are right, and the meaning adds little. For "my
cat is hungry" it is the other way round. So novel instructions have weights of their own
(fit.fit_novel), and

    novelty = sigmoid(intercept - slope * largest cosine to an instruction of training)

mixes them with the weights of the tasks. Both numbers are fitted on the instructions of training:
an instruction is known if others with its query, category or theme stay, and novel if they are left
out.

Axes: P instructions of training, N requests, E dimensions of the sentence encoder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int
from scipy.optimize import minimize

from sigma_jax.runtime.files import read_json, write_json
from sigma_jax.schema import read_npy

FITTED_ON = 1_000  # instructions that slope and intercept are fitted on
COSINES_AT_ONCE = 2**24
VECTORS, SETTINGS = "instruction_vectors.npy", "novelty.json"


@dataclasses.dataclass(frozen=True)
class Novelty:
    """The vectors of the instructions of training, and how near a known instruction is to them."""

    vectors: Float16[np.ndarray, "P E"]  # unit length
    slope: float
    intercept: float

    @classmethod
    def fit(
        cls, vectors: Float32[np.ndarray, "P E"], group: Int[np.ndarray, " P"], seed: int = 0
    ) -> Novelty:
        """The novelty for the instructions of training.

        Args:
          vectors: unit length.
          group: what each asks for; instructions of one group ask for the same. There are two
            groups or more.
        """
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(len(vectors))[:FITTED_ON])
        known, novel = [], []
        for part in np.array_split(rows, -(-len(rows) * len(vectors) // COSINES_AT_ONCE)):
            cosines = vectors[part] @ vectors.T
            cosines[np.arange(len(part)), part] = -np.inf
            known.append(cosines.max(axis=1))
            cosines[group[part][:, None] == group[None]] = -np.inf
            novel.append(cosines.max(axis=1))
        nearest = np.concatenate([*known, *novel])
        is_novel = np.repeat([0.0, 1.0], len(rows))
        kept = np.isfinite(nearest)
        slope, intercept = _logistic(-nearest[kept], is_novel[kept])
        return cls(vectors.astype(np.float16), slope, intercept)

    def __call__(self, queries: Float32[np.ndarray, "N E"]) -> Float32[np.ndarray, " N"]:
        """The novelty of instructions, 0 to 1.

        Args:
          queries: their vectors, unit length.
        """
        nearest = np.full(len(queries), -1.0, np.float32)
        size = max(COSINES_AT_ONCE // max(len(queries), 1), 1)
        for start in range(0, len(self.vectors), size):
            part = queries @ self.vectors[start : start + size].astype(np.float32).T
            nearest = np.maximum(nearest, part.max(axis=1, initial=-1.0))
        return (1 / (1 + np.exp(self.slope * nearest - self.intercept))).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Writes VECTORS and SETTINGS."""
        np.save(folder / VECTORS, self.vectors)
        write_json(folder / SETTINGS, {"slope": self.slope, "intercept": self.intercept})

    @classmethod
    def load(cls, folder: Path) -> Novelty | None:
        """The novelty that `save` wrote; None if there is none. ValueError for a damaged file."""
        if not (folder / SETTINGS).exists():
            return None
        settings = read_json(folder / SETTINGS)
        return cls(read_npy(folder / VECTORS, 2), settings["slope"], settings["intercept"])


def _logistic(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) of the logistic regression of y, 0 or 1, on x."""

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        z = values[0] * x + values[1]
        p = 1 / (1 + np.exp(-np.clip(z, -500, 500)))
        slope = np.array([((p - y) * x).mean(), (p - y).mean()])
        weak = 1e-4 * values  # separable data have no finite fit
        return float((np.logaddexp(0, z) - y * z).mean() + 1e-4 * (values**2).sum() / 2), (
            slope + weak
        )

    slope, intercept = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x
    return float(slope), float(intercept)
