"""The stages of training: which stages each one needs, and where its classes are.

STAGES is a graph: a stage names the stages whose artifacts it reads. Two stages that do not need
each other can stand side by side. To add a stage, add a row to STAGES and a file configs/NAME.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sigma_jax.runtime import artifacts
from sigma_jax.schema import Histories

# Fields of a config file that belong to the run; all others belong to its stage.
RUN_FIELDS = ("stage", "seed", "mesh", "data", "upstream", "evaluation")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: what it needs, its classes, and its own rules."""

    needs: tuple[str, ...]  # stages whose artifacts it reads; each stands above it in STAGES
    classes: Callable[[], tuple[type, type]]  # imports (config dataclass, Task of runtime/task.py)
    # Raises ValueError for a mistake in (the stage's fields, the whole config).
    check: Callable[[Any, ConfigDict], None] = lambda fields, config: None
    # (workdir) -> why the prepared data makes the stage unnecessary; None where it is needed.
    skip_reason: Callable[[Path], str | None] = lambda workdir: None
    # Config fields that only `Task.finish` reads: checkpoints stay valid when they change.
    finish_fields: tuple[str, ...] = ()
    side_artifacts: tuple[str, ...] = ()  # other artifacts that it leaves in the workdir
    is_recommender: bool = False  # its artifact is a recommender, which `train` evaluates


def _teacher() -> tuple[type, type]:
    from sigma_jax.teacher.task import TeacherConfig, TeacherTask

    return TeacherConfig, TeacherTask


def _grounding() -> tuple[type, type]:
    from sigma_jax.grounding.task import GroundingConfig, GroundingTask

    return GroundingConfig, GroundingTask


def _grounding_head() -> tuple[type, type]:
    from sigma_jax.grounding.head_task import GroundingHeadConfig, GroundingHeadTask

    return GroundingHeadConfig, GroundingHeadTask


def _tokenizer() -> tuple[type, type]:
    from sigma_jax.tokenizer.task import TokenizerConfig, TokenizerTask

    return TokenizerConfig, TokenizerTask


def _sft() -> tuple[type, type]:
    from sigma_jax.sft.config import SftConfig
    from sigma_jax.sft.task import SftTask

    return SftConfig, SftTask


def _check_grounding(fields: Any, config: ConfigDict) -> None:
    fields.backbone.check_start()


def _check_sft(fields: Any, config: ConfigDict) -> None:
    if not fields.starts_from_grounding:
        fields.backbone.check_start()
    fields.prompt.layout.check(config.upstream.tokenizer.model.levels)


def _skip_teacher(workdir: Path) -> str | None:
    if (workdir / "data" / "id_vectors.npy").exists():
        return "the data brings ID vectors"
    if not Histories.load(workdir / "data").has_training_order():
        return "no user has two sessions in training"
    return None


def _skip_grounding(workdir: Path) -> str | None:
    if (workdir / "data" / "text_vectors.npy").exists():
        return "the data brings text vectors"
    if not artifacts.read_manifest(workdir, "data").metrics["items_with_text"]:
        return "the items have no texts"
    return None


def _skip_grounding_head(workdir: Path) -> str | None:
    metrics = artifacts.read_manifest(workdir, "data").metrics
    if not metrics["sentence_encoder"]:
        return "no sentence encoder made the text vectors"
    if not any(metrics["pairs"].values()):
        return "the data has no relevance pairs"
    return None


# In the order in which they run.
STAGES: dict[str, Stage] = {
    "teacher": Stage(needs=(), classes=_teacher, skip_reason=_skip_teacher),
    "grounding": Stage(
        needs=("teacher",),
        classes=_grounding,
        check=_check_grounding,
        skip_reason=_skip_grounding,
    ),
    "grounding_head": Stage(
        needs=("teacher",), classes=_grounding_head, skip_reason=_skip_grounding_head
    ),
    "tokenizer": Stage(needs=("teacher", "grounding", "grounding_head"), classes=_tokenizer),
    "sft": Stage(
        needs=("teacher", "grounding", "grounding_head", "tokenizer"),
        classes=_sft,
        check=_check_sft,
        finish_fields=("reranker",),
        side_artifacts=("records", "instructions"),
        is_recommender=True,
    ),
}


def find_stage(name: str) -> Stage:
    """The row of STAGES. ValueError for an unknown name."""
    if name not in STAGES:
        raise ValueError(f"config.stage={name!r} is unknown; use one of {', '.join(STAGES)}.")
    return STAGES[name]


def task_classes(name: str) -> tuple[type, type]:
    """(config dataclass, task class) of a stage, imported now. ValueError for an unknown name."""
    return find_stage(name).classes()


def artifact_names() -> tuple[str, ...]:
    """Folders that training leaves in a workdir, in the order in which they are made."""
    names = ["data"]
    for name, stage in STAGES.items():
        names += [*stage.side_artifacts, name]
    return tuple(names)


def stages_before(name: str) -> tuple[str, ...]:
    """All stages that a stage needs, directly or through others, in the order in which they run.

    ValueError for an unknown name.
    """
    needed, waiting = set(), [name]
    while waiting:
        new = set(find_stage(waiting.pop()).needs) - needed
        needed |= new
        waiting += new
    return tuple(stage for stage in STAGES if stage in needed)


def stages_of(config: ConfigDict) -> tuple[str, ...]:
    """The stages of a run: those before `config.stage` that `config.upstream` has, then itself."""
    before = stages_before(config.stage)
    return (*(stage for stage in before if stage in config.upstream), config.stage)


def stage_fields(config: ConfigDict, stage: str) -> tuple[dict[str, Any], str]:
    """(fields of a stage, where in the config they stand: "" or "upstream.STAGE")."""
    if stage == config.stage:
        return {key: value for key, value in config.items() if key not in RUN_FIELDS}, ""
    return dict(config.upstream[stage].items()), f"upstream.{stage}"
