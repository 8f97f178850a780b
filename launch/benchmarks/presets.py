"""The full-size presets on the slices they are for: memory, time and cost, by the TPU's compiler.

    python -m launch.benchmarks.presets --output=presets.json

Runs `sigma_jax.preflight` for each and prints a table. Needs `pip install "jax[tpu]"`, and no TPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# Stage, preset, slice, and what is set otherwise: what a chip works off at once, and what it keeps.
RUNS = [
    ("grounding", "qwen3_0p6b", "v5e-16", ""),
    ("sft", "qwen3_0p6b", "v5e-16", ""),
    ("sft", "qwen3_0p6b", "v5e-64", "train.accumulate=2"),
    ("sft", "qwen3_0p6b", "v6e-16", "train.accumulate=2 backbone.remat=attention"),
    ("sft", "qwen3_0p6b", "v5p-8", ""),
    ("grounding", "qwen3_4b", "v6e-16", ""),
    ("sft", "qwen3_4b", "v6e-16", "train.accumulate=16 backbone.remat=attention"),
    ("grounding", "qwen3_4b", "v5p-8", ""),
    ("sft", "qwen3_4b", "v5p-8", ""),
    ("grounding", "qwen3_4b_lora", "v5e-16", ""),
    ("sft", "qwen3_4b_lora", "v5e-16", ""),
]
NAMES = ("stage", "preset", "topology", "changes")
KEPT = ("batch_size", "chips", "memory", "chip_memory", "fits", "compile_seconds", "seconds", "mfu")
KEPT += ("ideal_seconds", "product_seconds", "kernel_seconds", "other_seconds", "waiting_seconds")
KEPT += ("examples_per_second", "hours", "chip_hours", "collectives", "reason")


def look(stage: str, preset: str, topology: str, changes: str, folder: Path) -> dict:
    """What preflight says."""
    path = folder / f"{stage}-{preset}-{topology}.json"
    words = [f"--config=configs/{stage}.py:{preset}", f"--topology={topology}", f"--output={path}"]
    words += [f"--config.{change}" for change in changes.split()]
    subprocess.run([sys.executable, "-m", "sigma_jax.preflight", *words], stdout=subprocess.DEVNULL)
    found = json.loads(path.read_text())
    kept = {name: found[name] for name in KEPT if name in found}
    return {**dict(zip(NAMES, (stage, preset, topology, changes), strict=True)), **kept}


def row(found: dict) -> str:
    """A line of the table."""
    memory = f"{found['memory'] / 2**30:.1f} of {found['chip_memory'] / 2**30:.0f}"
    cells = [found["stage"], found["preset"], found["topology"], f"{found['batch_size']:,}"]
    cells += [found["changes"] and f"`{found['changes']}`", memory]
    if found["seconds"] is None:
        cells += ["-"] * 4
    else:
        cells += [f"{found['seconds']:.2f}", f"{100 * found['mfu']:.0f}"]
        cells += [f"{found['hours']:.0f}", f"{found['chip_hours']:,.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Looks at each and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slice", help="these runs alone; OUTPUT keeps its others")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    print(
        "| stage | preset | slice | batch | set otherwise | GiB a chip | s a step | MFU | hours "
        "| chip-hours |"
    )
    print("|" + "---|" * 10)
    known = {}
    if arguments.output and arguments.output.exists():
        of_file = json.loads(arguments.output.read_text())
        known = {tuple(one[name] for name in NAMES): one for one in of_file}
    with tempfile.TemporaryDirectory() as folder:
        for run in RUNS:
            if arguments.slice in (None, run[2]):
                known[run] = look(*run, Path(folder))
                print(row(known[run]), flush=True)
                if arguments.output:
                    rows = [known[one] for one in RUNS if one in known]
                    arguments.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
