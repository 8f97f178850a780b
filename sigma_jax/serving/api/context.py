"""What the routes share: the tenants, who calls, how often."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BeforeValidator
from starlette.exceptions import HTTPException

from sigma_jax.serving.api.guard import with_slashes
from sigma_jax.serving.api.keys import Caller, Keys
from sigma_jax.serving.api.metrics import Metrics
from sigma_jax.serving.api.models import Answer, Id
from sigma_jax.serving.api.parameters import check_parameters
from sigma_jax.serving.api.service import TenantService
from sigma_jax.serving.batcher import Batcher
from sigma_jax.serving.experiments.service import ArmService
from sigma_jax.serving.rollout import Rollout
from sigma_jax.serving.stores.base import Store

REQUESTS_AT_ONCE = 32  # that are computed together
OF_JOBS_AT_ONCE = 16  # of them at most; others find room
READS_AT_ONCE = 32  # lists that are read together
BURST_SECONDS = 2.0  # a caller may use the calls of this time at once


@dataclasses.dataclass(frozen=True)
class Tenant:
    """One tenant of the service."""

    name: str
    service: TenantService
    arms: ArmService  # the same under experiments; routes of recommendations ask it
    batcher: Batcher[Answer]  # of instructions
    reads: Batcher[Answer]  # of the index
    rollout: Rollout
    jobs: asyncio.Semaphore  # requests of jobs that wait for an answer at once

    @classmethod
    def of(
        cls,
        name: str,
        folder: Path,
        service: TenantService,
        others: Mapping[str, TenantService] | None = None,
    ) -> Tenant:
        """A tenant with a thread of its own for computing, and one for reading.

        Args:
          folder: its first export.
          others: services with exports of arms of experiments, by name.
        """
        arms = ArmService(service, others)
        computing = Batcher(arms.compute, REQUESTS_AT_ONCE)
        reading = Batcher(lambda reads, _: arms.recommendations_of(reads), READS_AT_ONCE)
        rollout = Rollout(service.engine, folder, service.store)
        slots = asyncio.Semaphore(OF_JOBS_AT_ONCE)
        return cls(name, service, arms, computing, reading, rollout, slots)

    @property
    def folder(self) -> Path:
        """The export that answers now."""
        return self.service.engine.folder


class Context:
    """The state of the application."""

    def __init__(
        self,
        tenants: dict[str, Tenant],
        store: Store,
        keys: Keys,
        metrics: Metrics,
        calls_a_second: float,
    ):
        self.tenants, self.store, self.keys, self.metrics = tenants, store, keys, metrics
        for tenant in tenants.values():
            tenant.batcher.on_batch = metrics.batch_sizes.observe
        self.is_draining = False
        self.jobs: dict[tuple[str, str], asyncio.Task[None]] = {}  # (tenant, id) -> its run
        self._rate = calls_a_second
        self._left: dict[str, tuple[float, float]] = {}  # caller -> (calls left, when)

    def check_rate(self, caller: str) -> None:
        """HTTPException 429 if a caller calls too often."""
        if not self._rate:
            return
        most, now = max(self._rate * BURST_SECONDS, 1.0), time.monotonic()
        left, then = self._left.get(caller, (most, now))
        left = min(left + (now - then) * self._rate, most) - 1
        if left < 0:
            raise HTTPException(
                429, f"more than {self._rate:g} calls a second", {"Retry-After": "1"}
            )
        self._left[caller] = (left, now)


def context_of(request: Request) -> Context:
    """The state of the application that got a request."""
    found: Context = request.app.state.context
    return found


def key_of(request: Request) -> str:
    """The key of a request: `Authorization: Bearer KEY`, or `X-API-Key: KEY`; "" for none."""
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return key.strip()
    return request.headers.get("x-api-key", "").strip()


def tenant_of(request: Request, scope: str) -> Tenant:
    """The tenant of a caller who has `scope`. HTTPException 401, 403 or 429 if there is none."""
    context = context_of(request)
    caller: Caller | None = context.keys.caller(key_of(request))
    if caller is None or caller.tenant not in context.tenants:
        raise HTTPException(401, "the key is missing or unknown", {"WWW-Authenticate": "Bearer"})
    if not caller.may(scope):
        raise HTTPException(403, f"the key lacks the scope {scope}")
    context.check_rate(f"{caller.tenant}/{caller.name}")
    return context.tenants[caller.tenant]


def allowed(scope: str) -> Callable[[Request], Coroutine[Any, Any, Tenant]]:
    """A dependency: the tenant of a caller who has `scope`, and who calls with known parameters."""

    async def tenant(request: Request) -> Tenant:  # async: it needs no thread
        found = tenant_of(request, scope)
        check_parameters(request)
        return found

    return tenant


Reader = Annotated[Tenant, Depends(allowed("read"))]
Writer = Annotated[Tenant, Depends(allowed("write"))]
Admin = Annotated[Tenant, Depends(allowed("admin"))]
PathId = Annotated[Id, BeforeValidator(with_slashes), fastapi.Path()]
# How a key is sent, as /docs describes it; `key_of` reads it.
BEARER = HTTPBearer(auto_error=False, description="A key of --new_key.")
API_KEY = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key.")
