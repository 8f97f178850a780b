"""A step of the recommender is the same on every mesh, and on one process or two."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from processes import finish, start

pytestmark = pytest.mark.slow

MESHES = {"data 8": (8, 1, 1), "fsdp 8": (1, 8, 1), "fsdp 4 x tensor 2": (1, 4, 2)}
SCRIPT = """
import json, math, pickle, sys
from pathlib import Path
import jax
from flax import nnx
from sigma_jax.runtime import hosts
hosts.start(False)
from small_task import make_task
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.runtime.sharding import local_batch_rows, place_batch, place_tables
from sigma_jax.runtime.state import init_state, make_step
task = make_task(pickle.loads((Path(sys.argv[1]) / "trained.pickle").read_bytes()))
optimizer = task.config.optimizer

def losses_on(sizes):
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    state, template, update = init_state(
        task.model(nnx.Rngs(0)), task.param_group, optimizer, 10, mesh)
    step = make_step(task.loss, template, update, optimizer, 10, 0, state)
    tables, losses = place_tables(task.tables(), mesh), []
    rows = local_batch_rows(task.batch_rows, mesh)
    assert len(rows) * jax.process_count() == task.batch_rows
    for number in range(2):
        batch = place_batch(task.batches(rows)[number], mesh, task.batch_rows)
        state, metrics = step(state, tables, batch)
        losses.append(float(metrics["loss"]))
    return losses

found = [losses_on(sizes) for sizes in json.loads(sys.argv[2])]
if hosts.is_first():
    print(json.dumps(found))
"""


def losses_on(folder: Path, meshes, processes: int = 1) -> list[list[float]]:
    """Losses of the first steps on each of `meshes`; the 8 devices are shared out among processes.

    The processes make all meshes, one after the other: most of the time is their start.
    """
    words = ["-c", SCRIPT, folder, [list(sizes) for sizes in meshes]]
    done = finish(start(words, processes, 8 // processes))
    assert all(status == 0 for status, *_ in done), done[-1][2]
    return json.loads(done[0][1].splitlines()[-1])


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    (folder / "trained.pickle").write_bytes(pickle.dumps(trained))
    return folder


@pytest.fixture(scope="module")
def on_one_process(folder):
    """Losses on each mesh, by its name, and on one device."""
    meshes = {"one device": (1, 1, 1), **MESHES}
    return dict(zip(meshes, losses_on(folder, meshes.values()), strict=True))


@pytest.mark.parametrize("name", MESHES)
def test_losses_of_steps_are_those_of_one_device(on_one_process, name):
    wanted = on_one_process["one device"]
    assert wanted[0] != wanted[1]
    np.testing.assert_allclose(on_one_process[name], wanted, rtol=1e-5)


def test_two_processes_give_the_losses_of_one_device(folder, on_one_process):
    [found] = losses_on(folder, [(2, 4, 1)], 2)
    np.testing.assert_allclose(found, on_one_process["one device"], rtol=1e-5)
