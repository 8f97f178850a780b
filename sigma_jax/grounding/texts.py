"""The texts of stage 1 as tokens on disk: tokenised once, then a batch is a gather.

Row i is the text of item i; after the items come the left texts of each view (queries, themes).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64
from tokenizers import Tokenizer

from sigma_jax.runtime import hosts
from sigma_jax.schema import PreparedData, read_npy

CHUNK = 8192  # texts held as Python objects at a time


def load_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a Hugging Face folder, without padding. ValueError if there is none."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{path} is no tokenizer ({error}); delete {path.parents[1]} and run again."
        ) from error
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[list[int]]:
    """Token ids of `texts`, cut at `max_tokens`; a text without tokens counts as token 0."""
    tokenizer.enable_truncation(max_tokens)
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids or [0] for encoding in encoded]


def padded(
    offsets: np.ndarray, tokens: np.ndarray, rows: np.ndarray, length: int
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, " B"]]:
    """Rows of a ragged table as [B, T] with zeros behind, and how many tokens of each count.

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
    """All texts as tokens, memory-mapped."""

    offsets: Int64[np.ndarray, " texts+1"]
    tokens: Int32[np.ndarray, " tokens"]
    key: Int32[np.ndarray, " texts"]  # the first row with the same tokens: equal texts, one key
    first_row: dict[str, int]  # view -> row of its first left text
    length: int  # T of a batch
    truncated: float  # share of texts that are longer than T

    def batch(self, rows: Int64[np.ndarray, " B"]):
        """Tokens [B, T] and lengths [B] of `rows`."""
        return padded(self.offsets, self.tokens, rows, self.length)


def token_table(
    data: PreparedData, cache: Path, max_tokens: int, quantile: float, instruction: str
) -> TokenTable:
    """The texts of `data` as tokens, made in `cache` unless they are there already.

    T is the smallest multiple of 8 that holds the share `quantile` of the texts whole, at most
    `max_tokens`: one static shape for all batches, without padding all to the longest text.
    `instruction` is put before left texts.
    """
    recipe = _recipe(data, max_tokens, instruction)
    folder = cache / f"tokens-{recipe}"

    def make() -> None:
        if not folder.exists():
            _write(data, folder, max_tokens, instruction)

    hosts.by_first(make)
    offsets = read_npy(folder / "offsets.npy", 1)
    lengths = np.diff(offsets)
    wanted = int(np.quantile(lengths, quantile, method="higher"))
    length = min(-(-wanted // 8) * 8, max_tokens)
    # Texts cut at max_tokens count as truncated although their rest is not stored.
    truncated = float(np.mean((lengths > length) | (lengths == max_tokens)))
    tokens = np.memmap(folder / "tokens.int32", np.int32, "r")
    key = read_npy(folder / "key.npy", 1)
    return TokenTable(offsets, tokens, key, _first_rows(data), length, truncated)


def _first_rows(data: PreparedData) -> dict[str, int]:
    row, first = len(data.catalogue), {}
    for view, pairs in data.pairs.items():
        if pairs.left_texts is not None:
            first[view], row = row, row + len(pairs.left_texts)
    return first


def _texts(data: PreparedData, instruction: str) -> Iterator[list[str]]:
    """All texts in the order of rows, CHUNK at a time."""
    for start in range(0, len(data.catalogue), CHUNK):
        yield data.catalogue.table["text"].slice(start, CHUNK).to_pylist()
    for view in _first_rows(data):
        texts = data.pairs[view].left_texts
        for start in range(0, len(texts), CHUNK):
            yield [instruction + text for text in texts.slice(start, CHUNK).to_pylist()]


def _recipe(data: PreparedData, max_tokens: int, instruction: str) -> str:
    """Short name of what decides the tokens: the data, the tokenizer and the settings."""
    stamp = data.folder / "manifest.json"
    source = stamp.read_bytes() if stamp.exists() else str(data.folder.stat().st_mtime_ns).encode()
    tokenizer = (data.text_tokenizer_folder / "tokenizer.json").read_bytes()
    settings = json.dumps([max_tokens, instruction]).encode()
    return hashlib.sha256(b"\0".join([source, tokenizer, settings])).hexdigest()[:16]


def _write(data: PreparedData, folder: Path, max_tokens: int, instruction: str) -> None:
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tokenizer = load_tokenizer(data.text_tokenizer_folder)
    weights = np.random.default_rng(0).integers(0, 2**64, max_tokens, np.uint64)
    lengths, hashes = [], []
    with open(beside / "tokens.int32", "wb") as file:
        for texts in _texts(data, instruction):
            rows = encode(tokenizer, texts, max_tokens)
            lengths.append(np.array([len(row) for row in rows], np.int64))
            flat = np.concatenate([np.array(row, np.int32) for row in rows])
            hashes.append(_hashes(flat, lengths[-1], weights))
            flat.tofile(file)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    np.save(beside / "offsets.npy", offsets)
    np.save(beside / "key.npy", first_equal(np.concatenate(hashes)))
    try:
        os.replace(beside, folder)
    except OSError:  # another process was faster
        shutil.rmtree(beside, ignore_errors=True)
        if not folder.exists():
            raise


def _hashes(flat: np.ndarray, lengths: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One 64-bit number a row: sum of (token + 1) * weight of its place, modulo 2^64."""
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(flat)) - np.repeat(starts, lengths)
    return np.add.reduceat((flat.astype(np.uint64) + np.uint64(1)) * weights[place], starts)


def first_equal(values: np.ndarray) -> Int32[np.ndarray, " n"]:
    """For each place the first place with the same value: [7 9 7] -> [0 1 0]."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int32)
