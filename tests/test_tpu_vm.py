"""launch/tpu_vm.sh against a fake gcloud.

The fake records its calls. It runs the commands of hosts on this machine, each host with its own
home folder.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch" / "tpu_vm.sh"
HOSTS = 2
GCLOUD = f"""#!{sys.executable}
import json, os, shutil, subprocess, sys
from pathlib import Path
place, words = Path(os.environ["PLACE"]), sys.argv[1:]
with open(place / "calls.jsonl", "a") as file:
    file.write(json.dumps(words) + "\\n")
flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
group, verb, name = words[2:5]
states = place / "states"  # answers of `describe`, one line a call; the last one stays
if verb == "describe":
    lines = states.read_text().splitlines()
    if lines[0] == "NONE":
        sys.exit(1)
    print(lines[0])
    states.write_text("\\n".join(lines[1:] or lines))
elif verb in ("create", "delete"):
    rest = states.read_text().splitlines()[1:]
    states.write_text("\\n".join(rest) if rest else "NONE")
else:
    hosts = range({HOSTS}) if flags["worker"] == "all" else [int(flags["worker"])]
    for host in hosts:
        home = place / f"host{{host}}"
        home.mkdir(exist_ok=True)
        if verb == "scp":
            shutil.copy(words[4], home)
            continue
        environment = {{**os.environ, "HOME": str(home)}}
        done = subprocess.run(["bash", "-c", flags["command"]], env=environment, cwd=home)
        if done.returncode:
            sys.exit(done.returncode)
"""
RECORDED = '#!/bin/sh\necho "$(basename "$0") $*" >> $HOME/commands\n'


@pytest.fixture
def cloud(tmp_path):
    """(a function `launch(words, states, **environment)`, the folder that it works in)."""
    tools = tmp_path / "bin"
    tools.mkdir()
    texts = {"gcloud": GCLOUD, "mountpoint": "#!/bin/sh\nexit 1\n", "uv": RECORDED}
    texts |= {name: RECORDED for name in ("gcsfuse", "sudo", "mount.nfs")}
    # The installer of uv comes from the network; this one installs the recorder instead.
    installer = f"mkdir -p $HOME/.local/bin; cp {tools}/uv $HOME/.local/bin/uv"
    texts["curl"] = f"#!/bin/sh\necho '{installer}'\n"
    for name, text in texts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def launch(words, states="ACTIVE", **environment):
        (tmp_path / "states").write_text("\n".join(states.split()))
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PLACE": str(tmp_path),
            "ZONE": "here-1",
            "POLL": "0",
            **environment,
        }
        return subprocess.run(
            [SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=60
        )

    return launch, tmp_path


def calls(place: Path) -> list[list[str]]:
    return [json.loads(line) for line in (place / "calls.jsonl").read_text().splitlines()]


def test_a_slice_is_requested_once_and_waited_for(cloud):
    launch, place = cloud
    states = "NONE WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
    done = launch(["create", "mine"], states, TYPE="v6e-16", SPOT="1", PROJECT="ours")
    assert done.returncode == 0, done.stderr
    made = [words for words in calls(place) if words[3] == "create"]
    wanted = "--node-id=mine --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot"
    where = ["--zone=here-1", "--project=ours", "--quiet"]
    start = ["compute", "tpus", "queued-resources", "create", "mine"]
    assert made == [start + wanted.split() + where]


def test_an_active_slice_is_reused(cloud):
    launch, place = cloud
    assert launch(["create", "mine"]).returncode == 0
    assert [words[3] for words in calls(place)] == ["describe"]


def test_a_failed_slice_is_deleted_and_requested_again(cloud):
    launch, place = cloud
    assert launch(["create", "mine"], "FAILED - NONE ACTIVE").returncode == 0
    assert [words[3] for words in calls(place)] == ["describe", "delete", "describe", "create"] + [
        "describe"
    ]


def test_the_last_commit_is_installed_on_all_hosts(cloud):
    launch, place = cloud
    done = launch(["install", "mine"], SHARED="gs://bucket")
    assert done.returncode == 0, done.stderr
    for host in range(HOSTS):
        home = place / f"host{host}"
        assert (home / "sigma_jax" / "sigma_jax" / "train.py").exists()
        assert (home / "sigma_jax" / "shared").resolve() == home / "shared"
        commands = (home / "commands").read_text()
        assert f"gcsfuse --implicit-dirs bucket {home}/shared" in commands
        assert f"uv venv -q --python 3.11 {home}/venv" in commands
        assert "uv pip install -q -e .[tpu,demo]" in commands
    done = launch(["install", "mine"], SHARED="10.0.0.2:/all")
    assert "mount -t nfs 10.0.0.2:/all" in (place / "host1" / "commands").read_text()
    done = launch(["install", "mine"], SHARED="elsewhere")
    assert done.returncode == 1 and "neither gs://BUCKET nor ADDRESS:/SHARE" in done.stderr


def prepare(place: Path) -> None:
    for host in range(HOSTS):
        (place / f"host{host}" / "sigma_jax").mkdir(parents=True)


def test_a_run_starts_on_all_hosts_and_its_log_and_status_come_back(cloud):
    launch, place = cloud
    prepare(place)
    script = 'echo "on $(basename $HOME): $*"; exit 3'
    assert (
        launch(["run", "mine", "bash", "-c", script, "-", "a b", "sigma_jax.train"]).returncode == 0
    )
    done = launch(["logs", "mine"])
    assert (done.returncode, done.stdout) == (3, "on host0: a b sigma_jax.train --distributed\n")
    other = (place / "host1" / "run.log").read_text()
    assert other == "on host1: a b sigma_jax.train --distributed\n"


def test_stop_ends_a_run_and_only_one_run_is_active(cloud):
    launch, place = cloud
    prepare(place)
    script = "trap 'echo saved; exit 0' TERM; echo started; while true; do sleep 0.1; done"
    assert launch(["run", "mine", "bash", "-c", script]).returncode == 0
    again = launch(["run", "mine", "true"])
    assert again.returncode == 1 and "a run is active" in again.stderr
    for host in range(HOSTS):
        while "started" not in (place / f"host{host}" / "run.log").read_text():
            pass
    assert launch(["stop", "mine"]).returncode == 0
    done = launch(["logs", "mine"])
    assert (done.returncode, done.stdout) == (0, "started\nsaved\n")


@pytest.mark.slow
def test_a_preempted_spot_slice_is_requested_again_and_the_run_continues(cloud):
    launch, place = cloud
    script = "echo x >> $PLACE/turns; exit $(( $(wc -l < $PLACE/turns) < 3 ))"
    words = ["train", "mine", "bash", "-c", script]
    # Active, preempted during the run (both hosts' first turn), requested again.
    states = "ACTIVE SUSPENDED SUSPENDED - NONE ACTIVE ACTIVE"
    done = launch(words, states, SPOT="1")
    assert done.returncode == 0, done.stderr
    assert "mine was preempted: requesting another slice" in done.stderr
    verbs = [words[3] for words in calls(place)]
    assert verbs.count("create") == verbs.count("delete") == 1 and verbs.count("scp") == 2
    lost = launch(words, "ACTIVE SUSPENDED")
    assert lost.returncode == 1 and "the same command continues on a new slice" in lost.stderr


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["create", "mine"], {"ZONE": ""}, "ZONE is not set"),
        (["create", "mine"], {"TYPE": "v9-8"}, "TYPE=v9-8 is unknown; set RUNTIME"),
        (["run", "mine"], {}, "launch/tpu_vm.sh run    NAME COMMAND"),
        (["destroy", "mine"], {}, "launch/tpu_vm.sh delete NAME"),
    ],
)
def test_mistakes_are_reported_before_gcloud_is_called(cloud, words, environment, message):
    launch, place = cloud
    done = launch(words, **environment)
    assert done.returncode and message in done.stderr
    assert not (place / "calls.jsonl").exists()
