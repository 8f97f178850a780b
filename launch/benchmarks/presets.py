"""Memory, time and cost of the full-size presets on their slices, by the TPU compiler.

    python -m launch.benchmarks.presets --output=presets.json

The command runs `sigma_jax.preflight` for each preset. `python -m launch.tables` makes tables of
the result. It needs `pip install "jax[tpu]"`, and no TPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from launch.benchmarks.result import read_result, write_result

# Stage, preset, slice, settings that make the step fit the chips' memory, and flags of preflight.
RUNS = [
    ("grounding", "qwen3_0p6b", "v5e-16", "", ""),
    ("sft", "qwen3_0p6b", "v5e-16", "", ""),
    ("sft", "qwen3_0p6b", "v5e-64", "train.accumulate=2", ""),
    ("sft", "qwen3_0p6b", "v6e-16", "train.accumulate=2 backbone.remat=attention", ""),
    ("sft", "qwen3_0p6b", "v5p-8", "", ""),
    ("grounding", "qwen3_4b", "v6e-16", "", ""),
    ("sft", "qwen3_4b", "v6e-16", "train.accumulate=16 backbone.remat=attention", ""),
    ("grounding", "qwen3_4b", "v5p-8", "", ""),
    ("sft", "qwen3_4b", "v5p-8", "", ""),
    ("grounding", "qwen3_4b_lora", "v5e-16", "", ""),
    ("sft", "qwen3_4b_lora", "v5e-16", "", ""),
    ("sft", "qwen3_0p6b", "v5e-16", "train.accumulate=16", "--items=100000000"),
    ("grounding", "qwen3_0p6b", "v5e-16", "", "--inference"),
    ("sft", "qwen3_0p6b", "v5e-4", "", "--inference"),
    ("sft", "qwen3_4b", "v5e-4", "", "--inference"),
]
NAMES = ("stage", "preset", "topology", "changes", "flags")
KEPT = ("batch_size", "chips", "memory", "chip_memory", "fits", "compile_seconds", "seconds", "mfu")
KEPT += ("ideal_seconds", "product_seconds", "kernel_seconds", "other_seconds", "waiting_seconds")
KEPT += ("examples_per_second", "hours", "chip_hours", "collectives", "reason")


def preflight(
    stage: str, preset: str, topology: str, changes: str, flags: str, folder: Path
) -> dict:
    """The report of preflight on one run, with its NAMES."""
    path = folder / f"{stage}-{preset}-{topology}{flags}.json"
    words = [f"--config=configs/{stage}.py:{preset}", f"--topology={topology}", f"--output={path}"]
    words += [f"--config.{change}" for change in changes.split()] + flags.split()
    subprocess.run([sys.executable, "-m", "sigma_jax.preflight", *words], stdout=subprocess.DEVNULL)
    report = json.loads(path.read_text())
    kept = {name: report[name] for name in KEPT if name in report}
    names = dict(zip(NAMES, (stage, preset, topology, changes, flags), strict=True))
    return {**names, **kept}


def main() -> None:
    """Runs preflight for each of RUNS and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slice", help="only the runs on this slice; OUTPUT keeps the others")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    known = {}
    if arguments.output and arguments.output.exists():
        reports = read_result(arguments.output)
        known = {tuple(report.get(name, "") for name in NAMES): report for report in reports}
    with tempfile.TemporaryDirectory() as folder:
        for run in RUNS:
            if arguments.slice in (None, run[2]):
                known[run] = preflight(*run, Path(folder))
                shown = ("memory", "seconds", "mfu", "examples_per_second", "reason")
                print(*run, {name: known[run].get(name) for name in shown}, flush=True)
                if arguments.output:
                    rows = [known[run] for run in RUNS if run in known]
                    write_result(arguments.output, rows)


if __name__ == "__main__":
    main()
