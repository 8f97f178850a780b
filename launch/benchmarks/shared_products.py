"""Matrix products of one request, and the time that products shared by all beams save.

    python -m launch.benchmarks.shared_products --workdir=runs/sft-local

MaRI computes the user's half of a product of [user, item] once a request. The script lists the
products of the programs that answer a request, by the function that makes them, with their
operations. Then it measures answers with the products of each item and its own prefix
(index/leaf_blocks.py), and with those of all items and all beams. Both give the same lists.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from launch.benchmarks.fewer_beams import SIZES, parts_of, requests_of
from launch.benchmarks.result import write_result
from sigma_jax.generation import generator as generation
from sigma_jax.recommender import ranking
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.recommender.workdir import load_workdir
from sigma_jax.schema import RequestBatch
from sigma_jax.serving.api.service import COMPUTED

# Module and name of each program that answers a request.
PROGRAMS = (
    (ranking, "answer_instructions"),
    (generation, "search_beams"),
    (generation, "_all_candidates"),
    (generation, "_search"),
    (ranking, "rank"),
)
PACKAGE = "/sigma_jax/"
OPTIONS = RecommendOptions(COMPUTED)


def main() -> None:
    """Prints the products, then the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    opened = load_workdir(arguments.workdir)
    batch = requests_of(opened, 500)
    shared, plain = opened.recommender, without_blocks(opened.recommender)
    result = {
        "products": products(shared, batch.take(np.arange(1))),
        "products_of_all_beams": products(plain, batch.take(np.arange(1))),
        "times": [times(shared, plain, batch, size, arguments.rounds) for size in SIZES],
    }
    for name in ("products", "products_of_all_beams"):
        for row in result[name]:
            print(f"{name}: {row['program']}, {row['function']}: {row['mflop']:.2f} MFLOP")
    for row in result["times"]:
        print(" ".join(f"{key}={value:.4g}" for key, value in row.items()))
    if arguments.output:
        write_result(arguments.output, result)


def without_blocks(recommender: Recommender) -> Recommender:
    """The recommender that multiplies all items with the queries of all beams."""
    other = copy.copy(recommender)
    other.generator = copy.copy(recommender.generator)
    other.generator.index = dataclasses.replace(other.generator.index, blocks=None)
    other._ranker = recommender._ranker.with_generator(other.generator)
    return other


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, tuple[Any, tuple[Any, ...]]]]:
    """Program -> (the compiled function, the arguments of its last call)."""
    calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    with contextlib.ExitStack() as patches:
        for module, name in PROGRAMS:
            function = getattr(module, name)

            def call(*words: Any, name: str = name, function: Any = function) -> Any:
                calls[name] = function, words
                return function(*words)

            patches.enter_context(mock.patch.object(module, name, call))
        yield calls


def products(recommender: Recommender, batch: RequestBatch) -> list[dict[str, Any]]:
    """The matrix products of a request, those with most operations first."""
    with recorded() as calls:
        recommender.recommend(batch, OPTIONS)
    found: dict[tuple[str, str], float] = {}
    for name, (function, words) in calls.items():
        for maker, flops in of_program(function.trace(*words).jaxpr.jaxpr):
            key = name.lstrip("_"), maker
            found[key] = found.get(key, 0.0) + flops
    rows = sorted(found.items(), key=lambda one: -one[1])
    return [{"program": p, "function": f, "mflop": flops / 1e6} for (p, f), flops in rows]


def of_program(program: Any, times: int = 1) -> Iterator[tuple[str, float]]:
    """(function that makes it, operations) of each matrix product of a program."""
    for step in program.eqns:
        if step.primitive.name == "dot_general":
            (contracted, _), _ = step.params["dimension_numbers"]
            size = math.prod(step.outvars[0].aval.shape)
            depth = math.prod(step.invars[0].aval.shape[axis] for axis in contracted)
            yield maker(step), 2.0 * times * size * depth
        inside = times * step.params.get("length", 1) if step.primitive.name == "scan" else times
        for value in step.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from of_program(part, inside)


def maker(step: Any) -> str:
    """The innermost function of this package that makes a step."""
    for frame in step.source_info.traceback.frames:
        if PACKAGE in frame.file_name:
            return frame.function_name.rpartition("<locals>.")[2]
    return "?"


def times(
    shared: Recommender, plain: Recommender, batch: RequestBatch, size: int, rounds: int
) -> dict[str, float]:
    """Milliseconds and CPU milliseconds of a request among `size`, both ways, in alternation."""
    ways: dict[str, Recommender] = {"shared": shared, "all_beams": plain}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    parts = parts_of(batch, size)
    for number in range(-len(parts), rounds):
        answers = {}
        # The first answer to a batch reads its texts and users, which later ones find at hand.
        shared.recommend(parts[number % len(parts)], OPTIONS)
        for name, recommender in ways.items():
            began, cpu = time.perf_counter(), time.process_time()
            answers[name] = recommender.recommend(parts[number % len(parts)], OPTIONS)
            if number >= 0:  # the first round of each part compiles
                taken[name].append((time.perf_counter() - began, time.process_time() - cpu))
        scores = [answer.log_probs for answer in answers.values()]
        np.testing.assert_allclose(*scores, atol=1e-3)
    result = {"requests": float(size)}
    for name, values in taken.items():
        wall, cpu = 1000 * np.median(values, axis=0) / size
        result |= {f"ms_{name}": float(wall), f"cpu_ms_{name}": float(cpu)}
    ratio = result["cpu_ms_all_beams"] / result["cpu_ms_shared"]
    return result | {"ratio": result["ms_all_beams"] / result["ms_shared"], "cpu_ratio": ratio}


if __name__ == "__main__":
    main()
