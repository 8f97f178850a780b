"""Training steps and inference compiled for described TPUs, and estimates of memory and time.

The memory is what the TPU compiler reserves. The time is the compiler's estimate, read from the
compiled program (hlo.py). Neither is measured.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from sigma_jax.runtime import sharding
from sigma_jax.runtime.config import OptimizerConfig, TrainConfig
from sigma_jax.runtime.preflight import hlo
from sigma_jax.runtime.preflight.topology import GIB, Chip
from sigma_jax.runtime.state import abstract_state, make_step


@dataclasses.dataclass(frozen=True)
class AbstractStage:
    """A stage's training as shapes, without data or weights: the inputs of `make_step`."""

    model: nnx.Module  # of nnx.eval_shape
    param_group: Callable[[tuple[str, ...]], str]
    loss: Callable
    tables: Mapping[str, jax.ShapeDtypeStruct]
    batch: Mapping[str, jax.ShapeDtypeStruct]
    examples: int  # in a batch, as an epoch counts them
    tokens: int  # in a batch
    flops_per_token: float  # forward and backward, without recomputation

    @property
    def flops(self) -> float:
        """Floating-point operations of a batch."""
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
    """A stage's inference on a batch as shapes, without data or weights."""

    run: Callable
    arguments: tuple[Any, ...]  # of `run`: shapes with their shardings
    unit: str  # name of the examples: "texts" or "requests"
    examples: int  # in a batch
    flops: float  # of the backbone
    loop_trips: float = 1.0  # of a loop whose number of iterations depends on the data


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Memory and time of a program on one chip; times are None where the program has no text."""

    chips: int
    memory: float  # bytes at the peak
    compile_seconds: float
    seconds: float | None
    kernel_seconds: float | None  # part of `seconds`: hand-written kernels
    waiting_seconds: float | None  # part of `seconds`: collectives with nothing to overlap
    mfu: float | None  # share of the chips' peak operations that the model needs
    operations: dict[str, float]  # name -> seconds
    collectives: dict[str, float]  # kind -> bytes
    reason: str = ""  # why there is no time
    product_seconds: float | None = None  # part of `seconds`: the compiler's own products


def compile_step(
    stage: AbstractStage, optimizer: OptimizerConfig, train: TrainConfig, mesh: Mesh
) -> tuple[Any, float]:
    """(the compiled training step for `mesh`, seconds of the compilation).

    Raises:
      MemoryError: the step does not fit; the message says how much memory it needs.
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
        name: _with_sharding(shape, sharding.table_sharding(shape.shape, mesh))
        for name, shape in stage.tables.items()
    }
    batch = {
        name: _with_sharding(shape, sharding.rows(mesh)) for name, shape in stage.batch.items()
    }
    return _compile(step, state, tables, batch)


def compile_inference(inference: Inference) -> tuple[Any, float]:
    """(the compiled inference, seconds of the compilation); MemoryError where it does not fit."""
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


def _with_sharding(
    shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """The shapes of a tree of arrays or shapes, replicated on every device of `mesh`."""
    replicated = sharding.replicated(mesh)
    return jax.tree.map(lambda leaf: _with_sharding(leaf, replicated), tree)


def estimate(
    compiled: Any,
    compile_seconds: float,
    flops: float,
    chip: Chip,
    chips: int,
    loop_trips: float = 1.0,
) -> Estimate:
    """The estimate of a compiled program.

    Args:
      flops: operations that the model needs, on all chips together.
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
            hlo.kernel_seconds(kernel, chip.flops, chip.memory_rate, chip.clock) for kernel in calls
        )
        for name, calls in program.kernels.items()
    }
    waiting = sum(program.waited_for.values()) / chip.link_rate
    seconds = sum(operations.values()) + sum(kernels.values()) + waiting
    ideal_seconds = flops / chips / chip.flops
    return Estimate(
        chips,
        memory,
        compile_seconds,
        seconds,
        sum(kernels.values()),
        waiting,
        ideal_seconds / seconds,
        operations | kernels,
        program.collectives,
        product_seconds=program.product_cycles / chip.clock,
    )


def too_large(error: MemoryError, chips: int) -> Estimate:
    """The estimate of a program that does not fit: memory from the message, else infinite.

    The compiler says "Used 24.5G of 15.75G hbm", or only how much temporary arrays need:
    "the total memory required for HLO temporaries (64.01G) exceeds available HBM (15.75G)".
    """
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", str(error))
    scale = dict(zip("KMGT", (2**10, 2**20, GIB, 2**40), strict=True))
    memory = float(used.group(1)) * scale[used.group(2)] if used else float("inf")
    reason = "the program does not fit into the chip's memory."
    return Estimate(chips, memory, 0.0, None, None, None, None, {}, {}, reason)


def backbone_flops(config: Any, tokens: int) -> float:
    """Operations per token of a row of `tokens`, forward and backward.

    They are 6 per weight of the layers (4 where the weight is frozen), and 12 per layer, head
    dimension and token seen (Chowdhery et al. 2022, PaLM, appendix B).
    """
    D, F = config.width, config.mlp_width
    heads = config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    weights = 2 * D * (heads + kv_heads) + 3 * D * F
    if config.lora is None:
        return config.num_layers * (6 * weights + 12 * heads * tokens)
    added = config.lora.rank * (2 * (D + heads) + 2 * (D + kv_heads) + 3 * (D + F))
    return config.num_layers * (4 * weights + 6 * added + 12 * heads * tokens)


def accumulation_choices(fields: Any, devices: int) -> list[tuple[str, Any]]:
    """(flag, config) that split a step into more and more parts, down to one row per device.

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
