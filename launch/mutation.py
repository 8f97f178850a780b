"""Mutation tests: would a test fail if a line of the code were wrong? For nights, not for CI.

    pip install -e ".[dev,mutation]"
    python -m launch.mutation --workdir=runs/mutation

Cosmic Ray makes one small change at a time to a module of TESTS in a clone of the last commit, and
runs the tests of that module. A change that no test notices is a survivor. A survivor is a missing
test, or the code does the same with the change; then mutation_explained.json says why. --sample
limits the changes of a module, drawn by --seed. The same command continues a run that was stopped.
The results are in WORKDIR/mutation.json.

Type annotations are not changed, since nobody evaluates them.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
ROOT = Path(__file__).parents[1]
TESTS = {  # module -> its tests
    "losses": ("tests/test_losses.py",),
    "metrics": ("tests/test_metrics.py",),
    "data/splits": ("tests/data/test_splits.py",),
    "schema": ("tests/test_schema.py", "tests/sft/test_prepared.py", "tests/baselines"),
    "tasks/requests": ("tests/tasks", "tests/sft/test_prepared.py"),
    "evaluation/score": ("tests/evaluation/test_run.py",),
    "evaluation/evaluator": ("tests/evaluation/test_run.py",),
    "generation/beam": ("tests/generation/test_beam.py",),
    "generation/fusion": ("tests/generation/test_fusion.py", "tests/generation/test_generator.py"),
    "reranking/history/covisitation": ("tests/baselines/test_baselines.py", "tests/reranking"),
    "reranking/history/ease": ("tests/reranking/test_relations.py",),
    "reranking/history/embedding_neighbours": ("tests/reranking/test_relations.py",),
    "reranking/extra_candidates": ("tests/reranking", "tests/recommender"),
    "reranking/features": ("tests/reranking",),
    "reranking/fit": ("tests/reranking",),
    "reranking/instruction": ("tests/reranking/test_instruction.py",),
    "reranking/lexical": ("tests/reranking/test_lexical.py",),
    "reranking/history/relations": ("tests/reranking",),
    "reranking/history/repeats": ("tests/reranking/test_repeats.py",),
    "reranking/reranker": ("tests/reranking", "tests/recommender"),
    "reranking/trending": ("tests/reranking/test_trending.py",),
}
EXPLAINED_FILE = Path(__file__).with_name("mutation_explained.json")
SECONDS = 600.0  # a change that makes tests run longer is noticed
SKIPPED = "SKIPPED"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("workdir", "runs/mutation", "The folder of the clone and the results.")
    flags.DEFINE_integer("sample", 40, "Changes of a module that are tried; 0: all.")
    flags.DEFINE_integer("seed", 0, "Draws the changes that are tried.")
    flags.DEFINE_list("modules", [], "Only these modules of TESTS, such as losses.")


def main(argv: Sequence[str]) -> None:
    """Tries the changes of each module, and prints a table and the survivors."""
    workdir = Path(FLAGS.workdir).resolve()
    clone = workdir / "clone"
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    modules = FLAGS.modules or list(TESTS)
    if unknown := sorted(set(modules) - set(TESTS)):
        raise app.UsageError(f"--modules names {unknown}; known are {', '.join(TESTS)}.")
    results = {}
    for module in modules:
        results[module] = try_module(module, clone, workdir)
        print(summary(module, results[module]), flush=True)
        (workdir / "mutation.json").write_text(json.dumps(results, indent=2) + "\n")
    print(total(results))


def try_module(module: str, clone: Path, workdir: Path) -> dict[str, Any]:
    """The numbers of killed and surviving changes of a module, and the survivors."""
    name = module.replace("/", "-")
    config, session = workdir / f"{name}.toml", workdir / f"{name}.sqlite"
    words = [sys.executable, "-m", "pytest", "-m", "", "-n0", "-x", "-q", *TESTS[module]]
    config.write_text(
        "[cosmic-ray]\n"
        f'module-path = "sigma_jax/{module}.py"\n'
        f"timeout = {SECONDS}\n"
        "excluded-modules = []\n"
        f'test-command = "{" ".join(words)}"\n'
        "[cosmic-ray.distributor]\n"
        'name = "local"\n'
    )
    if not session.exists():
        cosmic_ray(clone, workdir, "init", config, session)
        skip(session, clone / "sigma_jax" / f"{module}.py", FLAGS.sample, FLAGS.seed)
    cosmic_ray(clone, workdir, "exec", config, session)
    return counts(module, changes(session))


def cosmic_ray(clone: Path, workdir: Path, *words: str | Path) -> None:
    """Runs a command of Cosmic Ray in the clone; its tests import the clone's package."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "xla"), "PYTHONPATH": str(clone)}
    command = [sys.executable, "-m", "cosmic_ray.cli", *words]
    subprocess.run(command, cwd=clone, env=os.environ | cache, check=True)


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a module, and what the tests said of it."""

    outcome: str  # "killed", "survived", "incompetent", or SKIPPED
    operator: str
    line: int
    removed: str  # the line before the change
    added: str  # the line after it

    @property
    def key(self) -> str:
        """Its name in mutation_explained.json."""
        return f"{self.removed} -> {self.added}"


def changes(session: Path) -> list[Change]:
    """All changes of a session that were tried or skipped."""
    from cosmic_ray.work_db import WorkDB, use_db

    found = []
    with use_db(session, WorkDB.Mode.open) as work:
        for item, result in work.completed_work_items:
            [mutation] = item.mutations
            lines = (result.diff or "").splitlines()
            removed = [
                line[1:].strip() for line in lines if line.startswith("-") and line[1:2] != "-"
            ]
            added = [
                line[1:].strip() for line in lines if line.startswith("+") and line[1:2] != "+"
            ]
            outcome = result.test_outcome.value if result.test_outcome else SKIPPED
            found.append(
                Change(
                    outcome,
                    mutation.operator_name.split("/")[-1],
                    mutation.start_pos[0],
                    " ".join(removed),
                    " ".join(added),
                )
            )
    return found


def skip(session: Path, source: Path, sample: int, seed: int) -> None:
    """Marks changes of annotations as skipped, and all but `sample` of the others."""
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    notes = list(annotations(source.read_text()))
    skipped = WorkResult(WorkerOutcome.SKIPPED, None, None, None)
    with use_db(session, WorkDB.Mode.open) as work:
        items = sorted(work.work_items, key=lambda item: order(item.mutations[0]))
        places = [item.mutations[0].start_pos for item in items]
        is_code = [not any(a <= place < b for a, b in notes) for place in places]
        tried = np.flatnonzero(is_code)
        if sample:
            drawn = np.random.default_rng(seed).permutation(len(tried))[:sample]
            tried = tried[drawn]
        for number in set(range(len(items))) - set(tried.tolist()):
            work.set_result(items[number].job_id, skipped)


def order(mutation: Any) -> tuple[Any, ...]:
    """A key that orders the changes of a module in the same way in every session."""
    return mutation.start_pos, mutation.operator_name, mutation.occurrence


def annotations(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """(start, end) of each annotation, as (line, column)."""
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            note = getattr(node, name, None)
            if note is not None:
                yield (note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset)


def counts(module: str, tried: Sequence[Change]) -> dict[str, Any]:
    """The result of a module: numbers, and its survivors with the reasons that explain them."""
    explained = json.loads(EXPLAINED_FILE.read_text()).get(module, {})
    survivors = [change for change in tried if change.outcome == "survived"]
    killed = sum(change.outcome in ("killed", "incompetent") for change in tried)
    return {
        "possible": len(tried),
        "tried": killed + len(survivors),
        "killed": killed,
        "explained": sum(change.key in explained for change in survivors),
        "survivors": [
            {"line": c.line, "operator": c.operator, "change": c.key}
            | ({"reason": explained[c.key]} if c.key in explained else {})
            for c in survivors
        ],
    }


def summary(module: str, result: Mapping[str, Any]) -> str:
    """A line for a module, and one for each survivor that nothing explains."""
    lines = [
        f"{module}: {result['killed']} of {result['tried']} killed, "
        f"{result['explained']} survivors explained"
    ]
    lines += [
        f"  line {survivor['line']}: {survivor['change']}"
        for survivor in result["survivors"]
        if "reason" not in survivor
    ]
    return "\n".join(lines)


def total(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The mutation score over all modules, with and without what is explained."""
    tried, killed, explained = (
        sum(result[name] for result in results.values())
        for name in ("tried", "killed", "explained")
    )
    return (
        f"all: {killed} of {tried} killed ({100 * killed / max(tried, 1):.0f} per cent), "
        f"{explained} explained, {tried - killed - explained} not"
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
