"""Bodies of requests and answers, checked by pydantic. OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sigma_jax.data.times import LAST, is_unix_time

MOST_COUNT = 100  # items of an answer
LONGEST_ID, LONGEST_INSTRUCTION = 256, 100_000
LATEST = 253_402_300_799  # end of an item: the end of the year 9999, unix seconds


def plain_text(text: str) -> str:
    """ValueError for a lone surrogate or a NUL, which stores and files do not hold."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("it holds a character that is no text")
    return text


def event_time(seconds: int) -> int:
    """ValueError for a time that histories of requests cannot hold (data/times.py); 0 is now."""
    if seconds > LAST:
        raise ValueError(f"{seconds} is after the year 2100; send unix seconds, not milliseconds")
    if not is_unix_time(seconds):
        raise ValueError(f"{seconds} reads as a day, YYYYMMDD; send unix seconds")
    return seconds


Text = Annotated[str, AfterValidator(plain_text)]
Id = Annotated[Text, Field(min_length=1, max_length=LONGEST_ID)]
Count = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Seen = Literal["show", "hide", "own"]
Profile = Annotated[dict[Id, str | int | float | bool | None], Field(max_length=100)]
EventTime = Annotated[
    int, Field(ge=0, json_schema_extra={"maximum": LAST}), AfterValidator(event_time)
]


class Strict(BaseModel):
    """A body without unknown fields."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class EventIn(Strict):
    """Something that a user did with an item."""

    user_id: Id
    item_id: Id
    timestamp: EventTime = Field(default=0, description="Unix seconds; 0: now.")
    event: Annotated[Text, Field(max_length=LONGEST_ID)] = Field(
        default="", description="Its kind, such as view or purchase."
    )
    event_id: Annotated[Text, Field(max_length=LONGEST_ID)] = Field(
        default="", description="A repeated event with the same id is stored once."
    )
    session_id: Annotated[Text, Field(max_length=LONGEST_ID)] = ""


class Events(Strict):
    """Events that are stored together."""

    events: Annotated[list[EventIn], Field(min_length=1, max_length=10_000)]


class Stored(Strict):
    """How many rows were stored; repeated ones are not counted."""

    stored: int


class StoredEvents(Stored):
    """How many events were stored."""

    unknown_items: int = Field(
        description="Events of items that the catalogue does not have; they count once it has them."
    )


class StoredStates(Stored):
    """How many states were stored."""

    unknown_items: int = Field(
        description="States of items that the catalogue does not have; they are not stored."
    )


class UserIn(Strict):
    """The profile of a user: columns as in the training."""

    profile: Profile = Field(default_factory=dict)


class UserRow(UserIn):
    """A row of many users."""

    user_id: Id


class User(Strict):
    """A user."""

    user_id: str
    profile: dict[str, Any]


class UserIds(Strict):
    """A page of user ids; `after` of the next page is the last one."""

    user_ids: list[str]


class EventOut(Strict):
    """A stored event."""

    item_id: str
    title: str = Field(description="Empty for an item that the catalogue does not have.")
    timestamp: int
    event: str
    event_id: str
    session_id: str


class EventsOut(Strict):
    """The newest events of a user, oldest first."""

    user_id: str
    events: list[EventOut]


class Deleted(Strict):
    """How many rows were deleted."""

    deleted: int


class State(Strict):
    """The state of an item, which may change by the minute. It acts at once."""

    hidden: bool = False
    stock: int | None = Field(default=None, ge=0, le=2**31, description="0: out of stock.")
    expires: float | None = Field(default=None, ge=0, le=LATEST, description="Unix seconds.")


class StateRow(State):
    """A row of many states."""

    item_id: Id


class CatalogueItem(Strict):
    """An item of the catalogue."""

    item_id: str
    title: str
    category: str = Field(description="Empty for none.")
    is_active: bool = Field(description="false: it was removed.")


class CatalogueItems(Strict):
    """A page of items; `after` of the next page is the last one."""

    items: list[CatalogueItem]


class ItemDetails(CatalogueItem):
    """An item of the catalogue, and its state."""

    state: State
    is_shown: bool = Field(description="Whether it may be recommended now.")


class Category(Strict):
    """A category of the catalogue."""

    name: str
    items: int = Field(description="Items that are not removed.")


class Categories(Strict):
    """All categories, those with most items first."""

    categories: list[Category]


class Feature(Strict):
    """A reranking feature that changed the probability of an item."""

    feature: str
    words: str = Field(description="Its value in words.")
    value: float
    weight: float = Field(description="In the weighted sum, for this instruction.")
    contribution: float = Field(description="value * weight, added to log p.")
    typical: float = Field(
        description="The mean contribution of the candidates, by the network's P."
    )
    interaction: float = Field(
        description="The part of log p that the small network loses with a mean value in its place."
    )
    factor: float = Field(
        description="By the sum, its odds are so many times those of an item with a typical value."
    )


class Explanation(Strict):
    """The steps to an item's probability, as they were computed for this answer."""

    place: int = Field(description="In the list before rules and filters.")
    codes: list[int] = Field(description="The SID prefix; empty for an item in no beam.")
    beam_score: float = Field(description="Log P of the prefix (Eq. 7); 0 in no beam.")
    sigma: float = Field(description="The sigma of Eq. 11.")
    in_prefix: float = Field(description="P of the item inside its prefix (Eq. 11).")
    network: float = Field(description="P by prefix and cosine (Eq. 10).")
    score: float = Field(description="The sum of all contributions.")
    summed: float = Field(description="P with the weighted sum of the features.")
    ranked: float = Field(description="P with the interactions of features.")
    probability: float = Field(description="The calibrated P.")
    features: list[Feature] = Field(description="Those that mattered most first.")


class Beam(Strict):
    """A SID prefix that beam search found."""

    codes: list[int]
    score: float = Field(description="Log P of the prefix (Eq. 7).")


class Item(Strict):
    """A recommended item."""

    item_id: str
    title: str
    probability: float | None = Field(description="That the user takes it; null: not estimated.")
    reasons: list[str] = Field(default_factory=list, description="With explain=true.")
    details: dict[str, Any] = Field(default_factory=dict, description="With explain=true.")
    explanation: Explanation | None = Field(
        default=None, description="With explain=true, where the list was computed with it."
    )


class Answer(Strict):
    """A list of items."""

    user_id: str
    instruction: str
    source: Literal["index", "computed", "popular", "similar", "trending"]
    version: str = Field(description="The version of the catalogue.")
    model: str = Field(default="", description="Fingerprint of the model that made the list.")
    age_seconds: float = Field(description="Since the list was computed.")
    arms: dict[str, str] = Field(
        default_factory=dict, description="Experiment: the arm whose settings made the list."
    )
    is_late: bool = Field(
        default=False,
        description="The deadline passed, or too many requests wait, so that the index answered.",
    )
    num_beams: int | None = Field(
        default=None, description="Beams of an answer that was computed; fewer under load."
    )
    items: list[Item]
    beams: list[Beam] = Field(
        default_factory=list, description="With explain=true: all beams, best first."
    )
    error: str = Field(
        default="", description="Of a request of a job that could not be answered; else empty."
    )


class Ask(Strict):
    """A request that is computed at once."""

    user_id: Annotated[Text, Field(max_length=LONGEST_ID)] = Field(
        default="", description="Empty: an unknown user."
    )
    instruction: Annotated[Text, Field(max_length=LONGEST_INSTRUCTION)] = ""
    count: Count = 10
    categories: list[Id] = Field(default_factory=list, max_length=100)
    exclude: list[Id] = Field(default_factory=list, max_length=1_000)
    seen: Seen = "show"
    explain: bool = False
    deadline_ms: int = Field(
        default=2_000, ge=1, le=60_000, description="Then the index answers instead."
    )
    is_shown: bool = Field(
        default=True, description="false: the user does not see it; no experiment counts it."
    )


class Preview(Ask):
    """A request that a version answers which is not active."""

    version: Annotated[Text, Field(max_length=LONGEST_ID)] = Field(
        default="", description="A version of the catalogue; empty: the active one."
    )
    export: Annotated[Text, Field(max_length=LONGEST_ID)] = Field(
        default="", description="Name of the export; empty: the active one."
    )


class Task(Strict):
    """A kind of instruction that the model was trained on."""

    name: str
    instruction: str = Field(description="Such as `find {query} for me`, with a slot or without.")


class Tasks(Strict):
    """The kinds of instructions."""

    tasks: list[Task]


class Batch(Strict):
    """Requests that are answered when there is time."""

    requests: Annotated[list[Ask], Field(min_length=1, max_length=1_000)]


class Job(Strict):
    """A batch of requests and, when it is done, the answers in their order."""

    job_id: str
    state: Literal["waiting", "running", "done", "failed"]
    answers: list[Answer] = Field(default_factory=list)
    error: str = ""


class Rule(Strict):
    """A rule of a shop, whatever the model says. Rules act at once, in the order of names.

    A rule that names neither items nor categories concerns all items.
    """

    kind: Literal["pin", "boost", "bury", "at_most"]
    items: list[Id] = Field(default_factory=list, max_length=1_000)
    categories: list[Id] = Field(default_factory=list, max_length=100)
    place: int = Field(default=1, ge=1, le=MOST_COUNT, description="pin: the place of the first.")
    factor: float = Field(default=2.0, gt=0, le=1e6, description="boost, bury: of probabilities.")
    count: int = Field(default=1, ge=0, le=MOST_COUNT, description="at_most: items a category.")

    @model_validator(mode="after")
    def _pins_items(self) -> Rule:
        """A pin names items, and no categories."""
        if self.kind == "pin" and (self.categories or not self.items):
            raise ValueError("a pin needs items, and takes no categories")
        return self


class Version(Strict):
    """A version of the catalogue."""

    name: str
    is_active: bool
    comment: str


class Versions(Strict):
    """All versions, oldest first."""

    versions: list[Version]


class Model(Strict):
    """An export that may answer."""

    name: str = Field(description="The name of its folder.")
    model: str = Field(description="Fingerprint of its training.")
    items: int = Field(description="At the time of the export.")
    is_active: bool


class Models(Strict):
    """The exports that may answer."""

    models: list[Model]


class Prefix(Strict):
    """A SID prefix of the catalogue."""

    codes: list[int]
    items: int
    label: str = Field(description="The category of most of its items, or a title.")


class Tree(Strict):
    """The prefixes of the first levels that are small enough to draw."""

    version: str
    model: str
    depth: int = Field(description="Codes that beam search generates.")
    items: int
    prefixes: list[Prefix]


class NewItems(Strict):
    """Items for a new version of the catalogue: columns as in the training."""

    items: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=10_000)]
    comment: Annotated[Text, Field(max_length=200)] = ""


class Clock(Strict):
    """The time of the service."""

    now: float = Field(description="Unix seconds; of the log, where one is replayed.")
    speed: float = Field(description="Seconds of the log in a second; 1 without a replay.")
    is_replay: bool
    is_over: bool = Field(description="The replayed log has ended.")


class Error(Strict):
    """An error, for every status from 400."""

    error: str
    where: str = ""
