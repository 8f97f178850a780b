"""A store in Redis or Valkey, for several machines: streams with consumer groups, keys that expire.

The keys of a tenant begin with `sigma:{TENANT}:`. The braces put them into one slot of a cluster,
so that scripts may use several of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sigma_jax.serving.stores.base import (
    COUNT_SECONDS,
    HOUR,
    LEASE_SECONDS,
    MOST_EVENTS,
    Event,
    Exposure,
    ItemState,
    ListsOfUsers,
    Queue,
    StoredList,
    StoreError,
    Work,
    steady_time,
)

ANSWER_SECONDS = 2.0  # a server that does not answer by then is taken for dead
DOWN_SECONDS = 1.0  # after it, calls fail at once for so long; then one call tries again
REMEMBER_SECONDS = 7 * 86_400  # event ids are remembered so long
GROUP = "workers"
USERS_AT_ONCE = 1_000  # whose lists are sent together
ENTRIES_AT_ONCE = 1_000  # of the stream that a script takes out together

# Keys: event id, history, stream, counter, items of the user, entries of each waiting user, counts
# of the hour, users. Values: whether there is an id, seconds, time, user, content, most events,
# now, item, seconds of the counts. Returns the number of the event, or 0 for one that was there.
ADD_EVENT = """
if ARGV[1] == '1' and not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[2]) then return 0 end
local number = redis.call('INCR', KEYS[4])
redis.call('ZADD', KEYS[2], ARGV[3], string.format('%016d', number) .. ARGV[5])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[6])
redis.call('XADD', KEYS[3], '*', 'user', ARGV[4], 'number', number, 'since', ARGV[7])
redis.call('SADD', KEYS[5], ARGV[8])
redis.call('HINCRBY', KEYS[6], ARGV[4], 1)
redis.call('HINCRBY', KEYS[7], ARGV[8], 1)
redis.call('EXPIRE', KEYS[7], ARGV[9])
redis.call('ZADD', KEYS[8], 0, ARGV[4])
return number
"""
# Keys: stream, entries of each waiting user. Values: group, user, entries of the stream.
DONE = """
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3))
local gone = redis.call('XDEL', KEYS[1], unpack(ARGV, 3))
if redis.call('HINCRBY', KEYS[2], ARGV[2], -gone) <= 0 then
    redis.call('HDEL', KEYS[2], ARGV[2])
end
return gone
"""
# Keys: list. Values: newest, content, seconds. An older list does not replace a newer one.
PUT_LIST = """
local old = redis.call('GET', KEYS[1])
if old and tonumber(string.sub(old, 1, 16)) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], string.format('%016d', ARGV[1]) .. ARGV[2], 'PX', ARGV[3])
return 1
"""
NUMBER = 16  # digits before a content
IN_CONTENT = ("item_id", "time", "kind", "event_id", "session_id")  # fields of an event


class RedisStore:
    """All tenants of one server."""

    def __init__(self, url: str):
        """Connects to `redis://HOST:PORT/NUMBER`. StoreError if the server does not answer."""
        self.client: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            # A command without an answer may have been done: the caller decides what to repeat.
            retry=Retry(NoBackoff(), 0),
        )
        self._down_until = 0.0  # by time.monotonic()
        self.add_event = self.client.register_script(ADD_EVENT)
        self.put_list = self.client.register_script(PUT_LIST)
        self.done = self.client.register_script(DONE)
        with self.asking():
            self.client.ping()

    def tenant(self, name: str) -> RedisTenant:
        """The rows of one tenant."""
        return RedisTenant(self, name)

    def check(self) -> str:
        """Reads a row, and writes one. Returns why none can be written; "" if one can.

        StoreError if none can be read.
        """
        tenant = self.tenant("\0check")
        tenant.document("check", "time")
        try:
            tenant.put_document("check", "time", steady_time(), 60)
        except StoreError as error:
            return str(error)
        return ""

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """A context of commands whose errors become StoreError.

        After a server gave no answer in time, calls fail at once for DOWN_SECONDS. Otherwise all
        threads of a service would wait for a server that hangs.
        """
        now = time.monotonic()
        if now < self._down_until:
            raise StoreError(f"redis: no answer within {ANSWER_SECONDS:g} s a moment ago")
        if self._down_until:  # this call tries; others fail until it knows more
            self._down_until = now + ANSWER_SECONDS + DOWN_SECONDS
        try:
            yield
            self._down_until = 0.0
        except redis.TimeoutError as error:
            self._down_until = time.monotonic() + DOWN_SECONDS
            raise StoreError(f"redis: {error or 'no answer in time'}") from error
        except redis.RedisError as error:  # it answers, or refuses at once
            self._down_until = 0.0
            raise StoreError(f"redis: {error or type(error).__name__}") from error

    def close(self) -> None:
        """Ends all connections."""
        self.client.close()


@dataclasses.dataclass(frozen=True)
class RedisTenant:
    """The rows of one tenant; TenantStore has the functions."""

    store: RedisStore
    name: str

    def put_users(self, profiles: Mapping[str, Mapping[str, Any]]) -> None:
        """Creates users, or replaces their profiles."""
        with self._pipeline() as pipe:
            for user, profile in profiles.items():
                pipe.set(self._key("user", user), _json(profile))
                pipe.zadd(self._key("users"), {user: 0})

    def user(self, user_id: str) -> dict[str, Any] | None:
        """The profile of a user; None for an unknown one."""
        with self.store.asking():
            text = self.store.client.get(self._key("user", user_id))
        return None if text is None else json.loads(text)

    def users(self, after: str, count: int) -> list[str]:
        """At most `count` ids of users with a profile or events, behind `after`, ascending."""
        first = f"({after}" if after else "-"
        with self.store.asking():
            return list(self.store.client.zrangebylex(self._key("users"), first, "+", 0, count))

    def delete_user(self, user_id: str) -> bool:
        """Deletes a user with events, lists and exposures; whether there was one."""
        names, shown = self._key("names", user_id), self._key("shown", user_id)
        events, _ = self.events(user_id, MOST_EVENTS)
        with self.store.asking():
            for experiment in self.store.client.smembers(shown):
                self.store.client.delete(self._key("exposures", experiment, user_id))
                self.store.client.zrem(self._key("exposed", experiment), user_id)
            lists = self.store.client.smembers(names)
            keys = [self._key("list", user_id, name) for name in lists]
            kinds = ("user", "events", "items")
            keys += [names, shown, *(self._key(kind, user_id) for kind in kinds)]
            # The same events may be stored again.
            keys += [self._key("event", event.event_id) for event in events if event.event_id]
            self.store.client.zrem(self._key("users"), user_id)
            return bool(self.store.client.delete(*keys))

    def add_events(self, events: Sequence[Event]) -> int:
        """Stores events and puts their users into the queue. Returns how many were new."""
        now = steady_time()
        with self.store.asking(), self.store.client.pipeline() as pipe:
            for event in events:
                self._add(event, now, pipe)
            return sum(number > 0 for number in pipe.execute())

    def _add(self, event: Event, now: float, pipe: Any) -> None:
        """Adds ADD_EVENT for one event to a pipeline."""
        content = {name: getattr(event, name) for name in IN_CONTENT}
        hour = str(event.time // HOUR)
        keys: list[tuple[str, ...]] = [("event", event.event_id), ("events", event.user_id)]
        keys += [("stream",), ("number",), ("items", event.user_id), ("waiting",)]
        keys += [("counts", hour), ("users",)]
        values: list[Any] = [
            int(bool(event.event_id)),
            REMEMBER_SECONDS,
            event.time,
            event.user_id,
            _json(content),
            MOST_EVENTS,
            repr(now),
            event.item_id,
            int(COUNT_SECONDS),
        ]
        self.store.add_event([self._key(*parts) for parts in keys], values, pipe)

    def events(self, user_id: str, count: int) -> tuple[list[Event], int]:
        """(the newest `count` events by time, oldest first; the number of the newest one or 0)."""
        with self.store.asking():
            texts = self.store.client.zrange(self._key("events", user_id), -count, -1)
        found = [Event(user_id, **json.loads(text[NUMBER:])) for text in texts]
        return found, max((int(text[:NUMBER]) for text in texts), default=0)

    def seen_items(self, user_id: str) -> set[str]:
        """The ids of all items of a user's events, however old."""
        with self.store.asking():
            return set(self.store.client.smembers(self._key("items", user_id)))

    def event_counts(self, first: int, last: int) -> dict[int, dict[str, int]]:
        """Hour -> item id -> number of events, for the hours from `first` to `last`."""
        hours = range(first, last + 1)
        with self.store.asking(), self.store.client.pipeline(transaction=False) as pipe:
            for hour in hours:
                pipe.hgetall(self._key("counts", str(hour)))
            found = zip(hours, pipe.execute(), strict=True)
        return {
            hour: {item: int(count) for item, count in counts.items()}
            for hour, counts in found
            if counts
        }

    def delete_events(self, user_id: str, event_id: str = "") -> int:
        """Deletes the events of a user, or the one with an id. Returns how many there were."""
        history, items = self._key("events", user_id), self._key("items", user_id)
        names, client = self._key("names", user_id), self.store.client
        with self.store.asking():
            rows = [(text, json.loads(text[NUMBER:])) for text in client.zrange(history, 0, -1)]
            gone = [(text, row) for text, row in rows if event_id in ("", row["event_id"])]
            if not gone:
                return 0
            left = {row["item_id"] for text, row in rows if event_id not in ("", row["event_id"])}
            seen = {row["item_id"] for _, row in gone} if event_id else client.smembers(items)
            lists = [self._key("list", user_id, name) for name in client.smembers(names)]
            number = client.incr(self._key("number"))
        ids = [self._key("event", row["event_id"]) for _, row in gone if row["event_id"]]
        with self._pipeline() as pipe:
            pipe.zrem(history, *(text for text, _ in gone))
            pipe.delete(names, *lists, *ids)
            if seen - left:
                pipe.srem(items, *(seen - left))
            self._wait(user_id, number, pipe)
        with self.store.asking():
            if not client.exists(history, self._key("user", user_id)):
                client.zrem(self._key("users"), user_id)
        return len(gone)

    def ask_again(self, user_ids: Sequence[str]) -> None:
        """Puts users into the queue without an event."""
        with self._pipeline() as pipe:
            for user in user_ids:
                self._wait(user, 0, pipe)

    def _wait(self, user_id: str, number: int, pipe: Any) -> None:
        """Adds the commands that put a user into the queue to a pipeline."""
        fields = {"user": user_id, "number": number, "since": repr(steady_time())}
        pipe.xadd(self._key("stream"), fields)
        pipe.hincrby(self._key("waiting"), user_id, 1)

    def take(self, worker: str, count: int, lease: float = LEASE_SECONDS) -> list[Work]:
        """At most `count` users from the queue, those who wait longest first."""
        stream, client = self._key("stream"), self.store.client
        with self.store.asking():
            self._make_group()
            claimed = client.xautoclaim(stream, GROUP, worker, int(lease * 1000), count=count)
            entries = [(entry, fields) for entry, fields in claimed[1] if fields]
            of_user: dict[str, list[tuple[str, dict[str, str]]]] = {}
            while True:
                for entry in entries:
                    of_user.setdefault(entry[1]["user"], []).append(entry)
                if len(of_user) >= count:
                    break
                read = client.xreadgroup(GROUP, worker, {stream: ">"}, count - len(of_user))
                entries = [entry for _, found in read or [] for entry in found]
                if not entries:
                    break
        return [
            Work(
                user,
                max(int(fields["number"]) for _, fields in found),
                min(float(fields["since"]) for _, fields in found),
                " ".join(entry for entry, _ in found),
            )
            for user, found in of_user.items()
        ]

    def done(self, works: Sequence[Work]) -> None:
        """Takes users out of the queue, except those with events since they were taken."""
        keys = [self._key("stream"), self._key("waiting")]
        with self._pipeline() as pipe:
            for work in works:
                entries = work.receipt.split()
                for start in range(0, len(entries), ENTRIES_AT_ONCE):
                    some = entries[start : start + ENTRIES_AT_ONCE]
                    self.store.done(keys, [GROUP, work.user_id, *some], pipe)

    def queue(self) -> Queue:
        """How many users wait, those who are taken included."""
        with self.store.asking(), self.store.client.pipeline() as pipe:
            pipe.hlen(self._key("waiting"))
            pipe.xrange(self._key("stream"), count=1)
            size, first = pipe.execute()
        return Queue(size, float(first[0][1]["since"]) if first else None)

    def put_lists(self, lists: ListsOfUsers, keep_seconds: float) -> None:
        """Stores lists by user and name; they vanish after `keep_seconds`."""
        users = list(lists)
        for start in range(0, len(users), USERS_AT_ONCE):
            with self._pipeline() as pipe:
                for user in users[start : start + USERS_AT_ONCE]:
                    self._put_lists(user, lists[user], keep_seconds, pipe)

    def _put_lists(
        self, user_id: str, lists: Mapping[str, StoredList], keep_seconds: float, pipe: Any
    ) -> None:
        """Adds the commands for one user to a pipeline."""
        for name, one in lists.items():
            values: list[Any] = [one.newest, one.to_json(), int(keep_seconds * 1000)]
            self.store.put_list([self._key("list", user_id, name)], values, pipe)
        pipe.sadd(self._key("names", user_id), *lists)
        pipe.expire(self._key("names", user_id), int(keep_seconds) + 1)
        pipe.pfadd(self._key("listed"), user_id)

    def list_of(self, user_id: str, name: str) -> StoredList | None:
        """A list; None if there is none."""
        return self.lists_of([(user_id, name)])[0]

    def lists_of(self, wanted: Sequence[tuple[str, str]]) -> list[StoredList | None]:
        """The lists of some (user id, name), read together; None where there is none."""
        if not wanted:
            return []
        with self.store.asking():
            texts = self.store.client.mget([self._key("list", *one) for one in wanted])
        return [None if text is None else StoredList.from_json(text[NUMBER:]) for text in texts]

    def listed(self, cursor: str, count: int) -> tuple[list[str], str]:
        """(about `count` users with lists, the cursor of the next ones; "" behind the last)."""
        start = self._key("names", "")[: -len("0.")]
        pattern = start.translate({ord(sign): f"\\{sign}" for sign in "\\*?[]"}) + "*"
        with self.store.asking():
            following, keys = self.store.client.scan(int(cursor or 0), pattern, count)
        users = [key[len(start) :].partition(".")[2] for key in keys]
        return users, str(following) if int(following) else ""

    def count_lists(self) -> int:
        """The number of users who ever had lists, within a per cent."""
        with self.store.asking():
            return int(self.store.client.pfcount(self._key("listed")))

    def add_exposures(self, exposures: Sequence[Exposure]) -> None:
        """Stores exposures. The first one of an experiment, user, list and bucket stays."""
        with self._pipeline() as pipe:
            for one in exposures:
                field = _json([one.list_name, one.bucket])
                key = self._key("exposures", one.experiment, one.user_id)
                pipe.hsetnx(key, field, one.to_json())
                pipe.zadd(self._key("exposed", one.experiment), {one.user_id: 0})
                pipe.sadd(self._key("shown", one.user_id), one.experiment)

    def exposures(self, experiment: str, after: str, count: int) -> list[Exposure]:
        """All exposures of the next `count` users behind `after`, in the order of user ids."""
        first = f"({after}" if after else "-"
        key = self._key("exposed", experiment)
        with self.store.asking(), self.store.client.pipeline(transaction=False) as pipe:
            users = self.store.client.zrangebylex(key, first, "+", 0, count)
            for user in users:
                pipe.hgetall(self._key("exposures", experiment, user))
            found = zip(users, pipe.execute(), strict=True)
        return [
            Exposure.from_json(experiment, user, name, bucket, text)
            for user, contents in found
            for field, text in contents.items()
            for name, bucket in [json.loads(field)]
        ]

    def delete_exposures(self, experiment: str) -> None:
        """Deletes all exposures of an experiment."""
        exposed = self._key("exposed", experiment)
        with self.store.asking():
            while users := self.store.client.zrange(exposed, 0, USERS_AT_ONCE - 1):
                with self._pipeline() as pipe:
                    for user in users:
                        pipe.delete(self._key("exposures", experiment, user))
                        pipe.srem(self._key("shown", user), experiment)
                    pipe.zrem(exposed, *users)

    def put_states(self, states: Mapping[str, ItemState]) -> None:
        """Replaces the states of some items."""
        contents = {item: _json(dataclasses.asdict(state)) for item, state in states.items()}
        if contents:
            with self.store.asking():
                self.store.client.hset(self._key("states"), mapping=contents)

    def states(self) -> dict[str, ItemState]:
        """The states of all items that have one."""
        with self.store.asking():
            found = self.store.client.hgetall(self._key("states"))
        return {item: ItemState(**json.loads(text)) for item, text in found.items()}

    def put_document(self, kind: str, name: str, content: Any, keep_seconds: float = 0.0) -> None:
        """Stores JSON under a kind and a name; 0 seconds keep it for good."""
        with self._pipeline() as pipe:
            expires = int(keep_seconds * 1000) if keep_seconds else None
            pipe.set(self._key("document", kind, name), _json(content), px=expires)
            pipe.sadd(self._key("documents", kind), name)

    def document(self, kind: str, name: str) -> Any:
        """The JSON of a document; None if there is none."""
        with self.store.asking():
            text = self.store.client.get(self._key("document", kind, name))
        return None if text is None else json.loads(text)

    def documents(self, kind: str) -> dict[str, Any]:
        """All documents of a kind by name."""
        with self.store.asking():
            names = sorted(self.store.client.smembers(self._key("documents", kind)))
            if not names:
                return {}
            texts = self.store.client.mget([self._key("document", kind, name) for name in names])
            gone = [name for name, text in zip(names, texts, strict=True) if text is None]
            if gone:
                self.store.client.srem(self._key("documents", kind), *gone)
        found = zip(names, texts, strict=True)
        return {name: json.loads(text) for name, text in found if text is not None}

    def delete_document(self, kind: str, name: str) -> bool:
        """Deletes a document; whether there was one."""
        with self.store.asking():
            self.store.client.srem(self._key("documents", kind), name)
            return bool(self.store.client.delete(self._key("document", kind, name)))

    def _key(self, *parts: str) -> str:
        """The key of some parts, each with its length, so that no two lists of parts share one."""
        tenant = self.name.replace("{", "%7B").replace("}", "%7D")
        return f"sigma:{{{tenant}}}:" + ":".join(f"{len(part)}.{part}" for part in parts)

    def _make_group(self) -> None:
        """Creates the stream and its group, where they are missing."""
        with contextlib.suppress(redis.ResponseError):  # there is one
            self.store.client.xgroup_create(self._key("stream"), GROUP, "0", mkstream=True)

    @contextlib.contextmanager
    def _pipeline(self) -> Iterator[Any]:
        """Commands that are sent together and all done, or none of them."""
        with self.store.asking(), self.store.client.pipeline() as pipe:
            yield pipe
            pipe.execute()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
