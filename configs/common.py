"""Shared parts of the config files: the presets, and the fields that every stage has."""

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# Methods that are settings of the stage `sft`, for suites: item vectors only, semantic IDs only.
GR_ID = {
    "generation.ranker": "exhaustive",
    "evaluation.generation.ranker": "exhaustive",
    "prompt.layout.sid_in_prompt": 0,
    "prompt.layout.sid_generated": 0,
    "model.has_item_head": True,
}
GR_SID = {
    "prompt.layout.sid_in_prompt": 4,
    "prompt.layout.slot_in_prompt": False,
    "prompt.layout.sid_generated": 4,
    "prompt.layout.item_query": "none",
    "model.has_item_head": False,
    "model.copies_history": False,
    "ntp_weight": 1.0,
    "constraint_weight": 0.0,
}

# Requests of an evaluation: task -> most requests.
EVALUATED = {
    "JustForYou": 600,
    "Query": 300,
    "Category": 300,
    "Longtail": 300,
    "Discover": 300,
    "Season": 300,
    "Holiday": 300,
}
EVALUATED_CHANGES = {
    "smoke": {"requests": dict.fromkeys(EVALUATED, 20)},
    "amazon": {
        "requests": {"JustForYou": 100_000},  # all
        "has_filtered_baselines": False,  # there are no instructions
    },
}

# The smallest language model that a CPU can train; its name on the Hugging Face hub.
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"

PRESETS = ("local", "smoke", "amazon", "files", "smollm2_135m")
PRESETS += ("qwen3_0p6b", "qwen3_4b", "qwen3_4b_lora")


def select(
    preset: str, base: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]
) -> ConfigDict:
    """`base` with the fields of `changes[preset]` put over it.

    Keys of the changes may be paths: {"smoke": {"train.steps": 20}}. A preset without changes is
    `base` as it stands. ValueError for a preset that is not in PRESETS, KeyError for a changed
    field that `base` does not have.
    """
    check_preset(preset)
    config = ConfigDict(copy.deepcopy(dict(base))).lock()  # base is shared by the presets
    for key, value in changes.get(preset, {}).items():
        *folders, name = key.split(".")
        node = config
        for folder in folders:
            node = node[folder]
        if name not in node:
            raise KeyError(f"preset {preset!r} changes {key!r}, which the base does not have.")
        with node.unlocked():
            node[name] = _copied(value)
    return config.unlock()


def _copied(value: Any) -> Any:
    value = copy.deepcopy(value)
    return ConfigDict(value) if isinstance(value, Mapping) else value


def check_preset(preset: str) -> None:
    """ValueError naming the nearest preset if `preset` is unknown."""
    if preset in PRESETS:
        return
    near = difflib.get_close_matches(preset, PRESETS, 1, 0.0)
    raise ValueError(
        f"preset {preset!r} is unknown; did you mean {near[0]!r}? (There are {', '.join(PRESETS)}.)"
    )


def optimizer(learning_rate: float, **changes: Any) -> ConfigDict:
    """AdamW's fields (sigma_jax.runtime.config.OptimizerConfig)."""
    fields = ConfigDict(
        {
            "learning_rate": learning_rate,
            "table_learning_rate": learning_rate,
            "weight_decay": 0.01,
            "warmup_steps": 0,
            "schedule": "cosine",
            "clip_norm": 1.0,
            "b1": 0.9,
            "b2": 0.999,
        }
    ).lock()
    fields.update(changes)
    return fields.unlock()


def train(steps: int, batch_size: int, **changes: Any) -> ConfigDict:
    """The loop's fields (sigma_jax.runtime.config.TrainConfig)."""
    fields = ConfigDict(
        {
            "steps": steps,
            "epochs": 0.0,
            "batch_size": batch_size,
            "accumulate": 1,
            "log_every": 10,
            "eval_every": max(steps // 4, 1),
            "checkpoint_every": max(steps // 4, 1),
            "keep_checkpoints": 2,
            "average_over": 0.0,
            "patience": 0,
            "keep_best": "",
        }
    ).lock()
    fields.update(changes)
    return fields.unlock()


def mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> ConfigDict:
    """Devices along each axis; -1 takes all that remain (sigma_jax.runtime.config.MeshConfig)."""
    return ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor})


def run_config(
    stage: str,
    preset: str,
    fields: ConfigDict,
    data: ConfigDict,
    upstream: Mapping[str, ConfigDict],
) -> ConfigDict:
    """`fields` of a stage, with those of the run added.

    Args:
      upstream: the fields of the stages before it, by name.
    """
    fields.stage = stage
    fields.seed = 0
    # Weights of a large backbone are sharded over all devices.
    fields.mesh = mesh(data=1, fsdp=-1) if preset.startswith("qwen3") else mesh()
    fields.data = data
    fields.upstream = ConfigDict(upstream)
    return fields
