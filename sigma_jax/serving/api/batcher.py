"""Concurrent requests are computed together: one thread computes, others wait for their answers."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
MOST_WAITING = 1_000  # requests; more are refused


class TooBusyError(Exception):
    """Too many requests wait."""


class Batcher(Generic[T]):
    """Collects requests while a batch is computed, and computes them as the next batch."""

    def __init__(self, compute: Callable[[Sequence[Any]], Sequence[T | Exception]], most: int):
        """Args:
        compute: the results of at most `most` requests, in their order.
        """
        self._compute, self._most = compute, most
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "compute")
        self._waiting: list[tuple[Any, asyncio.Future[T]]] = []
        self._runs: asyncio.Task[None] | None = None
        self.sizes: list[int] = []  # of the last batches

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def submit(self, request: Any) -> T:
        """The result of a request.

        Raises:
          TooBusyError: too many requests wait.
          Exception: what `compute` gave in its place.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise TooBusyError(f"{len(self._waiting)} requests wait")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._runs is None or self._runs.done():
            self._runs = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            # Those whose callers have gone need no answer.
            self._waiting = [one for one in self._waiting if not one[1].done()]
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            if not batch:
                return
            self.sizes = [*self.sizes[-99:], len(batch)]
            requests = [request for request, _ in batch]
            try:
                found: Sequence[T | Exception] = await loop.run_in_executor(
                    self._thread, self._compute, requests
                )
            except Exception as error:  # each caller gets it
                found = [error] * len(batch)
            for (_, future), result in zip(batch, found, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def close(self) -> None:
        """Ends the thread after its batch."""
        self._thread.shutdown(cancel_futures=True)
