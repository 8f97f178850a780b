"""Parameters of any module in one flat safetensors file, by dotted names: `a.b.c`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


def named_parameters(module: nnx.Module, without: Sequence[str] = ()) -> dict[str, nnx.Param]:
    """Parameters by dotted name, except those under the attributes `without`."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    named = {".".join(map(str, path)): param for path, param in flat}
    excluded = tuple(f"{name}." for name in without)
    return {name: param for name, param in named.items() if not f"{name}.".startswith(excluded)}


def save_weights(
    module: nnx.Module,
    path: Path,
    without: Sequence[str] = (),
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes the parameters of `module` to `path`.

    Args:
      without: attributes whose parameters are left out: "backbone", "item_encoder.trained".
      metadata: for the file's header.
    """
    named = named_parameters(module, without)
    save_file({name: np.asarray(value[...]) for name, value in named.items()}, path, metadata)


def load_weights(module: nnx.Module, path: Path, without: Sequence[str] = ()) -> None:
    """Sets the parameters of `module` in place, except those under the attributes `without`.

    Raises:
      ValueError: the file is missing or damaged, or its names and shapes are not those of the
        module's parameters.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); train the stage again.") from error
    named = named_parameters(module, without)
    if unmatched := sorted(named.keys() ^ stored.keys()):
        raise ValueError(
            f"{path} and the config do not have the same parameters: {unmatched[0]!r} is in one of "
            "them only; use the config that the weights were trained with, or train again."
        )
    for name, param in named.items():
        if param.shape != stored[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {stored[name].shape} but the config says {param.shape}; "
                "use the config that the weights were trained with, or train again."
            )
        param[...] = jnp.asarray(stored[name], param.dtype)


def copy_weights(module: nnx.Module, path: Path, names: Sequence[str]) -> None:
    """Sets the parameters `names` of `module` to the values in the file, which must have them."""
    stored = load_file(path)
    for name in names:
        getattr(module, name)[...] = jnp.asarray(stored[name])
