"""Novelty: whether an instruction asks for something that no instruction of training asked for.

The reranking weights of a task are fitted on instructions whose queries and categories are those of
training. There the network and the words are right, and the meaning adds little. For "my cat is
hungry" it is the other way round. So for a novel instruction the network reads a general one
(DEFAULT_INSTRUCTION), which asks for what the user likes, and the meaning decides what kind of
thing is asked for, with weights of its own (fit.fit_novel).

    novelty = sigmoid(a - b * largest cosine to an instruction of training
                        + c * share of words that no instruction of training has
                        - d if it holds the whole text of a query, category or theme)

The numbers are fitted on the instructions of training: an instruction is known if others with its
query or category stay, and novel if they are left out. An instruction is novel if its novelty
is above one half, and the nearest instruction of training names a thing (a query or a category).
"surprise me" does not.

The nearest instructions of training also tell the task. The network alone cannot tell a query from
a category, which are worded alike.

Axes: P instructions of training, N requests, E dimensions of the sentence encoder.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int
from scipy.optimize import minimize

from sigma_jax.reranking.lexical import words_of
from sigma_jax.runtime.files import read_json, write_json
from sigma_jax.schema import TASKS, read_npy
from sigma_jax.tasks.instructions import NAMING

FITTED_ON = 1_000  # instructions that the numbers are fitted on
COSINES_AT_ONCE = 2**24
VECTORS, SETTINGS = "instruction_vectors.npy", "novelty.json"
NO_GROUP = -1  # of a word that several groups have
NAMES_THINGS = np.array([task in NAMING for task in TASKS])
TASK_TEMPERATURE = 0.05  # of cosines
LONGEST = 8  # words of a thing that is looked for in a sentence


@dataclasses.dataclass(frozen=True)
class Novelty:
    """The instructions of training, and how near a known instruction is to them."""

    vectors: Float32[np.ndarray, "P E"]  # unit length, rounded to 16 bits, those of a task in a row
    counts: tuple[int, ...]  # of each task
    words: frozenset[str]
    things: frozenset[str]  # the words of queries, categories and themes
    # The cosine, the share of unknown words, a thing of training, and 1 have these weights.
    weights: tuple[float, float, float, float]

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        vectors: Float32[np.ndarray, "P E"],
        group: Int[np.ndarray, " P"],
        task: Int[np.ndarray, " P"],
        things: Sequence[str],
        seed: int = 0,
    ) -> Novelty:
        """The novelty for the instructions of training.

        Args:
          texts: the instructions.
          vectors: unit length.
          group: what each asks for; instructions of one group ask for the same. There are two
            groups or more.
          task: place of the task of each in TASKS.
          things: the text of the query, category or theme of each group; "" for none.
        """
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(len(vectors))[:FITTED_ON])
        nearest = _nearest_others(vectors, group, rows)
        words = [set(words_of(text)) for text in texts]
        only_in: dict[str, int] = {}  # the only row that has a word, and the only group
        only_of: dict[str, int] = {}
        for row, of_text in enumerate(words):
            for word in of_text:
                only_in[word] = row if word not in only_in else NO_GROUP
                alone = only_of.get(word, group[row]) == group[row]
                only_of[word] = int(group[row]) if alone else NO_GROUP
        unknown = [
            [_share(words[row], only_in, row) for row in rows],
            [_share(words[row], only_of, int(group[row])) for row in rows],
        ]
        spelled = [" ".join(words_of(thing)) for thing in things]
        groups_with = Counter(spelled)
        known = frozenset(spelled) - {""}
        alone = [frozenset({spelled[group[row]]}) for row in rows]
        alone = [own if groups_with[next(iter(own))] == 1 else frozenset() for own in alone]
        has_thing = [
            [_has_thing(texts[row], known) for row in rows],
            [_has_thing(texts[row], known, own) for row, own in zip(rows, alone, strict=True)],
        ]
        features = np.stack([nearest, np.array(unknown), np.array(has_thing)], axis=-1)
        features = features.reshape(-1, features.shape[-1])
        kept = np.isfinite(features).all(axis=1)
        is_novel = np.repeat([0.0, 1.0], len(rows))
        weights = _logistic(features[kept], is_novel[kept])
        rounded = vectors.astype(np.float16).astype(np.float32)
        counts = tuple(np.bincount(task, minlength=len(TASKS)).tolist())
        by_task = rounded[np.argsort(task, kind="stable")]
        return cls(by_task, counts, frozenset(only_in), known, weights)

    def __call__(
        self, texts: Sequence[str], queries: Float32[np.ndarray, "N E"]
    ) -> Float32[np.ndarray, " N"]:
        """The novelty of instructions, 0 to 1.

        Args:
          queries: their vectors, unit length.
        """
        return self._probability(texts, self._nearest(queries).max(axis=0))

    def compare(
        self, texts: Sequence[str], queries: Float32[np.ndarray, "N E"]
    ) -> tuple[Float32[np.ndarray, "N tasks"], Bool[np.ndarray, " N"]]:
        """(task scores, whether each instruction is novel). The arguments are those of a call.

        A task score is the log-likelihood of the task by the nearest of its instructions, up to a
        constant.
        """
        nearest = self._nearest(queries)
        names_thing = nearest[NAMES_THINGS].max(axis=0) > nearest[~NAMES_THINGS].max(axis=0)
        is_novel = (self._probability(texts, nearest.max(axis=0)) > 0.5) & names_thing
        return nearest.T / TASK_TEMPERATURE, is_novel

    def _nearest(self, queries: Float32[np.ndarray, "N E"]) -> Float32[np.ndarray, "tasks N"]:
        """The largest cosine to the instructions of each task; -1 for a task without any."""
        nearest = np.full((len(TASKS), len(queries)), -1.0, np.float32)
        size = max(COSINES_AT_ONCE // max(len(queries), 1), 1)
        parts = np.split(self.vectors, np.cumsum(self.counts)[:-1])
        for of_part, vectors in zip(nearest, parts, strict=True):
            for start in range(0, len(vectors), size):
                cosines = queries @ vectors[start : start + size].T
                np.maximum(of_part, cosines.max(axis=1, initial=-1.0), out=of_part)
        return nearest

    def _probability(
        self, texts: Sequence[str], nearest: Float32[np.ndarray, " N"]
    ) -> Float32[np.ndarray, " N"]:
        unknown = [
            np.mean([word not in self.words for word in words]) if words else 0.0
            for words in (set(words_of(text)) for text in texts)
        ]
        has_thing = [_has_thing(text, self.things) for text in texts]
        features = np.stack([nearest, np.array(unknown), np.array(has_thing), np.ones(len(texts))])
        logit = np.array(self.weights) @ features
        return (1 / (1 + np.exp(-logit))).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Writes VECTORS and SETTINGS."""
        np.save(folder / VECTORS, self.vectors.astype(np.float16))
        settings = {
            "weights": self.weights,
            "counts": self.counts,
            "words": sorted(self.words),
            "things": sorted(self.things),
        }
        write_json(folder / SETTINGS, settings)

    @classmethod
    def load(cls, folder: Path) -> Novelty | None:
        """The novelty that `save` wrote; None if there is none. ValueError for a damaged file."""
        if not (folder / SETTINGS).exists():
            return None
        settings = read_json(folder / SETTINGS)
        a, b, c, d = map(float, settings["weights"])
        return cls(
            read_npy(folder / VECTORS, 2).astype(np.float32),
            tuple(map(int, settings["counts"])),
            frozenset(settings["words"]),
            frozenset(settings["things"]),
            (a, b, c, d),
        )


def _nearest_others(
    vectors: Float32[np.ndarray, "P E"], group: Int[np.ndarray, " P"], rows: np.ndarray
) -> Float32[np.ndarray, "2 n"]:
    """The largest cosine of each of `rows` to other rows, and to rows of other groups."""
    found = []
    for part in np.array_split(rows, -(-len(rows) * len(vectors) // COSINES_AT_ONCE)):
        cosines = vectors[part] @ vectors.T
        cosines[np.arange(len(part)), part] = -np.inf
        of_others = np.where(group[part][:, None] == group[None], -np.inf, cosines)
        found.append(np.stack([cosines.max(axis=1), of_others.max(axis=1)]))
    return np.concatenate(found, axis=1)


def _share(words: set[str], only: dict[str, int], owner: int) -> float:
    """The share of `words` that `owner` alone has."""
    return float(np.mean([only[word] == owner for word in words])) if words else 0.0


def _has_thing(text: str, things: frozenset[str], but: frozenset[str] = frozenset()) -> bool:
    """Whether `text` holds the words of one of `things`, in a row; those of `but` do not count."""
    words = words_of(text)
    return any(
        (part := " ".join(words[start : start + length])) in things and part not in but
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


def _logistic(
    x: Float64[np.ndarray, "n 3"], y: Float64[np.ndarray, " n"]
) -> tuple[float, float, float, float]:
    """The weights of a logistic regression of y, 0 or 1, on x; the last is the constant."""
    x = np.column_stack([x, np.ones(len(x))])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ weights
        p = 1 / (1 + np.exp(-np.clip(z, -500, 500)))
        shrinkage = 1e-4  # separable data have no finite fit
        value = (np.logaddexp(0, z) - y * z).mean() + shrinkage * (weights**2).sum() / 2
        return float(value), x.T @ (p - y) / len(y) + shrinkage * weights

    a, b, c, d = minimize(loss, np.zeros(4), jac=True, method="L-BFGS-B").x
    return float(a), float(b), float(c), float(d)
