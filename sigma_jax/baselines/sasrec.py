"""SASRec of stage `teacher` as a baseline (teacher/sasrec.py has the model)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import AllowedItems
from sigma_jax.teacher.sasrec import Sasrec, load_sasrec, rank_items
from sigma_jax.teacher.task import REFIT

BEFORE_REFIT = " before refit"  # ending of the names of what did not see the validation rows


@dataclasses.dataclass(frozen=True)
class SasrecBaseline:
    """Ranks items by a trained SASRec. A user without history gets the most popular items."""

    model: Sasrec
    popularity: Popularity

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        exclude_seen: bool,
        allowed: AllowedItems | None,
    ) -> Int32[np.ndarray, "N k"]:
        """The best k items of each request; baselines/__init__.py has the arguments."""
        rankings = rank_items(self.model, data.histories, requests, k, exclude_seen, allowed)
        return self.popularity.complete(rankings, data, requests, exclude_seen, allowed)


def sasrec_baselines(workdir: Path, popularity: Popularity) -> dict[str, SasrecBaseline]:
    """SASRec of the stage `teacher`, by name; {} where the workdir lacks that stage.

    A stage that refits gives two: the one that saw the validation rows, and the one before.
    """
    folder = workdir / "teacher"
    if not folder.exists():
        return {}
    first = SasrecBaseline(load_sasrec(folder), popularity)
    if not (folder / REFIT).exists():
        return {"SASRec": first}
    refitted = SasrecBaseline(load_sasrec(folder / REFIT), popularity)
    return {"SASRec": refitted, f"SASRec{BEFORE_REFIT}": first}
