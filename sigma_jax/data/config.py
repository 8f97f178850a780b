"""Settings of the data: the place of the tables, and how they become training data."""

from __future__ import annotations

import dataclasses

SOURCES = ("files", "amazon", "complete_journey")
ENGINES = ("duckdb", "spark")
SPLITS = ("leave_one_out", "leave_last_session_out", "by_time")


@dataclasses.dataclass(frozen=True)
class FilesConfig:
    """Paths or URLs of your own tables, relative to `DataConfig.path`.

    A path is a file, a folder of parts or a glob. "" takes the first of NAME.parquet, NAME.csv,
    NAME.tsv, NAME.txt, NAME.jsonl, NAME.ndjson, NAME.json, the text ones as .gz or .zst, and the
    folder NAME. For vectors it takes the first of NAME.npy and NAME.parquet.
    """

    items: str  # required
    interactions: str  # required
    users: str  # optional, as all below
    searches: str  # queries and the items that were clicked
    themes: str  # seasons, holidays and trends
    knowledge: str  # what people say when they want items
    id_vectors: str  # collaborative vectors, which replace those of the teacher
    visual_vectors: str  # image vectors
    text_vectors: str  # replace those of the stage `grounding`
    # How files of other shapes become the tables: a YAML file; "" takes mapping.yaml, if there is
    # one. `sigma_jax/data/mapping/spec.py` has its keys.
    mapping: str


@dataclasses.dataclass(frozen=True)
class InteractionColumns:
    """Names of columns in the file of interactions; "" takes that of `ColumnsConfig`."""

    user_id: str  # name of this column in the file of interactions; "": by the shared setting
    item_id: str  # the same
    timestamp: str  # the same
    event: str  # the same
    session_id: str  # the same


@dataclasses.dataclass(frozen=True)
class ItemColumns:
    """Names of columns in the file of items; "" takes that of `ColumnsConfig`."""

    item_id: str  # name of this column in the file of items; "": by the shared setting


@dataclasses.dataclass(frozen=True)
class UserColumns:
    """Names of columns in the file of users; "" takes that of `ColumnsConfig`."""

    user_id: str  # name of this column in the file of users; "": by the shared setting


@dataclasses.dataclass(frozen=True)
class SearchColumns:
    """Names of columns in the file of searches; "" takes that of `ColumnsConfig`."""

    query: str  # name of this column in the file of searches; "": by the shared setting
    item_id: str  # the same
    clicks: str  # the same
    user_id: str  # the same
    timestamp: str  # the same


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    """Names of columns in your own tables, where they are other than ours.

    A shared name, such as `columns.item_id`, holds for every table that has such a column. A group,
    such as `columns.items`, holds for one table.
    """

    item_id: str  # name of this column in your tables; "": item_id
    user_id: str  # name of this column in your tables; "": user_id
    timestamp: str  # name of this column in your tables; "": timestamp
    event: str  # name of this column in your tables; "": event
    session_id: str  # name of this column in your tables; "": session_id
    query: str  # name of this column in your tables; "": query
    clicks: str  # name of this column in your tables; "": clicks
    items: ItemColumns
    interactions: InteractionColumns
    users: UserColumns
    searches: SearchColumns


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How histories are split into training, validation and test (`splits.py` has the kinds)."""

    kind: str  # one of SPLITS
    valid_from: str  # by_time only: a share of the interactions ("0.8") or an ISO date
    test_from: str  # by_time only: the same
    # Share of the items, drawn by the seed, whose training interactions are removed. The evaluation
    # then measures how a method handles new items. 0 removes none.
    cold_share: float
    # Interactions at most so many seconds apart are one session, if they have no session_id. With 0
    # each interaction is a session.
    session_gap_seconds: int


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How items and users become text."""

    # Item columns in the text, in this order; () takes all but bytes and web addresses.
    columns: tuple[str, ...]
    # "" takes the first value of title and name, or else the first column of the text.
    title_column: str
    category_column: str  # "" takes the first value of category_path, categories and category
    category_separator: str  # between the levels of a category path
    max_chars: int  # longer values are truncated, and the data card counts them


@dataclasses.dataclass(frozen=True)
class TextTokenizerConfig:
    """The text tokenizer: one from Hugging Face, or a byte-level BPE trained on the texts."""

    name: str  # folder or hub name; "" trains one
    vocab_size: int  # of the trained one


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """The relevance pairs of the stage `grounding`; `pairs.py` explains the views."""

    per_item: int  # most partners of an item, in the co-occurrence view and in the visual view
    per_query: int  # most items of a query
    per_theme: int  # most items of a theme
    per_knowledge: int  # most items of a text of the knowledge, the most popular of its category
    min_count: int  # least co-occurrences of a pair
    window: int  # largest distance of co-occurring items in a history of single-item sessions
    min_cosine: float  # least cosine of visual neighbours
    max_pairs: int  # most pairs of a view
    heldout_share: float  # share of the pairs, chosen by hash, that recall is measured on


@dataclasses.dataclass(frozen=True)
class ThemesConfig:
    """Seasons and holidays of the calendar, and the items that sell in them."""

    calendar: bool  # adds the four seasons and the holidays of `country`
    country: str  # code of the package `holidays`, such as "US"
    hemisphere: str  # "north" or "south"
    lead_days: int  # a holiday's period starts so many days before the holiday
    min_count: int  # least training interactions of an item inside the theme's periods
    min_lift: float  # least lift: an item's share inside the periods over the average share
    items_per_theme: int  # most items of a theme


@dataclasses.dataclass(frozen=True)
class SparkConfig:
    """The place of Spark, for `DataConfig.engine` "spark"."""

    # A master, such as local[2], yarn or spark://host:7077, or a URL of Spark Connect (sc://host).
    master: str
    # Folder or URL for the tables of a run, which Spark and this process reach; "" takes the
    # workdir, which suits a local master.
    folder: str


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """All settings of the data."""

    source: str  # one of SOURCES
    path: str  # folder or URL of the tables; complete_journey does not read it
    files: FilesConfig
    columns: ColumnsConfig
    use_id_vectors: bool  # use the ID vectors of the source; False trains a teacher
    # A pre-trained sentence encoder, which makes the text vectors and reads instructions: a folder,
    # or a name on the Hugging Face hub; "": none.
    text_encoder: str
    unknown_items: str  # rows whose item_id is not in items: "error" refuses, "drop" drops them
    min_item_count: int  # items with fewer training interactions are no part of the catalogue
    events: tuple[str, ...]  # values of column `event` to keep, such as ("buy",); () keeps all
    queries_from_categories: bool  # without searches, category names serve as queries
    split: SplitConfig
    text: TextConfig
    text_tokenizer: TextTokenizerConfig
    pairs: PairsConfig
    themes: ThemesConfig
    # The engine counts what the reranker reads (data/counts.py), for logs that one process cannot
    # count. False: the stage that needs the counts makes them by the same expressions in DuckDB.
    counts: bool
    engine: str  # one of ENGINES; the artifact is the same with each
    spark: SparkConfig
    memory_limit: str  # of DuckDB or of a local Spark, such as "2GB"
    threads: int  # of DuckDB; a local Spark has four parts of a shuffle for each

    def __post_init__(self):
        _check_choice("data.source", self.source, SOURCES)
        _check_choice("data.engine", self.engine, ENGINES)
        _check_choice("data.split.kind", self.split.kind, SPLITS)
        _check_choice("data.unknown_items", self.unknown_items, ("error", "drop"))
        _check_choice("data.themes.hemisphere", self.themes.hemisphere, ("north", "south"))
        minimums = {
            "data.text.max_chars": (self.text.max_chars, 1),
            "data.text_tokenizer.vocab_size": (self.text_tokenizer.vocab_size, 261),
            "data.threads": (self.threads, 1),
            "data.pairs.min_count": (self.pairs.min_count, 1),
        }
        for name, (value, minimum) in minimums.items():
            if value < minimum:
                raise ValueError(f"{name}={value} is too small; use {minimum} or more.")
        shares = {
            "data.pairs.heldout_share": self.pairs.heldout_share,
            "data.split.cold_share": self.split.cold_share,
        }
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share} is no share; use at least 0 and less than 1.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(choices)}.")
