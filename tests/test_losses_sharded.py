"""Test of Eq. 1-5 on 8 devices against 1, in a separate process."""

import subprocess
import sys

import pytest
from processes import environment

SHARDED = """
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from sigma_jax import losses
devices = jax.devices()
assert len(devices) == 8
rng = np.random.default_rng(0)
text, ids = rng.normal(size=(64, 8)), rng.normal(size=(64, 5))
batch = {"text": text.astype("f4"), "ids": ids.astype("f4"), "keys": rng.integers(0, 40, 64),
         "has_id": rng.random(64) < .7, "weights": rng.random(64).astype("f4")}
drawn = rng.normal(size=(30, 8)).astype("f4"), rng.integers(0, 40, 30)

def loss(batch, chunk):
    text, keys, (vectors, items) = batch["text"], batch["keys"], drawn
    cl, _ = losses.contrastive_loss(text, .05, keys, chunk)
    kd = losses.distillation_loss(text, batch["ids"], .05, .1, batch["has_id"], keys, chunk)
    nce, _ = losses.prefix_infonce(text, text[::-1], keys, keys % 3, vectors, items, items % 3,
                                   .05, batch["weights"], chunk_size=chunk)
    ntp, _ = losses.next_token_loss(text[:, None], keys[:, None] % 8, batch["weights"])
    return cl + kd + nce + ntp

for chunk in (100, 16):
    step = jax.jit(jax.value_and_grad(lambda b: loss(b, chunk), allow_int=True))
    one = step(jax.device_put(batch, devices[0]))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    many = step(jax.device_put(batch, rows))
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    np.testing.assert_allclose(many[1]["text"], one[1]["text"], atol=1e-5)
"""


@pytest.mark.slow
def test_eight_devices_give_the_loss_of_one():
    run = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment(8), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
