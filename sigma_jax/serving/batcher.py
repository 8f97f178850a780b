"""Concurrent requests are computed together: one thread computes, others wait for their answers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sigma_jax.serving.load import Load

T = TypeVar("T")
MOST_WAITING = 1_000  # requests; more are refused


class TooBusyError(Exception):
    """Too many requests wait."""


class Batcher(Generic[T]):
    """Collects requests while a batch is computed, and computes them as the next batch."""

    def __init__(
        self, compute: Callable[[Sequence[Any], Load], Sequence[T | Exception]], most: int
    ):
        """Args:
        compute: the results of at most `most` requests, in their order, under a load.
        """
        self._compute, self._most = compute, most
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "compute")
        # (request, its deadline in the loop's time, where its result goes)
        self._waiting: list[tuple[Any, float, asyncio.Future[T]]] = []
        self._runs: asyncio.Task[None] | None = None
        self.on_batch: Callable[[int], None] = lambda size: None  # called before each batch

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def submit(self, request: Any, seconds: float = math.inf) -> T:
        """The result of a request.

        Args:
          seconds: until its deadline. The caller ends the wait then; the batch may take less work.

        Raises:
          TooBusyError: too many requests wait.
          Exception: what `compute` gave in its place.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise TooBusyError(f"{len(self._waiting)} requests wait")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((request, loop.time() + seconds, future))
        if self._runs is None or self._runs.done():
            self._runs = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            # Those whose callers have gone need no answer.
            self._waiting = [one for one in self._waiting if not one[2].done()]
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            if not batch:
                return
            self.on_batch(len(batch))
            requests = [request for request, _, _ in batch]
            left = tuple(due - loop.time() for _, due, _ in batch)
            load = Load(len(self._waiting), left)
            try:
                found: Sequence[T | Exception] = await loop.run_in_executor(
                    self._thread, self._compute, requests, load
                )
            except Exception as error:  # each caller gets it
                found = [error] * len(batch)
            for (_, _, future), result in zip(batch, found, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def close(self) -> None:
        """Ends the thread after its batch."""
        self._thread.shutdown(cancel_futures=True)
