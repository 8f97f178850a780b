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
import json, pickle, sys
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
folder, sizes = Path(sys.argv[1]), json.loads(sys.argv[2])
task = make_task(pickle.loads((folder / "trained.pickle").read_bytes()))
mesh = make_mesh(MeshConfig(*sizes))
optimizer = task.config.optimizer
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
if hosts.is_first():
    print(json.dumps(losses))
"""


def losses_on(folder: Path, sizes: tuple[int, int, int], processes: int = 1) -> list[float]:
    """Losses of the first steps, the devices shared out among processes."""
    devices = int(np.prod(sizes)) // processes
    done = finish(start(["-c", SCRIPT, folder, list(sizes)], processes, devices))
    assert all(status == 0 for status, *_ in done), done[-1][2]
    return json.loads(done[0][1].splitlines()[-1])


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
