"""Kept contexts: keys and values of users' prompts, so that only what is new is computed.

Section 3.3 of SIGMA computes a user's new behaviour with the keys and values of the past. A prompt
begins with what changes least: profile, favourites, history. A token's keys and values depend only
on the tokens before it. So the longest common beginning of a user's last prompt and of the new one
needs no computation, whatever has changed behind it.

Worked example, columns of two prompts of a batch, P 4, Q 3 ("-" is padding):

    kept          new
    a b c d     | e i -      user 1: history a b c d was kept; e is new, i is the instruction
    a b - -     | c d i      user 2

The results are those of computing everything, up to rounding.

Axes: B prompts, T columns of a prompt, P kept and Q new columns, K key heads, H their size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float, Int32

from sigma_jax.generation.beam import Beams, Past, Prompts
from sigma_jax.generation.generator import Generator
from sigma_jax.index.trie import ActiveItems

KEPT_STEP, NEW_STEP = 32, 8  # columns come in these steps, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Context:
    """The kept columns of one user, n of them."""

    tokens: Int32[np.ndarray, " n"]
    items: Int32[np.ndarray, " n"]
    keys: Float[np.ndarray, "layers n K H"]
    values: Float[np.ndarray, "layers n K H"]

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        arrays = (self.tokens, self.items, self.keys, self.values)
        return sum(array.nbytes for array in arrays)

    def common(self, tokens: np.ndarray, items: np.ndarray) -> int:
        """The number of first columns that a prompt shares with it."""
        size = min(len(self.tokens), len(tokens))
        is_equal = (self.tokens[:size] == tokens[:size]) & (self.items[:size] == items[:size])
        return size if is_equal.all() else int(is_equal.argmin())


class ContextFiles:
    """Contexts of users in a folder, the least recently used out first. Threads may share it.

    A context that cannot be written, as on a full disk, is left out: it is computed again.
    """

    def __init__(self, folder: Path, most_bytes: int):
        """Args:
        folder: made if missing. Its files are taken over. Processes that share it each count the
          files that they found and wrote.
        most_bytes: of all files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._most = folder, most_bytes
        paths = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime)
        self._sizes = OrderedDict((path, path.stat().st_size) for path in paths)
        self._bytes = sum(self._sizes.values())
        self._lock = threading.Lock()

    def read(self, user: str) -> Context | None:
        """The context of a user; None if there is none, or it is damaged."""
        path = self._path(user)
        try:
            with np.load(path) as file:
                context = Context(*(file[field.name] for field in dataclasses.fields(Context)))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        with self._lock:
            if path in self._sizes:
                self._sizes.move_to_end(path)
        return context

    def write(self, user: str, context: Context) -> None:
        """Keeps a context, and deletes others where all take too much room."""
        path = self._path(user)
        arrays = {field.name: getattr(context, field.name) for field in dataclasses.fields(Context)}
        try:
            np.savez(path, **arrays)
            size = path.stat().st_size
        except OSError as error:
            text = "contexts: %s takes no more (%s)"
            logging.log_every_n_seconds(logging.WARNING, text, 60.0, self._folder, error)
            self.delete(user)
            return
        with self._lock:
            self._bytes += size - self._sizes.pop(path, 0)
            self._sizes[path] = size
            while self._bytes > self._most:
                self._remove(next(iter(self._sizes)))

    def delete(self, user: str) -> None:
        """Deletes the context of a user, if there is one."""
        with self._lock:
            self._remove(self._path(user))

    def _remove(self, path: Path) -> None:
        self._bytes -= self._sizes.pop(path, 0)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def _path(self, user: str) -> Path:
        return self._folder / f"{hashlib.sha256(user.encode()).hexdigest()}.npz"


class ContextCache:
    """Contexts by user, the least recently used out first. Threads may share it."""

    def __init__(self, most_bytes: int, files: ContextFiles | None = None):
        """Args:
        most_bytes: of memory.
        files: where contexts go that memory has no room for. None: they are computed again.
        """
        self._most, self._files = most_bytes, files
        self._kept: OrderedDict[str, Context] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.kept_columns = self.new_columns = 0  # so far

    def __len__(self) -> int:
        """The number of contexts in memory."""
        return len(self._kept)

    def forget(self) -> None:
        """Drops all contexts from memory."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def beams(
        self,
        generator: Generator,
        prompts: Prompts,
        users: Sequence[str],
        active: ActiveItems | None = None,
    ) -> Beams:
        """`Generator.beams` of prompts of some users, with what is kept of them.

        Args:
          prompts: NumPy arrays without a past.
          users: the user of each prompt; "" for one of whom nothing is kept.
        """
        contexts = [self._get(user) for user in users]
        shared = [_shared(prompts, row, context) for row, context in enumerate(contexts)]
        batch = with_past(prompts, contexts, shared)
        beams, past = generator.beams_and_keys(batch, active)
        keys, values = np.asarray(past.keys), np.asarray(past.values)
        for row, user in enumerate(users):
            size = context_size(prompts, row)
            if user and size > shared[row]:
                count = size - shared[row]
                new = keys[:, row, :count], values[:, row, :count]
                self._put(user, _extended(contexts[row], shared[row], prompts, row, size, *new))
        self.kept_columns += sum(shared)
        self.new_columns += int(prompts.lengths.sum()) - sum(shared)
        return beams

    def _get(self, user: str) -> Context | None:
        with self._lock:
            if context := self._kept.get(user):
                self._kept.move_to_end(user)
                return context
        return self._files.read(user) if self._files is not None and user else None

    def drop(self, user: str) -> None:
        """Forgets a user, in memory and in the files."""
        with self._lock:
            if old := self._kept.pop(user, None):
                self._bytes -= old.bytes
        if self._files is not None:
            self._files.delete(user)

    def _put(self, user: str, context: Context) -> None:
        out: list[tuple[str, Context]] = []
        with self._lock:
            if old := self._kept.pop(user, None):
                self._bytes -= old.bytes
            self._kept[user] = context
            self._bytes += context.bytes
            while self._bytes > self._most and self._kept:
                name, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.bytes
                out.append((name, oldest))
        if self._files is not None:
            for name, oldest in out:
                self._files.write(name, oldest)


def context_size(prompts: Prompts, row: int) -> int:
    """The columns of a prompt up to its last item; those behind it change with each request."""
    slots = np.flatnonzero(np.asarray(prompts.items[row]) >= 0)
    return int(slots[-1]) + 1 if len(slots) else 0


def _shared(prompts: Prompts, row: int, context: Context | None) -> int:
    """The columns of a prompt whose keys are kept. The last token is always computed."""
    if context is None:
        return 0
    size = min(context_size(prompts, row), int(prompts.lengths[row]) - 1)
    return context.common(prompts.tokens[row, :size], prompts.items[row, :size])


def with_past(
    prompts: Prompts, contexts: Sequence[Context | None], shared: Sequence[int]
) -> Prompts:
    """The prompts, NumPy arrays, with the first `shared` columns of each as its past."""
    most = max(shared, default=0)
    if not most:
        return prompts
    kept = -(-most // KEPT_STEP) * KEPT_STEP
    lengths = np.asarray(prompts.lengths)
    count, rest = len(lengths), lengths - np.array(shared)
    new = -(-int(rest.max()) // NEW_STEP) * NEW_STEP
    columns = {
        "tokens": np.zeros((count, kept + new), np.int32),
        "items": np.full((count, kept + new), -1, np.int32),
        "positions": np.zeros((count, kept + new), np.int32),
        "is_token": np.zeros((count, kept + new), bool),
    }
    example = next(context for context in contexts if context is not None)
    layers, _, heads, size = example.keys.shape
    shape = (layers, count, kept, heads, size)
    keys, values = np.zeros(shape, example.keys.dtype), np.zeros(shape, example.values.dtype)
    for row, (context, common) in enumerate(zip(contexts, shared, strict=True)):
        for name, target in columns.items():
            source = getattr(prompts, name)[row]
            target[row, :common] = source[:common]
            target[row, kept : kept + rest[row]] = source[common : lengths[row]]
        if context is not None:
            keys[:, row, :common] = context.keys[:, :common]
            values[:, row, :common] = context.values[:, :common]
    return dataclasses.replace(
        prompts,
        **columns,
        past=Past(jnp.asarray(keys), jnp.asarray(values)),
        last=(kept + rest - 1).astype(np.int32),
    )


def _extended(
    context: Context | None,
    common: int,
    prompts: Prompts,
    row: int,
    size: int,
    keys: np.ndarray,
    values: np.ndarray,
) -> Context:
    """The context of a prompt: `common` columns of the old one, and new ones."""
    if context is not None and common:
        keys = np.concatenate([context.keys[:, :common], keys], axis=1)
        values = np.concatenate([context.values[:, :common], values], axis=1)
    tokens, items = (np.array(part[row, :size]) for part in (prompts.tokens, prompts.items))
    return Context(tokens, items, np.ascontiguousarray(keys), np.ascontiguousarray(values))
