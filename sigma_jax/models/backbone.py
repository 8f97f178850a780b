"""The language model that a stage starts from: a Hugging Face folder, or sizes for a new one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
from absl import logging
from flax import nnx

from sigma_jax.models.config import LoraConfig, Qwen3Config
from sigma_jax.models.folders import find_model
from sigma_jax.models.linear import is_frozen_by_lora
from sigma_jax.models.qwen3 import Qwen3

LARGE = 10**8  # numbers of a backbone that few would train from nothing


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Source and arithmetic of the backbone. ValueError if the sizes do not fit together."""

    # A folder with config.json and safetensors, or its name on the Hugging Face hub; "" starts from
    # scratch with the sizes below.
    hf_folder: str
    width: int  # of hidden states
    num_layers: int  # transformer blocks
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads; each serves num_heads / num_kv_heads query heads
    head_dim: int  # of a head; even
    mlp_width: int  # of the feed-forward layers
    rope_theta: float  # base of the rotary embedding
    norm_eps: float  # added to the mean square in RMS norms
    is_tied: bool  # the head is the embedding table
    has_qk_norm: bool  # norms of queries and keys: True for Qwen3, False for Llama
    dropout: float  # share of the outputs of attention and MLP that training drops
    dtype: str  # of activations and matrix products: "float32" or "bfloat16"
    param_dtype: str  # of stored weights
    # Results of a layer that the backward pass recomputes: "layer" all but its input, "attention"
    # all but its input and the output of attention, "light" all but products and attention, "none"
    # nothing. models/config.py has the memory of each.
    remat: str
    # Rank of low-rank additions, which are then trained alone (models/linear.py). 0: none, and all
    # weights are trained.
    lora_rank: int
    lora_alpha: float  # the additions are multiplied by lora_alpha / lora_rank

    def __post_init__(self):
        self.scratch(vocab_size=1)  # checks the sizes

    def scratch(self, vocab_size: int) -> Qwen3Config:
        """The config of a backbone that starts from scratch."""
        fields = {field.name for field in dataclasses.fields(Qwen3Config)}
        sizes = {k: v for k, v in dataclasses.asdict(self).items() if k in fields}
        return Qwen3Config(vocab_size=vocab_size, **sizes, lora=self.lora)

    def check_start(self) -> None:
        """ValueError if only low-rank additions are trained but there are no weights to add to."""
        if self.lora_rank and not self.hf_folder:
            raise ValueError(
                f"backbone.lora_rank={self.lora_rank} trains additions to pre-trained weights, but "
                'backbone.hf_folder="" has none; give backbone.hf_folder, or lora_rank=0.'
            )

    @property
    def folder(self) -> Path:
        """The folder of the pre-trained model. ModelMissingError if there is none."""
        return find_model(self.hf_folder, "backbone.hf_folder")

    @property
    def lora(self) -> LoraConfig | None:
        """The low-rank additions; None for none."""
        return LoraConfig(self.lora_rank, self.lora_alpha) if self.lora_rank else None

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """True if the parameter at `path` is not trained: it belongs to a backbone with additions.

        `path` is the parameter's path in a module with the attribute `backbone`.
        """
        return self.lora is not None and is_frozen_by_lora(path)

    def trained(self, folder: Path) -> BackboneConfig:
        """The config that loads the trained backbone from `folder`.

        The folder's weights include the additions; they are loaded in the type of the products.
        """
        return dataclasses.replace(self, hf_folder=str(folder), lora_rank=0, param_dtype=self.dtype)


# Fields that a folder's config.json does not have: they choose how the backbone computes.
COMPUTE_FIELDS = ("dropout", "dtype", "param_dtype", "remat")


def make_backbone(
    config: BackboneConfig, vocab_size: int, rngs: nnx.Rngs, tokenizer_folder: Path | None = None
) -> Qwen3:
    """The backbone for text ids 0..vocab_size-1.

    From a folder it has the folder's sizes and table, which may be longer than the vocabulary.
    From scratch it has exactly `vocab_size` rows.

    Raises:
      ValueError: there is no such folder; the tokenizer has more ids than the folder's table has
        rows; `tokenizer_folder` and the folder give different ids to a word; or only low-rank
        additions are to be trained and there is no folder.
    """
    if not config.hf_folder:
        config.check_start()
        backbone = Qwen3(config.scratch(vocab_size), rngs=rngs)
        numbers = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(backbone)))
        if numbers >= LARGE:
            logging.warning(
                "the backbone of %.1f billion numbers starts from random ones; give a pre-trained "
                "model as backbone.hf_folder, and its folder as data.text_tokenizer.name",
                numbers / 1e9,
            )
        return backbone
    from sigma_jax.models.hf import load_backbone

    folder = config.folder
    backbone = load_backbone(folder, **{name: getattr(config, name) for name in COMPUTE_FIELDS})
    rows = backbone.config.vocab_size
    if vocab_size > rows:
        raise ValueError(
            f"the data's tokenizer has {vocab_size} tokens but the backbone {folder} has {rows}; "
            f"prepare the data with --config.data.text_tokenizer.name={folder} "
            "in another --workdir."
        )
    if tokenizer_folder is not None:
        check_tokenizer(tokenizer_folder, folder)
    if config.lora is not None:
        backbone.add_lora(config.lora, rngs)
    return backbone


def check_tokenizer(tokenizer_folder: Path, hf_folder: Path) -> None:
    """ValueError if the tokenizers of the two folders give different ids to a word.

    Nothing is checked if a folder has no `tokenizer.json`.
    """
    paths = tokenizer_folder / "tokenizer.json", hf_folder / "tokenizer.json"
    if not all(path.exists() for path in paths):
        return
    data_ids, backbone_ids = (vocabulary(path) for path in paths)
    for word, number in data_ids.items():
        if backbone_ids.get(word) != number:
            raise ValueError(
                f"the data's tokenizer has {word!r} as {number} but the backbone {hf_folder} as "
                f"{backbone_ids.get(word)}; prepare the data with "
                f"--config.data.text_tokenizer.name={hf_folder} in another --workdir."
            )


def vocabulary(path: Path) -> dict[str, int]:
    """Word -> id of a `tokenizer.json`, added tokens included. ValueError if it is damaged."""
    try:
        stored = json.loads(path.read_text())
        words = stored["model"]["vocab"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); download it again, or delete the folder of the stage "
            "that wrote it and run that stage again."
        ) from error
    if isinstance(words, list):  # Unigram: [word, score] in order
        words = {word: number for number, (word, _) in enumerate(words)}
    return {**words, **{t["content"]: t["id"] for t in stored.get("added_tokens", ())}}
