"""Estimates memory, time and cost of a training on a TPU slice, without a TPU.

    python -m sigma_jax.preflight --config=configs/sft.py:qwen3_0p6b --topology=v5e-16

The command compiles the step that `sigma_jax.train` runs with the TPU's own compiler (`pip install
"jax[tpu]"`). It needs no TPU, no data and no weights. It prints the peak memory, an estimate of the
time by operation, and the bytes that cross between chips. The exit status is 1 where the step does
not fit.

`--largest` also searches for the largest batch that fits. `--inference` compiles inference of the
trained stage instead of training: `grounding` encodes texts on all chips, and so does
`grounding_head` with the data's sentence encoder; `sft` answers requests on one chip. The command
supports these stages.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sigma_jax.models.backbone import COMPUTE_FIELDS, BackboneConfig
from sigma_jax.models.config import Qwen3Config
from sigma_jax.runtime import cli, sharding
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.runtime.preflight.estimate import (
    AbstractStage,
    CatalogueSizes,
    Estimate,
    accumulation_choices,
    compile_inference,
    compile_step,
    estimate,
    too_large,
)
from sigma_jax.runtime.preflight.topology import CHIPS, GIB, SLICES, Chip, topology_of
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.stages import stage_fields, task_classes

FLAGS = flags.FLAGS
STAGES = ("grounding", "sft")  # the others are small
QWEN3_VOCAB_SIZE = 151_936  # rows of the text table of all Qwen3 models
SHOWN_OPERATIONS = 12  # of the costliest
PARTS = (  # of the estimated time
    ("product", "products"),
    ("kernel", "kernels"),
    ("other", "other operations"),
    ("waiting", "waiting for other chips"),
)


@dataclasses.dataclass(frozen=True)
class Training:
    """A stage's training, ready to be compiled with changed settings."""

    fields: Any  # the stage's config
    abstract_stage: Callable[[Any], AbstractStage]  # of a config like `fields`
    smaller_parts: Callable[[Any, int], list[tuple[str, Any]]]  # -> (flag, config)
    group_rows: int  # the rows of a batch are a multiple of it


def define_flags() -> None:
    """Defines the flags of this command."""
    cli.define_config()
    flags.DEFINE_string("topology", "v5e-16", "A slice, such as v5e-16 or v5e:4x4.")
    flags.DEFINE_integer("items", 1_000_000, "Number of items in the catalogue.", lower_bound=2)
    flags.DEFINE_integer(
        "vocab_size", 0, "Number of rows of the text table; 0 takes it from the config."
    )
    flags.DEFINE_bool("largest", False, "Also search for the largest batch that fits.")
    flags.DEFINE_bool("inference", False, "Compile inference of the trained stage, not training.")
    flags.DEFINE_string("output", None, "A JSON file for the metrics.")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    jax.config.update("jax_platforms", "cpu")  # this process only compiles
    config = FLAGS.config
    name, chip, devices = topology_of(FLAGS.topology)
    if FLAGS.inference and FLAGS.largest:
        raise ValueError("--largest applies to training only; drop --largest or --inference.")
    report_on = report_on_inference if FLAGS.inference else report_on_training
    report = report_on(config, name, chip, devices)
    if FLAGS.output:
        Path(FLAGS.output).write_text(json.dumps(report, indent=1))
    if not report["fits"]:
        sys.exit(1)


def report_on_training(
    config: ConfigDict, topology: str, chip: Chip, devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """Prints and returns the report on one training step."""
    mesh = make_mesh(to_dataclass(MeshConfig, config.mesh, "mesh"), devices)
    training = read_training(config, FLAGS.items, FLAGS.vocab_size)
    loop = training.fields.train
    sharding.check_rows(loop.batch_size, mesh, loop.accumulate)
    estimated = estimate_step(training, training.fields, mesh, chip)
    stage = training.abstract_stage(training.fields)
    report = report_head(topology, mesh) | {"batch_size": loop.batch_size, "steps": loop.steps}
    report |= training_metrics(estimated, stage, loop.steps, chip)
    print(render(report))
    if not report["fits"]:
        report["nearest"] = nearest_fit(training, config.mesh, mesh, topology)
        print(f"nearest that fits: {report['nearest'] or 'no slice of this kind of TPU'}")
    if FLAGS.largest:
        report["largest"] = largest_batch(training, estimated, mesh, chip)
        print(f"largest batch that fits: {report['largest']}")
    return report


def report_on_inference(
    config: ConfigDict, topology: str, chip: Chip, devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """Prints and returns the report on one batch of inference."""
    if config.stage == "grounding_head":
        from sigma_jax.encoders import abstract_shapes as encoders
        from sigma_jax.encoders.find import find_encoder

        mesh = make_mesh(MeshConfig(1, -1, 1), devices)
        work = encoders.inference(find_encoder(config.data.text_encoder), mesh)
    elif config.stage == "grounding":
        from sigma_jax.grounding.abstract_shapes import inference as encoding

        fields, backbone, _ = read_sizes(config, FLAGS.items, FLAGS.vocab_size)
        mesh = make_mesh(to_dataclass(MeshConfig, config.mesh, "mesh"), devices)
        work = encoding(fields, backbone, mesh)
    else:
        fields, backbone, sizes = read_sizes(config, FLAGS.items, FLAGS.vocab_size)
        from sigma_jax.evaluation.evaluator import EvaluationConfig
        from sigma_jax.sft.abstract_shapes import inference

        mesh = make_mesh(MeshConfig(1, 1, 1), devices[:1])
        evaluation = to_dataclass(EvaluationConfig, config.evaluation, "evaluation")
        work = inference(fields, evaluation.generation, backbone, sizes, mesh)
    logging.info("compiling a batch of %d %s for %d chips", work.examples, work.unit, mesh.size)
    compile_it = functools.partial(compile_inference, work)
    estimated = estimate_program(compile_it, work.flops, mesh, chip, work.loop_trips)
    report = report_head(topology, mesh) | {"batch_size": work.examples, "unit": work.unit}
    report |= program_metrics(estimated, work.examples, chip)
    print(render(report))
    return report


def report_head(topology: str, mesh: Mesh) -> dict[str, Any]:
    """The fields of a report that say what was compiled."""
    return {
        "config": cli.config_file(),
        "topology": topology,
        "mesh": dict(mesh.shape),
        "items": FLAGS.items,
    }


def read_training(config: ConfigDict, items: int, vocab_size: int = 0) -> Training:
    """The training of `config.stage` over a catalogue of `items`.

    Args:
      vocab_size: rows of the text table; 0 takes them from the config.

    Raises:
      ValueError: preflight does not support the stage.
    """
    fields, backbone, sizes = read_sizes(config, items, vocab_size)
    if config.stage == "grounding":
        from sigma_jax.grounding import abstract_shapes as grounding

        abstract_stage: Callable = grounding.abstract_stage
        smaller_parts: Callable = grounding.encode_choices
        group_rows = 1
    else:
        from sigma_jax.sft import abstract_shapes as sft

        abstract_stage, smaller_parts = sft.abstract_stage, accumulation_choices
        group_rows = fields.prompt.packing.group_rows
    return Training(
        fields,
        lambda fields: abstract_stage(fields, backbone, sizes),
        smaller_parts,
        group_rows,
    )


def read_sizes(
    config: ConfigDict, items: int, vocab_size: int = 0
) -> tuple[Any, Qwen3Config, CatalogueSizes]:
    """(the stage's config, the backbone's config, the sizes of the data) of `config.stage`.

    ValueError for a stage that preflight does not support.
    """
    fields = to_dataclass(task_classes(config.stage)[0], *stage_fields(config, config.stage))
    if config.stage not in STAGES:
        raise ValueError(
            f"stage {config.stage!r} is small; preflight supports configs/grounding.py and "
            "configs/sft.py."
        )
    upstream = config.upstream
    vectors = {"id": upstream.teacher.model.width}
    sizes = CatalogueSizes(items, vectors, levels=4, codebook_size=256, categories=1_000)
    source = fields.backbone
    if config.stage == "sft":
        vectors["text"] = upstream.grounding.encoder.width
        codes = upstream.tokenizer.model
        sizes = dataclasses.replace(sizes, levels=codes.levels, codebook_size=codes.codebook_size)
        if fields.starts_from_grounding:
            source = dataclasses.replace(source, hf_folder=upstream.grounding.backbone.hf_folder)
    return fields, read_backbone(source, config, vocab_size), sizes


def read_backbone(source: BackboneConfig, config: ConfigDict, vocab_size: int) -> Qwen3Config:
    """The sizes of the backbone: from its folder, or from the config where there is no folder."""
    if source.hf_folder:
        from sigma_jax.models.hf import read_config

        sizes = read_config(
            source.folder, **{name: getattr(source, name) for name in COMPUTE_FIELDS}
        )
        return dataclasses.replace(sizes, lora=source.lora)
    if not vocab_size:
        is_qwen3 = cli.config_file()[1].startswith("qwen3")  # such trainings start from a folder
        vocab_size = QWEN3_VOCAB_SIZE if is_qwen3 else config.data.text_tokenizer.vocab_size
    return source.scratch(vocab_size)


def estimate_step(training: Training, fields: Any, mesh: Mesh, chip: Chip) -> Estimate:
    """The estimate of a training step with the stage's config `fields`."""
    stage = training.abstract_stage(fields)
    logging.info("compiling a step of %d rows for %d chips", fields.train.batch_size, mesh.size)
    compile_it = functools.partial(compile_step, stage, fields.optimizer, fields.train, mesh)
    return estimate_program(compile_it, stage.flops, mesh, chip)


def estimate_program(
    compile_it: Callable[[], tuple[Any, float]],
    flops: float,
    mesh: Mesh,
    chip: Chip,
    loop_trips: float = 1.0,
) -> Estimate:
    """The estimate of a program. A program that does not fit has an estimate of its memory only."""
    try:
        compiled, seconds = compile_it()
    except MemoryError as error:
        return too_large(error, mesh.size)
    return estimate(compiled, seconds, flops, chip, mesh.size, loop_trips)


def with_rows(fields: Any, rows: int) -> Any:
    """The stage's config with batches of `rows`."""
    return dataclasses.replace(fields, train=dataclasses.replace(fields.train, batch_size=rows))


def largest_batch(training: Training, estimated: Estimate, mesh: Mesh, chip: Chip) -> int:
    """The most rows that fit; 0 where the smallest batch does not fit.

    A line through the memory of two batches gives a first guess, which is compiled and lowered
    until it fits.

    Args:
      estimated: of the batch that the config names.
    """
    loop = training.fields.train
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = math.lcm(devices * loop.accumulate, training.group_rows)

    def memory_of(rows: int) -> float:
        return estimate_step(training, with_rows(training.fields, rows), mesh, chip).memory

    rows = loop.batch_size
    other = max(rows // 4 // unit, 1) * unit
    if other >= rows:
        other = (rows // unit + 1) * unit
    points = sorted([(rows, estimated.memory), (other, memory_of(other))])
    (low, low_memory), (high, high_memory) = points
    slope = max((high_memory - low_memory) / (high - low), 1.0)
    guess = low + int((chip.memory - low_memory) / slope)
    guess = max(guess // unit, 1) * unit
    while memory_of(guess) > chip.memory:
        if guess == unit:
            return 0
        guess = max(int(guess * 0.9) // unit, 1) * unit
    return guess


def nearest_fit(
    training: Training, mesh_fields: ConfigDict, mesh: Mesh, topology: str
) -> str | None:
    """The flag with which the batch fits; None where no setting helps.

    The flag splits the step into smaller parts, or names a larger slice of the same kind of TPU.
    """
    kind, loop = topology.partition(":")[0], training.fields.train
    chip = CHIPS[kind]

    def fits(fields: Any, mesh: Mesh) -> bool:
        return estimate_step(training, fields, mesh, chip).memory <= chip.memory

    choices = training.smaller_parts(training.fields, mesh.shape["data"] * mesh.shape["fsdp"])
    if choices and fits(choices[-1][1], mesh):
        low, high = 0, len(choices) - 1  # the first choice that fits lies between them
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(choices[middle][1], mesh) else (middle + 1, high)
        return choices[high][0]
    for name, full_name in SLICES.items():
        if full_name.partition(":")[0] != kind:
            continue
        devices = topology_of(name)[2]
        is_larger = len(devices) > mesh.size
        if is_larger and loop.batch_size // loop.accumulate % len(devices) == 0:
            larger = make_mesh(to_dataclass(MeshConfig, mesh_fields, "mesh"), devices)
            if fits(training.fields, larger):
                return f"--topology={name}"
    return None


def training_metrics(
    estimated: Estimate, stage: AbstractStage, steps: int, chip: Chip
) -> dict[str, Any]:
    """The metrics of a training that are printed and written to --output."""
    metrics = program_metrics(estimated, stage.examples, chip)
    if estimated.seconds is not None:
        hours = steps * estimated.seconds / 3600
        metrics |= {
            "tokens_per_second": stage.tokens / estimated.seconds,
            "hours": hours,
            "chip_hours": hours * estimated.chips,
        }
    return metrics


def program_metrics(estimated: Estimate, examples: int, chip: Chip) -> dict[str, Any]:
    """The metrics of any program that are printed and written to --output."""
    metrics = dataclasses.asdict(estimated)
    operations = sorted(estimated.operations.items(), key=lambda pair: -pair[1])
    metrics["operations"] = dict(operations[:SHOWN_OPERATIONS])
    metrics |= {"chip_memory": chip.memory, "fits": estimated.memory <= chip.memory}
    if estimated.seconds is not None:
        accounted = estimated.product_seconds + estimated.kernel_seconds + estimated.waiting_seconds
        metrics |= {
            "ideal_seconds": estimated.mfu * estimated.seconds,
            "other_seconds": estimated.seconds - accounted,
            "examples_per_second": examples / estimated.seconds,
        }
    return metrics


def render(report: dict[str, Any]) -> str:
    """The report as printed text."""
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    fits = "fits" if report["fits"] else "DOES NOT FIT"
    is_known = math.isfinite(report["memory"])
    memory = f"{report['memory'] / GIB:.2f}" if is_known else "more than all"
    lines = [
        f"{':'.join(report['config'])} on {report['topology']}, {report['chips']} chips ({mesh})",
        f"  batch of {report['batch_size']:,} {report.get('unit', 'rows')}, "
        f"{report['items']:,} items",
        f"  memory: {memory} of {report['chip_memory'] / GIB:.0f} GiB a chip at the peak: {fits}",
        f"  compiled in {report['compile_seconds']:.0f} s",
    ]
    if report["seconds"] is None:
        return "\n".join([*lines, f"  no estimate of the time: {report['reason']}"])
    lines += [
        f"  {'a batch' if 'unit' in report else 'step'}: "
        f"{1000 * report['seconds']:.0f} ms estimated, MFU {100 * report['mfu']:.0f} % "
        f"({1000 * report['ideal_seconds']:.0f} ms at the chip's peak)",
        "  of it, ms: "
        + ", ".join(f"{what} {1000 * report[f'{name}_seconds']:.0f}" for name, what in PARTS),
        throughput(report),
        "  between chips, GB a chip: "
        + ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in report["collectives"].items()),
        "  costliest, ms:",
    ]
    return "\n".join(
        lines + [f"    {1000 * s:9.2f}  {name[-100:]}" for name, s in report["operations"].items()]
    )


def throughput(report: dict[str, Any]) -> str:
    """The line of the report with examples a second and the hours of the whole work."""
    a_second = f"{report['examples_per_second']:,.0f}"
    if "unit" in report:
        hours = report["items"] / report["examples_per_second"] / 3600
        all_items = f"; the texts of all items: {hours:.1f} hours"
        return f"  {a_second} {report['unit']} a second" + all_items * (report["unit"] == "texts")
    return (
        f"  {a_second} examples and {report['tokens_per_second']:,.0f} tokens a second; "
        f"{report['steps']:,} steps: {report['hours']:.1f} hours, "
        f"{report['chip_hours']:,.0f} chip-hours"
    )


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
