"""One table of rules shards all arrays; the mesh and the batch must fit the devices."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from processes import environment

from sigma_jax.runtime import sharding
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import AXES, check_rows, make_mesh, spec


class FakeMesh:
    """The sizes of a mesh; rules need no devices."""

    def __init__(self, data: int, fsdp: int, tensor: int):
        self.shape = {"data": data, "fsdp": fsdp, "tensor": tensor}


MESH = FakeMesh(2, 4, 2)


@pytest.mark.parametrize(
    ("shape", "axes", "wanted"),
    [
        ((8, 16), ("vocab", "embed"), ("tensor", "fsdp")),
        ((3, 8, 4, 6), ("layers", "embed", "heads", "head_dim"), (None, "fsdp", "tensor", None)),
        (
            (8, 3, 6),
            ("embed", "kv_heads", "head_dim"),
            ("fsdp", None, None),
        ),  # 3 heads are replicated
        ((8, 8), ("heads", "mlp"), ("tensor", None)),  # a mesh axis is used once
        ((8, 8), (None, "embed"), (None, "fsdp")),
        ((16, 5, 4), ("rows", None, "heads"), (("data", "fsdp"), None, "tensor")),
        ((12, 4), ("rows", "embed"), (None, "fsdp")),  # 12 rows do not divide over 8
        ((8, 8), None, ()),  # small, without axes: replicated
        ((2**10, 2**12), None, (None, "fsdp")),  # large: along the longest dimension
        ((2**11 + 1, 2**10 + 1), None, ()),  # nothing divides
    ],
)
def test_rules(shape, axes, wanted):
    assert spec(shape, axes, MESH) == PartitionSpec(*wanted)


def test_without_a_mesh_nothing_is_constrained():
    array = np.ones((4, 2))
    assert sharding.constrain(array, "rows", None) is array
    weights = {"up": array}
    assert sharding.gathered(weights, {"up": ("embed", "mlp")})["up"] is array


def test_axis_without_a_rule_is_named():
    with pytest.raises(ValueError, match="'embde' has no rule"):
        spec((8, 8), ("embde", None), MESH)
    with pytest.raises(ValueError, match="do not fit shape"):
        spec((8, 8), ("embed",), MESH)


def test_a_batch_that_does_not_divide_is_refused_with_the_multiple():
    check_rows(32, FakeMesh(4, 2, 1))
    check_rows(30, FakeMesh(1, 1, 8))  # "tensor" does not share rows
    with pytest.raises(ValueError) as caught:
        check_rows(30, FakeMesh(4, 2, 1))
    message = "batch_size=30 does not divide over 8 devices; use a multiple of 8."
    assert str(caught.value) == message
    check_rows(64, FakeMesh(4, 2, 1), 8)
    with pytest.raises(ValueError, match=r"accumulate=32 parts .* 8 devices; use .* such as 8, or"):
        check_rows(64, FakeMesh(4, 2, 1), 32)
    with pytest.raises(ValueError) as caught:
        check_rows(30, FakeMesh(4, 2, 1), 2)  # no number of parts would divide
    assert str(caught.value) == message


def test_the_mesh_holds_every_device():
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    assert mesh.axis_names == AXES
    assert mesh.devices.size == jax.device_count()


@pytest.mark.parametrize(
    "sizes", [(3, -1, -1), (0, 1, 1), (jax.device_count() + 1, 1, 1), (-2, 1, 1)]
)
def test_mesh_that_does_not_fit_is_named(sizes):
    with pytest.raises(ValueError, match=r"mesh=\{'data'"):
        make_mesh(MeshConfig(*sizes))


def test_placed_arrays_keep_their_values():
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    batch = {"x": np.arange(24.0).reshape(8, 3)}
    np.testing.assert_array_equal(sharding.place_batch(batch, mesh)["x"], batch["x"])
    np.testing.assert_array_equal(sharding.place_tables(batch, mesh)["x"], batch["x"])


def test_the_state_is_sharded_over_eight_devices():
    """Parameters and Adam's moments follow the rules, before a step and after it."""
    script = """
import jax, numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from linear_task import LinearTask, linear_config
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh, place_batch, place_tables
from sigma_jax.runtime.state import init_state, make_step
mesh, task, config = make_mesh(MeshConfig(2, 2, 2)), LinearTask(), linear_config()
state, template, optimizer = init_state(
    task.model(nnx.Rngs(0)), task.param_group, config.optimizer, 10, mesh)
step = make_step(task.loss, template, optimizer, config.optimizer, 10, 0, state)
for _ in range(2):
    moments = state.opt_state[1].mu["weight"]
    assert state.params["weight"].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert state.params["weight"].sharding == moments.sharding
    assert "bias" in state.rest and "bias" not in state.opt_state[1].mu
    old = state
    state, _ = step(state, place_tables(task.tables(), mesh), place_batch(task.make_batch(0), mesh))
    assert old.params["weight"].is_deleted()
"""
    subprocess.run([sys.executable, "-c", script], env=environment(8), check=True)
