"""Trainings killed at random moments and continued, against the same trainings left alone.

    python -m launch.benchmarks.preemption --output=preemption.json

"one mesh": the whole command, every stage of the smoke preset, is killed and started again on the
same devices; all weights have to be bit for bit those of the undisturbed run. "any mesh": stage 3
is killed and goes on in turn on one process with two devices, on two processes with one each, and
on a mesh that cuts the weights up; weights may differ in their last digits.

Kills are SIGKILL and SIGTERM in turn, half of them at a random moment after the start, half soon
after a training step. SIGTERM goes to one process, and after a minute of grace SIGKILL to all.
Every step has to be logged once with the loss it had in the undisturbed run, so no batch is
repeated or skipped, and a run goes on from the newest checkpoint there was.
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

from sigma_jax.stages import STAGES, stages_before

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "launch" / "multihost_local.sh"
GRACE, SOON = 60, 2.0  # seconds
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
MESHES = {  # processes, devices of each, mesh
    "1 process": (1, 2, []),
    "2 processes": (2, 1, []),
    "fsdp": (1, 2, ["--config.mesh.data=1", "--config.mesh.fsdp=2"]),
}


def start(workdir: Path, mesh: str) -> subprocess.Popen:
    """The training in `workdir`; its output goes to WORKDIR.log."""
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
    """Lines of all stages' metrics."""
    return sum(path.read_text().count("\n") for path in (workdir / "train").rglob("metrics.jsonl"))


def newest(workdir: Path) -> dict[str, int]:
    """The newest checkpoint of each stage that is under way."""
    found = {}
    for stage in STAGES:
        steps = [
            int(path.name)
            for path in (workdir / "train" / stage / "checkpoints").glob("*")
            if path.name.isdigit()
        ]
        if steps and not (workdir / stage).exists():
            found[stage] = max(steps)
    return found


def disturb(run: subprocess.Popen, workdir: Path, turn: int, length: float, draw) -> str | None:
    """Ends the run at a random moment; how, or None where it was over before."""
    before, until = trained_steps(workdir), time.monotonic() + 600
    if turn % 4 < 2:
        while trained_steps(workdir) <= before and run.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(draw.uniform(0, SOON))
    else:
        time.sleep(draw.uniform(0, length))
    if run.poll() is not None:
        return None
    how = (signal.SIGKILL, signal.SIGTERM)[turn % 2]
    if how == signal.SIGTERM:
        children = subprocess.run(
            ["pgrep", "-f", f"sigma_jax.train.*--workdir={workdir} "],
            capture_output=True,
            text=True,
        ).stdout.split()
        for process in children[-1:]:  # one host hears it, all have to end
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
    """Kills and continues the training in `workdir`; what happened, a line a run."""
    draw, told = random.Random(seed), []
    for turn in range(10 * kills):
        mesh = meshes[turn % len(meshes)]
        had = newest(workdir)
        run = start(workdir, mesh)
        is_last = len([line for line in told if line["how"]]) >= kills
        how = (
            ("failed" if run.wait() else None)
            if is_last
            else disturb(run, workdir, turn, length, draw)
        )
        log = Path(f"{workdir}.log").read_text()
        continued = {
            stage: int(step)
            for stage, step in re.findall(r"(\w+): continues after step (\d+)", log)
        }
        lost = [stage for stage, step in continued.items() if had.get(stage, 0) > step]
        skipped = "is damaged" in log
        line = {"mesh": mesh, "how": how, "status": run.returncode, "continued": continued}
        told.append(line | {"lost": lost, "damaged": skipped})
        print(json.dumps(told[-1]), flush=True)
        if how is None or is_last:
            if run.returncode:
                raise SystemExit(log[-3000:])
            break
    return told


def compare(workdir: Path, whole: Path) -> dict:
    """Largest difference of weights and of losses, and whether every step is there once."""
    worst, bits = 0.0, True
    for path in sorted(whole.rglob("*.safetensors")):
        if "train" in path.relative_to(whole).parts:
            continue
        one, other = load_file(workdir / path.relative_to(whole)), load_file(path)
        for name, value in other.items():
            bits &= one[name].tobytes() == value.tobytes()
            worst = max(worst, float(np.abs(one[name] - value).max(initial=0)))
    loss, once = 0.0, True
    for path in (workdir / "train").rglob("metrics.jsonl"):
        lines = [
            [json.loads(line) for line in file.read_text().splitlines()]
            for file in (path, whole / path.relative_to(workdir))
        ]
        once &= [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
        for one, other in zip(*lines, strict=True):
            if "loss" in other:
                loss = max(loss, abs(one["loss"] / other["loss"] - 1))
    return {"bit_for_bit": bits, "weights": worst, "losses": loss, "every_step_once": once}


def undisturbed(workdir: Path) -> float:
    """Seconds of the training left alone."""
    began = time.monotonic()
    if start(workdir, "1 process").wait():
        raise SystemExit(Path(f"{workdir}.log").read_text()[-3000:])
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", help="kept there; a temporary folder if not given")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    place = Path(arguments.workdir or tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    whole, records = place / "whole", {}
    seconds = undisturbed(whole)
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    for name, meshes in (("one mesh", ["1 process"]), ("any mesh", list(MESHES))):
        workdir = place / name.replace(" ", "-")
        workdir.mkdir()
        if name == "any mesh":
            for stage in ("data", "teacher", "grounding", "tokenizer"):
                shutil.copytree(whole / stage, workdir / stage)
        told = continue_until_done(workdir, meshes, arguments.kills, seconds / 8, arguments.seed)
        kinds = [line["how"] for line in told if line["how"]]
        records[name] = {
            "kills": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "checkpoints_lost": sum(bool(line["lost"]) or line["damaged"] for line in told),
            **compare(workdir, whole),
            "runs": told,
        }
        shown = {key: value for key, value in records[name].items() if key != "runs"}
        print(f"{name}: {json.dumps(shown)}", flush=True)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
