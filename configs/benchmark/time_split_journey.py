"""Complete Journey, split by time: configs/benchmark/time_split.py on seven tasks.

    python -m sigma_jax.benchmark --suite=configs/benchmark/time_split_journey.py

It needs the extra `demo`.
"""

from typing import Any

from sigma_jax.configs.benchmark import amazon, table1, time_split


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    suite = table1.get_suite()
    [(name, journey)] = suite["data"].items()
    refits = {"refits": True, "upstream.teacher.refits": True}
    sasrec = {
        method: {"fields": fields, "has_baselines": method == "SASRec", "stage": "teacher"}
        for method, fields in amazon.SASREC.items()
    }
    return suite | {
        "title": "Seven tasks, split by time: training before validation before test.",
        "protocol": (
            *time_split.PROTOCOL,
            f"Average over seven tasks. Training takes {table1.TRAINING['train.steps']} steps.",
        ),
        "data": {name: journey | {"fields": journey["fields"] | time_split.SPLIT | refits}},
        "methods": {
            name: suite["methods"][name] | {"has_baselines": False} for name in ("SIGMA", "GR(ID)")
        }
        | sasrec,
        "levels": ("item",),
        "columns": ("HR@10", "NDCG@10"),
        "published": {},
        "sweeps": {},
    }
