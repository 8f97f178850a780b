"""SIGTERM, the notice before a machine is taken away: a training saves and ends.

Several processes have to end after the same step, whichever of them hears it first.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # commands import this before they need JAX
    import jax


class Stopped(Exception):
    """A run that was told to end and can go on later; the message says where."""


class StopSignal:
    """Use it as a context: within, SIGTERM is remembered and does not end the process at once."""

    def __init__(self):
        self._is_heard = False
        self._before: Any = None
        self._asked: Any = False

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # no other one can
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, *_: Any) -> None:
        self._is_heard = True

    def is_given(self, step: jax.Array, is_last: bool) -> bool:
        """Whether to end after this step; the same on all processes, which all have to ask.

        `step` is of the state that the step has made. Several processes put their answers together
        on the devices, behind the step, and hear of it at the next call: so none waits for the
        step it has just sent off, but after the last.
        """
        from sigma_jax.runtime import hosts

        if hosts.is_alone():
            return self._is_heard
        before, self._asked = self._asked, hosts.any_true(self._is_heard, step)
        return bool(before) or (is_last and bool(self._asked))
