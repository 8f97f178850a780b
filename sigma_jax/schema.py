"""Artifacts that stages read and write: catalogue, histories, pairs, item vectors, SIDs.

Every artifact is columnar and memory-mapped (`.npy` or Arrow IPC): opening 10^8 items takes no
memory. Row i of every item table is item i of the catalogue; row u of every user table is user u.
Axis letters: I items, U users, D vector width, L levels of a semantic ID, N requests.
`data/tables.py` describes the tables that a user brings.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
from jaxtyping import Bool, Float32, Int32, Int64

# The number of a task is its place here: saved records and weights hold it.
TASKS = ("JustForYou", "Query", "Category", "Longtail", "Discover", "Season", "Holiday")
DAY = 86_400  # seconds of a day


def write_arrow(table: pa.Table, path: Path) -> None:
    """Writes `table` uncompressed; `read_arrow` can then map the file instead of reading it."""
    feather.write_feather(table, str(path), compression="uncompressed")


def read_arrow(path: Path) -> pa.Table:
    """The table at `path`, memory-mapped.

    Raises:
      ValueError: the file is missing or damaged.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing; delete its folder and run its stage again.")
    try:
        return feather.read_table(str(path), memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete its folder and run its stage again."
        ) from error


def read_npy(path: Path, ndim: int) -> np.ndarray:
    """The array at `path`, memory-mapped.

    Raises:
      ValueError: the file is missing or damaged, or the array has not `ndim` dimensions.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing; delete its folder and run its stage again.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete its folder and run its stage again."
        ) from error
    if array.ndim != ndim:
        raise ValueError(
            f"{path} has shape {array.shape}; expected {ndim} dimensions. Delete its folder and "
            "run its stage again."
        )
    return array


@dataclasses.dataclass(frozen=True)
class Links:
    """A list of targets for each row, in CSR form: row r has targets[offsets[r]:offsets[r + 1]].

    Worked example: row 0 has [4, 7], row 1 has [], row 2 has [4]. Then offsets are [0, 2, 2, 3] and
    targets [4, 7, 4].
    """

    offsets: Int64[np.ndarray, " rows+1"]
    targets: Int32[np.ndarray, " links"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, row: int) -> Int32[np.ndarray, " n"]:
        """The targets of `row`, in their stored order."""
        return self.targets[self.offsets[row] : self.offsets[row + 1]]

    @classmethod
    def from_edges(cls, rows: np.ndarray, targets: np.ndarray, count: int) -> Links:
        """Links of `count` rows from the edges (rows[k], targets[k]).

        The targets of a row keep the order of the edges.
        """
        order = np.argsort(rows, kind="stable")
        offsets = np.zeros(count + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=count), out=offsets[1:])
        return cls(offsets, np.asarray(targets, np.int32)[order])

    def transpose(self, count: int) -> Links:
        """The rows of each target, for targets 0 to count - 1.

        Worked example: the links above with count 8: target 4 has rows [0, 2], target 7 has [0].
        """
        rows = np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))
        return Links.from_edges(self.targets, rows, count)

    def save(self, folder: Path, name: str) -> None:
        """Writes NAME.offsets.npy and NAME.targets.npy."""
        np.save(folder / f"{name}.offsets.npy", self.offsets)
        np.save(folder / f"{name}.targets.npy", self.targets)

    @classmethod
    def load(cls, folder: Path, name: str) -> Links:
        """The links that `save` wrote. ValueError if a file is missing or damaged."""
        return cls(
            read_npy(folder / f"{name}.offsets.npy", 1), read_npy(folder / f"{name}.targets.npy", 1)
        )


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The items, one row each, and their categories.

    `table` has three string columns:
      item_id: the user's own id.
      text: a JSON object for the model; never empty.
      title: a short text for people.

    Worked example: {"item_id": "B01", "text": '{"title": "Soap", "price": 2.5}', "title": "Soap"},
    category 3, categories[3] "Bath", popularity 17.
    """

    table: pa.Table
    category: Int32[np.ndarray, " I"]  # index into `categories`; -1: unknown
    categories: pa.Array  # names, string
    popularity: Int64[np.ndarray, " I"]  # number of training interactions

    def __len__(self) -> int:
        return self.table.num_rows

    def items_of_categories(self) -> Links:
        """The items of each category, most popular first."""
        order = np.argsort(-np.asarray(self.popularity), kind="stable").astype(np.int32)
        order = order[np.asarray(self.category)[order] >= 0]
        return Links.from_edges(np.asarray(self.category)[order], order, len(self.categories))

    def texts(self, items: np.ndarray) -> list[str]:
        """The JSON texts of `items` (item numbers)."""
        return self.table["text"].take(pa.array(items)).to_pylist()

    def titles(self, items: np.ndarray) -> list[str]:
        """The titles of `items` (item numbers)."""
        return self.table["title"].take(pa.array(items)).to_pylist()

    def ids(self, items: np.ndarray) -> list[str]:
        """The user's own ids of `items` (item numbers)."""
        return self.table["item_id"].take(pa.array(items)).to_pylist()

    def save(self, folder: Path) -> None:
        """Writes items.arrow, categories.arrow, item_category.npy and item_popularity.npy."""
        write_arrow(self.table, folder / "items.arrow")
        write_arrow(pa.table({"category": self.categories}), folder / "categories.arrow")
        np.save(folder / "item_category.npy", self.category)
        np.save(folder / "item_popularity.npy", self.popularity)

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """The catalogue that `save` wrote. ValueError if a file is missing or damaged."""
        return cls(
            read_arrow(folder / "items.arrow"),
            read_npy(folder / "item_category.npy", 1),
            read_arrow(folder / "categories.arrow")["category"].combine_chunks(),
            read_npy(folder / "item_popularity.npy", 1),
        )


@dataclasses.dataclass(frozen=True)
class Histories:
    """All interactions, one row each, sorted by user, time, session, and order in the source.

    - The history of user u is the rows offsets[u] to offsets[u + 1].
    - Training sees the rows before valid_start[u] only.
    - The validation target is the session that starts at row valid_start[u].
    - The test target is the session that starts at row test_start[u].
    - A start of offsets[u + 1] says that the user has no such target.
    - If both starts are equal and before offsets[u + 1], only the test target exists. A split by
      time makes such users.
    - The rows of one session have one time and no order among them.

    Worked example: leave_last_session_out, one user with the sessions [a b] [c] [d e]. Then session
    is [0 0 1 2 2], valid_start 2 and test_start 3. Training sees a b; validation asks for c after
    a b; test asks for d or e after a b c.
    """

    item: Int32[np.ndarray, " events"]
    time: Int64[np.ndarray, " events"]  # unix seconds, UTC
    session: Int32[np.ndarray, " events"]  # number of the session within its user, from 0
    offsets: Int64[np.ndarray, " U+1"]
    valid_start: Int64[np.ndarray, " U"]
    test_start: Int64[np.ndarray, " U"]

    @classmethod
    def empty(cls) -> Histories:
        """The histories of no users."""
        none = np.zeros(0, np.int64)
        start = np.zeros(1, np.int64)
        return cls(none.astype(np.int32), none, none.astype(np.int32), start, none, none)

    @property
    def num_users(self) -> int:
        """The number of users U, with those without interactions."""
        return len(self.offsets) - 1

    def before(self, user: int, end: int) -> Int32[np.ndarray, " n"]:
        """The items of `user` before row `end`, oldest first."""
        return self.item[self.offsets[user] : end]

    def valid_users(self) -> Int64[np.ndarray, " n"]:
        """The users with a validation target, ascending."""
        is_target = self.valid_start < self.offsets[1:]
        return np.flatnonzero(is_target & (self.valid_start != self.test_start))

    def test_users(self) -> Int64[np.ndarray, " n"]:
        """The users with a test target, ascending."""
        return np.flatnonzero(self.test_start < self.offsets[1:])

    def has_training_order(self) -> bool:
        """Whether a user has two sessions in training, so that there is a next one to predict."""
        starts, ends = self.offsets[:-1], self.valid_start
        users = np.flatnonzero(ends > starts)
        return bool((self.session[ends[users] - 1] > self.session[starts[users]]).any())

    def session_end(self, start: int, user: int | np.integer) -> int:
        """The row after the session of `user` that starts at row `start`."""
        rows = self.session[start : self.offsets[user + 1]]
        return start + int(np.searchsorted(rows, rows[0], side="right")) if len(rows) else start

    def save(self, folder: Path) -> None:
        """Writes history_FIELD.npy for each field."""
        for field in dataclasses.fields(self):
            np.save(folder / f"history_{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> Histories:
        """The histories that `save` wrote. ValueError if a file is missing or damaged."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(read_npy(folder / f"history_{name}.npy", 1) for name in names))


@dataclasses.dataclass(frozen=True)
class Users:
    """The users, one row each.

    `table` has two string columns: user_id, the user's own id, and profile, a JSON object or "".

    Worked example: {"user_id": "u7", "profile": '{"age": "30-39"}'}.
    """

    table: pa.Table

    def row(self, user_id: str) -> int:
        """The number of the user with this id. ValueError if no user has it."""
        row = self.find(user_id)
        if row is None:
            raise ValueError(
                f"user {user_id!r} is not in the data; "
                "check --user, or leave it out for an unknown user."
            )
        return row

    def find(self, user_id: str) -> int | None:
        """Row of `user_id`; None if unknown."""
        row = pa.compute.index(self.table["user_id"], pa.scalar(user_id)).as_py()
        return row if row >= 0 else None

    def profiles(self, users: np.ndarray) -> list[str]:
        """The profiles of `users` (user numbers)."""
        return self.table["profile"].take(pa.array(users)).to_pylist()

    def save(self, folder: Path) -> None:
        """Writes users.arrow."""
        write_arrow(self.table, folder / "users.arrow")

    @classmethod
    def load(cls, folder: Path) -> Users:
        """The users that `save` wrote. ValueError if the file is missing or damaged."""
        return cls(read_arrow(folder / "users.arrow"))


@dataclasses.dataclass(frozen=True)
class Queries:
    """Search queries and the items clicked for them. The most frequent query is query 0.

    Worked example: texts ["tea", "soap"]; items.of(0) is [5, 3]: item 5 has most clicks for "tea".
    """

    texts: pa.Array  # string
    items: Links  # query -> items, most clicked first

    def save(self, folder: Path) -> None:
        """Writes queries.arrow and the two files of query_items."""
        write_arrow(pa.table({"query": self.texts}), folder / "queries.arrow")
        self.items.save(folder, "query_items")

    @classmethod
    def load(cls, folder: Path) -> Queries | None:
        """The queries that `save` wrote; None if the data has no searches."""
        if not (folder / "queries.arrow").exists():
            return None
        table = read_arrow(folder / "queries.arrow")
        return cls(table["query"].combine_chunks(), Links.load(folder, "query_items"))


@dataclasses.dataclass(frozen=True)
class Themes:
    """Seasons, holidays and trends: names, periods and items.

    A theme can have several periods, such as one each year.

    Worked example: names ["Easter"], kinds ["holiday"], period_theme [0, 0]: two Easters.
    """

    names: pa.Array  # string
    kinds: pa.Array  # "season", "holiday" or "trend"
    items: Links  # theme -> items, strongest first
    period_theme: Int32[np.ndarray, " periods"]  # index into `names`
    period_start: Int64[np.ndarray, " periods"]  # unix seconds, inclusive
    period_end: Int64[np.ndarray, " periods"]  # unix seconds, exclusive

    def active(self, time: int) -> Int32[np.ndarray, " n"]:
        """The themes with a period that holds `time` (unix seconds), ascending."""
        is_active = (self.period_start <= time) & (time < self.period_end)
        return np.unique(self.period_theme[is_active])

    def save(self, folder: Path) -> None:
        """Writes themes.arrow, theme_periods.arrow and the two files of theme_items."""
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
        """The themes that `save` wrote; None if the data has no themes."""
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
class Knowledge:
    """Texts that people say when they want items, strongest first.

    Worked example: texts ["my head hurts", "the red one"], item [-1, 7], category [3, 2]: the first
    text speaks of category 3, the second of item 7, which is of category 2.
    """

    texts: pa.Array  # string, K of them
    item: Int32[np.ndarray, " K"]  # -1: the text speaks of the whole category
    category: Int32[np.ndarray, " K"]  # -1: the item has none
    weight: Float32[np.ndarray, " K"]
    vectors: Float32[np.ndarray, "K E"] | None  # of the sentence encoder, unit length

    def save(self, folder: Path) -> None:
        """Writes knowledge.arrow and, if there are vectors, knowledge_vectors.npy."""
        columns = {"text": self.texts, "item": self.item, "category": self.category}
        write_arrow(pa.table(columns | {"weight": self.weight}), folder / "knowledge.arrow")
        if self.vectors is not None:
            np.save(folder / "knowledge_vectors.npy", np.asarray(self.vectors, np.float32))

    @classmethod
    def load(cls, folder: Path) -> Knowledge | None:
        """The knowledge that `save` wrote; None if there is none."""
        if not (folder / "knowledge.arrow").exists():
            return None
        table, path = read_arrow(folder / "knowledge.arrow"), folder / "knowledge_vectors.npy"
        item, category, weight = (table[name].to_numpy() for name in ("item", "category", "weight"))
        vectors = read_npy(path, 2) if path.exists() else None
        return cls(table["text"].combine_chunks(), item, category, weight, vectors)

    def of_category(self, category: int) -> list[str]:
        """The texts that speak of a category or of one of its items, strongest first."""
        return self.texts.take(np.flatnonzero(self.category == category)).to_pylist()


@dataclasses.dataclass(frozen=True)
class RelevancePairs:
    """Relevance pairs of one view (section 2.1 of SIGMA): two texts that belong together.

    Worked example: view "search", left_texts ["tea", "soap"], left [0, 0], right [5, 3]: the query
    "tea" belongs to items 5 and 3. View "visual": left_texts None, left [5], right [9]: items 5 and
    9 look alike.
    """

    view: str  # one of VIEWS
    left: Int32[np.ndarray, " pairs"]  # index into `left_texts`; an item if that is None
    right: Int32[np.ndarray, " pairs"]  # item
    left_texts: pa.Array | None  # queries, themes or knowledge, string
    is_heldout: Bool[np.ndarray, " pairs"]  # not trained on; recall is measured on these

    def save(self, folder: Path) -> None:
        """Writes pairs_VIEW.arrow and, if there are left texts, pairs_VIEW_texts.arrow."""
        columns = {"left": self.left, "right": self.right, "is_heldout": self.is_heldout}
        write_arrow(pa.table(columns), folder / f"pairs_{self.view}.arrow")
        if self.left_texts is not None:
            texts = pa.table({"text": self.left_texts})
            write_arrow(texts, folder / f"pairs_{self.view}_texts.arrow")

    @classmethod
    def load(cls, folder: Path, view: str) -> RelevancePairs:
        """The pairs that `save` wrote. ValueError if a file is missing or damaged."""
        table = read_arrow(folder / f"pairs_{view}.arrow")
        left, right = (table[name].to_numpy() for name in ("left", "right"))
        path = folder / f"pairs_{view}_texts.arrow"
        texts = read_arrow(path)["text"].combine_chunks() if path.exists() else None
        return cls(view, left, right, texts, table["is_heldout"].to_numpy())


VECTORS = ("id_vectors", "visual_vectors", "text_vectors")
VIEWS = ("search", "visual", "theme", "co_occurrence", "knowledge")


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """The folder WORKDIR/data, which `sigma_jax.prepare` writes.

    A field is None if the source has no table for it.
    """

    folder: Path
    catalogue: Catalogue
    histories: Histories
    users: Users
    queries: Queries | None
    themes: Themes | None
    pairs: dict[str, RelevancePairs]  # by view; a view without pairs is absent
    id_vectors: Float32[np.ndarray, "I D"] | None  # of the user; they replace the teacher's
    visual_vectors: Float32[np.ndarray, "I D"] | None  # of the user
    text_vectors: Float32[np.ndarray, "I D"] | None  # of the user; they replace `grounding`
    knowledge: Knowledge | None = None
    counts: Path | None = None  # counts of the training rows, if they were prepared

    @property
    def text_tokenizer_folder(self) -> Path:
        """The folder of the Hugging Face tokenizer."""
        return self.folder / "text_tokenizer"

    def with_validation(self) -> PreparedData:
        """The same data with the validation targets as training rows, so without validation.

        The popularity counts them too, so that an item first seen in validation is not cold.
        """
        histories = dataclasses.replace(self.histories, valid_start=self.histories.test_start)
        ends = np.repeat(histories.test_start, np.diff(histories.offsets))
        items = histories.item[np.arange(len(ends)) < ends]
        popularity = np.bincount(items, minlength=len(self.catalogue))
        catalogue = dataclasses.replace(self.catalogue, popularity=popularity)
        counts = None if self.counts is None else self.counts.parent / "known"
        return dataclasses.replace(self, histories=histories, catalogue=catalogue, counts=counts)

    @classmethod
    def load(cls, folder: Path) -> PreparedData:
        """The data in `folder`, memory-mapped. ValueError if a file is missing or damaged."""
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
            knowledge=Knowledge.load(folder),
            counts=counts if (counts := folder / "counts" / "training").exists() else None,
        )


def load_item_vectors(path: Path) -> Float32[np.ndarray, "I D"]:
    """The item vectors at `path`, memory-mapped. ValueError if it is missing or damaged."""
    return read_npy(path, 2)


@dataclasses.dataclass(frozen=True)
class SemanticIds:
    """Semantic IDs (SIDs) of the items: one code for each level (section 2.2 of SIGMA).

    Worked example: codes [[3, 0, 7], [3, 1, 2]] and codebook_size 8: two items that share the first
    code of three.
    """

    codes: Int32[np.ndarray, "I L"]  # each from 0 to codebook_size - 1
    codebook_size: int

    @property
    def levels(self) -> int:
        """The number L of codes of an item."""
        return self.codes.shape[1]

    def save(self, folder: Path) -> None:
        """Writes semantic_ids.npy and codebook_size.npy."""
        np.save(folder / "semantic_ids.npy", np.asarray(self.codes, np.int32))
        np.save(folder / "codebook_size.npy", np.int64(self.codebook_size))

    @classmethod
    def load(cls, folder: Path) -> SemanticIds:
        """The SIDs that `save` wrote. ValueError if a file is missing or damaged."""
        codes = read_npy(folder / "semantic_ids.npy", 2)
        return cls(codes, int(read_npy(folder / "codebook_size.npy", 0)))


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests for recommendations and, for evaluation, the item that each should contain.

    Worked example: user [4], history_end [120], task [1] ("Query"), slot_value [0], target [5] and
    instruction ["find tea"]. User 4 has the history before row 120 and asks for query 0, which is
    "tea". The next item of this user is item 5.
    """

    user: Int32[np.ndarray, " N"]  # -1: a user without history
    history_end: Int64[np.ndarray, " N"]  # row of Histories that the request's history ends before
    task: Int32[np.ndarray, " N"]  # index into TASKS
    slot_value: Int32[np.ndarray, " N"]  # number of the query, category or theme, by task; -1: none
    target: Int32[np.ndarray, " N"]  # item; -1: unknown
    instruction: list[str]  # in the words of a person; "" for a model without instructions

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Requests:
        """The requests at `rows`."""
        arrays = (getattr(self, f.name)[rows] for f in dataclasses.fields(self)[:-1])
        return Requests(*arrays, instruction=[self.instruction[row] for row in rows])


@dataclasses.dataclass(frozen=True)
class RequestBatch:
    """Requests with the histories and the profiles of the users who make them."""

    requests: Requests
    histories: Histories
    users: Users

    @classmethod
    def of(cls, requests: Requests, data: PreparedData) -> RequestBatch:
        """Requests of users of `data`."""
        return cls(requests, data.histories, data.users)

    def __len__(self) -> int:
        return len(self.requests)

    def take(self, rows: np.ndarray) -> RequestBatch:
        """The requests at `rows`."""
        return dataclasses.replace(self, requests=self.requests.take(rows))
