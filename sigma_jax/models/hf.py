"""Hugging Face folders of the Qwen3 and Llama families: config.json and safetensors, in and out.

Tensors are read and written one at a time, so that memory never holds a model twice. A folder with
a feature that qwen3.py lacks is refused, and the error names the feature. torch is not needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from sigma_jax.models.config import Qwen3Config
from sigma_jax.models.folders import TensorFolder, read_folder_json, size_of, stored_shape
from sigma_jax.models.qwen3 import Qwen3

HAS_QK_NORM = {"qwen3": True, "llama": False}
SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class Name:
    """Name of a tensor in a checkpoint, and the number of input axes of our weight.

    With `input_axes` > 0 the checkpoint has the matrix [outputs, inputs]; our weight has
    `input_axes` axes of inputs first and those of outputs after them.
    """

    name: str
    input_axes: int = 0


NAMES = {
    ("embedding",): Name("model.embed_tokens.weight"),
    ("layers", "attention_norm"): Name("model.layers.{}.input_layernorm.weight"),
    ("layers", "query"): Name("model.layers.{}.self_attn.q_proj.weight", 1),
    ("layers", "key"): Name("model.layers.{}.self_attn.k_proj.weight", 1),
    ("layers", "value"): Name("model.layers.{}.self_attn.v_proj.weight", 1),
    ("layers", "query_norm"): Name("model.layers.{}.self_attn.q_norm.weight"),
    ("layers", "key_norm"): Name("model.layers.{}.self_attn.k_norm.weight"),
    ("layers", "out"): Name("model.layers.{}.self_attn.o_proj.weight", 2),
    ("layers", "mlp_norm"): Name("model.layers.{}.post_attention_layernorm.weight"),
    ("layers", "gate"): Name("model.layers.{}.mlp.gate_proj.weight", 1),
    ("layers", "up"): Name("model.layers.{}.mlp.up_proj.weight", 1),
    ("layers", "down"): Name("model.layers.{}.mlp.down_proj.weight", 1),
    ("final_norm",): Name("model.norm.weight"),
    ("head",): Name("lm_head.weight"),
}


def load_backbone(
    folder: str | Path,
    *,
    dtype: str,
    param_dtype: str,
    remat: str = "none",
    dropout: float = 0.0,
    needs_head: bool = True,
    place: Callable[[np.ndarray, tuple[str, ...]], Any] = lambda array, axes: jnp.array(array),
) -> Qwen3:
    """The model in `folder`, which computes in `dtype` and stores its weights in `param_dtype`.

    Args:
      needs_head: False for an encoder: a folder without a head is read whatever its config says.
      place: makes a device array of a host array and its logical axes; a caller with a mesh shards
        each weight with it as soon as it is read.

    Raises:
      ValueError: the folder is missing, damaged, incomplete, or of another architecture.
    """
    folder = Path(folder)
    config = read_config(folder, dtype=dtype, param_dtype=param_dtype, remat=remat, dropout=dropout)
    with contextlib.ExitStack() as stack:
        tensors = Tensors(folder, stack)
        if tensors.is_headless or not (needs_head or tensors.has_head):
            config = dataclasses.replace(config, is_tied=True)
        model = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
        params = nnx.to_flat_state(nnx.state(model, nnx.Param))
        tensors.check_names({path for path, _ in params}, config)
        loaded = []
        for path, param in params:
            array = tensors.read(path, param.shape, jnp.dtype(param_dtype))
            loaded.append((path, param.replace(place(array, param.get_metadata()["axes"]))))
    nnx.update(model, nnx.from_flat_state(loaded))
    return model


def read_config(
    folder: str | Path, *, dtype: str, param_dtype: str, remat: str, dropout: float
) -> Qwen3Config:
    """The config of the model in `folder`, from its config.json and the given settings.

    ValueError if config.json is missing, damaged or not supported by qwen3.py.
    """
    path = Path(folder) / "config.json"
    raw = read_folder_json(path)
    kind = raw.get("model_type")
    if kind not in HAS_QK_NORM:
        raise ValueError(f"{path}: model_type={kind!r} is not supported; use qwen3 or llama.")
    _refuse_unsupported(path, raw)

    size = functools.partial(size_of, path, raw)
    heads, width = size("num_attention_heads"), size("hidden_size")
    # The defaults are those of transformers.
    is_llama = kind == "llama"
    fields: dict[str, Any] = dict(
        vocab_size=size("vocab_size"),
        width=width,
        num_layers=size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=size("num_key_value_heads", heads if is_llama else None),
        head_dim=size("head_dim", width // heads if is_llama else 128),
        mlp_width=size("intermediate_size"),
        rope_theta=_rope_theta(path, raw),
        norm_eps=_number(path, "rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
        is_tied=bool(raw.get("tie_word_embeddings", False)),
        has_qk_norm=HAS_QK_NORM[kind],
    )
    try:
        return Qwen3Config(
            **fields, dropout=dropout, dtype=dtype, param_dtype=param_dtype, remat=remat
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{path}: {name}={value!r} is not a positive number; correct it.")
    return float(value)


def _refuse_unsupported(path: Path, raw: dict) -> None:
    expected = {
        "hidden_act": ("silu",),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "use_sliding_window": (False, None),
        "quantization_config": (None,),
    }
    for name, allowed in expected.items():
        if raw.get(name, allowed[0]) not in allowed:
            raise ValueError(
                f"{path}: {name}={raw[name]!r} is not supported; use a model with {allowed[0]!r}."
            )
    for layer, kind in enumerate(raw.get("layer_types") or ()):
        if kind != "full_attention":
            raise ValueError(
                f"{path}: layer {layer} is {kind!r}, which is not supported; use a model whose "
                "layer_types are all 'full_attention'."
            )


def _rope_theta(path: Path, raw: dict) -> float:
    """The rotary base, from `rope_parameters` (transformers 5) or from `rope_theta` (before).

    ValueError for another kind of rotary embedding.
    """
    scaling = raw.get("rope_scaling") or {}
    parameters = raw.get("rope_parameters") or {}
    for name, fields in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if not isinstance(fields, dict):
            raise ValueError(f"{path}: {name}={fields!r} is not an object; correct it.")
        kind = fields.get("rope_type", fields.get("type", "default"))
        nested = [key for key, value in fields.items() if isinstance(value, dict)]
        if kind != "default" or nested:
            raise ValueError(
                f"{path}: {name} of type {nested[0] if nested else kind!r} is not supported; use a "
                "model with the default rotary embedding."
            )
    for fields in (raw, scaling, parameters):
        if fields.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise ValueError(
                f"{path}: partial_rotary_factor={fields['partial_rotary_factor']} is not "
                "supported; use a model that rotates whole heads."
            )
    theta = parameters.get("rope_theta", raw.get("rope_theta"))
    return _number(path, "rope_theta", 10000.0 if theta is None else theta)


class Tensors(TensorFolder):
    """The tensors of a decoder's folder, by our names."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack):
        super().__init__(folder, stack)
        # Folders of embedding models leave out the prefix.
        self.prefix = "" if "embed_tokens.weight" in self.files else "model."

    @property
    def has_head(self) -> bool:
        """Whether the folder has a head of its own."""
        return "lm_head.weight" in self.files

    @property
    def is_headless(self) -> bool:
        """Whether the folder is an embedding model's, whose head nobody needs."""
        return not self.prefix and not self.has_head

    def stored_name(self, path: tuple[str, ...], layer: int) -> str:
        """Name in this folder of the tensor at our `path`, of one layer."""
        name = NAMES[path].name.format(layer)
        return name.replace("model.", self.prefix, 1) if name.startswith("model.") else name

    def check_names(self, paths: set[tuple[str, ...]], config: Qwen3Config) -> None:
        """ValueError unless the folder has exactly the tensors of our weights at `paths`."""
        expected = {
            self.stored_name(path, layer)
            for path in paths
            for layer in range(config.num_layers if path[0] == "layers" else 1)
        }
        tied = f"tie_word_embeddings is {str(config.is_tied).lower()}"
        for name in sorted(expected - self.files.keys()):
            why, other = "", ""
            if name == "lm_head.weight":
                why = f" although {tied}"
                other = ", or use it as --config.data.text_encoder, which needs no head"
            raise ValueError(f"{self.folder} has no tensor {name}{why}; download it again{other}.")
        for name in sorted(self.files.keys() - expected):
            if name == "lm_head.weight":
                # Some folders store the shared table twice; two different tables are not tied.
                if not self._is_equal(name, self.stored_name(("embedding",), 0)):
                    raise ValueError(
                        f"{self.folder}: {name} differs from the embedding although {tied}; "
                        "set it to false in config.json."
                    )
            elif not name.endswith("rotary_emb.inv_freq"):  # this follows from rope_theta
                raise ValueError(
                    f"{self.folder}: tensor {name} has no place in this architecture; "
                    "use a plain qwen3 or llama model."
                )

    def _is_equal(self, name: str, other: str) -> bool:
        return np.array_equal(self.tensor(name), self.tensor(other))

    def read(self, path: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Our weight at `path` with the given shape, its layers stacked."""
        is_stacked = path[0] == "layers"
        layer_shape = shape[1:] if is_stacked else shape
        input_axes = NAMES[path].input_axes
        array = np.empty(shape if is_stacked else (1,) + shape, dtype)
        for layer in range(len(array)):
            name = self.stored_name(path, layer)
            array[layer] = self.matrix(name, layer_shape, input_axes, dtype)
        return array if is_stacked else array[0]


def save_backbone(model: Qwen3, folder: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `model` to `folder`, which transformers 5 and `load_backbone` read.

    Weights larger than `shard_bytes` in sum are split over several files. Only the tensors of one
    file are copied at a time. config.json is written last, because a folder without it is no model.
    ValueError if the model has low-rank additions (`Qwen3.fold_lora`).
    """
    if model.config.lora is not None:
        raise ValueError("the backbone has low-rank additions; call fold_lora() before saving it.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("config.json", "model.safetensors*", "model-*-of-*.safetensors"):
        for stale in folder.glob(pattern):
            stale.unlink()
    params = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    shards = _shards(params, shard_bytes)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        tensors = {name: _stored(params[path], path, layer) for name, path, layer in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors writes for its owner only
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(_bytes(param) for param in params.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", config_json(model.config))


def _bytes(param: nnx.Param) -> int:
    return math.prod(param.shape) * param.dtype.itemsize


def _names(params: dict) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """(name, path, layer) of every tensor of a checkpoint."""
    for path, param in params.items():
        for layer in range(param.shape[0] if path[0] == "layers" else 1):
            yield NAMES[path].name.format(layer), path, layer


def _shards(params: dict, shard_bytes: int) -> list[list[tuple[str, tuple[str, ...], int]]]:
    """(name, path, layer) of every tensor, in groups of at most `shard_bytes` or of one tensor."""
    shards, used = [[]], 0
    for entry in _names(params):
        path = entry[1]
        size = _bytes(params[path]) // (params[path].shape[0] if path[0] == "layers" else 1)
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(entry)
        used += size
    return shards


def _stored(param: nnx.Param, path: tuple[str, ...], layer: int) -> np.ndarray:
    """One layer's weight in the checkpoint's layout."""
    array = np.asarray(jax.device_get(param[layer] if path[0] == "layers" else param[...]))
    input_axes = NAMES[path].input_axes
    if input_axes:
        array = array.reshape(stored_shape(array.shape, input_axes)[::-1]).T
    return np.ascontiguousarray(array)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def config_json(config: Qwen3Config) -> dict[str, Any]:
    """The content of config.json, for transformers 5 and older versions."""
    kind = "qwen3" if config.has_qk_norm else "llama"
    theta = config.rope_theta
    return {
        "architectures": ["Qwen3ForCausalLM" if config.has_qk_norm else "LlamaForCausalLM"],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_theta": theta,
        "tie_word_embeddings": config.is_tied,
        "attention_bias": False,
        # The tokenizer has these ids. Without these lines transformers would assume 1 and 2.
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": config.param_dtype,
        "torch_dtype": config.param_dtype,
    }
