"""Trainings that are killed at random moments and continued, against uninterrupted trainings.

    python -m launch.benchmarks.preemption --output=preemption.json

"one mesh" kills the command for all stages of the smoke preset, and starts it again on the same
devices. All weights have to equal those of the uninterrupted run bit for bit.

"any mesh" kills the stage `sft` and continues it on another mesh each time: one process with two
devices, two processes with one device each, and sharded weights. Weights may differ in their last
digits.

Half of the kills come at a random moment after the start, half soon after a training step. SIGKILL
and SIGTERM take turns. SIGTERM goes to one process; after a minute, SIGKILL goes to all. Each step
has to be logged once with the loss of the uninterrupted run, so no batch is repeated or skipped.
Each run has to continue from the newest checkpoint.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from launch.benchmarks.result import write_result
from sigma_jax.stages import STAGES, stages_before

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "launch" / "multihost_local.sh"
GRACE = 60  # seconds between SIGTERM and SIGKILL
SOON = 2.0  # seconds; the longest pause between a step and a kill soon after it
SETTINGS = [
    *(
        f"--config.upstream.{stage}.train.{name}"
        for stage in stages_before("sft")
        for name in ("steps=60",)
    ),
    *(f"--config.upstream.{stage}.train.checkpoint_every=5" for stage in stages_before("sft")),
    *("--config.train.steps=300", "--config.train.checkpoint_every=5"),
    *("--config.train.log_every=1", "--config.train.eval_every=0", "--config.report_requests=0"),
    "--config.reranker.neighbours=0",
]
MESHES = {  # name -> processes, devices of each process, flags
    "1 process": (1, 2, []),
    "2 processes": (2, 1, []),
    "fsdp": (1, 2, ["--config.mesh.data=1", "--config.mesh.fsdp=2"]),
}


def start(workdir: Path, mesh: str) -> subprocess.Popen:
    """Starts the training in `workdir`; its output goes to WORKDIR.log."""
    processes, devices, settings = MESHES[mesh]
    words = [LOCAL, processes] if processes > 1 else []
    words += [sys.executable, "-m", "sigma_jax.train", "--config=configs/sft.py:smoke"]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "DEVICES": str(devices)}
    environment |= {"XLA_FLAGS": flags} if processes == 1 else {}
    with open(f"{workdir}.log", "w") as log:
        return subprocess.Popen(
            [*map(str, words), f"--workdir={workdir}", *SETTINGS, *settings],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def trained_steps(workdir: Path) -> int:
    """The number of steps that all stages have logged."""
    return sum(path.read_text().count("\n") for path in (workdir / "train").rglob("metrics.jsonl"))


def newest_checkpoints(workdir: Path) -> dict[str, int]:
    """The step of the newest checkpoint of each unfinished stage."""
    newest = {}
    for stage in STAGES:
        steps = [
            int(path.name)
            for path in (workdir / "train" / stage / "checkpoints").glob("*")
            if path.name.isdigit()
        ]
        if steps and not (workdir / stage).exists():
            newest[stage] = max(steps)
    return newest


def kill(run: subprocess.Popen, workdir: Path, turn: int, length: float, rng) -> str | None:
    """Kills the run at a random moment; returns the signal, or None where the run had ended.

    Args:
      turn: number of the kill; it decides the signal and the kind of moment.
      length: seconds after the start within which a random moment lies.
    """
    before, until = trained_steps(workdir), time.monotonic() + 600
    if turn % 4 < 2:
        while trained_steps(workdir) <= before and run.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, SOON))
    else:
        time.sleep(rng.uniform(0, length))
    if run.poll() is not None:
        return None
    how = (signal.SIGKILL, signal.SIGTERM)[turn % 2]
    if how == signal.SIGTERM:
        children = subprocess.run(
            ["pgrep", "-f", f"sigma_jax.train.*--workdir={workdir} "],
            capture_output=True,
            text=True,
        ).stdout.split()
        for process in children[-1:]:  # one host gets the signal, all have to stop
            os.kill(int(process), how)
        try:
            run.wait(GRACE)
        except subprocess.TimeoutExpired:
            how = "SIGTERM, then SIGKILL"
    try:
        os.killpg(run.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    run.wait()
    return how if isinstance(how, str) else how.name


def continue_until_done(workdir: Path, meshes: list[str], kills: int, length: float, seed: int):
    """Kills and continues the training in `workdir`; returns a record of each run."""
    rng, records = random.Random(seed), []
    for turn in range(10 * kills):
        mesh = meshes[turn % len(meshes)]
        before = newest_checkpoints(workdir)
        run = start(workdir, mesh)
        is_last = len([record for record in records if record["how"]]) >= kills
        how = (
            ("failed" if run.wait() else None) if is_last else kill(run, workdir, turn, length, rng)
        )
        log = Path(f"{workdir}.log").read_text()
        continued = {
            stage: int(step)
            for stage, step in re.findall(r"(\w+): continues after step (\d+)", log)
        }
        lost = [stage for stage, step in continued.items() if before.get(stage, 0) > step]
        skipped = "is damaged" in log
        record = {"mesh": mesh, "how": how, "status": run.returncode, "continued": continued}
        records.append(record | {"lost": lost, "damaged": skipped})
        print(json.dumps(records[-1]), flush=True)
        if how is None or is_last:
            if run.returncode:
                raise SystemExit(log[-3000:])
            break
    return records


def compare(workdir: Path, reference: Path) -> dict:
    """The largest differences of weights and losses, and whether each step was logged once."""
    weights, are_equal = 0.0, True
    for path in sorted(reference.rglob("*.safetensors")):
        if "train" in path.relative_to(reference).parts:
            continue
        made, expected = load_file(workdir / path.relative_to(reference)), load_file(path)
        for name, value in expected.items():
            are_equal &= made[name].tobytes() == value.tobytes()
            weights = max(weights, float(np.abs(made[name] - value).max(initial=0)))
    loss, once = 0.0, True
    for path in (workdir / "train").rglob("metrics.jsonl"):
        lines = [
            [json.loads(line) for line in file.read_text().splitlines()]
            for file in (path, reference / path.relative_to(workdir))
        ]
        once &= [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
        for line, expected in zip(*lines, strict=True):
            if "loss" in expected:
                loss = max(loss, abs(line["loss"] / expected["loss"] - 1))
    return {"bit_for_bit": are_equal, "weights": weights, "losses": loss, "every_step_once": once}


def uninterrupted(workdir: Path) -> float:
    """Runs the training without a kill; returns its seconds."""
    start_time = time.monotonic()
    if start(workdir, "1 process").wait():
        raise SystemExit(Path(f"{workdir}.log").read_text()[-3000:])
    return time.monotonic() - start_time


def main() -> None:
    """Kills and continues trainings, and compares them with an uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", help="folder of the runs; temporary by default")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    place = Path(arguments.workdir or tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    reference, records = place / "reference", {}
    seconds = uninterrupted(reference)
    print(f"uninterrupted: {seconds:.0f} s", flush=True)
    for name, meshes in (("one mesh", ["1 process"]), ("any mesh", list(MESHES))):
        workdir = place / name.replace(" ", "-")
        workdir.mkdir()
        if name == "any mesh":
            for stage in ("data", "teacher", "grounding", "tokenizer"):
                shutil.copytree(reference / stage, workdir / stage)
        runs = continue_until_done(workdir, meshes, arguments.kills, seconds / 8, arguments.seed)
        kinds = [run["how"] for run in runs if run["how"]]
        records[name] = {
            "kills": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "checkpoints_lost": sum(bool(run["lost"]) or run["damaged"] for run in runs),
            **compare(workdir, reference),
            "runs": runs,
        }
        shown = {key: value for key, value in records[name].items() if key != "runs"}
        print(f"{name}: {json.dumps(shown)}", flush=True)
    if arguments.output:
        write_result(Path(arguments.output), records)


if __name__ == "__main__":
    main()
