"""New items: a tenth of the catalogue that nobody has in training, beside the rest.

    python -m sigma_jax.benchmark --suite=configs/benchmark/cold.py --data=FOLDER

FOLDER as in configs/benchmark/amazon.py. The items are drawn by the seed; they stay targets.
"""

from typing import Any

from sigma_jax.configs.benchmark import amazon

SHARE = 0.1


def get_suite() -> dict[str, Any]:
    """Fields of Suite (sigma_jax/benchmarking/suite.py)."""
    suite = amazon.get_suite()
    methods = ("SIGMA", "GR(ID)")
    cold = {"data.split.cold_share": SHARE}
    return suite | {
        "title": f"New items: {SHARE:.0%} of the catalogue is in nobody's training history.",
        "protocol": (
            "Leave-one-out as in amazon.py, but the rows of the drawn items are taken out of what",
            "stands before the validation item. cold: recall of targets nobody had in training;",
            "warm: of the others. Per cent; mean and sample deviation over seeds.",
        ),
        "data": {
            name: source | {"fields": source["fields"] | cold}
            for name, source in suite["data"].items()
            if name != "Instruments"  # has nothing to say of an item but who takes it
        },
        "methods": {name: suite["methods"][name] for name in methods},
        "modes": ("include_seen",),
        "columns": ("cold.Recall@10", "warm.Recall@10", "Recall@10", "NDCG@10"),
        "published": {},
        "sweeps": {},
    }
