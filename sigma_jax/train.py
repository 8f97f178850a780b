"""Trains a stage, and before it the stages that it needs.

    python -m sigma_jax.train --config=configs/sft.py:local --workdir=runs/demo

Each stage is a task; `sigma_jax/runtime/task.py` describes its hooks and `sigma_jax/stages.py`
lists the stages. A stage trains in WORKDIR/train/STAGE and leaves its artifact in WORKDIR/STAGE.
The same command run again skips finished stages and continues an unfinished one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sigma_jax.runtime import artifacts, cli, hosts, sharding
from sigma_jax.runtime.artifacts import UNSHARED, Pool, Recipe
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.runtime.files import plain
from sigma_jax.runtime.fit import fit
from sigma_jax.runtime.optimizer import schedule
from sigma_jax.runtime.process import keep_freed_memory, locked, peak_memory_mb, release_memory
from sigma_jax.runtime.sharding import local_mesh, make_mesh
from sigma_jax.runtime.task import Task
from sigma_jax.runtime.writer import clock
from sigma_jax.schema import Histories
from sigma_jax.stages import find_stage, stage_fields, stages_before, stages_of, task_classes

# Fields of `train` that do not change the result.
LOOP_FIELDS = ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints")
# Metrics by task and feature that the log of a stage leaves out.
DETAILS = ("weight_", "calibration_")

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command; not at import, as other commands have equal names."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder for artifacts; runs/STAGE-PRESET by default.")
    flags.DEFINE_string(
        "artifacts", None, "A folder of finished artifacts, shared by workdirs of equal settings."
    )
    flags.DEFINE_bool("only", False, "Train this stage alone; the stages that it needs must exist.")
    flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs for the next run.")
    flags.DEFINE_bool(
        "distributed", False, "This command runs on all hosts of a slice (or of a Slurm job)."
    )


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    start = time.monotonic()
    keep_freed_memory()
    config = FLAGS.config
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else cli.default_workdir()
    if FLAGS.compilation_cache:
        cli.use_compilation_cache()
    hosts.start(FLAGS.distributed)
    mesh = make_mesh(to_dataclass(MeshConfig, config.mesh, "mesh"))
    cli.log_start(mesh, cli.find_field(config, "dtype") or "float32")
    logging.info("workdir: %s", workdir)
    with contextlib.ExitStack() as stack:
        hosts.by_first(lambda: stack.enter_context(locked(workdir)))
        hosts.check_shared(workdir)
        train(config, workdir, mesh, FLAGS.only, Pool(FLAGS.artifacts and Path(FLAGS.artifacts)))
        if is_evaluated(config):
            hosts.by_first(lambda: evaluate_and_show(config, workdir))
    seconds = time.monotonic() - start
    logging.info("%s: %s in all, peak memory %.0f MB", workdir, clock(seconds), peak_memory_mb())


def is_evaluated(config: ConfigDict) -> bool:
    """Whether the stage is a recommender, or a baseline whose evaluation is asked for."""
    is_recommender = find_stage(config.stage).is_recommender
    return is_recommender or bool("evaluation" in config and config.evaluation.is_evaluated)


def evaluate_and_show(config: ConfigDict, workdir: Path) -> None:
    """Evaluates the stage in `workdir`, and prints a few recommendations of a recommender.

    It says so where the log is too short for an evaluation: no user has a target.
    """
    from sigma_jax.evaluation.run import evaluate, show_recommendations

    histories = Histories.load(workdir / "data")
    split = config.evaluation.split
    if not len(histories.valid_users() if split == "valid" else histories.test_users()):
        logging.warning(
            "%s is trained but not evaluated: no user has a %s target, which needs three sessions; "
            "a longer log gives one. `python -m sigma_jax.recommend` works",
            workdir,
            split,
        )
        return
    evaluate(config, workdir)
    if find_stage(config.stage).is_recommender:
        show_recommendations(config, workdir)


def train(
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    only: bool = False,
    pool: Pool = UNSHARED,
) -> None:
    """Prepares the data and trains `config.stage`, after the stages that it needs.

    Stages whose artifact in `workdir` has the same recipe are skipped.

    Args:
      only: train `config.stage` alone.
      pool: artifacts of other workdirs.

    Raises:
      ValueError: the config has a mistake, an artifact is of another recipe, or with `only` a
        needed stage is missing.
      Stopped: SIGTERM came; the state is saved.
    """
    check_config(config, mesh)
    fingerprints = {"data": hosts.by_first(lambda: prepare_data(config, workdir, only, pool))}
    if find_stage(config.stage).is_recommender and not only:
        hosts.by_first(functools.partial(show_first_look, config, workdir))
    missing = []
    for stage in stages_of(config):
        spec = find_stage(stage)
        if stage != config.stage and (reason := spec.skip_reason(workdir)):
            logging.info("%s: skipped, %s", stage, reason)
            continue
        fields = to_dataclass(task_classes(stage)[0], *stage_fields(config, stage))
        inputs = {
            name: fingerprints[name]
            for name in ("data", *stages_before(stage))
            if name in fingerprints
        }
        recipe = Recipe(recipe_config(fields), inputs, config.seed, spec.finish_fields)
        fingerprints[stage] = recipe.fingerprint
        hosts.by_first(functools.partial(pool.take, workdir, stage, recipe))
        if artifacts.is_current(workdir, stage, recipe):
            logging.info("%s: skipped, %s is up to date", stage, workdir / stage)
        elif only and stage != config.stage:
            missing.append(stage)
        elif missing:
            raise ValueError(
                f"{workdir} lacks {', '.join(missing)}, which {stage} needs; run without --only."
            )
        else:
            with named_fields(stage, config):
                task = functools.partial(
                    task_classes(stage)[1], fields, workdir, config.seed, local_mesh(mesh)
                )
                run_stage(stage, task, fields, recipe, workdir, mesh)
            release_memory()
            hosts.by_first(functools.partial(pool.give, workdir, stage, recipe))


def show_first_look(config: ConfigDict, workdir: Path) -> None:
    """Prints baselines and lists of the encoder, where no stage of the run is trained yet."""
    from sigma_jax.evaluation.first_look import first_look

    if any((workdir / stage).exists() for stage in stages_of(config)):
        return
    print(first_look(workdir, config.seed), flush=True)


def prepare_data(config: ConfigDict, workdir: Path, only: bool, pool: Pool) -> str:
    """Makes WORKDIR/data where it is missing, and returns its fingerprint.

    ValueError if it was made with other settings or from other files.
    """
    from sigma_jax.prepare import prepare_workdir

    if only:
        return artifacts.read_manifest(workdir, "data").fingerprint
    return prepare_workdir(config, workdir, pool).fingerprint


def run_stage(
    stage: str,
    make_task: Callable[[], Task],
    fields: Any,
    recipe: Recipe,
    workdir: Path,
    mesh: Mesh,
) -> None:
    """Trains one stage, and its refit if it has one, and writes its artifact.

    Args:
      fields: the stage's config, with `train` and `optimizer` of this training.
      recipe: of the artifact.
    """
    start = time.monotonic()
    task, seed = make_task(), recipe.seed
    folder = workdir / artifacts.TRAIN / stage
    model, tables, fit_metrics = fit(task, fields, recipe, folder, mesh, seed, stage)
    trained = [(task, model, tables)]
    refit = task.refit()
    if refit is not None:
        kept = fit_metrics.get("kept_step")
        share = 1.0 if kept is None else kept / fit_metrics["steps"]
        loop = dataclasses.replace(fields.train, keep_best="", eval_every=0, patience=0)
        fields = dataclasses.replace(fields, train=loop)
        name = f"{stage}, refit"
        refitted = fit(refit, fields, recipe, folder / "refit", mesh, seed, name, share)
        trained.append((refit, *refitted[:2]))

    def write(folder: Path) -> dict[str, Any]:
        release_memory()
        metrics = dict(fit_metrics)
        for task, model, tables in trained:
            metrics |= task.finish(model, tables, folder)
        # Measured in the process that finished the stage.
        seconds = {"seconds": time.monotonic() - start, "peak_memory_mb": peak_memory_mb()}
        return metrics | seconds

    metrics = hosts.by_first(
        lambda: artifacts.write_artifact(workdir, stage, recipe, write).metrics
    )
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    shown = {name: value for name, value in numbers.items() if not name.startswith(DETAILS)}
    text = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    if len(shown) < len(numbers):
        text += f", and {len(numbers) - len(shown)} weights in {stage}/manifest.json"
    logging.info("%s: finished in %s: %s", stage, clock(time.monotonic() - start), text)


@contextlib.contextmanager
def named_fields(stage: str, config: ConfigDict) -> Iterator[None]:
    """A context in which a ValueError of an earlier stage says where that stage's fields are.

    "lower optimizer.learning_rate" alone would make users change the last stage's field.
    """
    try:
        yield
    except ValueError as error:
        if stage == config.stage:
            raise
        where = f"stage {stage} (its fields: --config.upstream.{stage}.*)"
        raise ValueError(f"{where}: {error}") from error


def recipe_config(fields: Any) -> dict[str, Any]:
    """A stage's config for its recipe: without LOOP_FIELDS."""
    config = plain(fields)
    train = {key: value for key, value in config["train"].items() if key not in LOOP_FIELDS}
    return {**config, "train": train}


def check_config(config: ConfigDict, mesh: Mesh) -> None:
    """ValueError for a mistake in any stage's fields, before hours are spent on the first stage."""
    for stage in stages_of(config):
        values, where = stage_fields(config, stage)
        with named_fields(stage, config):
            fields = to_dataclass(task_classes(stage)[0], values, where)
            sharding.check_rows(fields.train.batch_size, mesh, fields.train.accumulate)
            find_stage(stage).check(fields, config)
            schedule(fields.optimizer, 1.0, fields.train.steps)
    if "evaluation" in config:
        from sigma_jax.evaluation.sasrec import evaluation_settings

        evaluation_settings(config)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
