"""Metrics of a run: metrics.jsonl, TensorBoard events, and a progress bar or log lines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from tensorboardX import SummaryWriter
from tqdm import tqdm

from sigma_jax.runtime import hosts
from sigma_jax.runtime.files import write_text

METRICS = "metrics.jsonl"
LOG_SECONDS = 10.0  # between log lines where there is no terminal


class MetricWriter:
    """Writes one line per step to FOLDER/metrics.jsonl: {"step": steps done, name: value, ...}.

    Metrics are fetched one call late, so that the host never waits for the step that it has just
    dispatched. Lines and events after step `start` are from a killed run and are dropped.
    """

    def __init__(self, folder: Path, start: int, steps: int, name: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name, self._steps = folder, name, steps
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._loss = math.nan
        self._is_writer = hosts.is_first()
        self._logged_at = -math.inf
        # (steps done, time) after the first step: its compilation is no part of the speed.
        self._timed_from: tuple[int, float] | None = None
        if not self._is_writer:
            return
        drop_after(folder / METRICS, start)
        self._file = open(folder / METRICS, "a")
        self._events = SummaryWriter(str(folder), purge_step=start + 1, flush_secs=10)
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=start, desc=name, unit="step", smoothing=0.05)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes metrics of `step`, which the device may still be computing."""
        if self._pending is not None and self._pending[0] == step:
            self._pending[1].update(metrics)
            return
        self.flush()
        self._pending = (step, dict(metrics))

    def flush(self) -> None:
        """Waits for the metrics of the last `write` and writes them to disk.

        Raises:
          ValueError: the loss is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if self._is_writer:
            line = {"step": step, **{name: _finite(value) for name, value in values.items()}}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._events.add_scalar(f"{self._name}/{name}", value, step)
        self._loss = values.get("loss", self._loss)
        if not math.isfinite(values.get("loss", 0.0)):
            raise ValueError(
                f"loss is {values['loss']} at step {step} of {self._name}; "
                "lower optimizer.learning_rate or set optimizer.clip_norm=1, delete "
                f"{self._folder} and run again."
            )

    def tick(self, done: int) -> None:
        """Shows the progress: `done` steps are done."""
        if not self._is_writer:
            return
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{self._loss:.4g}", refresh=False)
            self._bar.update(1)
            return
        now = time.monotonic()
        self._timed_from = self._timed_from or (done, now)
        if now - self._logged_at >= LOG_SECONDS or done == self._steps:
            self._logged_at = now
            loss = f", loss {self._loss:.4g}" if math.isfinite(self._loss) else ""
            speed = ""
            if done > self._timed_from[0]:
                rate = (done - self._timed_from[0]) / max(now - self._timed_from[1], 1e-9)
                speed = f", {rate:.3g} steps/s, {clock((self._steps - done) / rate)} left"
            logging.info("%s: step %d of %d%s%s", self._name, done, self._steps, loss, speed)

    def close(self) -> None:
        """Writes the pending metrics and closes the files."""
        self.flush()
        if self._is_writer:
            self._file.close()
            self._events.close()
            if self._bar is not None:
                self._bar.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of FOLDER/metrics.jsonl, oldest first; [] where there is no such file."""
    path = folder / METRICS
    if not path.exists():
        return []
    return [line for text in path.read_text().splitlines() if (line := _parsed(text)) is not None]


def drop_after(path: Path, step: int) -> None:
    """Drops the lines of steps after `step`, and a line that a killed run wrote in part."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "step" in line else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN
