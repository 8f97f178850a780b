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

from sigma_jax.serving.stores.base import (
    LEASE_SECONDS,
    MOST_EVENTS,
    Event,
    ItemState,
    ListsOfUsers,
    Queue,
    StoredList,
    StoreError,
    Work,
)

ANSWER_SECONDS = 2.0  # a server that does not answer by then is taken for dead
REMEMBER_SECONDS = 7 * 86_400  # event ids are remembered so long
GROUP = "workers"
USERS_AT_ONCE = 1_000  # whose lists are sent together

# Keys: event id, history, stream, counter. Values: whether there is an id, seconds, time, user,
# content, most events, now. Returns the number of the event, or 0 for one that was there.
ADD_EVENT = """
if ARGV[1] == '1' and not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[2]) then return 0 end
local number = redis.call('INCR', KEYS[4])
redis.call('ZADD', KEYS[2], ARGV[3], string.format('%016d', number) .. ARGV[5])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[6])
redis.call('XADD', KEYS[3], '*', 'user', ARGV[4], 'number', number, 'since', ARGV[7])
return number
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
        )
        self.add_event = self.client.register_script(ADD_EVENT)
        self.put_list = self.client.register_script(PUT_LIST)
        with as_store_error():
            self.client.ping()

    def tenant(self, name: str) -> RedisTenant:
        """The rows of one tenant."""
        return RedisTenant(self, name)

    def check(self) -> None:
        """Writes and reads a row. StoreError if that fails."""
        tenant = self.tenant("\0check")
        tenant.put_document("check", "time", time.time(), 60)
        tenant.document("check", "time")

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
        with as_store_error():
            text = self.store.client.get(self._key("user", user_id))
        return None if text is None else json.loads(text)

    def users(self, after: str, count: int) -> list[str]:
        """At most `count` user ids behind `after`, ascending."""
        first = f"({after}" if after else "-"
        with as_store_error():
            return list(self.store.client.zrangebylex(self._key("users"), first, "+", 0, count))

    def delete_user(self, user_id: str) -> bool:
        """Deletes a user with events and lists; whether there was one."""
        names = self._key("names", user_id)
        with as_store_error():
            lists = self.store.client.smembers(names)
            keys = [self._key("list", user_id, name) for name in lists]
            keys += [names, self._key("user", user_id), self._key("events", user_id)]
            self.store.client.zrem(self._key("users"), user_id)
            return bool(self.store.client.delete(*keys))

    def add_events(self, events: Sequence[Event]) -> int:
        """Stores events and puts their users into the queue. Returns how many were new."""
        now = time.time()
        with as_store_error(), self.store.client.pipeline() as pipe:
            for event in events:
                self._add(event, now, pipe)
            return sum(number > 0 for number in pipe.execute())

    def _add(self, event: Event, now: float, pipe: Any) -> None:
        """Adds ADD_EVENT for one event to a pipeline."""
        content = {name: getattr(event, name) for name in IN_CONTENT}
        keys = ("event", event.event_id), ("events", event.user_id), ("stream",), ("number",)
        values: list[Any] = [
            int(bool(event.event_id)),
            REMEMBER_SECONDS,
            event.time,
            event.user_id,
            _json(content),
            MOST_EVENTS,
            repr(now),
        ]
        self.store.add_event([self._key(*parts) for parts in keys], values, pipe)

    def events(self, user_id: str, count: int) -> tuple[list[Event], int]:
        """(the newest `count` events by time, oldest first; the number of the newest one or 0)."""
        with as_store_error():
            texts = self.store.client.zrange(self._key("events", user_id), -count, -1)
        found = [Event(user_id, **json.loads(text[NUMBER:])) for text in texts]
        return found, max((int(text[:NUMBER]) for text in texts), default=0)

    def take(self, worker: str, count: int, lease: float = LEASE_SECONDS) -> list[Work]:
        """At most `count` users from the queue, those who wait longest first."""
        stream, client = self._key("stream"), self.store.client
        with as_store_error():
            self._make_group()
            claimed = client.xautoclaim(stream, GROUP, worker, int(lease * 1000), count=count)
            entries = [(entry, fields) for entry, fields in claimed[1] if fields]
            if len(entries) < count:
                read = client.xreadgroup(GROUP, worker, {stream: ">"}, count - len(entries))
                entries += [entry for _, found in read or [] for entry in found]
        of_user: dict[str, list[tuple[str, dict[str, str]]]] = {}
        for entry in entries:
            of_user.setdefault(entry[1]["user"], []).append(entry)
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
        entries = [entry for work in works for entry in work.receipt.split()]
        if entries:
            with self._pipeline() as pipe:
                pipe.xack(self._key("stream"), GROUP, *entries)
                pipe.xdel(self._key("stream"), *entries)

    def queue(self) -> Queue:
        """How many events wait, those that are taken included."""
        with as_store_error():
            size = self.store.client.xlen(self._key("stream"))
            first = self.store.client.xrange(self._key("stream"), count=1)
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
        with as_store_error():
            text = self.store.client.get(self._key("list", user_id, name))
        return None if text is None else StoredList.from_json(text[NUMBER:])

    def listed(self, cursor: str, count: int) -> tuple[list[str], str]:
        """(about `count` users with lists, the cursor of the next ones; "" behind the last)."""
        start = self._key("names", "")[: -len("0.")]
        pattern = start.translate({ord(sign): f"\\{sign}" for sign in "\\*?[]"}) + "*"
        with as_store_error():
            following, keys = self.store.client.scan(int(cursor or 0), pattern, count)
        users = [key[len(start) :].partition(".")[2] for key in keys]
        return users, str(following) if int(following) else ""

    def count_lists(self) -> int:
        """The number of users who ever had lists, within a per cent."""
        with as_store_error():
            return int(self.store.client.pfcount(self._key("listed")))

    def put_states(self, states: Mapping[str, ItemState]) -> None:
        """Replaces the states of some items."""
        contents = {item: _json(dataclasses.asdict(state)) for item, state in states.items()}
        if contents:
            with as_store_error():
                self.store.client.hset(self._key("states"), mapping=contents)

    def states(self) -> dict[str, ItemState]:
        """The states of all items that have one."""
        with as_store_error():
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
        with as_store_error():
            text = self.store.client.get(self._key("document", kind, name))
        return None if text is None else json.loads(text)

    def documents(self, kind: str) -> dict[str, Any]:
        """All documents of a kind by name."""
        with as_store_error():
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
        with as_store_error():
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
        with as_store_error(), self.store.client.pipeline() as pipe:
            yield pipe
            pipe.execute()


@contextlib.contextmanager
def as_store_error() -> Iterator[None]:
    """Errors of Redis become StoreError."""
    try:
        yield
    except redis.RedisError as error:
        raise StoreError(f"redis: {error or type(error).__name__}") from error


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
