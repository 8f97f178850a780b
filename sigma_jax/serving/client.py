"""A client of the service, in one file: it needs the standard library only.

    from sigma_jax.serving.client import Client

    client = Client("http://127.0.0.1:8000", key="...")
    client.add_events([{"user_id": "ann", "item_id": "1029743", "event_id": "order-17-1"}])
    for item in client.recommendations("ann", count=5)["items"]:
        print(item["item_id"], item["title"])

A call that may be repeated without harm is repeated after a lost connection and after the statuses
429 and 503, with growing pauses. Other calls are not: a new version of the catalogue would be made
twice. Calls that compute for long have longer timeouts, and are not repeated after one. Every
failure is a ServiceError.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

__all__ = [
    "Answer",
    "CatalogueItem",
    "Category",
    "Client",
    "Event",
    "Item",
    "ItemDetails",
    "Job",
    "ServiceError",
    "State",
    "StateRow",
    "StoredEvents",
    "StoredStates",
    "Version",
]

Seen = Literal["show", "hide", "own"]
REPEATED = (429, 503)  # statuses of calls that may succeed later
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds
POLL_SECONDS = 0.5  # between two looks at a job
DEADLINE_MS = 2_000  # of `ask`, as the service has it
BEYOND_DEADLINE = 5.0  # seconds that an answer may take beyond its deadline
LONG_SECONDS = 600.0  # timeout of changes of the catalogue and the model, and of previews
JSON_LINES = "application/x-ndjson"


class Event(TypedDict):
    """Something that a user did with an item."""

    user_id: str
    item_id: str
    timestamp: NotRequired[int]  # unix seconds; without it the event is of now
    event: NotRequired[str]  # its kind, such as view or purchase
    event_id: NotRequired[str]  # a repeated event with the same id is stored once
    session_id: NotRequired[str]


class StoredEvents(TypedDict):
    """How many events were new, and how many are of items that the catalogue does not have."""

    stored: int
    unknown_items: int


class StoredStates(TypedDict):
    """How many states were stored; those of unknown items are not."""

    stored: int
    unknown_items: int


class State(TypedDict):
    """The state of an item."""

    hidden: bool
    stock: int | None  # 0: out of stock
    expires: float | None  # unix seconds


class StateRow(TypedDict):
    """The state of an item, as one of many."""

    item_id: str
    hidden: NotRequired[bool]
    stock: NotRequired[int | None]
    expires: NotRequired[float | None]


class CatalogueItem(TypedDict):
    """An item of the catalogue."""

    item_id: str
    title: str
    category: str
    is_active: bool  # False: it was removed


class ItemDetails(CatalogueItem):
    """An item of the catalogue, and its state."""

    state: State
    is_shown: bool


class Category(TypedDict):
    """A category of the catalogue."""

    name: str
    items: int


class Item(TypedDict):
    """A recommended item."""

    item_id: str
    title: str
    probability: float | None  # that the user takes it; None: not estimated
    reasons: list[str]
    details: dict[str, Any]
    explanation: dict[str, Any] | None  # with explain: the steps to the probability


class Answer(TypedDict):
    """A list of items."""

    user_id: str
    instruction: str
    source: str  # index, computed, popular, similar or trending
    version: str  # of the catalogue
    model: str  # fingerprint of the model that made the list
    age_seconds: float  # since the list was computed
    arms: dict[str, str]  # experiment -> arm whose settings made the list
    is_late: bool  # the index answered, since the deadline passed or too many requests waited
    num_beams: int | None  # of an answer that was computed; fewer under load
    items: list[Item]
    beams: list[dict[str, Any]]  # with explain: all beams, best first
    error: str  # of a request of a job that could not be answered; else empty


class Job(TypedDict):
    """A batch of requests and, when it is done, the answers."""

    job_id: str
    state: str  # waiting, running, done or failed
    answers: list[Answer]
    error: str


class Version(TypedDict):
    """A version of the catalogue."""

    name: str
    is_active: bool
    comment: str


class ServiceError(Exception):
    """A call that failed."""

    def __init__(self, status: int, message: str, where: str = ""):
        """Args:
        status: of HTTP; 0 for a service that cannot be reached.
        where: the part of the request that is wrong, such as body.count.
        """
        self.status, self.message, self.where = status, message, where
        place = f" ({where})" if where else ""
        super().__init__(f"{status or 'no answer'}: {message}{place}")


class Client:
    """Calls a service. Threads may share it: each has a connection of its own, which stays open.

    Every method raises ServiceError.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        key: str = "",
        timeout: float = 10.0,
        retries: int = 4,
    ):
        """Args:
        address: of the service; a path before /v1 is kept.
        key: of --new_key; "" for a service without keys.
        timeout: seconds until a call is given up. Calls that compute for long have more.
        retries: how often a call that may be repeated is repeated.
        """
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"address={address!r}; use http://HOST:PORT or https://HOST.")
        self._is_secure, self._host = parts.scheme == "https", parts.hostname
        self._port, self._path = parts.port, parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout, self._retries = timeout, retries
        self._threads = threading.local()

    # Recommendations.

    def recommendations(
        self,
        user_id: str,
        task: str = "home",
        count: int = 10,
        categories: Sequence[str] = (),
        exclude: Sequence[str] = (),
        seen: Seen = "show",
        explain: bool = False,
        is_shown: bool = True,
    ) -> Answer:
        """A user's list from the index. Users without one get the most popular items.

        Args:
          task: the name of the list.
          is_shown: False if the user does not see the answer, so that no experiment counts it.
        """
        query = {
            "task": task,
            "count": count,
            "categories": categories,
            "exclude": exclude,
            "seen": seen,
            "explain": explain,
            "is_shown": is_shown,
        }
        found: Answer = self._get(f"/v1/users/{quoted(user_id)}/recommendations", query)
        return found

    def ask(self, user_id: str = "", instruction: str = "", **fields: Any) -> Answer:
        """The answer to an instruction, computed now; the call waits beyond its deadline_ms.

        Args:
          fields: count, categories, exclude, seen, explain, is_shown, deadline_ms.
        """
        body = {"user_id": user_id, "instruction": instruction, **fields}
        seconds = fields.get("deadline_ms", DEADLINE_MS) / 1000 + BEYOND_DEADLINE
        found: Answer = self._call(
            "POST", "/v1/recommendations", body=body, may_repeat=True, seconds=seconds
        )
        return found

    def similar(
        self,
        item_id: str,
        count: int = 10,
        categories: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> Answer:
        """The items that are most like one."""
        query = {"count": count, "categories": categories, "exclude": exclude}
        found: Answer = self._get(f"/v1/items/{quoted(item_id)}/similar", query)
        return found

    def popular(
        self, count: int = 10, categories: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> Answer:
        """The most popular items of the training."""
        query = {"count": count, "categories": categories, "exclude": exclude}
        found: Answer = self._get("/v1/popular", query)
        return found

    def trending(
        self,
        half_life_hours: float = 24.0,
        count: int = 10,
        categories: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> Answer:
        """The items with most events lately. An event weighs half after each half-life."""
        query = {"count": count, "categories": categories, "exclude": exclude}
        found: Answer = self._get("/v1/trending", {**query, "half_life_hours": half_life_hours})
        return found

    def submit(self, requests: Sequence[Mapping[str, Any]]) -> Job:
        """Sends requests that need no answer now: fields as of `ask`, with user_id and instruction.

        It is not repeated: the requests would be computed twice.
        """
        found: Job = self._call("POST", "/v1/jobs", body={"requests": list(requests)})
        return found

    def job(self, job_id: str) -> Job:
        """The state of a job, and its answers when it is done."""
        found: Job = self._get(f"/v1/jobs/{quoted(job_id)}")
        return found

    def wait(self, job_id: str, seconds: float = 600.0) -> list[Answer]:
        """The answers of a job, when it is done; those with an `error` have no items.

        ServiceError if it fails or takes too long.
        """
        until = time.monotonic() + seconds
        while True:
            job = self.job(job_id)
            if job["state"] == "done":
                return job["answers"]
            if job["state"] == "failed":
                raise ServiceError(500, f"the job failed: {job['error']}")
            if time.monotonic() > until:
                raise ServiceError(0, f"the job is {job['state']} after {seconds:g} seconds")
            time.sleep(POLL_SECONDS)

    # Users and events.

    def users(self, after: str = "", count: int = 100) -> list[str]:
        """At most `count` user ids behind `after`, ascending."""
        found: list[str] = self._get("/v1/users", {"after": after, "count": count})["user_ids"]
        return found

    def user(self, user_id: str) -> dict[str, Any]:
        """The profile of a user."""
        found: dict[str, Any] = self._get(f"/v1/users/{quoted(user_id)}")["profile"]
        return found

    def put_user(self, user_id: str, profile: Mapping[str, Any]) -> None:
        """Creates a user, or replaces the profile."""
        self._put(f"/v1/users/{quoted(user_id)}", {"profile": dict(profile)})

    def put_users(self, profiles: Mapping[str, Mapping[str, Any]]) -> int:
        """Creates users or replaces profiles, at most 10,000: user id -> profile."""
        rows = [{"user_id": user, "profile": dict(one)} for user, one in profiles.items()]
        return self._lines("POST", "/v1/users/bulk", rows, True)["stored"] if rows else 0

    def delete_user(self, user_id: str) -> None:
        """Deletes a user with all events, lists and exposures."""
        self._call("DELETE", f"/v1/users/{quoted(user_id)}")

    def add_events(self, events: Sequence[Event]) -> StoredEvents:
        """Stores events, at most 10,000. Returns how many were new, and of unknown items.

        The call is repeated only if each event has an event_id.
        """
        body = {"events": list(events)}
        found: StoredEvents = self._call(
            "POST", "/v1/events", body=body, may_repeat=have_ids(events)
        )
        return found

    def add_many_events(self, events: Iterable[Event]) -> StoredEvents:
        """Stores at most 10,000 events as JSON lines; otherwise as `add_events`."""
        rows = list(events)
        if not rows:
            return {"stored": 0, "unknown_items": 0}
        found: StoredEvents = self._lines("POST", "/v1/events/bulk", rows, have_ids(rows))
        return found

    def stored_events(self, after: str = "", since: int = 0) -> Iterator[Event]:
        """All stored events, user by user in the order of ids, each user's oldest first.

        Args:
          after: a user id; events of later users come.
          since: unix seconds of the first events.
        """
        query = urllib.parse.urlencode({"after": after, "since": since})
        connection = self._connection(LONG_SECONDS)
        try:
            answer = self._begin(connection, "GET", f"{self._path}/v1/events?{query}")
            if answer.status >= 400:
                raise error_of(answer.status, answer.read())
            for line in answer:
                yield json.loads(line)
        except (OSError, http.client.HTTPException) as error:
            raise self._unanswered(error) from error
        finally:
            connection.close()

    def delete_events(self, user_id: str, event_id: str = "") -> int:
        """Deletes all events of a user, or the one with an id. Returns how many there were."""
        path = f"/v1/users/{quoted(user_id)}/events"
        if event_id:
            path += f"/{quoted(event_id)}"
        deleted: int = self._call("DELETE", path)["deleted"]
        return deleted

    def events(self, user_id: str, count: int = 100) -> list[dict[str, Any]]:
        """The newest events of a user, oldest first."""
        path = f"/v1/users/{quoted(user_id)}/events"
        found: list[dict[str, Any]] = self._get(path, {"count": count})["events"]
        return found

    # Items, rules, catalogue.

    def items(self, after: str = "", count: int = 100) -> list[CatalogueItem]:
        """At most `count` items of the catalogue behind the item `after`, removed ones too."""
        found: list[CatalogueItem] = self._get("/v1/items", {"after": after, "count": count})[
            "items"
        ]
        return found

    def item(self, item_id: str) -> ItemDetails:
        """An item of the catalogue, and its state."""
        found: ItemDetails = self._get(f"/v1/items/{quoted(item_id)}")
        return found

    def categories(self) -> list[Category]:
        """All categories with their numbers of items, those with most items first."""
        found: list[Category] = self._get("/v1/categories")["categories"]
        return found

    def item_states(self) -> dict[str, State]:
        """The states of all items that have one."""
        found: dict[str, State] = self._get("/v1/items/states")
        return found

    def put_item_states(self, states: Iterable[StateRow]) -> StoredStates:
        """Replaces at most 10,000 states; those of unknown items are not stored."""
        rows = list(states)
        if not rows:
            return {"stored": 0, "unknown_items": 0}
        found: StoredStates = self._lines("PUT", "/v1/items/states", rows, True)
        return found

    def item_state(self, item_id: str) -> State:
        """Whether an item is shown: hidden, stock, expires."""
        found: State = self._get(f"/v1/items/{quoted(item_id)}/state")
        return found

    def put_item_state(
        self,
        item_id: str,
        hidden: bool = False,
        stock: int | None = None,
        expires: float | None = None,
    ) -> None:
        """Hides an item, or sets its stock or the time of its end, in unix seconds."""
        state = {"hidden": hidden, "stock": stock, "expires": expires}
        self._put(f"/v1/items/{quoted(item_id)}/state", state)

    def rules(self) -> dict[str, dict[str, Any]]:
        """All rules by name."""
        found: dict[str, dict[str, Any]] = self._get("/v1/rules")
        return found

    def put_rule(self, name: str, kind: str, **fields: Any) -> None:
        """Creates or replaces a rule.

        Args:
          kind: pin, boost, bury or at_most.
          fields: items, categories, place, factor, count.
        """
        self._put(f"/v1/rules/{quoted(name)}", {"kind": kind, **fields})

    def delete_rule(self, name: str) -> None:
        """Deletes a rule."""
        self._call("DELETE", f"/v1/rules/{quoted(name)}")

    def versions(self) -> list[Version]:
        """The versions of the catalogue, oldest first."""
        found: list[Version] = self._get("/v1/catalogue")["versions"]
        return found

    def add_items(self, items: Sequence[Mapping[str, Any]], comment: str = "") -> Version:
        """Adds items as a new version of the catalogue, which is active at once."""
        body = {"items": [dict(item) for item in items], "comment": comment}
        found: Version = self._call("POST", "/v1/catalogue/items", body=body, seconds=LONG_SECONDS)
        return found

    def delete_item(self, item_id: str) -> Version:
        """Removes an item in a new version of the catalogue."""
        path = f"/v1/catalogue/items/{quoted(item_id)}"
        found: Version = self._call("DELETE", path, seconds=LONG_SECONDS)
        return found

    def restore_item(self, item_id: str) -> Version:
        """Puts a removed item back in a new version of the catalogue."""
        path = f"/v1/catalogue/items/{quoted(item_id)}/restore"
        found: Version = self._call("POST", path, seconds=LONG_SECONDS)
        return found

    def activate(self, version: str) -> Version:
        """Makes a version of the catalogue the active one."""
        path = f"/v1/catalogue/versions/{quoted(version)}/activate"
        found: Version = self._call("POST", path, may_repeat=True, seconds=LONG_SECONDS)
        return found

    def roll_back(self) -> Version:
        """Makes the version active that was active before."""
        found: Version = self._call("POST", "/v1/catalogue/rollback", seconds=LONG_SECONDS)
        return found

    def tree(self) -> dict[str, Any]:
        """The SID prefixes of the active version, as far as a page can draw them."""
        found: dict[str, Any] = self._get("/v1/catalogue/tree")
        return found

    # Models.

    def tasks(self) -> dict[str, str]:
        """The kinds of instructions that the model knows, with an example each."""
        return {one["name"]: one["instruction"] for one in self._get("/v1/tasks")["tasks"]}

    def models(self) -> list[dict[str, Any]]:
        """The exports that may answer."""
        found: list[dict[str, Any]] = self._get("/v1/models")["models"]
        return found

    def activate_model(self, name: str) -> dict[str, Any]:
        """Makes an export the active one; it is loaded beside the old one before."""
        path = f"/v1/models/{quoted(name)}/activate"
        found: dict[str, Any] = self._call("POST", path, may_repeat=True, seconds=LONG_SECONDS)
        return found

    def roll_back_model(self) -> dict[str, Any]:
        """Makes the export active that was active before."""
        found: dict[str, Any] = self._call("POST", "/v1/models/rollback", seconds=LONG_SECONDS)
        return found

    def preview(self, version: str = "", export: str = "", **fields: Any) -> Answer:
        """The answer of another version of the catalogue, or of another export.

        Args:
          fields: of a request, as for `ask`.
        """
        body = {"version": version, "export": export, **fields}
        found: Answer = self._call(
            "POST", "/v1/preview", body=body, may_repeat=True, seconds=LONG_SECONDS
        )
        return found

    # Experiments.

    def experiments(self) -> dict[str, dict[str, Any]]:
        """All experiments by name."""
        found: dict[str, dict[str, Any]] = self._get("/v1/experiments")
        return found

    def start_experiment(
        self, name: str, arms: Sequence[Mapping[str, Any]], **fields: Any
    ) -> dict[str, Any]:
        """Starts an experiment.

        Args:
          arms: the control first; name, share, and what differs: export, lists, rules, ranking.
          fields: salt, bucket_seconds.
        """
        body = {"arms": [dict(arm) for arm in arms], **fields}
        path = f"/v1/experiments/{quoted(name)}"
        found: dict[str, Any] = self._call("PUT", path, body=body)
        return found

    def stop_experiment(self, name: str) -> dict[str, Any]:
        """Ends an experiment. Its exposures stay."""
        path = f"/v1/experiments/{quoted(name)}/stop"
        found: dict[str, Any] = self._call("POST", path, may_repeat=True)
        return found

    def delete_experiment(self, name: str) -> None:
        """Deletes an experiment that was stopped, and its exposures."""
        self._call("DELETE", f"/v1/experiments/{quoted(name)}")

    def experiment_report(
        self, name: str, window_hours: float = 24.0, kinds: Sequence[str] = (), alpha: float = 0.05
    ) -> dict[str, Any]:
        """Hit rates of the arms and their differences."""
        query = {"window_hours": window_hours, "kinds": kinds, "alpha": alpha}
        found: dict[str, Any] = self._get(f"/v1/experiments/{quoted(name)}/report", query)
        return found

    # Operations.

    def clock(self) -> dict[str, Any]:
        """The time of the service: now, speed, is_replay, is_over."""
        found: dict[str, Any] = self._get("/v1/clock")
        return found

    def is_healthy(self) -> bool:
        """Whether the process answers."""
        return self._succeeds("/healthz")

    def is_ready(self, is_warmed_up: bool = False) -> bool:
        """Whether requests should be sent to it.

        Args:
          is_warmed_up: True: not before programs for all requests are loaded.
        """
        return self._succeeds("/readyz?is_warmed_up=true" if is_warmed_up else "/readyz")

    def metrics(self) -> str:
        """The metrics as Prometheus reads them."""
        found: str = self._get("/metrics")
        return found

    def drain(self) -> None:
        """Lets `is_ready` be False from now on."""
        self._call("POST", "/v1/drain", may_repeat=True)

    def close(self) -> None:
        """Ends the connection of this thread."""
        connection = getattr(self._threads, "connection", None)
        self._threads.connection = None
        if connection is not None:
            connection.close()

    # How calls are made.

    def _get(
        self, path: str, query: Mapping[str, Any] | None = None, seconds: float | None = None
    ) -> Any:
        return self._call("GET", path, query, may_repeat=True, seconds=seconds)

    def _put(self, path: str, body: Any) -> Any:
        return self._call("PUT", path, body=body, may_repeat=True)

    def _lines(
        self, method: str, path: str, rows: Iterable[Mapping[str, Any]], may_repeat: bool
    ) -> Any:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        return self._call(method, path, text=text, may_repeat=may_repeat)

    def _succeeds(self, path: str) -> bool:
        try:
            self._call("GET", path)
        except ServiceError:
            return False
        return True

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        text: str | None = None,
        may_repeat: bool = False,
        seconds: float | None = None,
    ) -> Any:
        """The JSON of an answer, or its text. Repeats the call where that is harmless.

        Args:
          seconds: timeout of a call that computes for long: after it the call is not repeated,
            since the service may still compute. None: that of all calls.
        """
        words = {name: words_of(value) for name, value in (query or {}).items()}
        if words:
            path += "?" + urllib.parse.urlencode(words, doseq=True)
        content = json.dumps(body) if body is not None else text
        if not may_repeat:
            self.close()  # the service may have ended an idle connection: this call has one try
        for number in range(self._retries + 1):
            is_last = number == self._retries or not may_repeat
            pause = min(FIRST_PAUSE * 2**number, LONGEST_PAUSE)
            try:
                status, headers, found = self._send(
                    method,
                    self._path + path,
                    content,
                    JSON_LINES if text is not None else "application/json",
                    max(seconds or 0.0, self._timeout),
                )
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if is_last or (seconds is not None and isinstance(error, TimeoutError)):
                    raise self._unanswered(error) from error
            else:
                if status < 400:
                    return parsed(found, headers)
                if is_last or status not in REPEATED:
                    raise error_of(status, found)
                pause = max(pause, seconds_of(headers.get("retry-after", "")))
            # Callers that failed together do not come back together.
            time.sleep(min(pause, LONGEST_PAUSE) * random.uniform(0.5, 1.0))
        raise AssertionError("the last try returns or raises")

    def _send(
        self, method: str, path: str, content: str | None, media_type: str, seconds: float
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one try."""
        connection = getattr(self._threads, "connection", None)
        if connection is None:
            connection = self._threads.connection = self._connection(seconds)
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        answer = self._begin(connection, method, path, content, media_type)
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read()

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        """A new connection, whose timeout is `seconds`."""
        kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=seconds)

    def _begin(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        content: str | None = None,
        media_type: str = "",
    ) -> http.client.HTTPResponse:
        """The head of an answer; its body can be read."""
        headers = dict(self._headers)
        if content is not None:
            headers["Content-Type"] = media_type
        connection.request(method, path, content and content.encode(), headers)
        return connection.getresponse()

    def _unanswered(self, error: Exception) -> ServiceError:
        """The error of a call that the service did not answer."""
        return ServiceError(0, f"{self._host}: {error or type(error).__name__}")


def quoted(name: str) -> str:
    """A name as a part of a path."""
    return urllib.parse.quote(name, safe="")


def words_of(value: Any) -> Any:
    """A value of a query as text, or a list of texts."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return [str(one) for one in value] if isinstance(value, list | tuple) else str(value)


def have_ids(events: Iterable[Mapping[str, Any]]) -> bool:
    """Whether each event has an id, so that it is stored once however often it is sent."""
    return all(event.get("event_id") for event in events)


def parsed(content: bytes, headers: Mapping[str, str]) -> Any:
    """The JSON of an answer, its text, or None for an empty one."""
    if not content:
        return None
    text = content.decode()
    return json.loads(text) if "/json" in headers.get("content-type", "") else text


def error_of(status: int, content: bytes) -> ServiceError:
    """The error that an answer tells."""
    try:
        fields = json.loads(content)
        return ServiceError(status, str(fields["error"]), str(fields.get("where", "")))
    except (ValueError, KeyError, TypeError):
        return ServiceError(status, content[:200].decode("utf-8", "replace") or "no message")


def seconds_of(text: str) -> float:
    """The seconds of a header Retry-After; 0 for none."""
    return float(text) if text.isdigit() else 0.0
