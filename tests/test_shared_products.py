"""The benchmark of shared products counts the operations of a program, loops included."""

import jax
import jax.numpy as jnp

from launch.benchmarks.shared_products import of_program
from sigma_jax.losses import cosines


def test_operations_are_counted_for_each_pass_of_a_loop():
    def loop(left, right):
        return jax.lax.scan(lambda c, _: (c, cosines(left, right)), 0.0, jnp.arange(3))[1]

    program = jax.jit(loop).trace(jnp.ones((4, 8)), jnp.ones((5, 8))).jaxpr.jaxpr
    assert list(of_program(program)) == [("cosines", 3 * 2.0 * 4 * 5 * 8)]
