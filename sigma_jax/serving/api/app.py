"""The HTTP application: routes under /v1, errors without traces, health, metrics, the page."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from absl import logging
from fastapi import Depends, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sigma_jax.serving.api.context import API_KEY, BEARER, Context, Tenant
from sigma_jax.serving.api.guard import EncodedSlashes, LocalOnly
from sigma_jax.serving.api.keys import Keys
from sigma_jax.serving.api.metrics import Metrics
from sigma_jax.serving.api.models import Error
from sigma_jax.serving.api.parameters import only_known_parameters
from sigma_jax.serving.api.reads import IndexReads
from sigma_jax.serving.api.routes import (
    admin,
    experiments,
    items,
    jobs,
    recommendations,
    users,
)
from sigma_jax.serving.api.wire import BodyLimit
from sigma_jax.serving.batcher import TooBusyError
from sigma_jax.serving.experiments.exposures import FLUSH_SECONDS
from sigma_jax.serving.stores.base import Store, StoreError

THREADS = 16  # that wait for the store
REFRESH_SECONDS = 2.0  # between two looks for another active version
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a limit of files
PAGE = Path(__file__).parent / "page"


def create_app(
    tenants: Mapping[str, Tenant],
    store: Store,
    keys: Keys,
    calls_a_second: float = 0.0,
    host: str = "localhost",
) -> FastAPI:
    """The application for some tenants.

    Args:
      calls_a_second: of a caller; more are refused. 0: no limit.
      host: that it listens to. Without keys, calls must name it or a loopback address.
    """
    context = Context(
        dict(tenants),
        store,
        keys,
        Metrics({name: tenant.service for name, tenant in tenants.items()}),
        calls_a_second,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        tasks = [asyncio.create_task(_refresh(context)), asyncio.create_task(_flush(context))]
        yield
        for task in tasks:
            task.cancel()
        for tenant in context.tenants.values():
            tenant.batcher.close()
            tenant.reads.close()
            tenant.arms.exposures.flush()

    app = FastAPIOffline(  # its pages /docs and /redoc need no network
        title="sigma_jax",
        version="1",
        description="Recommendations of a trained SIGMA, users, events, items and rules.",
        lifespan=lifespan,
        responses={
            status: {"model": Error}
            for status in (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 507)
        },
    )
    app.state.context = context
    app.add_middleware(EncodedSlashes)
    app.add_middleware(BodyLimit)
    app.add_middleware(IndexReads, on_error=_on_error)
    if not keys.are_asked:
        app.add_middleware(LocalOnly, names=[host])
    app.add_middleware(Measured, context=context)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    for part in (recommendations, users, items, jobs, admin, experiments):
        app.include_router(part.router, dependencies=[Security(BEARER), Security(API_KEY)])
    _add_operations(app, context)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return app


async def _refresh(context: Context) -> None:
    """Loads models, and versions of the catalogue, that other processes have activated."""
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        for tenant in context.tenants.values():
            arms = (service.engine.refresh for service in tenant.arms.others.values())
            for follow in (tenant.rollout.follow, *arms):
                try:
                    await run_in_threadpool(follow)
                except Exception as error:  # the running version goes on
                    logging.warning("service: %s keeps a version: %s", tenant.name, error)


async def _flush(context: Context) -> None:
    """Stores the exposures of experiments that have come together."""
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        for tenant in context.tenants.values():
            try:
                await run_in_threadpool(tenant.arms.exposures.flush)
            except Exception as error:  # the next flush goes on
                logging.exception("service: exposures of %s", tenant.name, exc_info=error)


def _add_operations(app: FastAPI, context: Context) -> None:
    """Health, readiness and metrics."""
    checks = [Depends(only_known_parameters)]

    @app.get("/healthz", tags=["operations"])
    async def health() -> dict[str, str]:  # async: threads may all wait for the store
        """Whether the process runs."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operations"], dependencies=checks)
    def ready(
        is_warmed_up: Annotated[
            bool, Query(description="true: not before programs for all requests are loaded.")
        ] = False,
    ) -> dict[str, str]:
        """Whether requests should be sent here. A store that can only be read is ready."""
        if context.is_draining:
            raise HTTPException(503, "draining")
        services = [one for tenant in context.tenants.values() for one in tenant.arms.services]
        if is_warmed_up and not all(service.is_warmed_up for service in services):
            raise HTTPException(503, "programs are still loaded")
        if why := context.store.check():
            text = "service: the store takes no writes: %s"
            logging.log_every_n_seconds(logging.WARNING, text, 1.0, why)
            return {"status": "ready to read, not to write"}
        return {"status": "ready"}

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(context.metrics.registry), media_type=CONTENT_TYPE_LATEST)


class Measured:
    """Measures the time of each request by its route and status."""

    def __init__(self, app: ASGIApp, context: Context):
        self.app, self.latency = app, context.metrics.latency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            labels = (scope["method"], path, str(status))
            self.latency.labels(*labels).observe(time.perf_counter() - began)


def _error(status: int, text: str, where: str = "", headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": text, "where": where}, status, headers)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first.get("loc", ())))
    text = str(first.get("msg", "the request is wrong")).removeprefix("Value error, ")
    return _error(422, text[:500], where[:500])


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail), headers=error.headers)


async def _on_value(request: Request, error: Exception) -> Response:
    return _error(400, str(error)[:1000])


async def _on_store(request: Request, error: Exception) -> Response:
    logging.log_every_n_seconds(logging.WARNING, "service: %s", 1.0, error)
    return _error(503, "the store does not answer; try again", headers={"Retry-After": "1"})


async def _on_full_disk(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno not in FULL:
        return await _on_any(request, error)
    logging.warning("service: %s %s: %s", request.method, request.url.path, error)
    return _error(507, "the disk of the service is full; nothing was changed")


async def _on_busy(request: Request, error: Exception) -> Response:
    return _error(503, f"too busy: {error}", headers={"Retry-After": "1"})


async def _on_any(request: Request, error: Exception) -> Response:
    logging.exception("service: %s %s failed", request.method, request.url.path, exc_info=error)
    return _error(500, "an error of the service; its log says more")


async def _on_error(request: Request, error: Exception) -> Response:
    """The response of the handler for an error."""
    handler = next(handler for kind, handler in HANDLERS.items() if isinstance(error, kind))
    response: Response = await handler(request, error)
    return response


HANDLERS: dict[Any, Any] = {
    RequestValidationError: _on_validation,
    HTTPException: _on_http,
    ValueError: _on_value,
    StoreError: _on_store,
    TooBusyError: _on_busy,
    OSError: _on_full_disk,
    Exception: _on_any,
}
