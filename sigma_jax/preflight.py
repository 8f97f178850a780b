"""Does a training fit a TPU slice, how long does a step take, what does it all cost?

    python -m sigma_jax.preflight --config=configs/sft.py:qwen3_0p6b --topology=v5e-16

Compiles the very step that `sigma_jax.train` runs, with the TPU's own compiler (`pip install
"jax[tpu]"`; no TPU, no data and no weights are needed), and prints what that says: memory at the
peak, an estimate of the time by operation, what crosses between chips. Exit status 1 where it does
not fit. `--largest` also looks for the largest batch that does. `--inference` looks at how the
trained stage answers instead: stage 1's texts on all chips, as training ends with; stage 3's
requests on one. Stages: grounding and sft.
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

from sigma_jax.models.backbone import HOW, BackboneConfig
from sigma_jax.models.qwen3 import Qwen3Config
from sigma_jax.models.sizes import Sizes
from sigma_jax.runtime import cli, preflight, sharding
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.runtime.mesh import make_mesh
from sigma_jax.runtime.preflight import GIB, Estimate, Sketch, estimate, topology_of
from sigma_jax.train import stage_fields, task_classes

FLAGS = flags.FLAGS
QWEN3_ROWS = 151_936  # of the text table of all Qwen3 models
SHOWN = 12  # of the costliest operations
PARTS = (
    ("product", "products"),
    ("kernel", "kernels"),
    ("other", "other operations"),
    ("waiting", "waiting for other chips"),
)


def define_flags() -> None:
    """This command's flags."""
    cli.define_config()
    flags.DEFINE_string("topology", "v5e-16", "A slice, such as v5e-16, or v5e:4x4.")
    flags.DEFINE_integer("items", 1_000_000, "Of the catalogue.", lower_bound=2)
    flags.DEFINE_integer("vocab_size", 0, "Rows of the text table; 0: as the config says.")
    flags.DEFINE_bool("largest", False, "Also look for the largest batch that fits.")
    flags.DEFINE_bool("inference", False, "Look at how the trained stage answers.")
    flags.DEFINE_string("output", None, "A file for the figures, as JSON.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    jax.config.update("jax_platforms", "cpu")  # this process only compiles
    config = FLAGS.config
    name, chip, devices = topology_of(FLAGS.topology)
    if FLAGS.inference and FLAGS.largest:
        raise ValueError("--largest is of trainings; leave out --inference, or it.")
    look = look_at_inference if FLAGS.inference else look_at_training
    report = look(config, name, chip, devices)
    if FLAGS.output:
        Path(FLAGS.output).write_text(json.dumps(report, indent=1))
    if not report["fits"]:
        sys.exit(1)


def look_at_training(
    config: ConfigDict, name: str, chip: preflight.Chip, devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """Prints what there is to say of a step, and gives it."""
    mesh = make_mesh(to_dataclass(MeshConfig, config.mesh, "mesh"), devices)
    make, fields = stage_sketch(config, FLAGS.items, FLAGS.vocab_size)
    rows = fields.train.batch_size
    sharding.check_rows(rows, mesh, fields.train.accumulate)
    found = measure(make, fields, rows, mesh, chip)
    report = head(name, mesh) | {"batch_size": rows, "steps": fields.train.steps}
    report |= figures(found, make(rows), fields.train.steps, chip)
    print(table(report))
    if not report["fits"]:
        report["nearest"] = nearest_that_fits(make, fields, config.mesh, mesh, name)
        print(f"nearest that fits: {report['nearest'] or 'no slice of this kind of TPU'}")
    if FLAGS.largest:
        report["largest"] = largest(make, fields, found, mesh, chip)
        print(f"largest batch that fits: {report['largest']}")
    return report


def look_at_inference(
    config: ConfigDict, name: str, chip: preflight.Chip, devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """The same of how the stage answers."""
    fields, backbone, sizes = stage_sizes(config, FLAGS.items, FLAGS.vocab_size)
    if config.stage == "grounding":
        from sigma_jax.grounding.sketch import inference

        mesh = make_mesh(to_dataclass(MeshConfig, config.mesh, "mesh"), devices)
        work = inference(fields, backbone, mesh)
    else:
        from sigma_jax.evaluation.evaluator import EvaluationConfig
        from sigma_jax.sft.sketch import inference

        mesh = make_mesh(MeshConfig(1, 1, 1), devices[:1])
        judged = to_dataclass(EvaluationConfig, config.evaluation, "evaluation")
        work = inference(fields, judged.generation, backbone, sizes, mesh)
    logging.info("compiling %d %s at a time for %d chips", work.examples, work.unit, mesh.size)
    compile_it = functools.partial(preflight.compile_inference, work)
    found = estimated(compile_it, work.flops, mesh, chip, work.turns)
    report = head(name, mesh) | {"batch_size": work.examples, "unit": work.unit}
    report |= common_figures(found, work.examples, chip)
    print(table(report))
    return report


def head(name: str, mesh: Mesh) -> dict[str, Any]:
    """What a report begins with."""
    where = {"config": cli.config_file(), "topology": name, "mesh": dict(mesh.shape)}
    return {**where, "items": FLAGS.items}


def stage_sketch(config: ConfigDict, items: int, vocab_size: int = 0) -> tuple[Callable, Any]:
    """(the stage's sketch for a batch of so many rows, and with other fields than its own; these).
    ValueError for a stage without one."""
    fields, backbone, sizes = stage_sizes(config, items, vocab_size)
    if config.stage == "grounding":
        from sigma_jax.grounding.sketch import sketch
    else:
        from sigma_jax.sft.sketch import sketch

    def make(rows: int, of: Any = fields) -> Sketch:
        train = dataclasses.replace(of.train, batch_size=rows)
        return sketch(dataclasses.replace(of, train=train), backbone, sizes)

    return make, fields


def stage_sizes(
    config: ConfigDict, items: int, vocab_size: int = 0
) -> tuple[Any, Qwen3Config, Sizes]:
    """The stage's fields, and what its shapes follow from. ValueError for a stage that preflight
    does not look at."""
    fields = to_dataclass(task_classes(config.stage)[0], *stage_fields(config, config.stage))
    if config.stage not in ("grounding", "sft"):
        raise ValueError(
            f"stage {config.stage!r} is small; preflight looks at configs/grounding.py and "
            "configs/sft.py."
        )
    upstream = config.upstream
    vectors = {"id": upstream.teacher.model.width}
    sizes = Sizes(items, vectors, levels=4, codebook_size=256, categories=1_000)
    if config.stage == "sft":
        vectors["text"] = upstream.grounding.encoder.width
        codes = upstream.tokenizer.model
        sizes = dataclasses.replace(sizes, levels=codes.levels, codebook_size=codes.codebook_size)
    source = fields.backbone
    if config.stage == "sft" and fields.starts_from_grounding:
        source = dataclasses.replace(source, hf_folder=upstream.grounding.backbone.hf_folder)
    return fields, backbone_of(source, config, vocab_size), sizes


def backbone_of(source: BackboneConfig, config: ConfigDict, vocab_size: int) -> Qwen3Config:
    """Sizes of the backbone: its folder's, or those of a start from scratch."""
    if source.hf_folder:
        from sigma_jax.models.hf import read_config

        sizes = read_config(source.hf_folder, **{name: getattr(source, name) for name in HOW})
        return dataclasses.replace(sizes, lora=source.lora)
    if not vocab_size:
        is_paper = cli.config_file()[1].startswith("qwen3")  # a folder is to be given then
        vocab_size = QWEN3_ROWS if is_paper else config.data.text_tokenizer.vocab_size
    return source.scratch(vocab_size)


def measure(make: Callable, fields: Any, rows: int, mesh: Mesh, chip: preflight.Chip) -> Estimate:
    """The estimate of a batch of `rows` with `fields`."""
    sketch = make(rows, fields)
    logging.info("compiling a step of %d rows for %d chips", rows, mesh.size)
    compile_it = functools.partial(
        preflight.compile_step, sketch, fields.optimizer, fields.train, mesh
    )
    return estimated(compile_it, sketch.flops, mesh, chip)


def estimated(
    compile_it: Callable[[], tuple[Any, float]],
    flops: float,
    mesh: Mesh,
    chip: preflight.Chip,
    turns: float = 1.0,
) -> Estimate:
    """What the compiler says of a program, or that it finds no room for it."""
    try:
        compiled, seconds = compile_it()
    except MemoryError as error:
        return preflight.too_large(error, mesh.size)
    return estimate(compiled, seconds, flops, chip, mesh.size, turns)


def largest(make: Callable, fields: Any, found: Estimate, mesh: Mesh, chip: preflight.Chip) -> int:
    """The most rows that fit, by the line through the memory of two batches, compiled once more; 0
    where not even the least does."""
    unit = mesh.shape["data"] * mesh.shape["fsdp"] * fields.train.accumulate
    if hasattr(fields, "prompt"):  # rows are packed in groups
        unit = math.lcm(unit, fields.prompt.pack_group_rows)
    rows = fields.train.batch_size
    other = max(rows // 4 // unit, 1) * unit
    if other >= rows:
        other = (rows // unit + 1) * unit
    of_other = measure(make, fields, other, mesh, chip).memory
    (low, least), (high, most) = sorted([(rows, found.memory), (other, of_other)])
    slope = max((most - least) / (high - low), 1.0)
    guess = low + int((chip.memory - least) / slope)
    guess = max(guess // unit, 1) * unit
    while measure(make, fields, guess, mesh, chip).memory > chip.memory:
        if guess == unit:
            return 0
        guess = max(int(guess * 0.9) // unit, 1) * unit
    return guess


def nearest_that_fits(
    make: Callable, fields: Any, mesh_fields: ConfigDict, mesh: Mesh, topology: str
) -> str | None:
    """The setting with which the batch fits, as a flag: worked off in smaller parts, else on more
    chips of the kind. None where nothing helps."""
    kind, rows = topology.partition(":")[0], fields.train.batch_size
    chip = preflight.CHIPS[kind]

    def fits(fields: Any, mesh: Mesh) -> bool:
        return measure(make, fields, rows, mesh, chip).memory <= chip.memory

    choices = smaller_parts(fields, mesh.shape["data"] * mesh.shape["fsdp"])
    if choices and fits(choices[-1][1], mesh):
        low, high = 0, len(choices) - 1  # the first that fits is between them
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(choices[middle][1], mesh) else (middle + 1, high)
        return choices[high][0]
    for name, full in preflight.SLICES.items():
        if full.partition(":")[0] != kind:
            continue
        devices = topology_of(name)[2]
        if len(devices) > mesh.size and rows // fields.train.accumulate % len(devices) == 0:
            larger = make_mesh(to_dataclass(MeshConfig, mesh_fields, "mesh"), devices)
            if fits(fields, larger):
                return f"--topology={name}"
    return None


def smaller_parts(fields: Any, devices: int) -> list[tuple[str, Any]]:
    """(flag, fields) that work a step off in smaller and smaller parts, to a row a device at
    least."""
    found, rows = [], fields.train.batch_size
    if hasattr(fields, "encode_rows"):  # stage 1: its texts, not its batch
        part = (fields.encode_rows or 2 * rows) // 2
        while part and part % devices == 0:
            changed = dataclasses.replace(fields, encode_rows=part)
            found.append((f"--config.encode_rows={part}", changed))
            part //= 2
        return found
    parts = 2 * fields.train.accumulate
    while rows % (parts * devices) == 0:
        train = dataclasses.replace(fields.train, accumulate=parts)
        changed = dataclasses.replace(fields, train=train)
        found.append((f"--config.train.accumulate={parts}", changed))
        parts *= 2
    return found


def figures(found: Estimate, sketch: Sketch, steps: int, chip: preflight.Chip) -> dict[str, Any]:
    """What is printed and written of a training."""
    shown = common_figures(found, sketch.examples, chip)
    if found.seconds is not None:
        hours = steps * found.seconds / 3600
        shown |= {
            "tokens_per_second": sketch.tokens / found.seconds,
            "hours": hours,
            "chip_hours": hours * found.chips,
        }
    return shown


def common_figures(found: Estimate, examples: int, chip: preflight.Chip) -> dict[str, Any]:
    """What is printed and written of anything."""
    shown = dataclasses.asdict(found)
    operations = sorted(found.operations.items(), key=lambda pair: -pair[1])
    shown["operations"] = dict(operations[:SHOWN])
    shown |= {"chip_memory": chip.memory, "fits": found.memory <= chip.memory}
    if found.seconds is not None:
        accounted = found.product_seconds + found.kernel_seconds + found.waiting_seconds
        shown |= {
            "ideal_seconds": found.mfu * found.seconds,
            "other_seconds": found.seconds - accounted,
            "examples_per_second": examples / found.seconds,
        }
    return shown


def table(report: dict[str, Any]) -> str:
    """The report in lines."""
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
        rate(report),
        "  between chips, GB a chip: "
        + ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in report["collectives"].items()),
        "  costliest, ms:",
    ]
    return "\n".join(
        lines + [f"    {1000 * s:9.2f}  {name[-100:]}" for name, s in report["operations"].items()]
    )


def rate(report: dict[str, Any]) -> str:
    """The line of the report that says how much is done in what time."""
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
