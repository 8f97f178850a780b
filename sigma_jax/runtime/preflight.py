"""Steps and answers compiled for TPUs that are not there: do they fit, how long do they take?

`libtpu` (`pip install "jax[tpu]"`) compiles for a described topology on any Linux machine. Memory
is what its compiler has set aside; time is what it estimates (runtime/hlo.py). Neither is measured.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from sigma_jax.runtime import hlo, sharding
from sigma_jax.runtime.config import OptimizerConfig, TrainConfig
from sigma_jax.runtime.state import abstract_state, make_step

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU, by its maker's figures; rates a second."""

    flops: float  # of bfloat16
    memory: float  # bytes
    memory_rate: float  # bytes
    link_rate: float  # bytes a chip exchanges with its neighbours
    clock: float  # cycles: flops over what the matrix units do in one


CHIPS = {
    "v4": Chip(137.5e12, 16 * GIB, 0.614e12, 150e9, 1.05e9),  # a core: JAX sees two of a chip
    "v5e": Chip(197e12, 16 * GIB, 0.819e12, 200e9, 1.5e9),
    "v5p": Chip(459e12, 95 * GIB, 2.765e12, 600e9, 1.75e9),
    "v6e": Chip(918e12, 32 * GIB, 1.64e12, 448e9, 1.75e9),
}
# As slices are rented; v4 and v5p count cores, of which a chip has two.
SLICES = {
    "v5e-4": "v5e:2x2",
    "v5e-8": "v5e:2x4",
    "v5e-16": "v5e:4x4",
    "v5e-32": "v5e:4x8",
    "v5e-64": "v5e:8x8",
    "v5e-256": "v5e:16x16",
    "v6e-4": "v6e:2x2",
    "v6e-8": "v6e:2x4",
    "v6e-16": "v6e:4x4",
    "v6e-64": "v6e:8x8",
    "v6e-256": "v6e:16x16",
    "v5p-8": "v5p:2x2x1",
    "v5p-16": "v5p:2x2x2",
    "v5p-32": "v5p:2x2x4",
    "v5p-64": "v5p:2x4x4",
    "v4-8": "v4:2x2x1",
    "v4-32": "v4:2x2x4",
}


@dataclasses.dataclass(frozen=True)
class AbstractStage:
    """A stage's training without data or weights: what `make_step` takes, as shapes."""

    model: nnx.Module  # of nnx.eval_shape
    param_group: Callable[[tuple[str, ...]], str]
    loss: Callable
    tables: Mapping[str, jax.ShapeDtypeStruct]
    batch: Mapping[str, jax.ShapeDtypeStruct]
    examples: int  # of a batch, as an epoch counts them
    tokens: int  # of a batch
    flops_per_token: float  # forward and backward, nothing computed twice

    @property
    def flops(self) -> float:
        """Of a batch."""
        return self.flops_per_token * self.tokens


@dataclasses.dataclass(frozen=True)
class CatalogueSizes:
    """Sizes of a catalogue and of the artifacts of earlier stages, from which shapes follow."""

    items: int
    vectors: dict[str, int]  # name of a table of pre-trained item vectors -> their width
    levels: int  # of SIDs
    codebook_size: int
    categories: int


@dataclasses.dataclass(frozen=True)
class Inference:
    """How a stage answers a batch, without data or weights."""

    run: Callable
    arguments: tuple[Any, ...]  # of it, shapes that know where they lie
    unit: str  # what is answered
    examples: int  # of a batch
    flops: float  # of its backbone
    loop_trips: float = 1.0  # of a loop whose number of iterations depends on the data


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of a step or batch on one chip; seconds are None where the compiler's text cannot be had."""

    chips: int
    memory: float  # bytes at the peak
    compile_seconds: float
    seconds: float | None
    kernel_seconds: float | None  # of these, in kernels written by hand
    waiting_seconds: float | None  # of these, for collectives beside which nothing runs
    mfu: float | None
    operations: dict[str, float]  # seconds by name
    collectives: dict[str, float]  # bytes by kind
    reason: str = ""  # why there is no time
    product_seconds: float | None = None  # of all, in the compiler's own products


def topology_of(name: str) -> tuple[str, Chip, Sequence[jax.Device]]:
    """(its full name, a chip of it, its chips) of "v5e-16" or "v5e:4x4".

    Raises:
      ValueError: there is no such topology, or libtpu is not installed.
    """
    full = SLICES.get(name, name)
    kind = full.partition(":")[0]
    near = difflib.get_close_matches(name, [*SLICES, *SLICES.values()], 1, 0.0)[0]
    if kind not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+)+", full):
        raise ValueError(f"--topology={name} is unknown; did you mean {near}?")
    # No accelerator's service is asked; other processes may have libtpu loaded too.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=full)
    except Exception as error:
        if "INVALID_ARGUMENT" in str(error):
            raise ValueError(f"--topology={name} does not exist; did you mean {near}?") from error
        raise ValueError(
            f"the TPU's compiler cannot be had ({str(error).splitlines()[0]}); "
            'pip install "jax[tpu]", on Linux.'
        ) from error
    return full, CHIPS[kind], found.devices


def compile_step(
    stage: AbstractStage, optimizer: OptimizerConfig, train: TrainConfig, mesh: Mesh
) -> tuple[Any, float]:
    """The step of `train.py` for the mesh, compiled, and the seconds that took.

    Raises:
      MemoryError: the compiler finds no room; the message says what it needs.
    """
    state, template, update = abstract_state(
        stage.model, stage.param_group, optimizer, train.steps, mesh, train.average_over > 0
    )
    step = make_step(
        stage.loss,
        template,
        update,
        optimizer,
        train.steps,
        0,
        state,
        train.average_over,
        train.accumulate,
    )
    tables = {
        name: _placed(shape, sharding.table_sharding(shape.shape, mesh))
        for name, shape in stage.tables.items()
    }
    batch = {name: _placed(shape, sharding.rows(mesh)) for name, shape in stage.batch.items()}
    return _compile(step, state, tables, batch)


def compile_inference(inference: Inference) -> tuple[Any, float]:
    """The same of a stage's answer. Raises as `compile_step` does."""
    return _compile(jax.jit(inference.run), *inference.arguments)


def _compile(function: Any, *arguments: Any) -> tuple[Any, float]:
    start = time.monotonic()
    lowered = function.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(str(error)) from error
    return compiled, time.monotonic() - start


def _placed(shape: jax.ShapeDtypeStruct, where: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def placed_whole(tree: Any, mesh: Mesh) -> Any:
    """The shapes of arrays or shapes, whole on every device of `mesh`."""
    whole = sharding.replicated(mesh)
    return jax.tree.map(lambda leaf: _placed(leaf, whole), tree)


def estimate(
    compiled: Any,
    compile_seconds: float,
    flops: float,
    chip: Chip,
    chips: int,
    loop_trips: float = 1.0,
) -> Estimate:
    """What the compiler has said of a program.

    Args:
      flops: that it needs, on all chips together.
      loop_trips: iterations of a loop whose number depends on the data.
    """
    memory = compiled.memory_analysis().peak_memory_in_bytes
    try:
        program = hlo.read_program(compiled.as_text(), loop_trips)
    except Exception as error:  # some programs for v5p and v6e have no text
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        unknown = (None,) * 4
        return Estimate(chips, memory, compile_seconds, *unknown, {}, {}, reason)
    operations = {name: cycles / chip.clock for name, cycles in program.cycles.items()}
    kernels = {
        name: sum(
            hlo.kernel_seconds(kernel, chip.flops, chip.memory_rate, chip.clock) for kernel in each
        )
        for name, each in program.kernels.items()
    }
    waiting = sum(program.waited_for.values()) / chip.link_rate
    seconds = sum(operations.values()) + sum(kernels.values()) + waiting
    used = flops / chips / chip.flops
    return Estimate(
        chips,
        memory,
        compile_seconds,
        seconds,
        sum(kernels.values()),
        waiting,
        used / seconds,
        operations | kernels,
        program.collectives,
        product_seconds=program.product_cycles / chip.clock,
    )


def backbone_flops(config: Any, tokens: int) -> float:
    """Operations a token of a row of `tokens`, forward and backward: 6 a weight of the layers, or 4
    where it stays, and 12 a layer, head dimension and token seen (Chowdhery et al. 2022, PaLM,
    appendix B)."""
    D, F = config.width, config.mlp_width
    heads = config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    weights = 2 * D * (heads + kv_heads) + 3 * D * F
    if config.lora is None:
        return config.num_layers * (6 * weights + 12 * heads * tokens)
    added = config.lora.rank * (2 * (D + heads) + 2 * (D + kv_heads) + 3 * (D + F))
    return config.num_layers * (4 * weights + 6 * added + 12 * heads * tokens)


def smaller_parts(fields: Any, devices: int) -> list[tuple[str, Any]]:
    """(flag, config) that split a step into more and more parts, down to one row a device.

    Args:
      fields: the config of a stage with `train.accumulate`.
    """
    choices, rows = [], fields.train.batch_size
    parts = 2 * fields.train.accumulate
    while rows % (parts * devices) == 0:
        train = dataclasses.replace(fields.train, accumulate=parts)
        changed = dataclasses.replace(fields, train=train)
        choices.append((f"--config.train.accumulate={parts}", changed))
        parts *= 2
    return choices


def too_large(error: MemoryError, chips: int) -> Estimate:
    """Of a step for which the compiler found no room: memory as its message says, or infinite."""
    found = re.search(r"Used ([\d.]+)([KMGT])", str(error))
    scale = dict(zip("KMGT", (2**10, 2**20, GIB, 2**40), strict=True))
    memory = float(found.group(1)) * scale[found.group(2)] if found else float("inf")
    reason = "the compiler finds no room for it."
    return Estimate(chips, memory, 0.0, None, None, None, None, {}, {}, reason)
