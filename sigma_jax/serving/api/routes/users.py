"""Routes of users and their events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from sigma_jax.data.times import LAST
from sigma_jax.schema import DAY
from sigma_jax.serving.api.context import PathId, Reader, Tenant, Writer
from sigma_jax.serving.api.lines import MEDIA_TYPES, described_lines, lines_of
from sigma_jax.serving.api.models import (
    LONGEST_ID,
    Deleted,
    EventIn,
    EventOut,
    Events,
    EventsOut,
    Stored,
    StoredEvents,
    Text,
    User,
    UserIds,
    UserIn,
    UserRow,
)
from sigma_jax.serving.stores.base import MOST_EVENTS, Event, TenantStore

router = APIRouter(prefix="/v1")
MOST_AHEAD = DAY  # seconds that an event may be ahead of the service's clock
USERS_AT_ONCE = 1_000  # whose ids are read together for a stream


@router.get("/users", tags=["users"])
def list_users(
    tenant: Reader,
    after: Annotated[str, Query(max_length=LONGEST_ID)] = "",
    count: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> UserIds:
    """The ids of users with a profile or events, behind `after`, ascending."""
    return UserIds(user_ids=tenant.service.store.users(after, count))


@router.get("/users/{user_id}", tags=["users"])
def get_user(tenant: Reader, user_id: PathId) -> User:
    """The profile of a user; empty for one who has events alone."""
    profile = tenant.service.store.user(user_id)
    if profile is None and not tenant.service.store.events(user_id, 1)[0]:
        raise HTTPException(404, f"there is no user {user_id!r}")
    return User(user_id=user_id, profile=profile or {})


@router.put("/users/{user_id}", tags=["users"])
def put_user(tenant: Writer, user_id: PathId, body: UserIn) -> User:
    """Creates a user, or replaces the profile. The lists are computed anew within a minute."""
    put_profiles(tenant, {user_id: body.profile})
    return User(user_id=user_id, profile=body.profile)


@router.delete("/users/{user_id}", tags=["users"], status_code=204)
def delete_user(tenant: Writer, user_id: PathId) -> None:
    """Deletes a user with all events and lists."""
    if not tenant.service.store.delete_user(user_id):
        raise HTTPException(404, f"there is no user {user_id!r}")


@router.post("/users/bulk", tags=["users"], openapi_extra=described_lines(UserRow))
async def bulk_users(tenant: Writer, request: Request) -> Stored:
    """Creates users from JSON lines: {"user_id": "...", "profile": {...}}."""
    rows = await lines_of(request, UserRow)
    profiles = {row.user_id: row.profile for row in rows}
    await run_in_threadpool(put_profiles, tenant, profiles)
    return Stored(stored=len(profiles))


@router.get("/users/{user_id}/events", tags=["events"])
def get_events(
    tenant: Reader, user_id: PathId, count: Annotated[int, Query(ge=1, le=1_000)] = 100
) -> EventsOut:
    """The newest events of a user, oldest first."""
    events, _ = tenant.service.store.events(user_id, count)
    rows = [
        EventOut(
            item_id=one.item_id,
            title=tenant.service.title_of(one.item_id),
            timestamp=one.time,
            event=one.kind,
            event_id=one.event_id,
            session_id=one.session_id,
        )
        for one in events
    ]
    return EventsOut(user_id=user_id, events=rows)


@router.delete("/users/{user_id}/events", tags=["events"])
def delete_events(tenant: Writer, user_id: PathId) -> Deleted:
    """Deletes all events of a user, and the lists, which are computed anew. The profile stays."""
    return deleted(tenant, user_id, "")


@router.delete("/users/{user_id}/events/{event_id}", tags=["events"])
def delete_event(tenant: Writer, user_id: PathId, event_id: PathId) -> Deleted:
    """Deletes the event of a user that was sent with this `event_id`."""
    return deleted(tenant, user_id, event_id)


@router.get(
    "/events",
    tags=["events"],
    response_class=StreamingResponse,
    responses={200: {"content": {MEDIA_TYPES[0]: {"schema": EventIn.model_json_schema()}}}},
)
def stream_events(
    tenant: Reader,
    after: Annotated[Text, Query(max_length=LONGEST_ID, description="A user id.")] = "",
    since: Annotated[int, Query(ge=0, le=LAST, description="Unix seconds.")] = 0,
) -> StreamingResponse:
    """All stored events from `since` on as JSON lines, user by user, for `sigma_jax.refresh`.

    Users come in the order of their ids, from behind `after` on; each with the newest 2,000 events,
    oldest first. The last user of a stream that broke off may be incomplete: go on behind the user
    before.
    """
    lines = event_lines(tenant.service.store, after, since)
    return StreamingResponse(lines, media_type=MEDIA_TYPES[0])


@router.post("/events", tags=["events"])
def post_events(tenant: Writer, body: Events) -> StoredEvents:
    """Stores events. The lists of their users are computed anew within a minute."""
    for number, event in enumerate(body.events):
        if why := too_early(tenant, event):
            where = ("body", "events", number, "timestamp")
            raise RequestValidationError([{"loc": where, "msg": why}])
    return store_events(tenant, body.events)


@router.post("/events/bulk", tags=["events"], openapi_extra=described_lines(EventIn))
async def bulk_events(tenant: Writer, request: Request) -> StoredEvents:
    """Stores events from JSON lines."""
    rows = await lines_of(request, EventIn)
    for number, event in enumerate(rows, 1):
        if why := too_early(tenant, event):
            raise HTTPException(422, f"line {number}: timestamp {why}")
    return await run_in_threadpool(store_events, tenant, rows)


def deleted(tenant: Tenant, user_id: str, event_id: str) -> Deleted:
    """How many events were deleted. HTTPException 404 if there was none."""
    count = tenant.service.store.delete_events(user_id, event_id)
    if not count:
        one = f" with the event_id {event_id!r}" if event_id else ""
        raise HTTPException(404, f"user {user_id!r} has no event{one}")
    return Deleted(deleted=count)


def put_profiles(tenant: Tenant, profiles: Mapping[str, Mapping[str, Any]]) -> None:
    """Stores profiles, and has the lists of their users computed anew."""
    tenant.service.store.put_users(profiles)
    tenant.service.store.ask_again(list(profiles))


def too_early(tenant: Tenant, event: EventIn) -> str:
    """Why an event is refused whose time has not come; "" for one that is not."""
    ahead = event.timestamp - tenant.service.clock()
    if ahead <= MOST_AHEAD:
        return ""
    return (
        f"{event.timestamp} is {ahead / DAY:.1f} days ahead of the service's clock; send unix "
        "seconds of what has happened"
    )


def store_events(tenant: Tenant, rows: Sequence[EventIn]) -> StoredEvents:
    """Stores events."""
    now = int(tenant.service.clock())
    unknown = sum(not tenant.service.knows(row.item_id) for row in rows)
    stored = tenant.service.store.add_events(
        [
            Event(
                row.user_id,
                row.item_id,
                row.timestamp or now,
                row.event,
                row.event_id,
                row.session_id,
            )
            for row in rows
        ]
    )
    return StoredEvents(stored=stored, unknown_items=unknown)


def event_lines(store: TenantStore, after: str, since: int) -> Iterator[str]:
    """The lines of `stream_events`, those of a user together."""
    while users := store.users(after, USERS_AT_ONCE):
        for user in users:
            rows = (
                {
                    "user_id": user,
                    "item_id": one.item_id,
                    "timestamp": one.time,
                    "event": one.kind,
                    "event_id": one.event_id,
                    "session_id": one.session_id,
                }
                for one in store.events(user, MOST_EVENTS)[0]
                if one.time >= since
            )
            # Events without a session are no session together: what is empty is left out.
            kept = ({name: value for name, value in row.items() if value != ""} for row in rows)
            yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        after = users[-1]
