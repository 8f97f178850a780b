"""Settings of the data: where the tables are and how they are turned into training data."""

from __future__ import annotations

import dataclasses

SOURCES = ("files", "amazon", "complete_journey")
SPLITS = ("leave_one_out", "leave_last_session_out", "by_time")


@dataclasses.dataclass(frozen=True)
class FilesConfig:
    """Paths or URLs of own tables, relative to `DataConfig.path`.

    "" looks for NAME.parquet, NAME.csv, NAME.jsonl (vectors: NAME.npy, NAME.parquet) there.
    """

    items: str
    interactions: str
    users: str
    searches: str
    themes: str
    id_vectors: str
    visual_vectors: str
    text_vectors: str


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How targets are taken from histories; `splits.py` explains the kinds."""

    kind: str  # one of SPLITS
    valid_from: str  # by_time only: a share of the events as "0.8", or an ISO date
    test_from: str
    # Of the items, drawn by the seed: nobody has them before the validation target, as if they were
    # new then. To judge what a method makes of new items; 0 where it is not about that.
    cold_share: float
    session_gap_seconds: int  # without session_id: events this close are one session; 0: none are


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How items and users become text."""

    columns: tuple[str, ...]  # item columns in the text, in this order; () takes all
    title_column: str  # "" takes title, name, or the first column of the text
    category_column: str  # "" takes category_path, categories, category
    category_separator: str  # between the levels of a category path
    max_chars: int  # longer values are cut, and counted


@dataclasses.dataclass(frozen=True)
class TextTokenizerConfig:
    """The text tokenizer: a Hugging Face one by name or folder, or a BPE trained on the texts."""

    name: str  # "" trains one
    vocab_size: int  # of a trained one


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """Which relevance pairs are made; the share kept from training is chosen by hash."""

    per_item: int  # partners of one item, by co-occurrence or by looks
    per_query: int
    per_theme: int
    min_count: int  # co-occurrences of a pair
    window: int  # distance in a history of single-item sessions that counts as co-occurrence
    min_cosine: float  # of visual neighbours
    max_pairs: int  # per view
    heldout_share: float


@dataclasses.dataclass(frozen=True)
class ThemesConfig:
    """Seasons and holidays from the calendar and theme items from seasonal lift."""

    calendar: bool  # adds seasons and the holidays of `country`
    country: str  # code of the `holidays` package
    hemisphere: str  # "north" or "south"
    lead_days: int  # a holiday's period starts so many days before it
    min_count: int  # training interactions of an item inside the theme's periods
    min_lift: float  # share of an item's interactions inside the periods over the average share
    items_per_theme: int


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """All of the above."""

    source: str  # one of SOURCES
    path: str  # folder or URL; not read by complete_journey
    files: FilesConfig
    use_id_vectors: bool  # take ID vectors the source brings, instead of training a teacher
    text_encoder: str  # a sentence-transformers model in place of stage 1, name or folder; or ""
    unknown_items: str  # "error", or "drop" rows whose item_id is not in items
    min_item_count: int  # items with fewer interactions are left out of the catalogue
    events: tuple[str, ...]  # kinds of interaction kept, of column `event`; () keeps all
    queries_from_categories: bool  # where there are no searches: category name -> its items
    split: SplitConfig
    text: TextConfig
    text_tokenizer: TextTokenizerConfig
    pairs: PairsConfig
    themes: ThemesConfig
    memory_limit: str  # of DuckDB, as "2GB"
    threads: int  # of DuckDB

    def __post_init__(self):
        _check_choice("data.source", self.source, SOURCES)
        _check_choice("data.split.kind", self.split.kind, SPLITS)
        _check_choice("data.unknown_items", self.unknown_items, ("error", "drop"))
        _check_choice("data.themes.hemisphere", self.themes.hemisphere, ("north", "south"))
        least = {
            "data.text.max_chars": (self.text.max_chars, 1),
            "data.text_tokenizer.vocab_size": (self.text_tokenizer.vocab_size, 261),
            "data.threads": (self.threads, 1),
            "data.pairs.min_count": (self.pairs.min_count, 1),
        }
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise ValueError(f"{name}={value} is too small; use {minimum} or more.")
        shares = {
            "data.pairs.heldout_share": self.pairs.heldout_share,
            "data.split.cold_share": self.split.cold_share,
        }
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share} is no share; use 0 <= it < 1.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(choices)}.")
