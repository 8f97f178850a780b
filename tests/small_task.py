"""The task of stage `sft` over the small training that tests share, with changed settings."""

import jax.numpy as jnp

from sigma_jax.runtime.config import to_dataclass
from sigma_jax.sft.config import SftConfig
from sigma_jax.sft.task import SftTask
from sigma_jax.stages import stage_fields


def make_task(trained, **changes) -> SftTask:
    """The task over the small training, with changed fields of SftConfig."""
    config, workdir = trained
    values, _ = stage_fields(config, "sft")
    fields = to_dataclass(SftConfig, values | changes)
    return SftTask(fields, workdir, config.seed)


def model_fields(trained, **changes) -> dict:
    """The fields of the NetworkConfig of the small training, with `changes`."""
    return dict(stage_fields(trained[0], "sft")[0]["model"].items()) | changes


def placed(arrays) -> dict:
    """The arrays as JAX arrays."""
    return {name: jnp.asarray(value) for name, value in arrays.items()}
