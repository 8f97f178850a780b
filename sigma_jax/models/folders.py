"""Hugging Face folders, on disk or on the hub: JSON files and tensors, read one at a time."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

HUB_FILES = ("*.json", "*.safetensors", "*/config.json", "*/*.safetensors")  # of a hub's folder

STORED_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class ModelMissingError(ValueError):
    """The model is no folder, and the hub does not give it."""


def find_model(name: str, setting: str) -> Path:
    """The folder of the model `name`: a folder, or a name on the Hugging Face hub.

    Args:
      setting: the config field that names the model, for errors.

    Raises:
      ModelMissingError: `name` is no folder, and cannot be had from the hub.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # of the hub, the network or the disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelMissingError(
            f"{setting}={name!r} is no folder and cannot be had from the Hugging Face hub "
            f"({reason}); give the folder of a model."
        ) from error


def read_folder_json(path: Path, kind: type = dict) -> Any:
    """The object (or list) in a JSON file. ValueError if the file is missing or damaged."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; use a Hugging Face folder of a model.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); download it again.") from error
    if not isinstance(content, kind):
        name = "object" if kind is dict else "list"
        raise ValueError(f"{path} holds no JSON {name}; download it again.")
    return content


def size_of(path: Path, raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """The size `name` of a config.json. ValueError if it is no whole number of 1 or more."""
    value = default if raw.get(name) is None else raw[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{path}: {name}={value!r} is not a size; use 1 or more.")
    return value


class TensorFolder:
    """The tensors of a folder, in model.safetensors or in the shards of its index.

    Readers are closed with `stack`. ValueError if a file is missing or damaged.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack):
        self.folder = folder
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if single.is_file():
            self.files = dict.fromkeys(self._open(single, stack).keys(), single)
        elif index.is_file():
            weight_map = read_folder_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ValueError(f"{index} has no weight_map; download it again.")
            for name, file in weight_map.items():
                if not isinstance(file, str) or Path(file).name != file:
                    raise ValueError(f"{index}: {name} is in {file!r}; name a file of the folder.")
            self.files = {name: folder / file for name, file in weight_map.items()}
        else:
            raise ValueError(
                f"{folder} has no model.safetensors and no index of shards; convert the model to "
                "safetensors."
            )
        self.readers = {file: self._open(file, stack) for file in sorted(set(self.files.values()))}

    @staticmethod
    def _open(file: Path, stack: contextlib.ExitStack):
        if not file.is_file():
            raise ValueError(f"{file} is missing; download it again.")
        try:
            return stack.enter_context(safe_open(file, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); download it again.") from error

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def tensor(self, name: str) -> np.ndarray:
        """The tensor `name` as it is stored. ValueError if it is missing or damaged."""
        if name not in self.files:
            raise ValueError(f"{self.folder} has no tensor {name}; download it again.")
        try:
            reader = self.readers[self.files[name]]
            stored = reader.get_slice(name).get_dtype()
            if stored not in STORED_DTYPES:
                raise ValueError(
                    f"{self.files[name]}: {name} is of type {stored}; use one of "
                    f"{', '.join(STORED_DTYPES)}."
                )
            return reader.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{self.files[name]}: {name} is damaged ({error}).") from error

    def matrix(
        self, name: str, shape: tuple[int, ...], inputs: int, dtype: Any = np.float32
    ) -> np.ndarray:
        """Our weight of the given shape. A stored matrix is [outputs, inputs].

        Args:
          inputs: number of input axes of our weight, which come first; 0: stored as it is.
        """
        tensor = self.tensor(name)
        expected = stored_shape(shape, inputs)
        if not inputs and tensor.ndim == 1:  # a bias of heads is stored flat
            expected = (math.prod(shape),)
        if tensor.shape != expected:
            raise ValueError(
                f"{self.files[name]}: {name} has shape {list(tensor.shape)}, config.json says "
                f"{list(expected)}; correct one of them."
            )
        with np.errstate(over="ignore"):
            array = (tensor.T if inputs else tensor).reshape(shape).astype(dtype)
        # A sum is finite if all its terms are. In float32, because a 16-bit sum overflows.
        if not np.isfinite(array.sum(dtype=np.float32)):
            raise ValueError(
                f"{self.files[name]}: {name} has values that are not finite in {np.dtype(dtype)}; "
                "use another param_dtype, or download the folder again."
            )
        return array


def stored_shape(shape: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    """Shape of our weight in a folder.

    [D, N, H] with one input axis is stored as [N*H, D]; [N, H, D] with two, as [D, N*H].
    """
    return (math.prod(shape[inputs:]), math.prod(shape[:inputs])) if inputs else shape
