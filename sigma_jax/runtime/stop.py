"""SIGTERM, the notice before a machine is taken away: a training saves and ends.

Several processes have to end at one step, whichever hears it first; JAX's coordination service
tells them which.
"""

from __future__ import annotations

import signal
import threading
from typing import Any


class Stopped(Exception):
    """A run that was told to end and can go on later; the message says where."""


class StopSignal:
    """Use it as a context: within, SIGTERM is remembered and does not end the process at once."""

    def __init__(self):
        self._is_heard = False
        self._before: Any = None

    def __enter__(self) -> StopSignal:
        import jax  # here, for commands import this before they need JAX

        # Only the main thread can; and with several processes JAX listens itself.
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, *_: Any) -> None:
        self._is_heard = True

    def is_given(self, step: int) -> bool:
        """Whether to end after this step; the same on all processes, which all have to ask."""
        import jax

        if jax.process_count() == 1:
            return self._is_heard
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
