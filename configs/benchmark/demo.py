"""The main job of README.md as a suite of one run, so that its results are stored as a record.

    python -m sigma_jax.benchmark --suite=configs/benchmark/demo.py

It needs the extra `demo`.
"""

from typing import Any

from sigma_jax.configs import common

# The log has about 2,390 test requests of a task, 600 to 1,500 of the last four.
REQUESTS = {f"evaluation.requests.{task}": 1_000 for task in common.EVALUATED}
REQUESTS["evaluation.requests.JustForYou"] = 2_000


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    return {
        "title": "The demo: seven tasks on a year of grocery shopping.",
        "protocol": (
            "Each request ranks all items; the target is an item of the held-out basket that fits",
            "the task. The preset is `local`, evaluated on more requests.",
            "Values are per cent.",
        ),
        "seeds": (0, 1, 2),
        "data": {"Complete Journey": {"config": "configs/sft.py:local", "fields": REQUESTS}},
        "methods": {"SIGMA": {"fields": {}, "has_baselines": True, "stage": "sft"}},
        "modes": ("include_seen", "exclude_seen"),
        "levels": ("item", "sid"),
        "columns": ("HR@10",),
        "published": {},
        "published_level": "item",
        "headline": "HR@10",
        "sweeps": {},
    }
