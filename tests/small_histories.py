"""Small histories, and data, requests, a SASRec and a teacher config for them."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
from flax import nnx

from sigma_jax.configs import teacher
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import Catalogue, Histories, PreparedData, Requests, Users
from sigma_jax.teacher.sasrec import Sasrec, SasrecConfig
from sigma_jax.teacher.task import TeacherConfig

ITEMS = 30
SHAPE = SasrecConfig(width=8, layers=2, heads=2, history=10, dropout=0.0, block="plain")


def histories_of(users: list[list[list[int]]]) -> Histories:
    """The histories of `users`, each a list of sessions of items.

    The last session is the test target, and the session before it is the validation target.
    """
    item = [i for user in users for session in user for i in session]
    session = [n for user in users for n, items in enumerate(user) for _ in items]
    sizes = [[len(items) for items in user] for user in users]
    offsets = np.concatenate([[0], np.cumsum([sum(s) for s in sizes])])
    test = np.array([end - s[-1] for end, s in zip(offsets[1:], sizes, strict=True)])
    valid = np.array([start - s[-2] for start, s in zip(test, sizes, strict=True)])
    session = np.array(session, np.int32)
    return Histories(
        np.array(item, np.int32), session.astype(np.int64), session, offsets, valid, test
    )


def random_users(baskets: bool, users: int = 12) -> list[list[list[int]]]:
    """Random users for `histories_of`: sessions of 1 to 4 items with `baskets`, else of one."""
    rng = np.random.default_rng(0)
    sizes = [rng.integers(1, 5, rng.integers(4, 12)) if baskets else np.ones(8, int)] * users
    return [[rng.integers(0, ITEMS, size).tolist() for size in s] for s in sizes]


def plain_catalogue(histories: Histories, items: int = ITEMS) -> Catalogue:
    """A catalogue whose items have their number as text, and categories a, b, c in turn."""
    names = [str(item) for item in range(items)]
    table = pa.table({"item_id": names, "text": names, "title": names})
    popularity = np.bincount(histories.item, minlength=items)
    category = (np.arange(items) % 3).astype(np.int32)
    return Catalogue(table, category, pa.array(list("abc")), popularity)


def plain_data(histories: Histories, items: int = ITEMS) -> PreparedData:
    """Prepared data in memory, without queries, themes, pairs and vectors."""
    ids = [str(user) for user in range(histories.num_users)]
    users = Users(pa.table({"user_id": ids, "profile": ids}))
    rest = (None, None, {}, None, None, None)
    return PreparedData(Path(), plain_catalogue(histories, items), histories, users, *rest)


def save_data(folder: Path, histories: Histories) -> PreparedData:
    """Writes FOLDER/data with these histories, and returns it loaded."""
    (folder / "data").mkdir()
    plain_catalogue(histories).save(folder / "data")
    histories.save(folder / "data")
    ids = [str(user) for user in range(histories.num_users)]
    Users(pa.table({"user_id": ids, "profile": ids})).save(folder / "data")
    return PreparedData.load(folder / "data")


def config(**changes) -> TeacherConfig:
    """The teacher's smoke preset with the model SHAPE, and `changes`."""
    fields = to_dataclass(TeacherConfig, teacher.stage_fields("smoke"))
    changes = {"model": SHAPE, "loss_positions": 5, "targets_per_position": 2} | changes
    return dataclasses.replace(fields, **changes)


def plain_requests(histories: Histories, history_end=None) -> Requests:
    """A JustForYou request of every user, and at the end one of a user without history."""
    users = np.append(np.arange(histories.num_users), -1).astype(np.int32)
    history_end = np.append(histories.test_start if history_end is None else history_end, 0)
    empty = np.full(len(users), -1, np.int32)
    return Requests(users, history_end, np.zeros_like(users), empty, empty, [""] * len(users))


@nnx.jit
def vectors_of(model: Sasrec, item, key=None):
    """The vectors of `model` at all positions of `item`."""
    return model(item, key)
