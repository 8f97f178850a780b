"""The parameters of any module as one flat safetensors file: `a.b.c` to array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


def named_parameters(module: nnx.Module, without: Sequence[str] = ()) -> dict[str, nnx.Param]:
    """Parameters by their dotted names, except those under the attributes `without`."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    names = {".".join(map(str, key)): value for key, value in flat}
    ends = tuple(f"{name}." for name in without)
    return {name: value for name, value in names.items() if not f"{name}.".startswith(ends)}


def save_weights(
    module: nnx.Module,
    path: Path,
    without: Sequence[str] = (),
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes every parameter of `module`, except those under the attributes `without`, such as
    "backbone" or "item_encoder.trained".

    `metadata` goes into the file's header.
    """
    named = named_parameters(module, without)
    save_file({name: np.asarray(value[...]) for name, value in named.items()}, path, metadata)


def load_weights(module: nnx.Module, path: Path, without: Sequence[str] = ()) -> None:
    """Sets every parameter of `module`, except those under the attributes `without`, in place.

    Raises:
      ValueError: the file is missing or damaged, lacks a parameter, has one too many, or one of
        another shape.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); train the stage again.") from error
    named = named_parameters(module, without)
    if unmatched := sorted(named.keys() ^ stored.keys()):
        raise ValueError(
            f"{path} does not match the config at {unmatched[0]!r}; "
            "use the config that the weights were trained with."
        )
    for name, param in named.items():
        if param.shape != stored[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {stored[name].shape}, the config asks for {param.shape};"
                " use the config that the weights were trained with."
            )
        param[...] = jnp.asarray(stored[name], param.dtype)


def copy_weights(module: nnx.Module, path: Path, names: Sequence[str]) -> None:
    """Sets the named parameters of `module` to those of the file, which has them."""
    stored = load_file(path)
    for name in names:
        getattr(module, name)[...] = jnp.asarray(stored[name])
