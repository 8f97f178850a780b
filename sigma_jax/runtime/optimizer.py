"""AdamW with warmup, schedule, clipping and a learning rate for each group of parameters."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import optax

from sigma_jax.runtime.config import OptimizerConfig

GROUPS = ("base", "table", "frozen")
SCHEDULES = ("cosine", "linear", "constant")
WITHOUT_DECAY = ("norm", "bias", "scale")  # parts of the parameter's own name


def schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """The learning rate by step: up to `peak` in `warmup_steps`, then down to 0 at `steps`.

    Worked example, warmup 2, linear, 6 steps, peak 1: 0.5, 1, 1, .75, .5, .25.

    Raises:
      ValueError: the schedule is unknown, or the warmup is longer than `steps`.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(
            f"optimizer.schedule={config.schedule!r} is unknown; use one of {', '.join(SCHEDULES)}."
        )
    warmup = config.warmup_steps
    if warmup < 0 or 0 < steps < warmup:
        raise ValueError(
            f"optimizer.warmup_steps={warmup} is not within 0..train.steps={steps}; lower it."
        )
    rest = max(steps - warmup, 1)
    match config.schedule:
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, rest)
        case "linear":
            decay = optax.linear_schedule(peak, 0.0, rest)
        case "constant":
            decay = optax.constant_schedule(peak)
    if warmup == 0:
        return decay
    # Step 0 already learns: its rate is peak / warmup, not 0.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(
    config: OptimizerConfig, steps: int, param_groups: Mapping[str, str]
) -> optax.GradientTransformation:
    """AdamW over a flat dict of parameters.

    Args:
      steps: length of the schedule.
      param_groups: path of each trained parameter -> "base" or "table".
    """
    peaks = {"base": config.learning_rate, "table": config.table_learning_rate}
    rates = {
        group: optax.scale_by_learning_rate(schedule(config, peak, steps))
        for group, peak in peaks.items()
    }
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.multi_transform(rates, dict(param_groups)),
    )


def decayed(params: Mapping[str, jax.Array]) -> dict[str, bool]:
    """Whether weight decay applies to each parameter: to matrices, not to norms and biases.

    The name decides as well as the rank, because norms of stacked layers have two dimensions.
    """
    return {
        path: value.ndim > 1 and not any(word in path.split("/")[-1] for word in WITHOUT_DECAY)
        for path, value in params.items()
    }
