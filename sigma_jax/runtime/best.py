"""The parameters with the best report of a run, kept beside its checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging

from sigma_jax.runtime.artifacts import Recipe
from sigma_jax.runtime.checkpoint import Checkpoints
from sigma_jax.runtime.state import TrainState

FOLDER = "best"


class Best:
    """What is kept in FOLDER/best: parameters by the highest value of one figure of the reports.

    A run that was killed and goes on reports the same steps again, on another mesh with other last
    digits. What lies there was the best of them: only later steps can be better, so the choice does
    not depend on interruptions.
    """

    def __init__(self, folder: Path, recipe: Recipe, figure: str, state: TrainState):
        """`figure` "" keeps nothing; `state` lays out what is restored."""
        self._figure = figure
        self._value = -math.inf
        if not figure:
            return
        self._store = Checkpoints(folder / FOLDER, 1, recipe)
        self._kept, self.step = self._store.restore(_content(state, -math.inf))
        self._value = float(self._kept["value"])

    def offer(self, step: int, figures: Mapping[str, float], state: TrainState) -> None:
        """Keeps `state` if its figure is higher than all before.

        A report of nothing, where the data has nothing to judge by, keeps nothing. ValueError if
        the report has other figures.
        """
        if not self._figure or not figures:
            return
        if self._figure not in figures:
            raise ValueError(
                f"train.keep_best={self._figure!r} is no figure of the report; use one of "
                f"{', '.join(figures)}."
            )
        value = float(figures[self._figure])
        if step > self.step and value > self._value:
            # A copy: the next step donates its state.
            self._kept = jax.tree.map(jnp.copy, _content(state, value))
            self._value, self.step = value, step
            self._store.save(step, self._kept)
            # On disk before the checkpoint of this step is: a run that goes on from that one does
            # not report the step again.
            self._store.steps()

    @property
    def is_kept(self) -> bool:
        """Whether there are parameters that were kept."""
        return math.isfinite(self._value)

    def is_over(self, step: int, patience: int) -> bool:
        """Whether by `step` nothing better has come for `patience` steps (0: for ever)."""
        return bool(self.is_kept and patience and step - self.step >= patience)

    def close(self, state: TrainState) -> tuple[TrainState, bool]:
        """`state` with the parameters that were kept, and whether they are of an earlier step."""
        if not self._figure:
            return state, False
        self._store.__exit__()
        if not self.is_kept:
            logging.warning("no report had a figure to keep the best by: the last step is kept")
            return state, False
        logging.info("best %s %.4g at step %d: kept", self._figure, self._value, self.step)
        kept = dataclasses.replace(
            state, params=self._kept["params"], rest=self._kept["rest"], average={}
        )
        return kept, self.step < int(state.step)


def _content(state: TrainState, value: float) -> dict:
    where = state.step.sharding
    return {
        "params": state.kept_params,
        "rest": state.rest,
        "value": jax.device_put(jnp.float32(value), where),
    }
