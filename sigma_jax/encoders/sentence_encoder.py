"""Pre-trained sentence encoders: texts to vectors, as sentence-transformers publishes them.

A folder has modules.json, which lists a transformer, a pooling, and perhaps dense layers and a
normalisation. All of it is read from the folder: longest text, prompts such as "query: ", pooling.
A plain Hugging Face folder is pooled by the mean. The transformer is of the BERT family (bert.py)
or a decoder of the Qwen3 or Llama family (qwen3.py), such as Qwen3-Embedding.

Texts are sorted by length, so that a batch has little padding. Lengths come in steps, and each has
one batch size, so that few programs are compiled. A batch is shared by all devices of the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int

from sigma_jax.encoders.bert import FAMILIES, load_bert
from sigma_jax.losses import unit
from sigma_jax.models.folders import TensorFolder, read_folder_json
from sigma_jax.models.hf import load_backbone
from sigma_jax.models.qwen3 import Qwen3, causal_mask
from sigma_jax.runtime import sharding
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.shapes import in_eighths

POOLINGS = ("mean", "cls", "last", "max")
# Names of poolings in 1_Pooling/config.json: values of `pooling_mode`, or fields of older folders.
POOLING_NAMES = {
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
    "max": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
# Names of prompts for texts to search with, and for texts to be found.
QUERY_PROMPTS, ITEM_PROMPTS = ("query",), ("document", "passage")
DENSE_ACTIVATIONS = {"Identity": lambda x: x, "Tanh": jnp.tanh}
BATCH_TOKENS = 4_096  # of a device's part of a batch, padding included
FEW = (1, 8)  # sizes of batches of a few texts
MOST_TOKENS = 32_768  # of a text, for a transformer without a limit
REPLICATED_BYTES = 2**31  # a larger model is sharded over the devices


class Transformer(Protocol):
    """Tokens to hidden states of width D."""

    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B T D"]:
        """Hidden states; text b has `lengths[b]` tokens, followed by padding."""


class Decoder(nnx.Module):
    """A Qwen3 or Llama backbone as a transformer of texts: each token sees those before it."""

    def __init__(self, backbone: Qwen3):
        self.backbone = backbone

    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm."""
        time = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        mask = causal_mask((time[None] < lengths[:, None]).astype(jnp.int32))
        positions = jnp.broadcast_to(time, tokens.shape)
        return self.backbone(self.backbone.embed(tokens), positions, mask)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """A dense layer that follows the pooling."""

    weight: Float32[np.ndarray, "D E"]
    bias: Float32[np.ndarray, " E"]
    activation: str = dataclasses.field(metadata={"static": True})  # of DENSE_ACTIVATIONS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """Pooling, dense layers and normalisation, which follow the transformer."""

    pooling: str = dataclasses.field(metadata={"static": True})  # one of POOLINGS
    dense: tuple[Dense, ...]
    is_normalised: bool = dataclasses.field(metadata={"static": True})

    def __call__(
        self, hidden: Float[Array, "B T D"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B E"]:
        """The vector of each text."""
        hidden = hidden.astype(jnp.float32)
        is_real = (jnp.arange(hidden.shape[1]) < lengths[:, None])[..., None]
        match self.pooling:
            case "mean":
                pooled = jnp.where(is_real, hidden, 0).sum(1) / jnp.maximum(lengths, 1)[:, None]
            case "max":
                pooled = jnp.where(is_real, hidden, -jnp.inf).max(1)
            case "cls":
                pooled = hidden[:, 0]
            case _:
                last = jnp.maximum(lengths - 1, 0)[:, None, None]
                pooled = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
        for layer in self.dense:
            pooled = DENSE_ACTIVATIONS[layer.activation](pooled @ layer.weight + layer.bias)
        return unit(pooled) if self.is_normalised else pooled


class SentenceEncoder:
    """Texts to vectors. `SentenceEncoder.load` reads a folder."""

    def __init__(
        self,
        transformer: nnx.Module,
        head: Head,
        tokenizer: Any,
        max_tokens: int,
        prompts: Mapping[str, str],
    ):
        """Args:
        transformer: a Transformer.
        tokenizer: of the package tokenizers.
        max_tokens: longer texts are cut.
        prompts: put before a text, by name: "query", "document".
        """
        self.transformer, self.head, self.prompts = transformer, head, dict(prompts)
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens)
        self.mesh = sharding.make_mesh(MeshConfig(1, -1, 1), jax.local_devices())
        self._graph, state = nnx.split(transformer)
        self._state = jax.device_put(state, state_shardings(state, self.mesh))

    @classmethod
    def load(cls, folder: Path) -> SentenceEncoder:
        """The encoder in a folder.

        Raises:
          ValueError: the folder is missing, damaged or incomplete, or has a part that is not
            supported; the message names it.
        """
        modules = read_modules(folder)
        first = folder / modules[0]["path"]
        kind = read_folder_json(first / "config.json").get("model_type")
        if kind in FAMILIES:
            transformer: nnx.Module = load_bert(first)
            longest = longest_text(folder, first, transformer.config.max_tokens)
        else:
            backbone = load_backbone(
                first, dtype="float32", param_dtype="float32", needs_head=False
            )
            transformer = Decoder(backbone)
            longest = longest_text(folder, first)
        settings = sentence_settings(folder, first)
        prompts = optional_json(folder / "config_sentence_transformers.json").get("prompts") or {}
        return cls(
            transformer,
            read_head(folder, modules[1:]),
            load_tokenizer(first, bool(settings.get("do_lower_case"))),
            longest,
            prompts,
        )

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.encode([""]).shape[1]

    def encode(self, texts: Sequence[str], prompt: str = "") -> Float32[np.ndarray, "N E"]:
        """The vectors of texts.

        Args:
          prompt: the name of a prompt of the model, such as "query"; a model without it has none.
        """
        before = self.prompts.get(prompt, "")
        places: dict[str, int] = {}  # equal texts are encoded once
        place = [places.setdefault(text, len(places)) for text in texts]
        encodings = self.tokenizer.encode_batch([before + text for text in places])
        tokens = [encoding.ids for encoding in encodings]
        lengths = [max(len(ids), 1) for ids in tokens]
        order = np.argsort(lengths, kind="stable")[::-1]
        vectors: Float32[np.ndarray, "N E"] | None = None
        for rows in batches(order, lengths, self.mesh.size):
            found = self._vectors([tokens[row] for row in rows])
            if vectors is None:
                vectors = np.zeros((len(tokens), found.shape[1]), np.float32)
            vectors[rows] = found
        return np.zeros((0, self.width), np.float32) if vectors is None else vectors[place]

    def encode_queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "N E"]:
        """The vectors of instructions, queries and themes, with the model's prompt for queries."""
        return self.encode(texts, self._prompt_of(QUERY_PROMPTS))

    def encode_items(self, texts: Sequence[str]) -> Float32[np.ndarray, "N E"]:
        """The vectors of items' texts, with the model's prompt for documents."""
        return self.encode(texts, self._prompt_of(ITEM_PROMPTS))

    def _prompt_of(self, names: Sequence[str]) -> str:
        """The first of `names` that the model has; "" if it has none."""
        return next((name for name in names if name in self.prompts), "")

    def _vectors(self, tokens: Sequence[Sequence[int]]) -> Float32[np.ndarray, "n E"]:
        """The vectors of one batch, which is padded to a shape of few."""
        length = in_eighths(max(map(len, tokens)))
        count = padded_count(len(tokens), length, self.mesh.size)
        ids, lengths = np.zeros((count, length), np.int32), np.ones(count, np.int32)
        for row, of_text in enumerate(tokens):
            ids[row, : len(of_text)] = of_text
            lengths[row] = max(len(of_text), 1)
        batch = sharding.place_batch({"tokens": ids, "lengths": lengths}, self.mesh)
        return np.asarray(run(self._graph, self._state, self.head, **batch))[: len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def run(
    graph: nnx.GraphDef,
    state: nnx.State,
    head: Head,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B E"]:
    """The vectors of a batch of texts. Encoders with equal shapes share its programs.

    Args:
      graph, state: the transformer, split by nnx.
    """
    return head(nnx.merge(graph, state)(tokens, lengths), lengths)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A sharding for each array of `state`: replicated, or by parts where the model is large."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    if size <= REPLICATED_BYTES:
        return jax.tree.map(lambda _: sharding.replicated(mesh), state)
    return jax.tree.map(lambda leaf: sharding.table_sharding(leaf.shape, mesh), state)


def batch_size(length: int, devices: int = 1) -> int:
    """Texts of a batch of texts that are padded to `length` tokens, a multiple of `devices`."""
    return max(BATCH_TOKENS // length, 1) * devices


def padded_count(texts: int, length: int, devices: int = 1) -> int:
    """Rows of a batch of `texts` texts: one of few sizes, so that one sentence is read at once.

    All sizes are multiples of `devices`.
    """
    full = batch_size(length, devices)
    few = (-(-size // devices) * devices for size in FEW)
    return next((size for size in few if texts <= size < full), full)


def batches(
    order: Int[np.ndarray, " N"], lengths: Sequence[int], devices: int = 1
) -> list[Int[np.ndarray, " n"]]:
    """Batches of row numbers in the given order, which descends by length.

    The longest text of a batch decides on its size. Only the last batch may have free places.
    """
    found, first = [], 0
    while first < len(order):
        size = batch_size(in_eighths(lengths[order[first]]), devices)
        found.append(order[first : first + size])
        first += size
    return found


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """The modules of a folder, a transformer first. A plain Hugging Face folder is one of them."""
    path = folder / "modules.json"
    if not path.is_file():
        return [{"path": "", "type": "Transformer"}]
    modules = read_folder_json(path, list)
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize"):
            raise ValueError(f"{path}: a module of type {module.get('type')!r} is not supported.")
        module["type"] = kind
    if not modules or modules[0]["type"] != "Transformer":
        raise ValueError(f"{path}: the first module is no transformer; download it again.")
    return modules


def sentence_settings(folder: Path, first: Path) -> dict[str, Any]:
    """The fields of sentence_bert_config.json of a folder whose transformer is in `first`."""
    settings = optional_json(folder / "sentence_bert_config.json")
    return settings or optional_json(first / "sentence_bert_config.json")


def longest_text(folder: Path, first: Path, most: int = MOST_TOKENS) -> int:
    """Tokens of the longest text, which the settings of a folder may lower; at most `most`."""
    of_tokenizer = optional_json(first / "tokenizer_config.json").get("model_max_length")
    asked = sentence_settings(folder, first).get("max_seq_length") or of_tokenizer or most
    return min(int(asked), most)


def read_head(folder: Path, modules: Sequence[Mapping[str, Any]]) -> Head:
    """Pooling, dense layers and normalisation. ValueError for a part that is not supported."""
    pooling, dense, is_normalised = "mean", [], False
    for module in modules:
        place = folder / module["path"]
        if module["type"] == "Pooling":
            pooling = read_pooling(place / "config.json")
        elif module["type"] == "Normalize":
            is_normalised = True
        else:
            dense.append(read_dense(place))
    return Head(pooling, tuple(dense), is_normalised)


def read_pooling(path: Path) -> str:
    """The pooling in a config.json. ValueError for none, several or an unknown one."""
    fields = read_folder_json(path)
    old = [name for name, value in fields.items() if name.startswith("pooling_mode_") and value]
    mode = fields.get("pooling_mode")
    asked = old if mode is None else [mode] if isinstance(mode, str) else list(mode)
    if len(asked) != 1 or asked[0] not in POOLING_NAMES:
        raise ValueError(
            f"{path}: pooling {asked} is not supported; use one of {', '.join(POOLINGS)}."
        )
    return POOLING_NAMES[asked[0]]


def read_dense(folder: Path) -> Dense:
    """A dense layer. ValueError for an activation that is not supported."""
    fields = read_folder_json(folder / "config.json")
    name = str(fields.get("activation_function", "torch.nn.modules.linear.Identity"))
    activation = name.rsplit(".", 1)[-1]
    if activation not in DENSE_ACTIVATIONS:
        raise ValueError(f"{folder}: activation {name} is not supported.")
    inputs, outputs = int(fields["in_features"]), int(fields["out_features"])
    with contextlib.ExitStack() as stack:
        tensors = TensorFolder(folder, stack)
        weight = tensors.matrix("linear.weight", (inputs, outputs), 1)
        has_bias = fields.get("bias", True)
        bias = tensors.matrix("linear.bias", (outputs,), 0) if has_bias else np.zeros(outputs)
    return Dense(weight, bias.astype(np.float32), activation)


def load_tokenizer(folder: Path, is_lowered: bool) -> Any:
    """The tokenizer of a folder. ValueError if there is none."""
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no tokenizer.json; save its fast tokenizer there.")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower class
        raise ValueError(f"{path} is damaged ({error}); download it again.") from error
    if is_lowered:
        lower = tokenizers.normalizers.Lowercase()
        old = tokenizer.normalizer
        tokenizer.normalizer = tokenizers.normalizers.Sequence([lower, old]) if old else lower
    return tokenizer


def optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} where there is no such file."""
    return read_folder_json(path) if path.is_file() else {}
