"""Routes of callers with the scopes read and write: recommendations, users, events, jobs."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from sigma_jax.serving.api.context import Context, Reader, Tenant, Writer, context_of
from sigma_jax.serving.api.models import (
    LONGEST_ID,
    Answer,
    Ask,
    Batch,
    Count,
    Error,
    EventIn,
    EventOut,
    Events,
    EventsOut,
    Id,
    Job,
    Seen,
    Stored,
    User,
    UserIds,
    UserIn,
)
from sigma_jax.serving.api.service import Filters
from sigma_jax.serving.nearline import HOME
from sigma_jax.serving.stores.base import Event

__all__ = ["Error", "router"]

JOB, JOB_SECONDS = "job", 86_400.0  # kind of documents, and how long answers are kept
MOST_LINES = 10_000  # of a bulk call
router = APIRouter(prefix="/v1")
PathId = Annotated[Id, Path()]
Names = Annotated[list[Id], Query(max_length=100)]
Row = TypeVar("Row", bound=BaseModel)


@router.get("/users/{user_id}/recommendations", tags=["recommendations"])
def recommendations(
    request: Request,
    tenant: Reader,
    user_id: PathId,
    task: Annotated[Id, Query(description="The name of a list of the worker.")] = HOME,
    count: Annotated[Count, Query()] = 10,
    categories: Names = [],  # noqa: B006  FastAPI copies it
    exclude: Names = [],  # noqa: B006
    seen: Annotated[Seen, Query()] = "show",
    explain: bool = False,
) -> Answer:
    """A user's list from the index. Users without one get the most popular items."""
    filters = Filters(count, frozenset(categories), frozenset(exclude), seen, explain)
    answer = tenant.service.recommendations(user_id, task, filters)
    return counted(context_of(request), tenant, answer)


@router.post("/recommendations", tags=["recommendations"])
async def ask(request: Request, tenant: Reader, body: Ask) -> Answer:
    """The answer to an instruction, computed now. If the deadline passes, the index answers."""
    context = context_of(request)
    try:
        seconds = body.deadline_ms / 1000
        answer = await asyncio.wait_for(tenant.batcher.submit(body, seconds), seconds)
    except TimeoutError:
        context.metrics.late.labels(tenant.name).inc()
        answer = await run_in_threadpool(
            tenant.service.recommendations, body.user_id, HOME, Filters.of(body)
        )
    if tenant.batcher.sizes:
        context.metrics.batch_sizes.observe(tenant.batcher.sizes[-1])
    return counted(context, tenant, answer)


@router.get("/items/{item_id}/similar", tags=["recommendations"])
def similar(
    request: Request,
    tenant: Reader,
    item_id: PathId,
    count: Annotated[Count, Query()] = 10,
    categories: Names = [],  # noqa: B006
    exclude: Names = [],  # noqa: B006
) -> Answer:
    """The items that are most like one."""
    filters = Filters(count, frozenset(categories), frozenset(exclude))
    try:
        answer = tenant.service.similar(item_id, filters)
    except KeyError:
        raise HTTPException(404, f"there is no item {item_id!r}") from None
    return counted(context_of(request), tenant, answer)


@router.get("/popular", tags=["recommendations"])
def popular(
    request: Request,
    tenant: Reader,
    count: Annotated[Count, Query()] = 10,
    categories: Names = [],  # noqa: B006
    exclude: Names = [],  # noqa: B006
) -> Answer:
    """The most popular items of the training."""
    filters = Filters(count, frozenset(categories), frozenset(exclude))
    return counted(context_of(request), tenant, tenant.service.popular("", filters))


@router.get("/users", tags=["users"])
def list_users(
    tenant: Reader,
    after: Annotated[str, Query(max_length=LONGEST_ID)] = "",
    count: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> UserIds:
    """User ids behind `after`, ascending."""
    return UserIds(user_ids=tenant.service.store.users(after, count))


@router.get("/users/{user_id}", tags=["users"])
def get_user(tenant: Reader, user_id: PathId) -> User:
    """The profile of a user."""
    profile = tenant.service.store.user(user_id)
    if profile is None:
        raise HTTPException(404, f"there is no user {user_id!r}")
    return User(user_id=user_id, profile=profile)


@router.put("/users/{user_id}", tags=["users"])
def put_user(tenant: Writer, user_id: PathId, body: UserIn) -> User:
    """Creates a user, or replaces the profile."""
    tenant.service.store.put_users({user_id: body.profile})
    return User(user_id=user_id, profile=body.profile)


@router.delete("/users/{user_id}", tags=["users"], status_code=204)
def delete_user(tenant: Writer, user_id: PathId) -> None:
    """Deletes a user with all events and lists."""
    if not tenant.service.store.delete_user(user_id):
        raise HTTPException(404, f"there is no user {user_id!r}")


@router.post("/users/bulk", tags=["users"], openapi_extra={"requestBody": {"content": {}}})
async def bulk_users(tenant: Writer, request: Request) -> Stored:
    """Creates users from JSON lines: {"user_id": "...", "profile": {...}}."""
    rows = await lines_of(request, User)
    profiles = {row.user_id: row.profile for row in rows}
    await run_in_threadpool(tenant.service.store.put_users, profiles)
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


@router.post("/events", tags=["events"])
def post_events(tenant: Writer, body: Events) -> Stored:
    """Stores events. The lists of their users are computed anew within a minute."""
    return Stored(stored=store_events(tenant, body.events))


@router.post("/events/bulk", tags=["events"], openapi_extra={"requestBody": {"content": {}}})
async def bulk_events(tenant: Writer, request: Request) -> Stored:
    """Stores events from JSON lines."""
    rows = await lines_of(request, EventIn)
    return Stored(stored=await run_in_threadpool(store_events, tenant, rows))


@router.post("/jobs", tags=["jobs"], status_code=202)
async def submit(request: Request, tenant: Reader, body: Batch) -> Job:
    """Takes requests that need no answer now. Poll the job until its state is done."""
    context, job = context_of(request), Job(job_id=uuid.uuid4().hex, state="waiting")
    await run_in_threadpool(put_job, tenant, job)
    task = asyncio.create_task(run_job(tenant, job, body.requests))
    context.jobs.add(task)
    task.add_done_callback(context.jobs.discard)
    return job


@router.get("/jobs/{job_id}", tags=["jobs"])
def poll(tenant: Reader, job_id: PathId) -> Job:
    """The state of a job, and its answers when it is done. They are kept for a day."""
    content = tenant.service.store.document(JOB, job_id)
    if content is None:
        raise HTTPException(404, f"there is no job {job_id!r}")
    return Job(**content)


def counted(context: Context, tenant: Tenant, answer: Answer) -> Answer:
    """The answer, which is counted by its source and its beams."""
    context.metrics.answers.labels(tenant.name, answer.source).inc()
    if answer.beams is not None:
        context.metrics.beams.labels(tenant.name, str(answer.beams)).inc()
    return answer


def store_events(tenant: Tenant, rows: Sequence[EventIn]) -> int:
    """Stores events, and returns how many were new."""
    now = int(time.time())
    return tenant.service.store.add_events(
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


async def lines_of(request: Request, model: type[Row]) -> list[Row]:
    """The rows of a body of JSON lines. HTTPException 422 names the line that is wrong."""
    body = await request.body()
    lines = [line for line in body.split(b"\n") if line.strip()]
    if not 0 < len(lines) <= MOST_LINES:
        raise HTTPException(422, f"the body has {len(lines)} lines; send 1 to {MOST_LINES}")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(model.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise HTTPException(422, f"line {number}: {where} {first['msg']}"[:500]) from None
    return rows


async def run_job(tenant: Tenant, job: Job, asks: Sequence[Ask]) -> None:
    """Answers the requests of a job one after another, so that others come between them."""
    await run_in_threadpool(put_job, tenant, job.model_copy(update={"state": "running"}))
    answers: list[Answer] = []
    changes: dict[str, Any] = {"state": "done", "answers": answers}
    try:
        for one in asks:
            answers.append(await tenant.batcher.submit(one))
    except Exception as error:
        changes = {"state": "failed", "answers": answers, "error": str(error)[:500]}
    await run_in_threadpool(put_job, tenant, job.model_copy(update=changes))


def put_job(tenant: Tenant, job: Job) -> None:
    """Stores the state of a job."""
    tenant.service.store.put_document(JOB, job.job_id, job.model_dump(), JOB_SECONDS)
