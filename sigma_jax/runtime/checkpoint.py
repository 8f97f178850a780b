"""Checkpoints of a training state: saved in the background, the newest n kept, restored onto
whatever mesh runs now.

FOLDER/run.json says which recipe the run follows, FOLDER/checkpoints/STEP holds the state after
STEP steps. A folder of another recipe is refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, UInt32
from orbax.checkpoint import v1 as ocp

from sigma_jax.runtime import artifacts, files, hosts
from sigma_jax.runtime.state import is_key

T = TypeVar("T")
FOLDER = "checkpoints"
CHECKSUM = "checksum"


class Checkpoints:
    """The checkpoints of one run. Use it as a context: leaving it waits for the last save."""

    def __init__(self, folder: Path, keep: int, recipe: artifacts.Recipe):
        """Opens or starts FOLDER. ValueError if it belongs to another recipe."""
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
        """Steps of the checkpoints at hand, oldest first; waits for a save under way."""
        self._checkpointer.wait()
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, step: int, state: Any) -> None:
        """Saves `state` in the background; waits first if the save before is still under way."""
        leaves = _to_leaves(state)
        leaves[CHECKSUM] = _checksum(leaves)
        self._checkpointer.save_async(step, leaves, force=True)

    def restore(self, state: T) -> tuple[T, int]:
        """The newest state that can be read, laid out as `state`, and its step.

        `state` itself and 0 where there is no checkpoint. A damaged checkpoint is set aside with
        a logged line, and the one before it is read.

        Raises:
          ValueError: there are checkpoints and all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            found, reason = None, "another process cannot read it"
            try:
                found = self._load(step, state)
            except Exception as error:  # Orbax and TensorStore raise a dozen kinds
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            if hosts.all_true(found is not None):
                return found, step
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
        """Moves a damaged checkpoint out of the way of the next save of that step."""
        self._checkpointer.close()
        if hosts.is_first():
            aside = self._folder.parent / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / str(step)).rename(aside)
        hosts.wait()
        self._checkpointer = self._open()


def _check_run(folder: Path, recipe: artifacts.Recipe) -> None:
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
    """Path -> array; keys of random numbers as the integers they hold."""
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
    """Sum of all bits read as integers, modulo 2^32: the same however the arrays are cut up."""
    total = jnp.uint32(0)
    for leaf in leaves.values():
        if leaf.dtype == jnp.bool_:
            leaf = leaf.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        total += jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
    return total
