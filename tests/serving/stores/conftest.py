"""Stores under test: a SQLite file and a real Redis server. All tests run on both."""

import shutil
import subprocess
import time

import pytest

from launch.benchmarks.processes import free_port
from sigma_jax.serving.stores.base import StoreError, open_store


def start_redis(folder, port, *options):
    """A Redis server on a port of this machine, which writes each change to a file."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(100):
        try:
            open_store(f"redis://127.0.0.1:{port}/0").close()
            return process
        except StoreError:
            time.sleep(0.05)
    raise TimeoutError("redis-server does not answer")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    port = free_port()
    process = start_redis(tmp_path_factory.mktemp("redis"), port)
    yield f"redis://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def own_redis():
    """The function `own_redis(folder, *options, port)`: (URL, process) of a new server."""
    running = []

    def start(folder, *options, port=None):
        port = port or free_port()
        running.append(start_redis(folder, port, *options))
        return f"redis://127.0.0.1:{port}/0", running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, with room for 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    redis_url = request.getfixturevalue("redis_url")
    import redis

    redis.Redis.from_url(redis_url).flushall()
    return f"{redis_url}/0"


@pytest.fixture
def store(url):
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def shop(store):
    return store.tenant("shop")
