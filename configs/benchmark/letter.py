"""What each difference from the paper is worth: one switch of configs/letter.py at a time.

    python -m sigma_jax.benchmark --suite=configs/benchmark/letter.py --data=FOLDER

FOLDER is as in configs/benchmark/amazon.py. A switch that a preset has by default changes nothing
there; its run takes the training of the default from --artifacts.
"""

from typing import Any

from sigma_jax.configs import letter
from sigma_jax.configs.benchmark import amazon, table1

DEFAULT = "SIGMA"
# Rows are filled with samples, and Scientific is passed until as many targets were seen.
MANY_SAMPLES = {"prompt.packing.contexts_per_group": 0, "train.epochs": 50.0}


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    methods = {DEFAULT: {}} | {name: fields_of(name) for name in letter.SWITCHES}
    del methods["no refit"]  # no method of this suite has one
    scientific = amazon.get_suite()["data"]["Scientific"]
    return {
        "title": "Differences from the paper, one at a time.",
        "protocol": (
            "Each row takes one part back to the paper (configs/letter.py).",
            "The softmax over the vocabulary needs a model without item head.",
            "Scientific: leave-one-out as in amazon.py, without refit.",
            f"Complete Journey: as in table1.py, {table1.TRAINING['train.steps']} steps.",
            "Values are per cent: mean ± sample standard deviation over seeds.",
        ),
        "seeds": (0,),
        "data": {
            "Scientific": scientific
            | {"fields": scientific["fields"] | amazon.JUST_FOR_YOU | {"refits": False}},
            **table1.get_suite()["data"],
        },
        "methods": {
            name: {"fields": fields, "has_baselines": False, "stage": "sft"}
            for name, fields in methods.items()
        },
        "modes": ("exclude_seen", "include_seen"),
        "levels": ("item",),
        "columns": ("Recall@10", "NDCG@10", "HR@10"),
        "published": {},
        "published_level": "item",
        "headline": "NDCG@10",
        "sweeps": {},
    }


def fields_of(name: str) -> dict[str, Any]:
    """The fields of a switch, after those of the switches that it needs."""
    fields: dict[str, Any] = {}
    for part in (*letter.NEEDS.get(name, ()), name):
        fields |= letter.SWITCHES[part]
    return fields | (MANY_SAMPLES if name == "one target a sample" else {})
