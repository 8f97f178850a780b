"""Routes of callers with the scopes read and write: recommendations, users, events, jobs."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from absl import logging
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from sigma_jax.serving.api.context import Context, PathId, Reader, Tenant, Writer, context_of
from sigma_jax.serving.api.models import (
    LONGEST_ID,
    Answer,
    Ask,
    Batch,
    Clock,
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
    StoredEvents,
    Task,
    Tasks,
    User,
    UserIds,
    UserIn,
)
from sigma_jax.serving.api.service import Filters
from sigma_jax.serving.batcher import TooBusyError
from sigma_jax.serving.experiments.service import AD_HOC
from sigma_jax.serving.nearline import HOME
from sigma_jax.serving.popularity import HALF_LIFE_HOURS, LONGEST_HALF_LIFE
from sigma_jax.serving.replay import ReplayClock
from sigma_jax.serving.stores.base import Event, StoreError

__all__ = ["Error", "router"]

# Kinds of documents: jobs with their answers, their requests, and which of them run now.
JOB, JOB_REQUESTS, JOB_RUN = "job", "job requests", "job run"
JOB_SECONDS = 86_400.0  # answers are kept for so long
RUN_SECONDS = 30.0  # a job whose process has not told that it runs for so long is begun again
MOST_JOBS = 1_000  # that run in one process; more are refused
MOST_LINES = 10_000  # of a bulk call
router = APIRouter(prefix="/v1")
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
    is_shown: Annotated[
        bool, Query(description="false: the user does not see it; no experiment counts it.")
    ] = True,
) -> Answer:
    """A user's list from the index. Users without one get the most popular items."""
    filters = Filters(count, frozenset(categories), frozenset(exclude), seen, explain)
    answer = tenant.arms.recommendations(user_id, task, filters, is_shown)
    return counted(context_of(request), tenant, of_known_list(tenant, task, answer))


@router.post("/recommendations", tags=["recommendations"])
async def ask(request: Request, tenant: Reader, body: Ask) -> Answer:
    """The answer to an instruction, computed now. If the deadline passes, the index answers."""
    context = context_of(request)
    try:
        seconds = body.deadline_ms / 1000
        answer = await asyncio.wait_for(tenant.batcher.submit(body, seconds), seconds)
        if answer.arms and body.is_shown:
            await run_in_threadpool(tenant.arms.expose, AD_HOC, answer)
    except TimeoutError:
        context.metrics.late.labels(tenant.name).inc()
        answer = await run_in_threadpool(
            tenant.arms.recommendations, body.user_id, HOME, Filters.of(body), body.is_shown
        )
        answer.is_late = True
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


@router.get("/trending", tags=["recommendations"])
def trending(
    request: Request,
    tenant: Reader,
    half_life_hours: Annotated[float, Query(ge=1, le=LONGEST_HALF_LIFE)] = HALF_LIFE_HOURS,
    count: Annotated[Count, Query()] = 10,
    categories: Names = [],  # noqa: B006
    exclude: Names = [],  # noqa: B006
) -> Answer:
    """The items with most events lately. An event weighs half after each half-life."""
    filters = Filters(count, frozenset(categories), frozenset(exclude))
    answer = tenant.service.trending(half_life_hours, filters)
    return counted(context_of(request), tenant, answer)


@router.get("/tasks", tags=["recommendations"])
def list_tasks(tenant: Reader) -> Tasks:
    """The kinds of instructions that the model knows, with an example each."""
    wordings = tenant.service.engine.current.recommender.spec.wordings
    return Tasks(tasks=[Task(name=name, instruction=texts[0]) for name, texts in wordings.items()])


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
def post_events(tenant: Writer, body: Events) -> StoredEvents:
    """Stores events. The lists of their users are computed anew within a minute."""
    return store_events(tenant, body.events)


@router.post("/events/bulk", tags=["events"], openapi_extra={"requestBody": {"content": {}}})
async def bulk_events(tenant: Writer, request: Request) -> StoredEvents:
    """Stores events from JSON lines."""
    rows = await lines_of(request, EventIn)
    return await run_in_threadpool(store_events, tenant, rows)


@router.get("/clock", tags=["operations"])
def clock(tenant: Reader) -> Clock:
    """The time of the service. Where a log is replayed, it is the time of the log."""
    of_service = tenant.service.clock
    if isinstance(of_service, ReplayClock):
        return Clock(
            now=of_service(),
            speed=of_service.replay.speed,
            is_replay=True,
            is_over=of_service.is_over,
        )
    return Clock(now=of_service(), speed=1.0, is_replay=False, is_over=False)


@router.post("/jobs", tags=["jobs"], status_code=202)
async def submit(request: Request, tenant: Reader, body: Batch) -> Job:
    """Takes requests that need no answer now. Poll the job until its state is done."""
    context, job = context_of(request), Job(job_id=uuid.uuid4().hex, state="waiting")
    if len(context.jobs) >= MOST_JOBS:
        raise TooBusyError(f"{len(context.jobs)} jobs wait")
    await run_in_threadpool(put_job, tenant, job, body)
    start_job(context, tenant, job, body.requests)
    return job


@router.get("/jobs/{job_id}", tags=["jobs"])
async def poll(request: Request, tenant: Reader, job_id: PathId) -> Job:
    """The state of a job, and its answers when it is done. They are kept for a day.

    If the process that ran the job has ended, this one begins it again.
    """
    context, store = context_of(request), tenant.service.store
    content = await run_in_threadpool(store.document, JOB, job_id)
    if content is None:
        raise HTTPException(404, f"there is no job {job_id!r}")
    job = Job(**content)
    if job.state not in ("waiting", "running") or (tenant.name, job_id) in context.jobs:
        return job
    if await run_in_threadpool(store.document, JOB_RUN, job_id) is None:
        asked = await run_in_threadpool(store.document, JOB_REQUESTS, job_id)
        # It may have been done since the job was read.
        job = Job(**await run_in_threadpool(store.document, JOB, job_id))
        if job.state in ("waiting", "running") and asked is not None:
            start_job(context, tenant, job, Batch(**asked).requests)
    return job


def counted(context: Context, tenant: Tenant, answer: Answer) -> Answer:
    """The answer, which is counted by its source and its beams."""
    context.metrics.answers.labels(tenant.name, answer.source).inc()
    if answer.num_beams is not None:
        context.metrics.num_beams.labels(tenant.name, str(answer.num_beams)).inc()
    return answer


def of_known_list(tenant: Tenant, name: str, answer: Answer) -> Answer:
    """`answer`, a user's list. HTTPException 404 if no worker and no experiment has such a list."""
    known = tenant.service.list_names
    if answer.source == "popular" and known and name not in known:
        raise HTTPException(404, f"there is no list {name!r}, only {', '.join(sorted(known))}")
    return answer


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


def start_job(context: Context, tenant: Tenant, job: Job, asks: Sequence[Ask]) -> None:
    """Begins a job in this process. If the store fails meanwhile, a later poll begins it again."""
    key = (tenant.name, job.job_id)
    if key in context.jobs:
        return

    def end(task: asyncio.Task[None]) -> None:
        del context.jobs[key]
        if not task.cancelled() and (error := task.exception()):
            logging.warning("service: job %s has stopped: %s", job.job_id, error)

    task = asyncio.create_task(run_job(tenant, job, asks))
    context.jobs[key] = task
    task.add_done_callback(end)


async def run_job(tenant: Tenant, job: Job, asks: Sequence[Ask]) -> None:
    """Answers the requests of a job one after another, so that others come between them."""
    answers: list[Answer] = []
    changes: dict[str, Any] = {"state": "done", "answers": answers}
    put, told = tenant.service.store.put_document, -RUN_SECONDS
    job = job.model_copy(update={"state": "running"})
    await run_in_threadpool(put_job, tenant, job)
    try:
        for one in asks:
            if time.monotonic() - told > RUN_SECONDS / 3:
                await run_in_threadpool(put, JOB_RUN, job.job_id, os.getpid(), RUN_SECONDS)
                told = time.monotonic()
            answers.append(await tenant.batcher.submit(one))
    except StoreError:  # the job goes on when the store answers again
        raise
    except Exception as error:
        changes = {"state": "failed", "answers": answers, "error": str(error)[:500]}
    await run_in_threadpool(put_job, tenant, job.model_copy(update=changes))
    await run_in_threadpool(tenant.service.store.delete_document, JOB_REQUESTS, job.job_id)


def put_job(tenant: Tenant, job: Job, asked: Batch | None = None) -> None:
    """Stores the state of a job, and its requests where they are given."""
    store = tenant.service.store
    if asked is not None:
        store.put_document(JOB_REQUESTS, job.job_id, asked.model_dump(), JOB_SECONDS)
    store.put_document(JOB, job.job_id, job.model_dump(), JOB_SECONDS)
