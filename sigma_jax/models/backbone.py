"""The language model a stage starts from: a Hugging Face folder, or sizes to start from scratch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from flax import nnx

from sigma_jax.models.lora import Lora, add_lora, is_kept
from sigma_jax.models.qwen3 import Qwen3, Qwen3Config


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Where the backbone comes from, and how it computes."""

    hf_folder: str  # config.json + safetensors; "" starts from scratch with the sizes below
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float
    norm_eps: float
    is_tied: bool
    has_qk_norm: bool
    dropout: float
    dtype: str
    param_dtype: str
    remat: str
    lora_rank: int  # of additions that alone are trained (models/lora.py); 0: all weights are
    lora_alpha: float  # the additions count lora_alpha / lora_rank

    def __post_init__(self):
        self.scratch(vocab_size=1)  # ValueError for sizes that cannot be

    def scratch(self, vocab_size: int) -> Qwen3Config:
        """The sizes of a start from scratch."""
        fields = {field.name for field in dataclasses.fields(Qwen3Config)}
        sizes = {k: v for k, v in dataclasses.asdict(self).items() if k in fields}
        return Qwen3Config(vocab_size=vocab_size, **sizes, lora=self.lora)

    def check_start(self) -> None:
        """ValueError where additions alone are to be trained and there is nothing to add to."""
        if self.lora_rank and not self.hf_folder:
            raise ValueError(
                f"backbone.lora_rank={self.lora_rank} trains additions to weights that are there; "
                "give backbone.hf_folder, or lora_rank=0."
            )

    @property
    def lora(self) -> Lora | None:
        """The additions; None where there are none."""
        return Lora(self.lora_rank, self.lora_alpha) if self.lora_rank else None

    def keeps(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at this path of a model around the backbone is not trained."""
        return self.lora is not None and is_kept(path)

    def trained(self, folder: Path) -> BackboneConfig:
        """As it answers once it was left in `folder`: with the additions in its weights, which are
        of the type that products take."""
        return dataclasses.replace(self, hf_folder=str(folder), lora_rank=0, param_dtype=self.dtype)


# What a folder's config.json cannot say: how to compute.
HOW = ("dropout", "dtype", "param_dtype", "remat")


def make_backbone(
    config: BackboneConfig, vocab_size: int, rngs: nnx.Rngs, tokenizer_folder: Path | None = None
) -> Qwen3:
    """The backbone for text ids 0..vocab_size-1.

    From a folder it has the folder's sizes and table, which may be longer than the vocabulary;
    from scratch it has exactly `vocab_size` rows.

    Raises:
      ValueError: the tokenizer does not match the folder: more ids than rows, or (where
        `tokenizer_folder` is given and the folder holds a tokenizer) other ids for the same words;
        or additions alone are to be trained where there is no folder.
    """
    if not config.hf_folder:
        config.check_start()
        return Qwen3(config.scratch(vocab_size), rngs=rngs)
    from sigma_jax.models.hf import load_backbone

    folder = Path(config.hf_folder)
    backbone = load_backbone(folder, **{name: getattr(config, name) for name in HOW})
    rows = backbone.config.vocab_size
    if vocab_size > rows:
        raise ValueError(
            f"the tokenizer has {vocab_size} tokens, the backbone {folder} {rows}: a tokenizer "
            f"that does not match; prepare the data with --config.data.text_tokenizer.name={folder}"
            " in another --workdir."
        )
    if tokenizer_folder is not None:
        check_tokenizer(tokenizer_folder, folder)
    if config.lora is not None:
        add_lora(backbone, config.lora, rngs)
    return backbone


def check_tokenizer(tokenizer_folder: Path, hf_folder: Path) -> None:
    """ValueError naming a word to which the two folders' tokenizers give different ids."""
    paths = tokenizer_folder / "tokenizer.json", hf_folder / "tokenizer.json"
    if not all(path.exists() for path in paths):
        return
    ours, theirs = (vocabulary(path) for path in paths)
    for word, number in ours.items():
        if theirs.get(word) != number:
            raise ValueError(
                f"the data's tokenizer has {word!r} as {number}, the backbone {hf_folder} as "
                f"{theirs.get(word)}: a tokenizer that does not match; prepare the data with "
                f"--config.data.text_tokenizer.name={hf_folder} in another --workdir."
            )


def vocabulary(path: Path) -> dict[str, int]:
    """Words and ids of a `tokenizer.json`, added tokens included."""
    try:
        stored = json.loads(path.read_text())
        words = stored["model"]["vocab"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete the folder of the stage that wrote it and run "
            "again, or fetch it again."
        ) from error
    if isinstance(words, list):  # Unigram: [word, score] in order
        words = {word: number for number, (word, _) in enumerate(words)}
    return {**words, **{t["content"]: t["id"] for t in stored.get("added_tokens", ())}}
