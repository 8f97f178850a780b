"""A client of the service, in one file: it needs the standard library only.

    from sigma_jax.serving.client import Client

    client = Client("http://127.0.0.1:8000", key="...")
    client.add_events([{"user_id": "ann", "item_id": "1029743", "event_id": "order-17-1"}])
    for item in client.recommendations("ann", count=5)["items"]:
        print(item["item_id"], item["title"])

A call that may be repeated without harm is repeated after a lost connection and after the statuses
429 and 503, with growing pauses. Other calls are not: a new version of the catalogue would be made
twice. Every failure is a ServiceError.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

__all__ = ["Answer", "Client", "Event", "Item", "Job", "ServiceError", "Version"]

Seen = Literal["show", "hide", "own"]
REPEATED = (429, 503)  # statuses of calls that may succeed later
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds
POLL_SECONDS = 0.5  # between two looks at a job


class Event(TypedDict):
    """Something that a user did with an item."""

    user_id: str
    item_id: str
    timestamp: NotRequired[int]  # unix seconds; without it the event is of now
    event: NotRequired[str]  # its kind, such as view or purchase
    event_id: NotRequired[str]  # a repeated event with the same id is stored once
    session_id: NotRequired[str]


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
    num_beams: int | None  # of an answer that was computed; fewer under load
    items: list[Item]
    beams: list[dict[str, Any]]  # with explain: all beams, best first


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
        timeout: seconds until a call is given up.
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
        """The answer to an instruction, computed now.

        Args:
          fields: count, categories, exclude, seen, explain, is_shown, deadline_ms.
        """
        body = {"user_id": user_id, "instruction": instruction, **fields}
        found: Answer = self._call("POST", "/v1/recommendations", body=body, may_repeat=True)
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
        """The answers of a job, when it is done. ServiceError if it fails or takes too long."""
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
        return self._lines("/v1/users/bulk", rows, True)

    def delete_user(self, user_id: str) -> None:
        """Deletes a user with all events, lists and exposures."""
        self._call("DELETE", f"/v1/users/{quoted(user_id)}")

    def add_events(self, events: Sequence[Event]) -> int:
        """Stores events, at most 10,000. Returns how many were new.

        The call is repeated only if each event has an event_id.
        """
        body = {"events": list(events)}
        stored: int = self._call("POST", "/v1/events", body=body, may_repeat=have_ids(events))[
            "stored"
        ]
        return stored

    def add_many_events(self, events: Iterable[Event]) -> int:
        """Stores at most 10,000 events as JSON lines. Returns how many were new."""
        rows = list(events)
        return self._lines("/v1/events/bulk", rows, have_ids(rows))

    def events(self, user_id: str, count: int = 100) -> list[dict[str, Any]]:
        """The newest events of a user, oldest first."""
        path = f"/v1/users/{quoted(user_id)}/events"
        found: list[dict[str, Any]] = self._get(path, {"count": count})["events"]
        return found

    # Items, rules, catalogue.

    def item_state(self, item_id: str) -> dict[str, Any]:
        """Whether an item is shown: hidden, stock, expires."""
        found: dict[str, Any] = self._get(f"/v1/items/{quoted(item_id)}/state")
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
        found: Version = self._call("POST", "/v1/catalogue/items", body=body)
        return found

    def delete_item(self, item_id: str) -> Version:
        """Removes an item in a new version of the catalogue."""
        found: Version = self._call("DELETE", f"/v1/catalogue/items/{quoted(item_id)}")
        return found

    def activate(self, version: str) -> Version:
        """Makes a version of the catalogue the active one."""
        path = f"/v1/catalogue/versions/{quoted(version)}/activate"
        found: Version = self._call("POST", path, may_repeat=True)
        return found

    def roll_back(self) -> Version:
        """Makes the version active that was active before."""
        found: Version = self._call("POST", "/v1/catalogue/rollback")
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
        found: dict[str, Any] = self._call("POST", path, may_repeat=True)
        return found

    def roll_back_model(self) -> dict[str, Any]:
        """Makes the export active that was active before."""
        found: dict[str, Any] = self._call("POST", "/v1/models/rollback")
        return found

    def preview(self, version: str = "", export: str = "", **fields: Any) -> Answer:
        """The answer of another version of the catalogue, or of another export.

        Args:
          fields: of a request, as for `ask`.
        """
        body = {"version": version, "export": export, **fields}
        found: Answer = self._call("POST", "/v1/preview", body=body, may_repeat=True)
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

    def is_ready(self) -> bool:
        """Whether requests should be sent to it."""
        return self._succeeds("/readyz")

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

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return self._call("GET", path, query, may_repeat=True)

    def _put(self, path: str, body: Any) -> Any:
        return self._call("PUT", path, body=body, may_repeat=True)

    def _lines(self, path: str, rows: Iterable[Mapping[str, Any]], may_repeat: bool) -> int:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not text:
            return 0
        found: int = self._call("POST", path, text=text, may_repeat=may_repeat)["stored"]
        return found

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
    ) -> Any:
        """The JSON of an answer, or its text. Repeats the call where that is harmless."""
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
                status, headers, found = self._send(method, self._path + path, content)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if is_last:
                    raise ServiceError(
                        0, f"{self._host}: {error or type(error).__name__}"
                    ) from error
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
        self, method: str, path: str, content: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one try."""
        connection = getattr(self._threads, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
            connection = kind(self._host, self._port, timeout=self._timeout)
            self._threads.connection = connection
        headers = dict(self._headers)
        if content is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, content and content.encode(), headers)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read()


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
    return json.loads(text) if "json" in headers.get("content-type", "") else text


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
