"""The HTTP application: routes under /v1, errors without traces, health, metrics, the page."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
from absl import logging
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sigma_jax.serving.api import admin, routes
from sigma_jax.serving.api.batcher import TooBusyError
from sigma_jax.serving.api.context import Context, Tenant
from sigma_jax.serving.api.keys import Keys
from sigma_jax.serving.api.metrics import Metrics
from sigma_jax.serving.stores.base import Store, StoreError

LONGEST_BODY = 8 * 2**20  # bytes
THREADS = 16  # that wait for the store
REFRESH_SECONDS = 2.0  # between two looks for another active version
PAGE = Path(__file__).parent / "page"


def create_app(
    tenants: Mapping[str, Tenant], store: Store, keys: Keys, calls_a_second: float = 0.0
) -> FastAPI:
    """The application for some tenants.

    Args:
      calls_a_second: of a caller; more are refused. 0: no limit.
    """
    context = Context(
        dict(tenants),
        store,
        keys,
        Metrics({name: tenant.service.store for name, tenant in tenants.items()}),
        calls_a_second,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        refreshing = asyncio.create_task(_refresh(context))
        yield
        refreshing.cancel()
        for tenant in context.tenants.values():
            tenant.batcher.close()

    app = FastAPI(
        title="sigma_jax",
        version="1",
        description="Recommendations of a trained SIGMA, users, events, items and rules.",
        lifespan=lifespan,
        responses={
            status: {"model": routes.Error}
            for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503)
        },
    )
    app.state.context = context
    app.add_middleware(BodyLimit, longest=LONGEST_BODY)
    app.add_middleware(Measured, context=context)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.include_router(routes.router)
    app.include_router(admin.router)
    _add_operations(app, context)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return app


async def _refresh(context: Context) -> None:
    """Loads versions of the catalogue that other processes have activated."""
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        for tenant in context.tenants.values():
            try:
                await run_in_threadpool(tenant.service.engine.refresh)
            except Exception as error:  # the running version goes on
                logging.warning("service: %s keeps its version: %s", tenant.name, error)


def _add_operations(app: FastAPI, context: Context) -> None:
    """Health, readiness and metrics."""

    @app.get("/healthz", tags=["operations"])
    def health() -> dict[str, str]:
        """Whether the process runs."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operations"])
    def ready() -> Response:
        """Whether requests should be sent here."""
        if context.is_draining:
            return JSONResponse({"error": "draining", "where": ""}, 503)
        context.store.check()
        return JSONResponse({"status": "ready"})

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


class BodyLimit:
    """Refuses bodies that are too long, before they are read."""

    def __init__(self, app: ASGIApp, longest: int):
        self.app, self.longest = app, longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, with a limit on what can be received."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.longest:
                raise HTTPException(413, f"the body has more than {self.longest} bytes")
            return message

        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.longest:
            error = {"error": f"the body has more than {self.longest} bytes", "where": ""}
            await JSONResponse(error, 413)(scope, receive, send)
            return
        await self.app(scope, limited, send)


def _error(status: int, text: str, where: str = "", headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": text, "where": where}, status, headers)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first.get("loc", ())))
    return _error(422, str(first.get("msg", "the request is wrong"))[:500], where[:500])


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail), headers=error.headers)


async def _on_value(request: Request, error: Exception) -> Response:
    return _error(400, str(error)[:1000])


async def _on_store(request: Request, error: Exception) -> Response:
    logging.warning("service: %s", error)
    return _error(503, "the store does not answer; try again", headers={"Retry-After": "1"})


async def _on_busy(request: Request, error: Exception) -> Response:
    return _error(503, f"too busy: {error}", headers={"Retry-After": "1"})


async def _on_any(request: Request, error: Exception) -> Response:
    logging.exception("service: %s %s failed", request.method, request.url.path, exc_info=error)
    return _error(500, "an error of the service; its log says more")


HANDLERS: dict[Any, Any] = {
    RequestValidationError: _on_validation,
    HTTPException: _on_http,
    ValueError: _on_value,
    StoreError: _on_store,
    TooBusyError: _on_busy,
    Exception: _on_any,
}
