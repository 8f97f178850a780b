"""Test of the TPU attention kernels on meshes: rows and heads are split, gradients add up."""

import subprocess
import sys

import pytest
from processes import environment

pytestmark = pytest.mark.slow
SCRIPT = """
from unittest import mock
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from sigma_jax.models import attention, flash
from sigma_jax.models.config import Qwen3Config
from sigma_jax.models.qwen3 import Qwen3, causal_mask
from sigma_jax.runtime import sharding
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
config = Qwen3Config(50, 64, 2, 4, 2, 128, 64, 1e4, 1e-6, True, True, 0.0, "bfloat16", "float32",
                     "layer")
graph, state = nnx.split(Qwen3(config, rngs=nnx.Rngs(0)))
rng = np.random.default_rng(0)
tokens = rng.integers(0, 50, (8, 130)).astype(np.int32)
segment = np.sort(rng.integers(0, 3, (8, 130)), axis=1).astype(np.int32)
positions = np.broadcast_to(np.arange(130, dtype=np.int32), tokens.shape)
weights = rng.normal(size=(8, 130, 64)).astype(np.float32)

def loss(state, mesh, *batch):
    tokens, segment, positions, weights = batch
    with sharding.on_mesh(mesh):
        model = nnx.merge(graph, state)
        hidden, _ = model(model.embed(tokens), positions, causal_mask(segment))
    return (hidden.astype(jnp.float32) * weights).mean()

calls = []
def interpreted(*arrays, **how):
    calls.append(arrays[0].shape)
    return flash_attend(*arrays, interpret=True)

flash_attend, results = flash.flash_attend, {}
meshes = {"plain": (1, 1, 1), "one": (1, 1, 1), "all": (2, 2, 2), "heads": (1, 2, 4)}
for name, sizes in meshes.items():
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    batch = [jax.device_put(a, sharding.rows(mesh)) for a in (tokens, segment, positions, weights)]
    placed = jax.device_put(state, sharding.replicated(mesh))
    with mock.patch.object(attention, "on_tpu", lambda: name != "plain"):
        with mock.patch.object(flash, "flash_attend", interpreted):
            step = jax.jit(jax.value_and_grad(lambda state, *batch: loss(state, mesh, *batch)))
            results[name] = jax.device_get(step(placed, *batch))
assert (2, 130, 2 * 128) in calls  # rows over data and fsdp, heads over tensor
assert (4, 130, 4 * 128) in calls  # two key heads do not divide by four: not split
for name, base, limit in (("one", "plain", 0.15), ("all", "one", 0.05), ("heads", "one", 0.05)):
    np.testing.assert_allclose(results[name][0], results[base][0], rtol=0.02, atol=1e-4)
    gradients = (jax.tree.leaves(results[which][1]) for which in (name, base))
    for one, other in zip(*gradients, strict=True):  # they have 16 bits
        difference = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert difference < limit, (name, other.shape, difference)
"""


def test_a_mesh_gives_the_results_of_one_device():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment(8), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
