"""The texts of the stage `grounding` as tokens on disk, gathered for each batch.

Row i is the text of item i. After the items come the left texts of each view (queries, themes).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64
from tokenizers import Tokenizer

from sigma_jax.runtime import hosts
from sigma_jax.runtime.files import atomic_folder
from sigma_jax.schema import PreparedData, read_npy

CHUNK = 8192  # texts held as Python objects at a time


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in tokenizer.json of `folder`, without padding. ValueError if there is none."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{path} is no tokenizer ({error}); delete {path.parents[1]} and run the stage that "
            "wrote it again."
        ) from error
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[list[int]]:
    """Token ids of `texts`, cut at `max_tokens`; a text without tokens becomes token 0."""
    tokenizer.enable_truncation(max_tokens)
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids or [0] for encoding in encoded]


def padded(
    offsets: np.ndarray, tokens: np.ndarray, rows: np.ndarray, length: int
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, " B"]]:
    """Rows of a ragged table as [B, T], padded with zeros at the end, and their token counts.

    Worked example, texts [5 6 7] [8], T 2: [[5 6] [8 0]], lengths [2 1].
    """
    starts = offsets[rows]
    lengths = np.minimum(offsets[rows + 1] - starts, length)
    time = np.arange(length)
    is_real = time[None] < lengths[:, None]
    places = np.where(is_real, starts[:, None] + time[None], 0)
    return np.where(is_real, tokens[places], 0).astype(np.int32), lengths.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """The tokens of all texts, memory-mapped."""

    offsets: Int64[np.ndarray, " texts+1"]
    tokens: Int32[np.ndarray, " tokens"]
    key: Int32[np.ndarray, " texts"]  # first row with the same tokens, so equal texts share a key
    first_row: dict[str, int]  # view -> row of its first left text
    length: int  # T of a batch
    truncated: float  # share of texts with more than T tokens

    def batch(self, rows: Int64[np.ndarray, " B"]):
        """Tokens [B, T] and lengths [B] of `rows`."""
        return padded(self.offsets, self.tokens, rows, self.length)

    def inputs(self, rows: Int64[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """{"tokens": [B, T], "length": [B]} of `rows`, for `PairBatches`."""
        tokens, lengths = self.batch(rows)
        return {"tokens": tokens, "length": lengths}


def token_table(
    data: PreparedData, cache: Path, max_tokens: int, quantile: float, instruction: str
) -> TokenTable:
    """The tokens of all texts of `data`, which are written to `cache` if they are not there yet.

    T is the smallest multiple of 8 that is enough for the share `quantile` of the texts, at most
    `max_tokens`. So all batches have one static shape, without padding to the longest text.
    `instruction` stands before left texts.
    """
    recipe = _recipe(data, max_tokens, instruction)
    folder = cache / f"tokens-{recipe}"

    def make() -> None:
        if not folder.exists():
            _write(data, folder, max_tokens, instruction)

    hosts.by_first(make)
    offsets = read_npy(folder / "offsets.npy", 1)
    lengths = np.diff(offsets)
    needed = int(np.quantile(lengths, quantile, method="higher"))
    length = min(-(-needed // 8) * 8, max_tokens)
    # A text with max_tokens tokens counts as truncated, because its rest would not be stored.
    truncated = float(np.mean((lengths > length) | (lengths == max_tokens)))
    tokens = np.memmap(folder / "tokens.int32", np.int32, "r")
    key = read_npy(folder / "key.npy", 1)
    return TokenTable(offsets, tokens, key, first_rows(data), length, truncated)


def first_rows(data: PreparedData) -> dict[str, int]:
    """Row of the first left text of each view that has left texts."""
    row, first = len(data.catalogue), {}
    for view, pairs in data.pairs.items():
        if pairs.left_texts is not None:
            first[view], row = row, row + len(pairs.left_texts)
    return first


def _texts(data: PreparedData, instruction: str) -> Iterator[list[str]]:
    """All texts in the order of the rows, CHUNK at a time."""
    for start in range(0, len(data.catalogue), CHUNK):
        yield data.catalogue.table["text"].slice(start, CHUNK).to_pylist()
    for view in first_rows(data):
        texts = data.pairs[view].left_texts
        for start in range(0, len(texts), CHUNK):
            yield [instruction + text for text in texts.slice(start, CHUNK).to_pylist()]


def _recipe(data: PreparedData, max_tokens: int, instruction: str) -> str:
    """Hash of the data, the tokenizer and the settings, which together decide the tokens."""
    stamp = data.folder / "manifest.json"
    source = stamp.read_bytes() if stamp.exists() else str(data.folder.stat().st_mtime_ns).encode()
    tokenizer = (data.text_tokenizer_folder / "tokenizer.json").read_bytes()
    settings = json.dumps([max_tokens, instruction]).encode()
    return hashlib.sha256(b"\0".join([source, tokenizer, settings])).hexdigest()[:16]


def _write(data: PreparedData, folder: Path, max_tokens: int, instruction: str) -> None:
    """Writes offsets.npy, tokens.int32 and key.npy to `folder`."""
    tokenizer = load_tokenizer(data.text_tokenizer_folder)
    weights = np.random.default_rng(0).integers(0, 2**64, max_tokens, np.uint64)
    lengths, hashes = [], []
    with atomic_folder(folder) as out:
        with open(out / "tokens.int32", "wb") as file:
            for texts in _texts(data, instruction):
                rows = encode(tokenizer, texts, max_tokens)
                lengths.append(np.array([len(row) for row in rows], np.int64))
                flat = np.concatenate([np.array(row, np.int32) for row in rows])
                hashes.append(_hashes(flat, lengths[-1], weights))
                flat.tofile(file)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
        np.save(out / "offsets.npy", offsets)
        np.save(out / "key.npy", first_equal(np.concatenate(hashes)))


def _hashes(flat: np.ndarray, lengths: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """64-bit hash of each row: the sum of (token + 1) * weight of its position, modulo 2^64."""
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(flat)) - np.repeat(starts, lengths)
    return np.add.reduceat((flat.astype(np.uint64) + np.uint64(1)) * weights[position], starts)


def first_equal(values: np.ndarray) -> Int32[np.ndarray, " n"]:
    """For each element the index of the first equal element: [7 9 7] -> [0 1 0]."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int32)
