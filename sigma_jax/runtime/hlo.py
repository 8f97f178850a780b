"""What the TPU's compiler says of a program: time by operation, bytes that cross between chips.

The compiled text carries the compiler's own estimate in cycles at each operation. Bodies of loops
stand there once and count as often as they run; of a condition, all branches count. Kernels written
by hand carry none: they count as long as their products take, or their traffic, and the vector
unit's work on each score beside it.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
PRODUCTS = ("convolution", "dot")
VECTOR_CYCLES = 8  # for 1,024 scores of a kernel: mask, maximum, exponential, sum, two products
LANES = 1_024  # values the vector unit takes at a time
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
    """One of the hand-written: what it says of itself."""

    flops: float
    scores: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Program:
    """What is read off a program of one chip, for one run of it."""

    cycles: dict[str, float]  # by operation's name
    product_cycles: float  # of these, in products and what is fused with them
    kernels: dict[str, list[Kernel]]  # by name
    collectives: dict[str, float]  # bytes that come out, by kind
    waited_for: dict[str, float]  # of these, in operations of their own: nothing runs beside them


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
    """Reads `compiled.as_text()` of a program for a TPU. ValueError where it is no such text.

    `loop_trips`: iterations of a loop whose number depends on the data.
    """
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError("this is no text of a compiled program.")
    cycles, kernels = collections.Counter(), collections.defaultdict(list)
    collectives, waited_for = collections.Counter(), collections.Counter()
    products, counted = collections.Counter(), set()

    def holds_product(line: _Line) -> bool:
        inner = (part for name in line.called for part in computations.get(name, ()))
        return line.operation in PRODUCTS or any(map(holds_product, inner))

    def count_collective(line: _Line, times: float, is_alone: bool) -> None:
        kind = line.operation.removesuffix("-start")
        if kind not in COLLECTIVES:
            return
        shapes = line.text.split(line.operation + "(")[0]
        which = (kind, line.field(r"channel_id=(\d+)") or line.name, *_SHAPE.findall(shapes))
        if which in counted:
            return  # cut into pieces between products, one stands in several of them
        counted.add(which)
        size = times * _bytes_of(shapes, kind, line.operation)
        collectives[kind] += size
        if is_alone:
            waited_for[kind] += size

    def inside(name: str, times: float) -> None:
        for line in computations.get(name, ()):
            count_collective(line, times, False)
            for called in line.called:
                inside(called, times)

    def walk(name: str, times: float) -> None:
        for line in computations[name]:
            if line.operation == "while":
                body = line.field(r"body=%?([\w.\-]+)")
                walk(body, times * _trips(line, computations, loop_trips))
            elif line.operation in ("call", "conditional"):
                for called in line.called:
                    walk(called, times)
            else:
                count_collective(line, times, not line.operation.endswith("-start"))
                of_line = line.field(r'"estimated_cycles":"(\d+)"')
                label = line.field(r'op_name="([^"]*)"') or line.name
                if of_line is not None:
                    cycles[label] += times * float(of_line)
                    if holds_product(line):
                        products[label] += times * float(of_line)
                elif line.operation == "custom-call" and "cost_estimate" in line.text:
                    kernels[line.name.rstrip("0123456789.")] += [_kernel(line, times)]
                for called in line.called:
                    inside(called, times)

    walk(entry, 1.0)
    return Program(
        dict(cycles), products.total(), dict(kernels), dict(collectives), dict(waited_for)
    )


def kernel_seconds(kernel: Kernel, flops: float, bytes_: float, clock: float) -> float:
    """How long a kernel takes on a chip of so many operations, bytes and cycles a second."""
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
    """How often a loop runs: as the compiler says, or the number its counter is compared with."""
    known = line.field(r'"known_trip_count":\{"n":"(\d+)"\}')
    if known is not None:
        return float(known)
    condition = computations.get(line.field(r"condition=%?([\w.\-]+)") or "", [])
    limits = [
        int(match.group(1))
        for each in condition
        if (match := re.match(r"[su]32\[\]\S* constant\((\d+)\)", each.text))
    ]
    return float(max(limits, default=otherwise))


def _kernel(line: _Line, times: float) -> Kernel:
    def number(name: str) -> float:
        return times * float(line.field(rf'"{name}":"(\d+)"') or 0)

    return Kernel(number("flops"), number("transcendentals"), number("bytes_accessed"))


def _bytes_of(shapes: str, kind: str, operation: str) -> float:
    """Bytes of the arrays in an operation's result; the last of them where it is started only, for
    the first are its inputs."""
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
