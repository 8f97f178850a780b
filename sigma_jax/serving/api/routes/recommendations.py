"""Routes of recommendations: lists of the index, instructions, similar, popular, trending items."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from sigma_jax.serving.api.context import Context, PathId, Reader, Tenant, context_of
from sigma_jax.serving.api.models import Answer, Ask, Clock, Count, Id, Seen, Task, Tasks
from sigma_jax.serving.api.service import Filters
from sigma_jax.serving.batcher import TooBusyError
from sigma_jax.serving.experiments.service import AD_HOC
from sigma_jax.serving.nearline import HOME
from sigma_jax.serving.popularity import HALF_LIFE_HOURS, LONGEST_HALF_LIFE
from sigma_jax.serving.replay import ReplayClock

router = APIRouter(prefix="/v1")
Names = Annotated[list[Id], Query(max_length=100)]


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
    """The answer to an instruction, computed now.

    If the deadline passes, or too many requests wait, the index answers.
    """
    context = context_of(request)
    try:
        seconds = body.deadline_ms / 1000
        answer = await asyncio.wait_for(tenant.batcher.submit(body, seconds), seconds)
        if answer.arms and body.is_shown:
            await run_in_threadpool(tenant.arms.expose, AD_HOC, answer)
    except (TimeoutError, TooBusyError):
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
