"""Checkpoints of a training: the newest states, and the parameters with the best report.

Checkpoints are saved in the background and restored onto any mesh. FOLDER/run.json holds the
recipe that the run follows; a folder of another recipe is refused. FOLDER/checkpoints/STEP holds
the state after STEP steps, FOLDER/best the parameters with the best report.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, UInt32
from orbax.checkpoint import v1 as ocp

from sigma_jax.runtime import artifacts, files, hosts
from sigma_jax.runtime.state import TrainState, is_key

T = TypeVar("T")
FOLDER = "checkpoints"
BEST = "best"
CHECKSUM = "checksum"


class Checkpoints:
    """The checkpoints of one run. It is a context: leaving it waits for the last save."""

    def __init__(self, folder: Path, keep: int, recipe: artifacts.Recipe):
        """Opens the run in `folder`, or starts it; the newest `keep` checkpoints are kept.

        ValueError if the folder belongs to another recipe or another version.
        """
        self._folder = folder.absolute() / FOLDER
        self._keep = keep
        _check_run(folder, recipe)
        self._checkpointer = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        self._folder.mkdir(parents=True, exist_ok=True)
        return ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self._checkpointer.close()

    def steps(self) -> list[int]:
        """The steps of the checkpoints on disk, oldest first; waits for a running save."""
        self._checkpointer.wait()
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, step: int, state: Any) -> None:
        """Saves `state` in the background, after waiting for a running save."""
        leaves = _to_leaves(state)
        leaves[CHECKSUM] = _checksum(leaves)
        self._checkpointer.save_async(step, leaves, force=True)

    def restore(self, state: T) -> tuple[T, int]:
        """The newest readable state, laid out as `state`, and its step.

        The result is `state` itself and 0 where there is no checkpoint. A damaged checkpoint is
        moved away with a log line, and the one before it is read.

        Raises:
          ValueError: there are checkpoints and all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            loaded, reason = None, "another process cannot read it"
            try:
                loaded = self._load(step, state)
            except Exception as error:  # Orbax and TensorStore raise a dozen kinds
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            if hosts.all_true(loaded is not None):
                return loaded, step
            logging.warning(
                "checkpoint %s is damaged (%s); trying the one before.",
                self._folder / str(step),
                reason,
            )
            self._set_aside(step)
        if steps:
            raise ValueError(
                f"every checkpoint of {self._folder} was damaged; "
                f"delete {self._folder.parent} and run again to start this stage anew."
            )
        return state, 0

    def _load(self, step: int, state: T) -> T:
        leaves = self._checkpointer.load(step, abstract_state=_abstract(state))
        saved = leaves.pop(CHECKSUM)
        # TensorStore notices a short or missing file, but not every flipped bit.
        if int(_checksum(leaves)) != int(saved):
            raise ValueError("its checksum does not match")
        return _from_leaves(leaves, state)

    def _set_aside(self, step: int) -> None:
        """Moves a damaged checkpoint away, so that the step can be saved again."""
        self._checkpointer.close()
        if hosts.is_first():
            aside = self._folder.parent / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / str(step)).rename(aside)
        hosts.wait()
        self._checkpointer = self._open()


class BestCheckpoint:
    """The parameters whose report has the highest value of one metric, kept in FOLDER/best.

    A killed run that continues reports the same steps again; on another mesh the last digits may
    differ. Only later steps replace the stored parameters, so interruptions do not change the
    choice.
    """

    def __init__(self, folder: Path, recipe: artifacts.Recipe, metric: str, state: TrainState):
        """Reads the best parameters so far.

        Args:
          metric: name of a metric of the reports; "" keeps nothing.
          state: has the layout of what is restored.
        """
        self._metric = metric
        self._value = -math.inf
        if not metric:
            return
        self._store = Checkpoints(folder / BEST, 1, recipe)
        self._content, self.step = self._store.restore(_content(state, -math.inf))
        self._value = float(self._content["value"])

    def offer(self, step: int, metrics: Mapping[str, float], state: TrainState) -> None:
        """Keeps `state` if its metric is higher than all before.

        An empty report, from data without held-out examples, keeps nothing.

        Raises:
          ValueError: the report has other metrics.
        """
        if not self._metric or not metrics:
            return
        if self._metric not in metrics:
            raise ValueError(
                f"train.keep_best={self._metric!r} is not a metric of the report; use one of "
                f"{', '.join(metrics)}."
            )
        value = float(metrics[self._metric])
        if step > self.step and value > self._value:
            # A copy: the next step donates its state.
            self._content = jax.tree.map(jnp.copy, _content(state, value))
            self._value, self.step = value, step
            self._store.save(step, self._content)
            # Waits until it is on disk, before the checkpoint of this step is saved: a run that
            # continues from that checkpoint does not report this step again.
            self._store.steps()

    @property
    def is_kept(self) -> bool:
        """Whether some parameters were kept."""
        return math.isfinite(self._value)

    def is_over(self, step: int, patience: int) -> bool:
        """Whether the last `patience` steps before `step` brought no better report.

        Always False with a patience of 0.
        """
        return bool(self.is_kept and patience and step - self.step >= patience)

    def close(self, state: TrainState) -> tuple[TrainState, bool]:
        """(`state` with the best parameters, whether they are from an earlier step)."""
        if not self._metric:
            return state, False
        self._store.__exit__()
        if not self.is_kept:
            logging.warning("no report has the metric %s: the last step is kept", self._metric)
            return state, False
        logging.info("best %s %.4g at step %d: kept", self._metric, self._value, self.step)
        best = dataclasses.replace(
            state, params=self._content["params"], rest=self._content["rest"], average={}
        )
        return best, self.step < int(state.step)


def _content(state: TrainState, value: float) -> dict:
    return {
        "params": state.eval_params,
        "rest": state.rest,
        "value": jax.device_put(jnp.float32(value), state.step.sharding),
    }


def _check_run(folder: Path, recipe: artifacts.Recipe) -> None:
    """Writes `run.json` of a new run; ValueError if the folder has one of another recipe."""
    path = folder / artifacts.RUN
    wanted = recipe.of_training()
    if path.exists():
        made = files.read_json(path)
        artifacts.check_format(made, [folder])
        artifacts.check_same(made, wanted, folder)
    elif hosts.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(path, wanted)


def _to_leaves(state: Any) -> dict[str, Array]:
    """Path -> array; random keys become the integers they hold."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path): jax.random.key_data(leaf) if is_key(leaf) else leaf
        for path, leaf in flat
    }


def _abstract(state: Any) -> dict[str, jax.ShapeDtypeStruct]:
    leaves = _to_leaves(state)
    leaves[CHECKSUM] = _checksum(leaves)
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in leaves.items()
    }


def _from_leaves(leaves: dict[str, Array], state: T) -> T:
    flat, treedef = jax.tree_util.tree_flatten_with_path(state)
    values = []
    for path, leaf in flat:
        value = leaves[jax.tree_util.keystr(path)]
        values.append(
            jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
            if is_key(leaf)
            else value
        )
    return jax.tree_util.tree_unflatten(treedef, values)


@jax.jit
def _checksum(leaves: dict[str, Array]) -> UInt32[Array, ""]:
    """Sum of all bits read as integers, modulo 2^32; it does not depend on the sharding."""
    total = jnp.uint32(0)
    for leaf in leaves.values():
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        total += jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
    return total
