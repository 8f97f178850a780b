"""Cold items: a tenth of the catalogue has no interaction in training.

    python -m sigma_jax.benchmark --suite=configs/benchmark/cold.py --data=FOLDER

FOLDER is as in configs/benchmark/amazon.py. The cold items are drawn by the seed. They remain
targets of validation and test.
"""

from typing import Any

from sigma_jax.configs.benchmark import amazon

SHARE = 0.1


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    suite = amazon.get_suite()
    methods = ("SIGMA", "GR(ID)", "SASRec")
    cold = {"data.split.cold_share": SHARE}
    return suite | {
        "title": f"Cold items: {SHARE:.0%} of the catalogue has no interaction in training.",
        "protocol": (
            "Leave-one-out as in amazon.py, without the training interactions of the cold items.",
            "cold: Recall@10 of targets that are cold items; warm: of the other targets.",
            "Values are per cent: mean ± sample standard deviation over seeds.",
        ),
        "data": {
            name: source | {"fields": source["fields"] | cold}
            for name, source in suite["data"].items()
            if name != "Instruments"  # has no item texts
        },
        "methods": {name: suite["methods"][name] for name in methods},
        "modes": ("include_seen",),
        "columns": ("cold.Recall@10", "warm.Recall@10", "Recall@10", "NDCG@10"),
        "published": {},
        "sweeps": {},
    }
