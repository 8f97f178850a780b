"""A refresh: new rows of every day, without training from the start.

    python -m sigma_jax.refresh --workdir=runs/demo --interactions=today.parquet

Presets: local, and smoke, which takes a step of each stage to see that all is installed. A large
model needs more steps: about as many as its new rows fill batches.
"""

from ml_collections import ConfigDict

from sigma_jax.configs import common, data

BASE = {
    # A step of `sft` reads 16 contexts on the demo, half of them with new rows: 30 steps see most
    # of the users of a day once.
    "steps": {"teacher": 20, "grounding": 0, "grounding_head": 0, "sft": 30},
    "rate_share": 0.2,
    "new_share": 0.5,
    "judge_share": 0.5,
    "judge_requests": {
        "JustForYou": 200,
        "Query": 60,
        "Category": 60,
        "Longtail": 60,
        "Discover": 60,
        "Season": 60,
        "Holiday": 60,
    },
    "late_rows": "error",
    "unknown_items": "error",
    "rebuilds_codebooks": False,
    "uses_mapping": True,
    "columns": data.BASE["columns"],
    "memory_limit": "2GB",
    "threads": 2,
}

CHANGES = {
    "smoke": {
        "steps": {"teacher": 1, "grounding": 1, "grounding_head": 1, "sft": 1},
        "judge_requests": dict.fromkeys(common.EVALUATED, 10),
    },
}


def get_config(preset: str = "local") -> ConfigDict:
    """The fields of RefreshConfig (sigma_jax/refreshing/config.py), and the mesh."""
    config = common.select(preset, BASE, CHANGES)
    config.mesh = common.mesh()
    return config.lock()
