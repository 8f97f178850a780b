"""Stage `teacher`: trains SASRec on the training rows. It gives the ID vectors and a baseline.

The loss is at the last interaction of each session, since a recommendation is made when a session
is complete. Its targets are `targets_per_position` random items of the next session. The
interactions of a session are shuffled each time its window is drawn.

Worked example: sessions [a b] [c] [d e], shuffled to b a c e d

    item      b  a  c  e  d
    loss at      x  x            (after d there is no training session)
    targets      c  d,e

With single-item sessions the target is the next item at every position: [7,8,9] -> 7:8, 8:9.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Int64

from sigma_jax import metrics
from sigma_jax.data.pipeline import stack_rows, step_batches
from sigma_jax.histories import training_rows
from sigma_jax.runtime.config import OptimizerConfig, TrainConfig, check_at_least
from sigma_jax.schema import Histories, PreparedData, Requests
from sigma_jax.teacher.sasrec import Sasrec, SasrecConfig, history_window, rank_items, save_sasrec

LOSSES = ("softmax", "gbce")
REFIT = "refit"  # folder of the SASRec that saw the validation rows


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The settings of stage `teacher`; configs/teacher.py fills them."""

    optimizer: OptimizerConfig
    train: TrainConfig
    model: SasrecConfig
    loss_positions: int  # P, most positions of a window that have a loss; drawn if there are more
    targets_per_position: int  # R, most items of the next session; 1 is enough for single items
    # "softmax", or "gbce": the calibrated binary cross-entropy of gSASRec.
    loss: str
    gbce_calibration: float  # t of gBCE: 0 keeps plain binary cross-entropy, 1 calibrates fully
    full_softmax_items: int  # the loss of a larger catalogue samples its negatives
    # Drawn for each batch and shared by its rows; with "gbce" drawn for each position.
    sampled_negatives: int
    report_users: int  # validation users of a report, drawn once
    # Train a second SASRec on the validation rows too, for the baseline alone. The ID vectors that
    # other stages read are those of the first.
    refits: bool

    def __post_init__(self):
        check_at_least(1, self, "loss_positions", "targets_per_position", "sampled_negatives")
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is unknown; use {' or '.join(LOSSES)}.")
        if not 0 <= self.gbce_calibration <= 1:
            raise ValueError(f"gbce_calibration={self.gbce_calibration}; use 0 to 1.")
        check_at_least(0, self, "full_softmax_items", "report_users")
        check_at_least(1, self.model, "width", "heads", "history", group="model.")
        if self.model.width % self.model.heads:
            raise ValueError(
                f"model.width={self.model.width} does not divide into {self.model.heads} heads; "
                f"use a multiple of {self.model.heads}."
            )


class TeacherTask:
    """The task that trains SASRec (runtime/task.py has the protocol)."""

    def __init__(
        self,
        config: TeacherConfig,
        workdir: Path,
        seed: int,
        mesh: Mesh | None = None,
        has_validation_rows: bool = False,
    ) -> None:
        """The stage over the data in `workdir`.

        Args:
          has_validation_rows: train on validation targets too (`refit`).

        Raises:
          ValueError: no user has two training sessions.
        """
        self.config, self.workdir, self.seed = config, workdir, seed
        self.is_refit = has_validation_rows
        self.batch_rows = config.train.batch_size
        data = PreparedData.load(workdir / "data")
        if has_validation_rows:
            data = data.with_validation()
        self.histories = data.histories
        self.num_items = len(data.catalogue)
        self.first_window = count_windows(self.histories, config.model.history)
        if self.first_window[-1] == 0 and (config.train.steps or config.train.epochs):
            raise ValueError(
                "no user has two sessions in training, so SASRec has nothing to learn; set "
                "train.steps=0 and train.epochs=0 of the stage `teacher`."
            )

    def batches(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """Element s is the batch of step s, or only its `rows` (ascending).

        A batch has item [B, T], position [B, P] and target [B, P, R], int32; -1 is padding.
        """
        if self.first_window[-1] == 0:
            return grain.MapDataset.range(0)
        every_window = grain.MapDataset.range(int(self.first_window[-1])).seed(self.seed)
        groups = (
            every_window.shuffle()
            .repeat()
            .random_map(self.training_window)
            .batch(1, drop_remainder=True)
        )
        return step_batches(groups, 1, self.batch_rows, stack_rows, rows)

    def training_window(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The window `number` of all users (`count_windows`), as a row of a batch."""
        user = int(np.searchsorted(self.first_window, number, side="right")) - 1
        index = number - int(self.first_window[user])
        return training_row(self.histories, user, index, self.config, rng)

    @property
    def epoch_steps(self) -> float:
        """Steps in which every window is drawn once."""
        return int(self.first_window[-1]) / self.batch_rows

    def model(self, rngs: nnx.Rngs) -> Sasrec:
        """A new SASRec. Its bias is the log of each item's share of the training rows."""
        model = Sasrec(self.config.model, self.num_items, rngs)
        rows = training_rows(self.histories)
        counts = np.bincount(self.histories.item[rows], minlength=self.num_items) + 1.0
        model.bias[...] = jnp.asarray(np.log(counts / counts.sum()), jnp.float32)
        return model

    def tables(self) -> dict[str, np.ndarray]:
        """No frozen arrays."""
        return {}

    def param_group(self, path: tuple[str, ...]) -> str:
        """ "table" for the item table, bias and positions, which have their own learning rate."""
        return "table" if path[0] in ("table", "position", "bias") else "base"

    def loss(
        self, model: Sasrec, tables: dict, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of a batch, and its metrics `loss` and `positions`."""
        drop_key, negative_key = jax.random.split(key)
        vectors = model(batch["item"], drop_key)
        position = jnp.maximum(batch["position"], 0)
        vectors = jnp.take_along_axis(vectors, position[..., None], axis=1)
        if self.config.loss == "gbce":
            shape = (*batch["position"].shape, self.config.sampled_negatives)
            negatives = jax.random.randint(negative_key, shape, 0, self.num_items)
            return gbce_loss(
                model.table[...],
                model.bias[...],
                vectors,
                batch["target"],
                negatives,
                self.config.gbce_calibration,
            )
        if self.num_items <= self.config.full_softmax_items:
            normaliser, target = full_softmax(
                model.table[...], model.bias[...], vectors, batch["target"]
            )
        else:
            count = self.config.sampled_negatives
            negatives = jax.random.randint(negative_key, (count,), 0, self.num_items)
            normaliser, target = sampled_softmax(
                model.table[...], model.bias[...], vectors, batch["target"], negatives
            )
        return next_session_loss(normaliser, target, batch["target"] >= 0)

    def report(self, model: Sasrec, tables: dict) -> dict[str, float]:
        """HR@10 and NDCG@10 of a random item of the validation session, seen items included."""
        requests = validation_requests(self.histories, self.config.report_users, self.seed)
        if len(requests) == 0:
            return {}
        rankings = rank_items(model, self.histories, requests, 10, exclude_seen=False, allowed=None)
        ranks = metrics.item_ranks(rankings, requests.target)
        return {
            "hit_rate_10": float(metrics.hits(ranks, 10).mean()),
            "ndcg_10": float(metrics.ndcg(ranks, 10).mean()),
        }

    def finalize_on_all_hosts(self, model: Sasrec, mesh: Mesh) -> None:
        """Nothing: `finish` needs one process."""

    def refit(self) -> TeacherTask | None:
        """The task that trains on validation targets too; None if the config does not refit."""
        if not self.config.refits:
            return None
        return TeacherTask(self.config, self.workdir, self.seed, has_validation_rows=True)

    def finish(self, model: Sasrec, tables: dict, folder: Path) -> dict[str, int]:
        """Writes id_vectors.npy, float32 [I, D] (the item table), and weights.safetensors.

        A refit writes its weights alone, into the subfolder REFIT.
        """
        if self.is_refit:
            (folder / REFIT).mkdir()
            save_sasrec(model, folder / REFIT)
            return {}
        np.save(folder / "id_vectors.npy", np.asarray(model.table[...], np.float32))
        save_sasrec(model, folder)
        return {"items": self.num_items, "width": self.config.model.width}


def full_softmax(
    table: Float[Array, "I D"],
    bias: Float[Array, " I"],
    vectors: Float[Array, "B P D"],
    target: Int32[Array, "B P R"],
) -> tuple[Float[Array, "B P 1"], Float[Array, "B P R"]]:
    """The log-normaliser over all items, and the logits of the targets.

    Args:
      table: of all items.
      bias: of all items.
      vectors: of the positions with a loss.
      target: items; -1 is padding.
    """
    logits = jnp.einsum("BPD,ID->BPI", vectors, table, preferred_element_type=jnp.float32) + bias
    chosen = jnp.take_along_axis(logits, jnp.maximum(target, 0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1, keepdims=True), chosen


def sampled_softmax(
    table: Float[Array, "I D"],
    bias: Float[Array, " I"],
    vectors: Float[Array, "B P D"],
    target: Int32[Array, "B P R"],
    negatives: Int32[Array, " S"],
) -> tuple[Float[Array, "B P 1"], Float[Array, "B P R"]]:
    """`full_softmax` with an estimate of the log-normaliser from sampled items.

    The targets of a position enter its sum exactly. The drawn items that are not among its targets
    stand for all other items; the draw is uniform.

    Args:
      table, bias, vectors, target: as of `full_softmax`.
      negatives: S items, drawn uniformly.
    """
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    known = jnp.maximum(target, 0)
    chosen = product("BPD,BPRD->BPR", vectors, table[known]) + bias[known]
    drawn = product("BPD,SD->BPS", vectors, table[negatives]) + bias[negatives]
    is_target = jnp.zeros(drawn.shape, bool)
    is_counted = []  # a target that occurs twice enters the sum once
    for r in range(target.shape[-1]):  # one by one: [B, P, R, S] would not fit into memory
        item = target[..., r : r + 1]
        is_target |= negatives == item
        is_counted.append((item[..., 0] >= 0) & ~(target[..., :r] == item).any(-1))
    counted = jnp.stack(is_counted, -1)
    # A large finite number, since the gradient of a sum over -inf only is NaN.
    exact = jax.nn.logsumexp(jnp.where(counted, chosen, -1e30), axis=-1)
    rest = jax.nn.logsumexp(jnp.where(is_target, -1e30, drawn), axis=-1)
    others = jnp.maximum((~is_target).sum(-1), 1)
    rest += jnp.log((table.shape[0] - counted.sum(-1)) / others)
    return jnp.logaddexp(rest, exact)[..., None], chosen


def gbce_loss(
    table: Float[Array, "I D"],
    bias: Float[Array, " I"],
    vectors: Float[Array, "B P D"],
    target: Int32[Array, "B P R"],
    negatives: Int32[Array, "B P S"],
    calibration: float,
) -> tuple[Array, dict[str, Array]]:
    """gBCE (Petrov and Macdonald, 2023, eq. 8): binary cross-entropy with the target's power beta.

    beta = a * (t * (1 - 1/a) + 1/a), where a = S / (I - 1) is the share of items that are drawn and
    t the calibration. With t = 1 the scores are as calibrated as those of a full softmax.

    Args:
      table, bias, vectors, target: as of `full_softmax`.
      negatives: S items of each position, drawn uniformly. Drawn targets do not count.

    Returns:
      The loss, averaged over negatives, the targets of a position and positions; its metrics.
    """
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    share = negatives.shape[-1] / max(table.shape[0] - 1, 1)
    beta = share * (calibration * (1 - 1 / share) + 1 / share)
    known = jnp.maximum(target, 0)
    positive = product("BPD,BPRD->BPR", vectors, table[known]) + bias[known]
    drawn = product("BPD,BPSD->BPS", vectors, table[negatives]) + bias[negatives]
    is_target = (negatives[..., None] == target[..., None, :]).any(-1)
    negative = jnp.where(is_target, 0.0, jax.nn.softplus(drawn)).sum(-1, keepdims=True)
    losses = (beta * jax.nn.softplus(-positive) + negative) / negatives.shape[-1]
    return next_session_loss(losses, jnp.zeros_like(losses), target >= 0)


def next_session_loss(
    normaliser: Float[Array, "B P 1"], target: Float[Array, "B P R"], is_target: Array
) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy, averaged over the targets of a position and then over positions.

    Returns:
      The loss, and the metrics `loss` and `positions` (how many have a target).
    """
    weight = is_target / jnp.maximum(is_target.sum(-1, keepdims=True), 1)
    count = jnp.maximum(weight.sum(), 1)
    loss = ((normaliser - target) * weight).sum() / count
    return loss, {"loss": loss, "positions": weight.sum()}


def count_windows(histories: Histories, length: int) -> np.ndarray:
    """int64 [U+1]: the number of each user's first window, and at the end the number of windows.

    A user has one window for each `length` training rows or part of it. A user with one training
    session has nothing to predict, so no window.

    Worked example: length 10, users with 25, 8 and 0 training rows -> [0, 3, 4, 4].
    """
    counts = np.maximum(histories.valid_start - histories.offsets[:-1], 0)
    last = np.maximum(histories.offsets[:-1] + counts - 1, 0)
    clipped = np.minimum(histories.offsets[:-1], len(histories.session) - 1)
    has_two = histories.session[last] > histories.session[clipped]
    number = np.where((counts > 0) & has_two, -(-counts // length), 0)
    return np.concatenate([[0], np.cumsum(number)]).astype(np.int64)


def training_row(
    histories: Histories,
    user: int,
    index: int,
    config: TeacherConfig,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Window number `index` of `user`: item, position and target, as of `TeacherTask.batches`.

    The windows of a long history end at a random row of their part, so that the borders between
    windows change from draw to draw. The targets can lie after the window's end.
    """
    length = config.model.history
    start, end = int(histories.offsets[user]), int(histories.valid_start[user])
    stop = end
    if end - start > length:
        low = start + index * length
        stop = int(rng.integers(low, min(low + length, end))) + 1
    stop = start + int(
        np.searchsorted(histories.session[start:end], histories.session[stop - 1], side="right")
    )  # to the end of the session, since the loss is at its last interaction
    item, session = history_window(histories, start, stop, length, rng)
    is_end = session >= 0
    is_end[:-1] &= session[:-1] != session[1:]
    position = np.full(config.loss_positions, -1, np.int32)
    target = np.full((config.loss_positions, config.targets_per_position), -1, np.int32)
    sessions = histories.session[start:end]
    ends = np.flatnonzero(is_end & (session < sessions[-1]))
    if len(ends) > len(position):
        ends = np.sort(rng.choice(ends, len(position), replace=False))
    if len(ends):
        position[: len(ends)] = ends
        low = np.searchsorted(sessions, session[ends], side="right")
        high = np.searchsorted(sessions, sessions[low], side="right")
        drawn = draw_rows(low, high, config.targets_per_position, rng)
        items = histories.item[start + np.maximum(drawn, 0)]
        target[: len(ends)] = np.where(drawn >= 0, items, -1)
    return {"item": item, "position": position, "target": target}


def draw_rows(
    low: np.ndarray, high: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """[n, count]: up to `count` distinct rows of each range low..high, at random, then -1."""
    sizes = high - low
    if count == 1:
        return (low + rng.integers(0, sizes))[:, None]
    width = max(int(sizes.max()), count)
    keys = np.where(np.arange(width) < sizes[:, None], rng.random((len(low), width)), 2.0)
    chosen = np.argsort(keys, axis=1)[:, :count]
    return np.where(chosen < sizes[:, None], low[:, None] + chosen, -1)


def validation_requests(histories: Histories, count: int, seed: int) -> Requests:
    """Requests of at most `count` users with a validation session.

    The target is a random item of that session, and the history ends before it.
    """
    rng = np.random.default_rng([seed, 7])
    starts, ends = histories.valid_start, histories.test_start
    users = np.flatnonzero((starts < ends) & (starts > histories.offsets[:-1]))
    users = np.sort(rng.permutation(users)[:count])
    target = [
        histories.item[rng.integers(starts[u], histories.session_end(starts[u], u))] for u in users
    ]
    size = len(users)
    return Requests(
        users.astype(np.int32),
        starts[users],
        np.zeros(size, np.int32),
        np.full(size, -1, np.int32),
        np.array(target, np.int32),
        [""] * size,
    )
