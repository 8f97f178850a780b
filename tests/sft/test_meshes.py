"""A step of the recommender is the same on every mesh, and on one process or two."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
MESHES = {"data 8": (8, 1, 1), "fsdp 8": (1, 8, 1), "fsdp 4 x tensor 2": (1, 4, 2)}
SCRIPT = """
import json, pickle, sys
from pathlib import Path
import jax
import numpy as np
from flax import nnx
folder, sizes, process, processes, port = sys.argv[1], *map(json.loads, sys.argv[2:6])
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, process)
from small_task import make_task
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.mesh import make_mesh
from sigma_jax.runtime.sharding import place_batch, place_tables
from sigma_jax.runtime.state import init_state, make_step
trained = pickle.loads((Path(folder) / "trained.pickle").read_bytes())
task = make_task(trained)
mesh = make_mesh(MeshConfig(*sizes))
optimizer = task.config.optimizer
state, template, update = init_state(
    task.model(nnx.Rngs(0)), task.label, optimizer, 10, mesh)
step = make_step(task.loss, template, update, optimizer, 10, 0, state)
tables, losses = place_tables(task.tables(), mesh), []
for number in range(2):
    state, metrics = step(state, tables, place_batch(task.batches()[number], mesh))
    losses.append(float(metrics["loss"]))
if process == 0:
    print(json.dumps(losses))
"""


def losses_on(folder: Path, sizes: tuple[int, int, int], processes: int = 1) -> list[float]:
    """Losses of the first steps, the devices shared out among processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = int(np.prod(sizes)) // processes
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    runs = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                SCRIPT,
                folder,
                str(list(sizes)),
                str(n),
                str(processes),
                str(port),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(processes)
    ]
    outputs = [run.communicate(timeout=300) for run in runs]
    assert all(run.returncode == 0 for run in runs), outputs[-1][1]
    return json.loads(outputs[0][0].splitlines()[-1])


@pytest.fixture(scope="module")
def expected(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    (folder / "trained.pickle").write_bytes(pickle.dumps(trained))
    return folder, losses_on(folder, (1, 1, 1))


@pytest.mark.parametrize("name", MESHES)
def test_losses_of_steps_are_those_of_one_device(expected, name):
    folder, wanted = expected
    assert wanted[0] != wanted[1]
    np.testing.assert_allclose(losses_on(folder, MESHES[name]), wanted, rtol=1e-5)


def test_two_processes_give_the_losses_of_one_device(expected):
    folder, wanted = expected
    np.testing.assert_allclose(losses_on(folder, (2, 4, 1), 2), wanted, rtol=1e-5)
