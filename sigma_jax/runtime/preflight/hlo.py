"""The TPU compiler's estimate of a program: time by operation, and bytes that cross between chips.

The compiled text carries the compiler's estimate in cycles at each operation. The body of a loop
stands in the text once and counts as often as it runs. All branches of a condition count. Kernels
written by hand carry no estimate. Their time is that of their products or of their memory traffic,
whichever is longer, plus the vector unit's work on each score.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
PRODUCTS = ("convolution", "dot")
VECTOR_CYCLES = 8  # for 1,024 scores of a kernel: mask, maximum, exponential, sum, two products
LANES = 1_024  # values that the vector unit processes at a time
SIZES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8} | {
    f"{kind}{bits}": max(bits // 8, 1) for kind in "su" for bits in (2, 4, 8, 16, 32, 64)
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The cost estimate that a hand-written kernel declares."""

    flops: float
    scores: float  # attention scores, declared as transcendentals
    bytes: float


@dataclasses.dataclass(frozen=True)
class Program:
    """The costs of one run of a program on one chip."""

    cycles: dict[str, float]  # operation's name -> cycles
    product_cycles: float  # part of `cycles`: products and operations fused with them
    kernels: dict[str, list[Kernel]]  # by name
    collectives: dict[str, float]  # kind -> bytes of the results
    waited_for: dict[str, float]  # part of `collectives`: those that overlap with nothing


@dataclasses.dataclass(frozen=True)
class _Line:
    name: str
    operation: str
    text: str

    def field(self, pattern: str) -> str | None:
        found = re.search(pattern, self.text)
        return found.group(1) if found else None

    @property
    def called(self) -> list[str]:
        names = []
        for one, several in _CALLED.findall(self.text):
            names += [one] if one else [name.strip().lstrip("%") for name in several.split(",")]
        return names


def read_program(text: str, loop_trips: float = 1.0) -> Program:
    """The costs of a program for a TPU, from its `compiled.as_text()`.

    Args:
      loop_trips: iterations of a loop whose number depends on the data.

    Raises:
      ValueError: `text` is not the text of a compiled program.
    """
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError("the text is not that of a compiled program; pass compiled.as_text().")
    costs = _Costs(computations, loop_trips)
    costs.walk(entry, 1.0)
    return Program(
        dict(costs.cycles),
        costs.products.total(),
        dict(costs.kernels),
        dict(costs.collectives),
        dict(costs.waited_for),
    )


class _Costs:
    """The costs of a program, summed while `walk` follows its computations."""

    def __init__(self, computations: dict[str, list[_Line]], loop_trips: float):
        self.computations, self.loop_trips = computations, loop_trips
        self.cycles: Any = collections.Counter()
        self.products: Any = collections.Counter()
        self.kernels = collections.defaultdict(list)
        self.collectives: Any = collections.Counter()
        self.waited_for: Any = collections.Counter()
        self._counted = set()

    def walk(self, name: str, times: float) -> None:
        """Adds the costs of a computation that runs `times` times."""
        for line in self.computations[name]:
            if line.operation == "while":
                body = line.field(r"body=%?([\w.\-]+)")
                self.walk(body, times * _trips(line, self.computations, self.loop_trips))
            elif line.operation in ("call", "conditional"):
                for called in line.called:
                    self.walk(called, times)
            else:
                self._count_operation(line, times)

    def _count_operation(self, line: _Line, times: float) -> None:
        self._count_collective(line, times, not line.operation.endswith("-start"))
        cycles = line.field(r'"estimated_cycles":"(\d+)"')
        name = line.field(r'op_name="([^"]*)"') or line.name
        if cycles is not None:
            self.cycles[name] += times * float(cycles)
            if self._holds_product(line):
                self.products[name] += times * float(cycles)
        elif line.operation == "custom-call" and "cost_estimate" in line.text:
            self.kernels[line.name.rstrip("0123456789.")] += [_kernel(line, times)]
        for called in line.called:
            self._count_fused(called, times)

    def _count_fused(self, name: str, times: float) -> None:
        """Adds the collectives inside an operation, whose cycles are counted already."""
        for line in self.computations.get(name, ()):
            self._count_collective(line, times, False)
            for called in line.called:
                self._count_fused(called, times)

    def _count_collective(self, line: _Line, times: float, is_alone: bool) -> None:
        kind = line.operation.removesuffix("-start")
        if kind not in COLLECTIVES:
            return
        shapes = line.text.split(line.operation + "(")[0]
        identity = (kind, line.field(r"channel_id=(\d+)") or line.name, *_SHAPE.findall(shapes))
        if identity in self._counted:
            return  # a collective that is split between products appears in each of them
        self._counted.add(identity)
        size = times * _bytes_of(shapes, kind, line.operation)
        self.collectives[kind] += size
        if is_alone:
            self.waited_for[kind] += size

    def _holds_product(self, line: _Line) -> bool:
        inner = (part for name in line.called for part in self.computations.get(name, ()))
        return line.operation in PRODUCTS or any(map(self._holds_product, inner))


def kernel_seconds(kernel: Kernel, flops: float, bytes_: float, clock: float) -> float:
    """Seconds of a kernel on a chip.

    Args:
      flops: operations of the chip per second.
      bytes_: memory traffic of the chip per second.
      clock: cycles per second.
    """
    vector = kernel.scores * VECTOR_CYCLES / LANES / clock
    return max(kernel.flops / flops, kernel.bytes / bytes_) + vector


def _computations(text: str) -> tuple[dict[str, list[_Line]], str | None]:
    found: dict[str, list[_Line]] = {}
    entry = current = None
    for line in text.splitlines():
        if not line.startswith(" "):
            head = _COMPUTATION.match(line)
            if head:
                current = head.group(2)
                found[current] = []
                entry = current if head.group(1) else entry
        elif current is not None and (parts := _INSTRUCTION.match(line)):
            rest = parts.group(2)
            operation = _OPERATION.search(rest)
            found[current].append(
                _Line(parts.group(1), operation.group(1) if operation else "", rest)
            )
    return found, entry


def _trips(line: _Line, computations: dict[str, list[_Line]], otherwise: float) -> float:
    """Iterations of a loop: from the compiler, or the number that its counter is compared with."""
    known = line.field(r'"known_trip_count":\{"n":"(\d+)"\}')
    if known is not None:
        return float(known)
    condition = computations.get(line.field(r"condition=%?([\w.\-]+)") or "", [])
    limits = [
        int(match.group(1))
        for line in condition
        if (match := re.match(r"[su]32\[\]\S* constant\((\d+)\)", line.text))
    ]
    return float(max(limits, default=otherwise))


def _kernel(line: _Line, times: float) -> Kernel:
    def number(name: str) -> float:
        return times * float(line.field(rf'"{name}":"(\d+)"') or 0)

    return Kernel(number("flops"), number("transcendentals"), number("bytes_accessed"))


def _bytes_of(shapes: str, kind: str, operation: str) -> float:
    """Bytes of the arrays in an operation's result.

    The result of a started operation lists inputs, then outputs; only its first output counts.
    """
    sizes = list(_sizes(shapes))
    if operation.endswith("-start") and len(sizes) > 1 and kind != "all-reduce":
        sizes = sizes[len(sizes) // 2 :][:1]
    return float(sum(sizes))


def _sizes(shapes: str) -> Iterator[int]:
    for kind, dimensions in _SHAPE.findall(shapes):
        if kind in SIZES:
            size = SIZES[kind]
            for dimension in filter(None, dimensions.split(",")):
                size *= int(dimension)
            yield size
