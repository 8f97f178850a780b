"""The parameters of any module as one flat safetensors file: `a.b.c` to array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


def save_weights(
    module: nnx.Module, path: Path, without: str = "", metadata: dict[str, str] | None = None
) -> None:
    """Writes every parameter of `module`, except those under the attribute `without`.

    `metadata` goes into the file's header.
    """
    flat = dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))
    names = {".".join(map(str, key)): value for key, value in flat.items() if key[0] != without}
    save_file({name: np.asarray(value[...]) for name, value in names.items()}, path, metadata)


def load_weights(module: nnx.Module, path: Path, without: str = "") -> None:
    """Sets every parameter of `module`, except those under the attribute `without`, in place.

    Raises:
      ValueError: the file is missing or damaged, lacks a parameter, has one too many, or one of
        another shape.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); train the stage again.") from error
    state = nnx.state(module, nnx.Param)
    flat = {key: value for key, value in nnx.to_flat_state(state) if key[0] != without}
    names = {".".join(map(str, key)): key for key in flat}
    if unmatched := sorted(names.keys() ^ stored.keys()):
        raise ValueError(
            f"{path} does not match the config at {unmatched[0]!r}; "
            "use the config that the weights were trained with."
        )
    for name, key in names.items():
        param = flat[key]
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
