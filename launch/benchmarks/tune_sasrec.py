"""Chooses settings of SASRec, gSASRec, eSASRec and HSTU by NDCG@10 on validation requests.

    python -m launch.benchmarks.tune_sasrec --data=FOLDER --output=tune_sasrec.json

FOLDER is as in configs/benchmark/amazon.py. Each method has the same tries, the settings of TRIES.
The test requests are not read: nothing is evaluated. A run that was stopped continues. The best
settings of each method stand in configs/benchmark/amazon.py (TUNED).
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

from launch.benchmarks.result import write_result
from sigma_jax.configs.benchmark import amazon
from sigma_jax.runtime.artifacts import read_manifest

DATA = "Scientific"
FIELDS = ("model.width", "model.dropout", "optimizer.learning_rate")
TRIES = (  # values of FIELDS; the first are the preset's
    (64, 0.4, 2e-3),
    (64, 0.2, 2e-3),
    (64, 0.4, 1e-3),
    (128, 0.4, 2e-3),
    (128, 0.4, 1e-3),
    (128, 0.6, 1e-3),
)


def main() -> None:
    """Trains every method with every setting, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/tune_sasrec"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    tries: dict[str, list[dict[str, float]]] = {}
    for (name, fields), (number, values) in itertools.product(
        amazon.SASREC.items(), enumerate(TRIES)
    ):
        given = dict(zip(FIELDS, values, strict=True))
        folder = arguments.workdir / f"{name.replace(', ', '-').replace(' ', '-')}-{number}"
        changes = {"data.path": arguments.data / DATA, "refits": False} | fields | given
        quality = trained(changes, folder, arguments.workdir / "artifacts")["ndcg_10"]
        tries.setdefault(name, []).append(given | {"ndcg_10": quality})
        print(f"{name}, {given}: NDCG@10 {quality:.5f}", flush=True)
    best = {name: max(of_name, key=lambda one: one["ndcg_10"]) for name, of_name in tries.items()}
    for name, settings in best.items():
        print(f"{name}: best {settings}")
    if arguments.output:
        write_result(arguments.output, {"data": DATA, "tries": tries, "best": best})


def trained(changes: dict[str, Any], folder: Path, artifacts: Path) -> dict[str, Any]:
    """Trains the stage `teacher`, or keeps a finished one. Returns its metrics on validation."""
    command = [sys.executable, "-m", "sigma_jax.train", "--config=configs/teacher.py:amazon"]
    command += [f"--workdir={folder}", f"--artifacts={artifacts}"]
    command += [f"--config.{name}={value}" for name, value in changes.items()]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    return read_manifest(folder, "teacher").metrics


if __name__ == "__main__":
    main()
