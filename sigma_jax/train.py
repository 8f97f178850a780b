"""Trains a stage, and before it the stages it needs.

    python -m sigma_jax.train --config=configs/sft.py:local --workdir=runs/demo

Every stage is a task (`sigma_jax/runtime/task.py` writes down its hooks), and `sigma_jax/stages.py`
says which stages it needs. A stage trains in WORKDIR/train/STAGE and leaves its artifact in
WORKDIR/STAGE. Run again after any kind of end, the same command skips what is done and continues
what is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sigma_jax.runtime import artifacts, cli, files, hosts, sharding
from sigma_jax.runtime.artifacts import UNSHARED, Pool, Recipe
from sigma_jax.runtime.best import Best
from sigma_jax.runtime.checkpoint import Checkpoints
from sigma_jax.runtime.config import MeshConfig, OptimizerConfig, TrainConfig, to_dataclass
from sigma_jax.runtime.feed import numbered_batches
from sigma_jax.runtime.lock import locked
from sigma_jax.runtime.memory import keep_freed, peak_memory_mb
from sigma_jax.runtime.mesh import local_mesh, make_mesh
from sigma_jax.runtime.optimizer import schedule
from sigma_jax.runtime.state import init_state, kept_model, make_step
from sigma_jax.runtime.stop import Stopped, StopSignal
from sigma_jax.runtime.task import Task
from sigma_jax.runtime.writer import MetricWriter, clock
from sigma_jax.stages import find_stage, stage_fields, stages_before, stages_of, task_classes

# Fields of `train` that do not change what is trained.
LOOP_FIELDS = ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints")

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags; not at import, for other commands have flags of the same names."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Where artifacts go; runs/STAGE-PRESET if not given.")
    flags.DEFINE_string(
        "artifacts", None, "A folder for finished artifacts, shared by workdirs of like settings."
    )
    flags.DEFINE_bool("only", False, "Run this stage alone; what it reads must be there.")
    flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs for the next run.")
    flags.DEFINE_bool(
        "distributed", False, "This command runs on all hosts of a slice (or of a Slurm job)."
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    began = time.monotonic()
    keep_freed()
    config = FLAGS.config
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else cli.default_workdir()
    if FLAGS.compilation_cache:
        cli.use_compilation_cache()
    hosts.start(FLAGS.distributed)
    mesh = make_mesh(to_dataclass(MeshConfig, config.mesh, "mesh"))
    cli.log_start(mesh, cli.find_field(config, "dtype") or "float32")
    logging.info("workdir: %s", workdir)
    with contextlib.ExitStack() as held:
        hosts.by_first(lambda: held.enter_context(locked(workdir)))
        hosts.check_shared(workdir)
        train(config, workdir, mesh, FLAGS.only, Pool(FLAGS.artifacts and Path(FLAGS.artifacts)))
        if find_stage(config.stage).is_recommender:
            hosts.by_first(lambda: judge(config, workdir))
    seconds = time.monotonic() - began
    logging.info("%s: %s in all, peak memory %.0f MB", workdir, clock(seconds), peak_memory_mb())


def judge(config: ConfigDict, workdir: Path) -> None:
    """The evaluation of a recommender, and a few of its recommendations."""
    from sigma_jax.evaluation.run import evaluate, show_recommendations

    evaluate(config, workdir)
    show_recommendations(config, workdir)


def train(
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    only: bool = False,
    pool: Pool = UNSHARED,
) -> None:
    """Runs the data, the stages before `config.stage` and that stage, each where it is missing.

    Args:
      only: run `config.stage` alone; ValueError naming what is missing before it.
      pool: artifacts of other workdirs.
    """
    check_config(config, mesh)
    inputs = {"data": hosts.by_first(lambda: prepare_data(config, workdir, only, pool))}
    missing = []
    for stage in stages_of(config):
        spec = find_stage(stage)
        if stage != config.stage and (reason := spec.skip_reason(workdir)):
            logging.info("%s: skipped, %s", stage, reason)
            continue
        fields = to_dataclass(task_classes(stage)[0], *stage_fields(config, stage))
        read = {name: inputs[name] for name in ("data", *stages_before(stage)) if name in inputs}
        recipe = Recipe(recipe_config(fields), read, config.seed, spec.finish_fields)
        inputs[stage] = recipe.fingerprint
        hosts.by_first(functools.partial(pool.take, workdir, stage, recipe))
        if artifacts.is_current(workdir, stage, recipe):
            logging.info("%s: done before, %s", stage, workdir / stage)
        elif only and stage != config.stage:
            missing.append(stage)
        elif missing:
            raise ValueError(
                f"{workdir} lacks {', '.join(missing)}, which {stage} needs; run without --only."
            )
        else:
            with named_fields(stage, config):
                run_stage(stage, fields, recipe, config, workdir, mesh)
            hosts.by_first(functools.partial(pool.give, workdir, stage, recipe))


def prepare_data(config: ConfigDict, workdir: Path, only: bool, pool: Pool) -> str:
    """Makes WORKDIR/data where it is missing; its fingerprint.

    ValueError if it was made with other settings or from other files.
    """
    from sigma_jax.prepare import prepare_workdir

    if only:
        return artifacts.read_manifest(workdir, "data").fingerprint
    return prepare_workdir(config, workdir, pool).fingerprint


def run_stage(
    stage: str, fields: Any, recipe: Recipe, config: ConfigDict, workdir: Path, mesh: Mesh
) -> None:
    """Trains one stage and writes its artifact."""
    began = time.monotonic()
    task = task_classes(stage)[1](fields, workdir, config.seed, local_mesh(mesh))
    folder = workdir / "train" / stage
    model, tables, figures = fit(task, fields, recipe, folder, mesh, config.seed, stage)
    again = task.refit()
    if again is not None:
        share = figures["kept_step"] / figures["steps"] if "kept_step" in figures else 1.0
        loop = dataclasses.replace(fields.train, keep_best="", eval_every=0, patience=0)
        fields = dataclasses.replace(fields, train=loop)
        place = (recipe, folder / "refit", mesh, config.seed, f"{stage}, refit")
        refitted = fit(again, fields, *place, share)[:2]

    def finish(beside: Path) -> dict[str, Any]:
        made = task.finish(model, tables, beside)
        if again is not None:
            made |= again.finish(*refitted, beside)
        return made

    def write(beside: Path) -> dict[str, Any]:
        return {
            **figures,
            **finish(beside),
            "seconds": time.monotonic() - began,  # of the run that finished it
            "peak_memory_mb": peak_memory_mb(),
        }

    def write_metrics() -> dict[str, Any]:
        return artifacts.write_artifact(workdir, stage, recipe, write).metrics

    logging.info(
        "%s: finished in %s: %s",
        stage,
        clock(time.monotonic() - began),
        ", ".join(
            f"{name} {value:.4g}"
            for name, value in hosts.by_first(write_metrics).items()
            if isinstance(value, int | float)
        ),
    )


def fit(
    task: Task,
    fields: Any,
    recipe: Recipe,
    folder: Path,
    mesh: Mesh,
    seed: int,
    name: str,
    share: float = 1.0,
) -> tuple[nnx.Module, dict[str, jax.Array], dict[str, float]]:
    """Trains `task` from its newest checkpoint in `folder`, or from the start.

    On several processes, model and tables that are returned lie on devices of the first, and the
    others have none.

    Args:
      fields: the stage's config, with `train: TrainConfig` and `optimizer: OptimizerConfig`.
      share: of the steps after which to stop; the schedule stays that of all.

    Returns:
      the trained model, the task's tables, the figures of the last report.
    """
    loop, optimizer_config = length(task, fields)
    until = math.ceil(share * loop.steps)
    if fields.train.epochs:
        log_length(name, until, loop.steps, fields.train, task.epoch_steps)
    sharding.check_rows(task.batch_rows, mesh, loop.accumulate)
    tables = sharding.place_tables(task.tables(), mesh)
    has_average = loop.average_over > 0
    state, template, optimizer = init_state(
        task.model(nnx.Rngs(seed)),
        task.param_group,
        optimizer_config,
        loop.steps,
        mesh,
        has_average,
    )
    step_fn = make_step(
        task.loss,
        template,
        optimizer,
        optimizer_config,
        loop.steps,
        seed,
        state,
        loop.average_over,
        loop.accumulate,
    )
    figures = None
    with Checkpoints(folder, loop.keep_checkpoints, recipe) as checkpoints, StopSignal() as stop:
        state, start = checkpoints.restore(state)
        best = Best(folder, recipe, loop.keep_best, state)
        if start:
            logging.info("%s: continues after step %d of %d", name, start, loop.steps)
        with contextlib.closing(MetricWriter(folder, start, loop.steps, name)) as writer:
            patience = loop.patience * loop.eval_every
            if best.is_over(start, patience):  # it ended there, and was killed before it was told
                until = start
            for done, batch in numbered_batches(task, start, until, mesh):
                state, metrics = step_fn(state, tables, batch)
                is_last = done == until
                if is_last or done % loop.log_every == 0:
                    writer.write(done, metrics)
                figures = None
                if is_last or (loop.eval_every and done % loop.eval_every == 0):
                    kept = kept_model(task, state, template, tables, mesh)
                    figures = hosts.by_first(functools.partial(task.report, *kept))
                    best.offer(done, figures, state)
                    is_last = is_last or best.is_over(done, patience)
                    writer.write(done, {f"eval/{key}": value for key, value in figures.items()})
                    log_metrics(name, done, figures)
                is_told = stop.is_given(state.step, is_last)
                if is_last or is_told or done % loop.checkpoint_every == 0:
                    writer.flush()  # a loss that is not finite is told before it is saved
                    checkpoints.save(done, state)
                writer.tick(done)
                if is_told:
                    raise Stopped(f"{name}: saved after step {done} of {until}, told to end")
                if is_last:
                    break
        state, is_earlier = best.close(state)
        figures = None if is_earlier else figures
    # What only steps need makes room.
    state = dataclasses.replace(state, params=state.kept_params, opt_state=(), average={})
    task.finalize_on_all_hosts(template.merge(state.kept_params, state.rest), mesh)
    model, tables = kept_model(task, state, template, tables, mesh)
    if figures is None:
        figures = hosts.by_first(lambda: task.report(model, tables))
    if best.is_kept:
        figures = {**figures, "kept_step": best.step, "steps": loop.steps}
    return model, tables, figures


def length(task: Task, fields: Any) -> tuple[TrainConfig, OptimizerConfig]:
    """The settings of `fit` with the steps that their epochs are, and no longer a warmup than half
    of these: of little data, which makes few."""
    loop, optimizer_config = fields.train, fields.optimizer
    if not loop.epochs:
        return loop, optimizer_config
    loop = loop.of_examples(task.epoch_steps)
    warmup = min(optimizer_config.warmup_steps, loop.steps // 2)
    return loop, dataclasses.replace(optimizer_config, warmup_steps=warmup)


@contextlib.contextmanager
def named_fields(stage: str, config: ConfigDict) -> Iterator[None]:
    """Says of a ValueError from an upstream stage where that stage's fields stand.

    `lower optimizer.learning_rate` alone would be followed with the last stage's.
    """
    try:
        yield
    except ValueError as error:
        if stage == config.stage:
            raise
        where = f"stage {stage} (its fields: --config.upstream.{stage}.*)"
        raise ValueError(f"{where}: {error}") from error


def recipe_config(fields: Any) -> dict[str, Any]:
    """A stage's config without what does not change its result: how often it logs and saves."""
    plain = files.plain(fields)
    plain["train"] = {key: value for key, value in plain["train"].items() if key not in LOOP_FIELDS}
    return plain


def check_config(config: ConfigDict, mesh: Mesh) -> None:
    """ValueError for a mistake in any stage's fields, before hours are spent on the first."""
    for stage in stages_of(config):
        values, where = stage_fields(config, stage)
        with named_fields(stage, config):
            fields = to_dataclass(task_classes(stage)[0], values, where)
            sharding.check_rows(fields.train.batch_size, mesh, fields.train.accumulate)
            find_stage(stage).check(fields, config)
            schedule(fields.optimizer, 1.0, fields.train.steps)
    if find_stage(config.stage).is_recommender:
        from sigma_jax.evaluation.evaluator import EvaluationConfig

        to_dataclass(EvaluationConfig, config.evaluation, "evaluation")


def log_length(name: str, until: int, steps: int, loop: TrainConfig, epoch_steps: float) -> None:
    """One log line of how long the training is (`until` of a schedule of `steps`), and what else
    the config asked for."""
    done = steps / max(epoch_steps, 1e-9)
    limit = f" of {loop.epochs:g}: train.steps is the limit" if 0 < done < loop.epochs else ""
    stop = f"{until} of " if until < steps else ""
    logging.info("%s: %s%d steps, %.3g epochs%s", name, stop, steps, done, limit)


def log_metrics(name: str, step: int, figures: dict[str, float]) -> None:
    """One log line of held-out figures."""
    text = ", ".join(f"{key} {float(value):.4g}" for key, value in figures.items())
    logging.info("%s: step %d: %s", name, step, text)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
