"""The training loop: `fit` trains a task from its newest checkpoint, or from the start."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from sigma_jax.runtime import hosts, sharding
from sigma_jax.runtime.artifacts import Recipe
from sigma_jax.runtime.checkpoint import BestCheckpoint, Checkpoints
from sigma_jax.runtime.config import OptimizerConfig, TrainConfig
from sigma_jax.runtime.process import Stopped, StopSignal
from sigma_jax.runtime.state import Template, TrainState, init_state, make_step, reported_model
from sigma_jax.runtime.task import Task
from sigma_jax.runtime.writer import MetricWriter

READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def fit(
    task: Task,
    fields: Any,
    recipe: Recipe,
    folder: Path,
    mesh: Mesh,
    seed: int,
    name: str,
    share: float = 1.0,
) -> tuple[nnx.Module | None, Mapping[str, jax.Array], dict[str, float]]:
    """Trains `task`; continues from the newest checkpoint in `folder` where there is one.

    With several processes, the first process gets a model and tables on its own devices. The other
    processes get None and {}.

    Args:
      fields: the stage's config, with `train: TrainConfig` and `optimizer: OptimizerConfig`.
      recipe: decides whether checkpoints in `folder` belong to this training.
      name: of the stage, in log lines.
      share: the training ends after this share of the steps; the schedule stays that of all steps.

    Returns:
      the trained model, the task's tables, the metrics of the last report.

    Raises:
      ValueError: the checkpoints are of another recipe, the loss is not finite, the data is short,
        or `train.keep_best` names no metric of the report.
      Stopped: SIGTERM came; the state is saved.
    """
    run, state = _start(task, fields, folder, mesh, seed, name, share)
    train = run.train
    with Checkpoints(folder, train.keep_checkpoints, recipe) as checkpoints, StopSignal() as stop:
        state, start = checkpoints.restore(state)
        best = BestCheckpoint(folder, recipe, train.keep_best, state)
        state, metrics = run.train_steps(state, start, checkpoints, best, stop)
        state, is_earlier = best.close(state)
    # Frees the memory that only steps need.
    state = dataclasses.replace(state, params=state.eval_params, opt_state=(), average={})
    model, tables, metrics = run.finalize(state, None if is_earlier else metrics)
    if best.is_kept:
        metrics = {**metrics, "kept_step": best.step, "steps": train.steps}
    return model, tables, metrics


@dataclasses.dataclass(frozen=True)
class _Run:
    """The parts of one `fit` that do not change from step to step."""

    task: Task
    train: TrainConfig  # with its length in steps
    last_step: int
    name: str
    folder: Path
    mesh: Mesh
    tables: dict[str, jax.Array]
    template: Template
    step: Callable  # (state, tables, batch) -> (state, metrics)

    def train_steps(
        self,
        state: TrainState,
        start: int,
        checkpoints: Checkpoints,
        best: BestCheckpoint,
        stop: StopSignal,
    ) -> tuple[TrainState, dict[str, float] | None]:
        """(the state after the last step, its report if it has one) from step `start` on."""
        train, last_step, metrics = self.train, self.last_step, None
        patience = train.patience * train.eval_every
        if start:
            logging.info("%s: continues after step %d of %d", self.name, start, train.steps)
        if best.is_over(start, patience):  # the killed run had ended
            last_step = start
        writer = MetricWriter(self.folder, start, train.steps, self.name)
        with contextlib.closing(writer):
            for done, batch in numbered_batches(self.task, start, last_step, self.mesh):
                state, step_metrics = self.step(state, self.tables, batch)
                is_last = done == last_step
                if is_last or done % train.log_every == 0:
                    writer.write(done, step_metrics)
                metrics = None
                if is_last or (train.eval_every and done % train.eval_every == 0):
                    metrics = self.report(state)
                    best.offer(done, metrics, state)
                    is_last = is_last or best.is_over(done, patience)
                    writer.write(done, {f"eval/{key}": value for key, value in metrics.items()})
                    log_metrics(self.name, done, metrics)
                must_stop = stop.must_stop(state.step, is_last)
                if is_last or must_stop or done % train.checkpoint_every == 0:
                    writer.flush()  # raises for a loss that is not finite, before it is saved
                    checkpoints.save(done, state)
                writer.tick(done)
                if must_stop:
                    raise Stopped(
                        f"{self.name}: saved after step {done} of {last_step}, stopped by SIGTERM"
                    )
                if is_last:
                    break
        return state, metrics

    def report(self, state: TrainState) -> dict[str, float]:
        """The task's report on the state, on all processes."""
        model, tables = reported_model(self.task, state, self.template, self.tables, self.mesh)
        return hosts.by_first(functools.partial(self.task.report, model, tables))

    def finalize(
        self, state: TrainState, metrics: dict[str, float] | None
    ) -> tuple[nnx.Module | None, Mapping[str, jax.Array], dict[str, float]]:
        """(model, tables, metrics) of a trained state; without `metrics` it is reported again."""
        merged = self.template.merge(state.eval_params, state.rest)
        self.task.finalize_on_all_hosts(merged, self.mesh)
        del merged  # frees the weights that the task has changed
        model, tables = reported_model(self.task, state, self.template, self.tables, self.mesh)
        if metrics is None:
            metrics = hosts.by_first(lambda: self.task.report(model, tables))
        return model, tables, metrics


def _start(
    task: Task, fields: Any, folder: Path, mesh: Mesh, seed: int, name: str, share: float
) -> tuple[_Run, TrainState]:
    """(the run, the state before its first step) with the arguments of `fit`."""
    train, optimizer_config = in_steps(task, fields)
    last_step = math.ceil(share * train.steps)
    if fields.train.epochs:
        log_length(name, last_step, train.steps, fields.train, task.epoch_steps)
    sharding.check_rows(task.batch_rows, mesh, train.accumulate)
    tables = sharding.place_tables(task.tables(), mesh)
    state, template, optimizer = init_state(
        task.model(nnx.Rngs(seed)),
        task.param_group,
        optimizer_config,
        train.steps,
        mesh,
        has_average=train.average_over > 0,
    )
    step = make_step(
        task.loss,
        template,
        optimizer,
        optimizer_config,
        train.steps,
        seed,
        state,
        train.average_over,
        train.accumulate,
    )
    return _Run(task, train, last_step, name, folder, mesh, tables, template, step), state


def numbered_batches(
    task: Task, start: int, last_step: int, mesh: Mesh
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """(number of steps done after it, batch on the mesh) for the steps from `start` on.

    Batches before `start` are not read. ValueError where the data has fewer batches.
    """
    if start >= last_step:
        return
    rows = None if hosts.is_alone() else sharding.local_batch_rows(task.batch_rows, mesh)
    iterator = iter(task.batches(rows).to_iter_dataset(READ))
    iterator.set_state({"next_index": start})
    for step in range(start, last_step):
        batch = next(iterator, None)
        if batch is None:
            raise ValueError(
                f"the data holds {step} batches, train.steps={last_step}; lower train.steps."
            )
        yield step + 1, sharding.place_batch(batch, mesh, task.batch_rows)


def in_steps(task: Task, fields: Any) -> tuple[TrainConfig, OptimizerConfig]:
    """(train, optimizer) of a stage's config, with `train.epochs` converted to steps.

    Little data makes few steps; the warmup is then at most half of them.
    """
    train, optimizer_config = fields.train, fields.optimizer
    if not train.epochs:
        return train, optimizer_config
    train = train.of_examples(task.epoch_steps)
    warmup = min(optimizer_config.warmup_steps, train.steps // 2)
    return train, dataclasses.replace(optimizer_config, warmup_steps=warmup)


def log_length(
    name: str, last_step: int, steps: int, train: TrainConfig, epoch_steps: float
) -> None:
    """Logs how long the training is: steps, epochs, and whether train.steps limits the epochs."""
    epochs = steps / max(epoch_steps, 1e-9)
    limit = f" of {train.epochs:g}: train.steps is the limit" if 0 < epochs < train.epochs else ""
    part = f"{last_step} of " if last_step < steps else ""
    logging.info("%s: %s%d steps, %.3g epochs%s", name, part, steps, epochs, limit)


def log_metrics(name: str, step: int, metrics: dict[str, float]) -> None:
    """Logs held-out metrics on one line."""
    text = ", ".join(f"{key} {float(value):.4g}" for key, value in metrics.items())
    logging.info("%s: step %d: %s", name, step, text)
