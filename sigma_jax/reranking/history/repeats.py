"""Repeat features: how likely the user takes an item of the own history once more.

| feature | the feature of an item is high if |
|---|---|
| repeat_count | the user took it before; interactions decay by 0.9 a session |
| repeat_model | a small network reads from its rhythm that it is due |

A count cannot tell milk, which is due every week, from a toy that was bought twice in one week. The
network reads RHYTHM of an item: how often, how lately, in what share of the sessions, and how the
time since the last purchase compares with the usual gap. It is trained on the last sessions of each
user's training rows: which of the items taken before are taken again. Where people hardly ever take
an item twice there is no network, and the feature is 0.

Axes: N requests, P pairs of a request and an item of its history, R values of RHYTHM, I items.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse as sparse
from jaxtyping import Array, Bool, Float, Float32, Int32, Int64

from sigma_jax.histories import (
    count_training_rows,
    recent_item_weights,
    rows_of_ranges,
    training_sessions,
)
from sigma_jax.reranking.history.covisitation import REQUESTS_A_STEP
from sigma_jax.schema import DAY, Histories, PreparedData

DAYS = (7, 15, 30, 60, 120, 240)  # memories of counts that decay by the day
DECAYS = (0.7, 0.9, 0.97)  # of counts that decay by the session
RHYTHM = (
    "interactions",
    *(f"interactions, decayed over {days} days" for days in DAYS),
    "sessions with the item",
    "share of the sessions",
    *(f"sessions with the item, decayed by {decay} a session" for decay in DECAYS),
    "days since the last",
    "days since the first",
    "sessions since the last",
    "usual gap in days",
    "days since the last in usual gaps",
    "popularity of the item",
    "sessions of the user",
    "items of the user",
    "interactions a session of the user",
    "days since the user's last session",
)
LAST_SESSIONS = 8  # of each user's training rows are examples
MAX_SESSIONS = 20_000  # examples come from so many sessions at most
MIN_REPEATS = 300  # least examples of an item taken again; with fewer there is no network
NEGATIVE_SHARE = 0.25  # of the items not taken again that are examples
HIDDEN = (64,)
SEED = 0
STEPS, BATCH, LEARNING_RATE = 3000, 4096, 3e-3
COUNT_DECAY = 0.9  # of repeat_count, by the session
# Feature -> the size of a small entry of its table.
REPEAT_UNITS = {"repeat_count": 0.1, "repeat_model": 0.01}

Layers = tuple[tuple[Float32[np.ndarray, "a b"], Float32[np.ndarray, " b"]], ...]


@dataclasses.dataclass(frozen=True)
class RepeatModel:
    """A network [R] -> log-odds that an own item is taken in the session of a request."""

    layers: Layers  # (): there is no network, and all probabilities are 0
    mean: Float32[np.ndarray, " R"]  # of the inputs, which are logarithms
    scale: Float32[np.ndarray, " R"]
    popularity: Int64[np.ndarray, " I"]  # training interactions of each item

    @classmethod
    def fit(cls, data: PreparedData) -> RepeatModel:
        """The network of the training rows of `data`."""
        popularity = count_training_rows(data)
        rhythm, is_taken = _examples(data, popularity, np.random.default_rng(SEED))
        if is_taken.sum() < MIN_REPEATS:
            return cls.nothing(data)
        mean, scale = rhythm.mean(axis=0), rhythm.std(axis=0) + 1e-6
        layers = _train((rhythm - mean) / scale, is_taken)
        # Only a share of the items not taken were examples.
        weight, bias = layers[-1]
        layers = (*layers[:-1], (weight, bias + np.float32(np.log(NEGATIVE_SHARE))))
        return cls(layers, mean, scale, popularity)

    @classmethod
    def nothing(cls, data: PreparedData) -> RepeatModel:
        """A model without a network."""
        none = np.zeros(len(RHYTHM), np.float32)
        return cls((), none, none + 1, count_training_rows(data))

    def tables(
        self,
        histories: Histories,
        starts: Int64[np.ndarray, " N"],
        ends: Int64[np.ndarray, " N"],
        times: Int64[np.ndarray, " N"],
    ) -> dict[str, sparse.csr_matrix]:
        """The entries of each repeat feature, float32 [N, I], by the names of REPEAT_UNITS.

        Args:
          starts, ends: rows of each history.
          times: time of each request in unix seconds; 0 where a log has no times.
        """
        num_items = len(self.popularity)
        counts = recent_item_weights(histories, starts, ends, num_items, COUNT_DECAY, None)
        counts.eliminate_zeros()  # weights of 0, as of a thousand sessions ago
        probabilities = self.probabilities(histories, starts, ends, times)
        return {"repeat_count": counts, "repeat_model": probabilities}

    def probabilities(
        self,
        histories: Histories,
        starts: Int64[np.ndarray, " N"],
        ends: Int64[np.ndarray, " N"],
        times: Int64[np.ndarray, " N"],
    ) -> sparse.csr_matrix:
        """float32 [N, I]: the probability of each item of the histories that it is taken again."""
        shape = (len(starts), len(self.popularity))
        if not self.layers:
            return sparse.csr_matrix(shape, dtype=np.float32)
        parts = []
        for first in range(0, len(starts), REQUESTS_A_STEP):
            rows = slice(first, first + REQUESTS_A_STEP)
            request, item, rhythm = rhythm_of(
                histories, starts[rows], ends[rows], times[rows], self.popularity
            )
            log_odds = _log_odds(self.layers, (rhythm - self.mean) / self.scale)
            probability = 1 / (1 + np.exp(-log_odds))
            part = len(starts[rows]), shape[1]
            parts.append(sparse.csr_matrix((probability, (request, item)), shape=part))
        return sparse.vstack(parts, format="csr")

    def over(self, num_items: int) -> RepeatModel:
        """The same model over more items, which nobody has taken."""
        popularity = np.zeros(num_items, np.int64)
        popularity[: len(self.popularity)] = self.popularity
        return dataclasses.replace(self, popularity=popularity)

    def save(self, folder: Path) -> None:
        """Writes repeat_model.npz."""
        layers = {f"layer_{n}": np.vstack([w, b]) for n, (w, b) in enumerate(self.layers)}
        np.savez(
            folder / "repeat_model.npz",
            mean=self.mean,
            scale=self.scale,
            popularity=self.popularity,
            **layers,  # type: ignore[arg-type]
        )

    @classmethod
    def load(cls, folder: Path) -> RepeatModel:
        """The model that `save` wrote. An error of relations.DAMAGE if it is damaged."""
        with np.load(folder / "repeat_model.npz") as stored:
            count = sum(name.startswith("layer_") for name in stored.files)
            tables = [stored[f"layer_{number}"] for number in range(count)]
            layers = tuple((table[:-1], table[-1]) for table in tables)
            return cls(layers, stored["mean"], stored["scale"], stored["popularity"])


def rhythm_of(
    histories: Histories,
    starts: Int64[np.ndarray, " N"],
    ends: Int64[np.ndarray, " N"],
    times: Int64[np.ndarray, " N"],
    popularity: Int64[np.ndarray, " I"],
) -> tuple[Int32[np.ndarray, " P"], Int32[np.ndarray, " P"], Float32[np.ndarray, "P R"]]:
    """(request, item, log(1 + RHYTHM)) of each distinct item of each history.

    Args:
      starts, ends, times: as in `RepeatModel.tables`.
      popularity: training interactions of each item.
    """
    rows = rows_of_ranges(starts, ends)
    sizes = np.maximum(ends - starts, 0)
    of_request = np.repeat(np.arange(len(starts)), sizes)
    item, session = histories.item[rows].astype(np.int64), histories.session[rows]
    # A request without a time is before its rows: then no row counts as old.
    age = np.maximum(times[of_request] - histories.time[rows], 0) / DAY
    newest = np.zeros(len(starts), np.int64)
    newest[sizes > 0] = histories.session[ends[sizes > 0] - 1]
    since_session = newest[of_request] - session  # 0 in the last session of the history

    key, pair = np.unique(of_request * len(popularity) + item, return_inverse=True)
    request, item = key // len(popularity), key % len(popularity)
    count = functools.partial(np.bincount, minlength=len(key))
    least = functools.partial(_least, count=len(key))

    # A visit is a session in which a pair occurs.
    span = int(since_session.max(initial=0)) + 1
    pair_of_visit, since_of_visit = np.divmod(np.unique(pair * span + since_session), span)
    sessions = count(pair_of_visit)
    of_user = (1 - _least(of_request, -since_session, len(starts)))[request]
    since_last, since_first = least(pair, age), -least(pair, -age)
    gap = (since_first - since_last) / np.maximum(sessions - 1, 1)
    distinct = np.bincount(request, minlength=len(starts))
    since_user = _least(of_request, age, len(starts))
    values = [
        count(pair),
        *(count(pair, np.exp(-age / days)) for days in DAYS),
        sessions,
        sessions / of_user,
        *(count(pair_of_visit, decay**since_of_visit) for decay in DECAYS),
        since_last,
        since_first,
        least(pair, since_session),
        gap,
        since_last / (gap + 0.5),
        popularity[item],
        of_user,
        distinct[request],
        sizes[request] / of_user,
        since_user[request],
    ]
    logs = [np.log1p(np.asarray(value, np.float32)) for value in values]
    return request.astype(np.int32), item.astype(np.int32), np.stack(logs, axis=1)


def _least(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The least value of each group; infinite for an empty one."""
    least = np.full(count, np.inf)
    np.minimum.at(least, groups, values)
    return least


def _examples(
    data: PreparedData, popularity: Int64[np.ndarray, " I"], rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "P R"], Bool[np.ndarray, " P"]]:
    """RHYTHM of items taken before some sessions, and whether they are taken in the session."""
    histories = data.histories
    user, begin, end = training_sessions(histories)
    behind = np.searchsorted(user, user, "right") - np.arange(len(user))  # 1: the user's last
    start = np.asarray(histories.offsets, np.int64)[user]
    chosen = np.flatnonzero((behind <= LAST_SESSIONS) & (begin > start))
    if len(chosen) > MAX_SESSIONS:
        chosen = np.sort(rng.choice(chosen, MAX_SESSIONS, replace=False))
    parts = []
    for first in range(0, len(chosen), REQUESTS_A_STEP):
        here = chosen[first : first + REQUESTS_A_STEP]
        times = np.asarray(histories.time)[begin[here]]
        request, item, rhythm = rhythm_of(histories, start[here], begin[here], times, popularity)
        rows = rows_of_ranges(begin[here], end[here])
        of_session = np.repeat(np.arange(len(here)), end[here] - begin[here])
        taken = of_session * len(popularity) + histories.item[rows]
        is_taken = np.isin(request.astype(np.int64) * len(popularity) + item, taken)
        is_kept = is_taken | (rng.random(len(item)) < NEGATIVE_SHARE)
        parts.append((rhythm[is_kept], is_taken[is_kept]))
    if not parts:
        return np.zeros((0, len(RHYTHM)), np.float32), np.zeros(0, bool)
    rhythm, is_taken = map(np.concatenate, zip(*parts, strict=True))
    return rhythm, is_taken


def _log_odds(layers, values: Float[Any, "P R"]) -> Float[Any, " P"]:
    """The network, for NumPy arrays and for arrays of JAX."""
    for weight, bias in layers[:-1]:
        values = values @ weight + bias
        values = values * (values > 0)
    weight, bias = layers[-1]
    return (values @ weight + bias)[:, 0]


def _train(values: Float32[np.ndarray, "P R"], is_taken: Bool[np.ndarray, " P"]) -> Layers:
    """Layers with the least log-loss on the examples."""
    widths = (values.shape[1], *HIDDEN, 1)
    keys = jax.random.split(jax.random.key(SEED), len(widths))
    layers = tuple(
        (jax.random.normal(key, (a, b)) * (2 / a) ** 0.5, jnp.zeros(b))
        for key, a, b in zip(keys, widths[:-1], widths[1:], strict=False)
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))

    def loss(layers, values: Float[Array, "b R"], is_taken: Float[Array, " b"]):
        log_odds = _log_odds(layers, values)
        return optax.sigmoid_binary_cross_entropy(log_odds, is_taken).mean()

    @jax.jit
    def steps(layers, state, values, is_taken):
        def step(carry, batch):
            layers, state = carry
            slopes = jax.grad(loss)(layers, *batch)
            updates, state = optimizer.update(slopes, state)
            return (optax.apply_updates(layers, updates), state), None

        return jax.lax.scan(step, (layers, state), (values, is_taken))[0]

    rng, state, some = np.random.default_rng(SEED), optimizer.init(layers), 100
    for _ in range(STEPS // some):
        rows = rng.integers(0, len(values), (some, BATCH))
        layers, state = steps(layers, state, values[rows], is_taken[rows].astype(np.float32))
    return jax.tree.map(np.asarray, layers)
