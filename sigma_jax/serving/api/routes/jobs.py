"""Routes of jobs: requests that are answered when there is time."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence

from absl import logging
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from sigma_jax.serving.api.context import Context, PathId, Reader, Tenant, Writer, context_of
from sigma_jax.serving.api.models import Answer, Ask, Batch, Job
from sigma_jax.serving.batcher import TooBusyError
from sigma_jax.serving.stores.base import StoreError

# Kinds of documents: jobs with their answers, their requests, and which of them run now.
JOB, JOB_REQUESTS, JOB_RUN = "job", "job requests", "job run"
JOB_SECONDS = 86_400.0  # answers are kept for so long
RUN_SECONDS = 30.0  # a job whose process has not told that it runs for so long is begun again
MOST_JOBS = 1_000  # of a tenant that run in one process; more are refused
OF_A_JOB_AT_ONCE = 8  # requests of a job that wait for an answer at once
FULL_SECONDS = 0.5  # before a request of a job is sent again to a full queue
router = APIRouter(prefix="/v1")


@router.post("/jobs", tags=["jobs"], status_code=202)
async def submit(request: Request, tenant: Writer, body: Batch) -> Job:
    """Takes requests that need no answer now. Poll the job until its state is done."""
    context, job = context_of(request), Job(job_id=uuid.uuid4().hex, state="waiting")
    running = sum(name == tenant.name for name, _ in context.jobs)
    if running >= MOST_JOBS:
        raise TooBusyError(f"{running} jobs wait")
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
    """Answers the requests of a job, a few at a time, so that others come between them."""
    job = job.model_copy(update={"state": "running"})
    await run_in_threadpool(put_job, tenant, job)
    at_once = asyncio.Semaphore(OF_A_JOB_AT_ONCE)

    async def answer(ask: Ask) -> Answer:
        async with at_once, tenant.jobs:
            return await answered(tenant, ask)

    try:
        async with asyncio.TaskGroup() as group:
            runs = group.create_task(tell(tenant, job.job_id))
            answers = await asyncio.gather(*(group.create_task(answer(ask)) for ask in asks))
            runs.cancel()
    except ExceptionGroup as errors:  # of the store; the job goes on when it answers again
        raise errors.exceptions[0] from None
    done = job.model_copy(update={"state": "done", "answers": answers})
    await run_in_threadpool(put_job, tenant, done)
    await run_in_threadpool(tenant.service.store.delete_document, JOB_REQUESTS, job.job_id)


async def tell(tenant: Tenant, job_id: str) -> None:
    """Tells other processes that a job runs here, until it is cancelled."""
    put = tenant.service.store.put_document
    while True:
        await run_in_threadpool(put, JOB_RUN, job_id, os.getpid(), RUN_SECONDS)
        await asyncio.sleep(RUN_SECONDS / 3)


async def answered(tenant: Tenant, ask: Ask) -> Answer:
    """The answer to a request of a job, or one that says its error. StoreError if the store fails.

    Where too many requests wait, it waits too.
    """
    while True:
        try:
            return await tenant.batcher.submit(ask)
        except TooBusyError:
            await asyncio.sleep(FULL_SECONDS)
            continue
        except StoreError:
            raise
        except ValueError as error:
            text = str(error)[:500]
        except Exception as error:
            logging.exception("service: a request of a job failed", exc_info=error)
            text = "an error of the service; its log says more"
        current = tenant.service.engine.current
        return Answer(
            user_id=ask.user_id,
            instruction=ask.instruction,
            source="computed",
            version=current.name,
            model=current.model,
            age_seconds=0.0,
            items=[],
            error=text,
        )


def put_job(tenant: Tenant, job: Job, asked: Batch | None = None) -> None:
    """Stores the state of a job, and its requests where they are given."""
    store = tenant.service.store
    if asked is not None:
        store.put_document(JOB_REQUESTS, job.job_id, asked.model_dump(), JOB_SECONDS)
    store.put_document(JOB, job.job_id, job.model_dump(), JOB_SECONDS)
