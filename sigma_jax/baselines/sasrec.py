"""SASRec (Kang and McAuley 2018): a causal transformer over the items of a history.

Trained with cross-entropy over all items (much stronger than the original's one sampled negative),
it is a baseline, and the rows of its item table are the collaborative ID vectors of
section 2.1 of SIGMA. The table is tied: what embeds an item also scores it.

Histories stand at the right end of a window, padding (-1) before them, so that the learned
position T-1 is always the latest line. Axis letters as in models/qwen3.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int32

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import Allowed
from sigma_jax.teacher.sasrec import Sasrec, rank_windows


@dataclasses.dataclass(frozen=True)
class SasrecBaseline:
    """A trained SASRec as a baseline; users without history get the most popular items."""

    model: Sasrec
    popularity: Popularity

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        keep_seen: bool,
        allowed: Allowed | None,
    ) -> Int32[np.ndarray, "N k"]:
        rankings = rank_windows(self.model, data.histories, requests, k, keep_seen, allowed)
        return self.popularity.complete(rankings, data, requests, keep_seen, allowed)
