"""The command `serve`: real processes on loopback, killed and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.request
from pathlib import Path

import pytest

from launch.benchmarks import processes
from sigma_jax import serve
from sigma_jax.schema import Catalogue
from sigma_jax.serving.api.keys import Keys, new_key, sha256

START_SECONDS = 240  # of two processes that compile, on a busy machine


@pytest.fixture
def free_port():
    return processes.free_port()


def call(port, path, body=None):
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", content, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def run(folder, *words):
    """The command in `folder`, until it ends."""
    command = [sys.executable, "-m", "sigma_jax.serve", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def wait_for(what, seconds=START_SECONDS):
    """The first true value of `what`; errors of a connection count as false."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if found := what():
                return found
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError(what)


def is_running(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.slow
def test_events_become_lists_and_a_killed_worker_is_started_again(exported, tmp_path, free_port):
    command = [sys.executable, "-m", "sigma_jax.serve", f"--export={exported}"]
    command += [f"--store={tmp_path / 'store.db'}", f"--port={free_port}", "--period=0.2"]
    (tmp_path / "lists.json").write_text('{"home": "recommend something", "tea": "tea"}')
    command += [f"--lists={tmp_path / 'lists.json'}"]
    item = Catalogue.load(Path(exported) / "catalogue" / "0001").table["item_id"][3].as_py()
    service = subprocess.Popen(command)
    try:
        wait_for(lambda: call(free_port, "/readyz"))

        def listed(user, task="home"):
            path = f"/v1/users/{user}/recommendations?task={task}&count=4"
            answer = call(free_port, path)
            return answer if answer["source"] == "index" else None

        events = [{"user_id": "ann", "item_id": item}]
        assert call(free_port, "/v1/events", {"events": events}) == {
            "stored": 1,
            "unknown_items": 0,
        }
        assert len(wait_for(lambda: listed("ann"))["items"]) == 4
        assert len(listed("ann", "tea")["items"]) == 4
        [worker] = children(service.pid)
        os.kill(worker, signal.SIGKILL)
        assert call(free_port, "/v1/events", {"events": [events[0] | {"user_id": "bob"}]})
        assert wait_for(lambda: listed("bob"))
        assert children(service.pid) != [worker]
        [worker] = children(service.pid)
        service.kill()  # the worker ends with it all the same
        service.wait(30)
        assert wait_for(lambda: not is_running(worker), 60)
    finally:
        for pid in [*children(service.pid), service.pid]:
            with subprocess.Popen(["kill", "-9", str(pid)], stderr=subprocess.DEVNULL):
                pass


@pytest.mark.slow
@pytest.mark.nightly
def test_a_demo_changes_lists_in_the_time_of_the_log(exported, trained, tmp_path, free_port):
    """API and worker, two processes, have the clock of the replay, and an export of an arm."""
    command = [sys.executable, "-m", "sigma_jax.serve", f"--export={exported}"]
    command += [f"--demo={trained[1]}", "--demo_speed=4000", "--demo_days=30", "--period=0.2"]
    command += [f"--arm_exports=other={exported}", f"--store={tmp_path / 'demo.db'}"]
    service = subprocess.Popen([*command, f"--port={free_port}"])
    try:
        wait_for(lambda: call(free_port, "/readyz"))
        first = call(free_port, "/v1/clock")
        assert first["is_replay"] and not first["is_over"]
        users = call(free_port, "/v1/users")["user_ids"]
        lists = {}  # the first list of each user

        def has_changed():
            for user in users:
                answer = call(free_port, f"/v1/users/{user}/recommendations?is_shown=false")
                if answer["source"] == "index" and lists.setdefault(user, answer) != answer:
                    if lists[user]["items"] != answer["items"]:
                        return True
            return False

        assert wait_for(has_changed)
        assert call(free_port, "/v1/clock")["now"] > first["now"]
    finally:
        for pid in [*children(service.pid), service.pid]:
            with subprocess.Popen(["kill", "-9", str(pid)], stderr=subprocess.DEVNULL):
                pass


def test_a_port_in_use_and_a_missing_package_are_said_before_anything_is_loaded(monkeypatch):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port={port} cannot be listened to .*choose ano"):
            serve.check_port("127.0.0.1", port)
    serve.check_port("127.0.0.1", port)
    serve.check_packages()
    monkeypatch.setattr(serve, "PACKAGES", ("fastapi", "no_such_package"))
    with pytest.raises(ValueError, match=r"no_such_package is missing; install the extra serve"):
        serve.check_packages()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--export is missing"),
        (["--export=a=x,a=y"], "--export names the tenant 'a' twice"),
        (["--export=a=x/shop,b=x/shop-b"], "x/shop-b is a model of "),
        (["--export=x", "--host=0.0.0.0"], "lets other machines call; give --keys=FILE"),
        (
            ["--export=x", "--keys=keys"],
            "the keys are of the tenants shop, but this service has def",
        ),
        (["--export=x", "--lists=lists.json"], "lists.json is no object such as"),
        (["--export=x", "extra"], "'extra' is no flag"),
        (["--export=x", "--demo=nowhere"], "--demo=nowhere is no folder; give a trained workdir"),
        (["--export=x", "--arm_exports=b"], "--arm_exports=b: give NAME=FOLDER"),
        (["--export=x", "--arm_exports=b=y,b=z"], "--arm_exports names 'b' twice"),
        (["--export=s=x,t=y", "--arm_exports=b=z"], "give NAME=FOLDER, or TENANT/NAME=FOLDER"),
        (["--new_key=shop", "--scopes=all"], "--scopes names ['all']; use some of read"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path, arguments, message):
    (tmp_path / "lists.json").write_text('["home"]')
    (tmp_path / "keys").write_text(new_key("shop", "web")[1])
    done = run(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ") and message in done.stderr


def test_a_new_key_opens_what_its_line_says(tmp_path):
    done = run(tmp_path, "--new_key=web", "--tenant=shop", "--scopes=read")
    first, second = done.stdout.splitlines()
    key, line = first.split(": ")[1], second.split(": ", 1)[1]
    assert json.loads(line)["sha256"] == sha256(key) and key not in line
    (tmp_path / "keys").write_text(line + "\n\n")
    keys = Keys.of_file(tmp_path / "keys")
    caller = keys.caller(key)
    assert caller.tenant == "shop" and caller.may("read") and not caller.may("write")
    assert keys.caller("") is None and keys.caller(key + "x") is None and keys.tenants == {"shop"}


@pytest.mark.parametrize("line", ["{", "[]", '{"sha256": "ab", "tenant": "t", "scopes": ["read"]}'])
def test_a_damaged_file_of_keys_is_refused(tmp_path, line):
    (tmp_path / "keys").write_text(line)
    with pytest.raises(ValueError, match="keys: line 1"):
        Keys.of_file(tmp_path / "keys")
    (tmp_path / "keys").write_text("")
    with pytest.raises(ValueError, match="holds no key"):
        Keys.of_file(tmp_path / "keys")
    with pytest.raises(ValueError, match="cannot be read"):
        Keys.of_file(tmp_path / "nowhere")


def test_keys_come_from_the_environment_too(tmp_path, monkeypatch):
    key, line = new_key("shop", "web")
    (tmp_path / "keys").write_text(line)
    flags = types.SimpleNamespace(keys=None)
    monkeypatch.setattr(serve, "FLAGS", flags)
    for given in (str(tmp_path / "keys"), f"\n{line}\n"):
        monkeypatch.setenv("SIGMA_KEYS", given)
        serve.check_host("0.0.0.0", serve.given_keys())
        assert serve.read_keys(["shop"]).caller(key).tenant == "shop"
    monkeypatch.setenv("SIGMA_KEYS", '{"sha256": 5}')
    with pytest.raises(ValueError, match="SIGMA_KEYS: line 1 is no key"):
        serve.read_keys(["shop"])
    flags.keys = "nowhere"
    with pytest.raises(ValueError, match="nowhere cannot be read"):
        serve.read_keys(["shop"])  # the flag goes first


def test_tenants_without_keys_are_said():
    lines = "\n".join(new_key(tenant, "k")[1] for tenant in ("shop", "away"))
    keys = Keys.of(lines)
    assert keys.are_asked and keys.check_tenants(["shop", "books"]) == [
        "the tenant books has no key: nobody can call it",
        "there are keys of the tenant away, which has no --export",
    ]
    assert keys.check_tenants(["shop", "away"]) == []
    with pytest.raises(ValueError, match=r"tenants away, shop, but this service has default"):
        keys.check_tenants(["default"])
    assert not Keys({}, "shop").are_asked


def test_the_store_comes_from_the_environment_too(monkeypatch):
    flags = types.SimpleNamespace(store=None, demo=None)
    monkeypatch.setattr(serve, "FLAGS", flags)
    assert serve.store_url() == serve.STORE
    monkeypatch.setenv("SIGMA_STORE", "redis://:secret@host:6379/0")
    assert serve.store_url() == "redis://:secret@host:6379/0"
    flags.store = "a.db"
    assert serve.store_url() == "a.db"
