"""What stages hand to one another on disk: the catalogue, histories, pairs, item vectors, SIDs.

Everything is columnar and memory-mapped (`.npy` or Arrow IPC), so that opening 10^8 items costs
no memory. Row i of every item table is item i of the catalogue; users are numbered likewise.
The tables a user brings, with their columns and checks, are in `data/tables.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
from jaxtyping import Bool, Float32, Int32, Int64

TASKS = ("JustForYou", "Query", "Category", "Longtail", "Discover", "Season", "Holiday")
DAY = 86_400  # seconds


def write_arrow(table: pa.Table, path: Path) -> None:
    """Writes `table` uncompressed, so that `read_arrow` can map it instead of reading it."""
    feather.write_feather(table, str(path), compression="uncompressed")


def read_arrow(path: Path) -> pa.Table:
    """The table at `path`, memory-mapped. ValueError if the file is missing or damaged."""
    if not path.exists():
        raise ValueError(f"{path} is missing; delete its folder and run again.")
    try:
        return feather.read_table(str(path), memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete its folder and run again."
        ) from error


def read_npy(path: Path, ndim: int) -> np.ndarray:
    """The array at `path`, memory-mapped. ValueError if missing, damaged or of other rank."""
    if not path.exists():
        raise ValueError(f"{path} is missing; delete its folder and run again.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete its folder and run again."
        ) from error
    if array.ndim != ndim:
        raise ValueError(f"{path} has shape {array.shape}; expected {ndim} dimensions.")
    return array


@dataclasses.dataclass(frozen=True)
class Links:
    """Rows to their many targets as CSR: row r has `targets[offsets[r]:offsets[r + 1]]`.

    Worked example: rows 0 -> [4, 7], 1 -> [], 2 -> [4]: offsets [0, 2, 2, 3], targets [4, 7, 4].
    """

    offsets: Int64[np.ndarray, " rows+1"]
    targets: Int32[np.ndarray, " links"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, row: int) -> Int32[np.ndarray, " n"]:
        """The targets of one row."""
        return self.targets[self.offsets[row] : self.offsets[row + 1]]

    @classmethod
    def from_edges(cls, rows: np.ndarray, targets: np.ndarray, count: int) -> Links:
        """CSR of the edges (rows[k], targets[k]) over `count` rows; order inside a row is kept."""
        order = np.argsort(rows, kind="stable")
        offsets = np.zeros(count + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=count), out=offsets[1:])
        return cls(offsets, np.asarray(targets, np.int32)[order])

    def transpose(self, count: int) -> Links:
        """Targets to rows, over `count` targets."""
        rows = np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))
        return Links.from_edges(self.targets, rows, count)

    def save(self, folder: Path, name: str) -> None:
        np.save(folder / f"{name}.offsets.npy", self.offsets)
        np.save(folder / f"{name}.targets.npy", self.targets)

    @classmethod
    def load(cls, folder: Path, name: str) -> Links:
        return cls(
            read_npy(folder / f"{name}.offsets.npy", 1), read_npy(folder / f"{name}.targets.npy", 1)
        )


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The items, one row each."""

    table: pa.Table  # item_id: string, text: string (JSON, never empty), title: string (for people)
    category: Int32[np.ndarray, " I"]  # row of `categories`, -1 where unknown
    categories: pa.Array  # names, string
    popularity: Int64[np.ndarray, " I"]  # number of training interactions

    def __len__(self) -> int:
        return self.table.num_rows

    def texts(self, items: np.ndarray) -> list[str]:
        """JSON texts of `items`."""
        return self.table["text"].take(pa.array(items)).to_pylist()

    def titles(self, items: np.ndarray) -> list[str]:
        """Short texts for people, of `items`."""
        return self.table["title"].take(pa.array(items)).to_pylist()

    def ids(self, items: np.ndarray) -> list[str]:
        """The user's own ids of `items`."""
        return self.table["item_id"].take(pa.array(items)).to_pylist()

    def save(self, folder: Path) -> None:
        write_arrow(self.table, folder / "items.arrow")
        write_arrow(pa.table({"category": self.categories}), folder / "categories.arrow")
        np.save(folder / "item_category.npy", self.category)
        np.save(folder / "item_popularity.npy", self.popularity)

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        return cls(
            read_arrow(folder / "items.arrow"),
            read_npy(folder / "item_category.npy", 1),
            read_arrow(folder / "categories.arrow")["category"].combine_chunks(),
            read_npy(folder / "item_popularity.npy", 1),
        )


@dataclasses.dataclass(frozen=True)
class Histories:
    """All interactions, sorted by user, then time, then session, then the order of the source.

    User u's events are rows offsets[u] to offsets[u+1]. Training sees the rows before
    valid_start[u] only. The validation target is the session that starts at valid_start[u], the
    test target the one at test_start[u]; either equals offsets[u+1] where the user has no such
    target. Where the two are equal before offsets[u+1] (splits by time), that session is the test
    target and there is no validation target. Rows of one session carry one time and no order,
    unless every session is one row.

    Worked example, leave-last-session-out, one user with sessions [a b][c][d e]: session
    [0 0 1 2 2], valid_start 2, test_start 3; training a b; validation a b -> c;
    test a b c -> {d, e}.
    """

    item: Int32[np.ndarray, " events"]
    time: Int64[np.ndarray, " events"]  # unix seconds, UTC
    session: Int32[np.ndarray, " events"]  # number of the session within the user, from 0
    offsets: Int64[np.ndarray, " U+1"]
    valid_start: Int64[np.ndarray, " U"]
    test_start: Int64[np.ndarray, " U"]

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    def before(self, user: int, cut: int) -> Int32[np.ndarray, " n"]:
        """Items of `user` in rows offsets[user]..cut, oldest first."""
        return self.item[self.offsets[user] : cut]

    def valid_users(self) -> Int64[np.ndarray, " n"]:
        """Users with a validation target."""
        is_target = self.valid_start < self.offsets[1:]
        return np.flatnonzero(is_target & (self.valid_start != self.test_start))

    def test_users(self) -> Int64[np.ndarray, " n"]:
        """Users with a test target."""
        return np.flatnonzero(self.test_start < self.offsets[1:])

    def session_end(self, start: int, user: int) -> int:
        """The row after the session that starts at row `start`."""
        rows = self.session[start : self.offsets[user + 1]]
        return start + int(np.searchsorted(rows, rows[0], side="right")) if len(rows) else start

    def save(self, folder: Path) -> None:
        for field in dataclasses.fields(self):
            np.save(folder / f"history_{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> Histories:
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(read_npy(folder / f"history_{name}.npy", 1) for name in names))


@dataclasses.dataclass(frozen=True)
class Users:
    """The users, one row each: user_id: string, profile: string (may be empty)."""

    table: pa.Table

    def row(self, user_id: str) -> int:
        """Row of `user_id`. ValueError if unknown."""
        row = pa.compute.index(self.table["user_id"], pa.scalar(user_id)).as_py()
        if row < 0:
            raise ValueError(f"user {user_id!r} is not in the data; check --user.")
        return row

    def profiles(self, users: np.ndarray) -> list[str]:
        return self.table["profile"].take(pa.array(users)).to_pylist()

    def save(self, folder: Path) -> None:
        write_arrow(self.table, folder / "users.arrow")

    @classmethod
    def load(cls, folder: Path) -> Users:
        return cls(read_arrow(folder / "users.arrow"))


@dataclasses.dataclass(frozen=True)
class Queries:
    """Search queries and the items clicked for them."""

    texts: pa.Array
    items: Links  # query -> items, most clicked first

    def save(self, folder: Path) -> None:
        write_arrow(pa.table({"query": self.texts}), folder / "queries.arrow")
        self.items.save(folder, "query_items")

    @classmethod
    def load(cls, folder: Path) -> Queries | None:
        """None where the data has no searches."""
        if not (folder / "queries.arrow").exists():
            return None
        table = read_arrow(folder / "queries.arrow")
        return cls(table["query"].combine_chunks(), Links.load(folder, "query_items"))


@dataclasses.dataclass(frozen=True)
class Themes:
    """Seasons, holidays and trends: their names, when they are on, and their items."""

    names: pa.Array
    kinds: pa.Array  # "season", "holiday" or "trend"
    items: Links  # theme -> items, strongest first
    period_theme: Int32[np.ndarray, " periods"]  # a theme can come again: one row each time
    period_start: Int64[np.ndarray, " periods"]  # unix seconds, inclusive
    period_end: Int64[np.ndarray, " periods"]  # unix seconds, exclusive

    def active(self, time: int) -> Int32[np.ndarray, " n"]:
        """The themes that are on at `time` (unix seconds)."""
        is_on = (self.period_start <= time) & (time < self.period_end)
        return np.unique(self.period_theme[is_on])

    def save(self, folder: Path) -> None:
        write_arrow(pa.table({"theme": self.names, "kind": self.kinds}), folder / "themes.arrow")
        periods = {
            "theme": self.period_theme,
            "start": self.period_start,
            "end": self.period_end,
        }
        write_arrow(pa.table(periods), folder / "theme_periods.arrow")
        self.items.save(folder, "theme_items")

    @classmethod
    def load(cls, folder: Path) -> Themes | None:
        """None where the data has no themes."""
        if not (folder / "themes.arrow").exists():
            return None
        table, periods = (
            read_arrow(folder / "themes.arrow"),
            read_arrow(folder / "theme_periods.arrow"),
        )
        return cls(
            table["theme"].combine_chunks(),
            table["kind"].combine_chunks(),
            Links.load(folder, "theme_items"),
            *(periods[name].to_numpy() for name in ("theme", "start", "end")),
        )


@dataclasses.dataclass(frozen=True)
class RelevancePairs:
    """Pairs of one view of section 2.1 of SIGMA: search, visual, theme or co_occurrence."""

    view: str
    left: Int32[np.ndarray, " pairs"]  # row of `left_texts` where given, otherwise an item
    right: Int32[np.ndarray, " pairs"]  # an item
    left_texts: pa.Array | None
    is_heldout: Bool[np.ndarray, " pairs"]  # kept from training, for recall while training

    def save(self, folder: Path) -> None:
        columns = {"left": self.left, "right": self.right, "is_heldout": self.is_heldout}
        write_arrow(pa.table(columns), folder / f"pairs_{self.view}.arrow")
        if self.left_texts is not None:
            texts = pa.table({"text": self.left_texts})
            write_arrow(texts, folder / f"pairs_{self.view}_texts.arrow")

    @classmethod
    def load(cls, folder: Path, view: str) -> RelevancePairs:
        table = read_arrow(folder / f"pairs_{view}.arrow")
        left, right = (table[name].to_numpy() for name in ("left", "right"))
        path = folder / f"pairs_{view}_texts.arrow"
        texts = read_arrow(path)["text"].combine_chunks() if path.exists() else None
        return cls(view, left, right, texts, table["is_heldout"].to_numpy())


VECTORS = ("id_vectors", "visual_vectors", "text_vectors")
VIEWS = ("search", "visual", "theme", "co_occurrence")


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """Everything `sigma_jax.prepare` writes; what a source lacks is None."""

    folder: Path
    catalogue: Catalogue
    histories: Histories
    users: Users
    queries: Queries | None
    themes: Themes | None
    pairs: dict[str, RelevancePairs]  # by view; views without pairs are absent
    id_vectors: Float32[np.ndarray, "I D"] | None  # given by the user
    visual_vectors: Float32[np.ndarray, "I D"] | None
    text_vectors: Float32[np.ndarray, "I D"] | None  # given, in place of stage 1's

    @property
    def text_tokenizer_folder(self) -> Path:
        """A Hugging Face tokenizer folder."""
        return self.folder / "text_tokenizer"

    def with_validation(self) -> PreparedData:
        """The same with the validation targets as training rows, and without any of validation."""
        histories = dataclasses.replace(self.histories, valid_start=self.histories.test_start)
        return dataclasses.replace(self, histories=histories)

    @classmethod
    def load(cls, folder: Path) -> PreparedData:
        views = [view for view in VIEWS if (folder / f"pairs_{view}.arrow").exists()]
        vectors = {
            name: load_item_vectors(folder / f"{name}.npy")
            if (folder / f"{name}.npy").exists()
            else None
            for name in VECTORS
        }
        return cls(
            folder,
            Catalogue.load(folder),
            Histories.load(folder),
            Users.load(folder),
            Queries.load(folder),
            Themes.load(folder),
            {view: RelevancePairs.load(folder, view) for view in views},
            **vectors,
        )


def load_item_vectors(path: Path) -> Float32[np.ndarray, "I D"]:
    """One float32 vector an item, memory-mapped."""
    return read_npy(path, 2)


@dataclasses.dataclass(frozen=True)
class SemanticIds:
    """Semantic IDs (SIDs) of section 2.2 of SIGMA: L codes an item, each in 0..codebook_size-1."""

    codes: Int32[np.ndarray, "I L"]
    codebook_size: int

    @property
    def levels(self) -> int:
        return self.codes.shape[1]

    def save(self, folder: Path) -> None:
        np.save(folder / "semantic_ids.npy", np.asarray(self.codes, np.int32))
        np.save(folder / "codebook_size.npy", np.int64(self.codebook_size))

    @classmethod
    def load(cls, folder: Path) -> SemanticIds:
        codes = read_npy(folder / "semantic_ids.npy", 2)
        return cls(codes, int(read_npy(folder / "codebook_size.npy", 0)))


@dataclasses.dataclass(frozen=True)
class Requests:
    """Recommendations to make and, for evaluation, the item each should contain."""

    user: Int32[np.ndarray, " N"]  # -1: a user without history
    cut: Int64[np.ndarray, " N"]  # history is the user's rows before this row of Histories
    task: Int32[np.ndarray, " N"]  # index into TASKS
    argument: Int32[np.ndarray, " N"]  # query, category or theme by task; -1 for none
    target: Int32[np.ndarray, " N"]  # item, -1 where unknown
    instruction: list[str]  # as a person would say it

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Requests:
        """The requests at `rows`."""
        arrays = (getattr(self, f.name)[rows] for f in dataclasses.fields(self)[:-1])
        return Requests(*arrays, [self.instruction[row] for row in rows])
