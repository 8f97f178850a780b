"""SIGMA and GR(ID) by the number of negatives per batch: when do codes start to help?

    python -m sigma_jax.benchmark --suite=configs/benchmark/crossover.py --data=FOLDER

FOLDER is as in configs/benchmark/amazon.py. All items of a small catalogue can be negatives of
every batch. The paper's 100,000 negatives are a thousandth of 10^8 items. This suite imitates the
large catalogue by drawing few negatives from a small one. It runs without reranker and refit.
"""

from typing import Any

from sigma_jax.configs.benchmark import amazon

MODEL_ONLY = {"reranker.neighbours": 0, "refits": False}
# The paper adds Eq. 4 and Eq. 5 with equal weights. The preset's weights suit training where the
# whole catalogue is negative.
WEIGHTS = {"ntp_weight": 1.0, "infonce_weight": 1.0}
BATCH = {"batch_negatives": 1_024}
METHODS = {
    "SIGMA": ("SIGMA", MODEL_ONLY | WEIGHTS),
    "GR(ID)": ("GR(ID)", MODEL_ONLY),
    "SIGMA + in-batch negatives": ("SIGMA", MODEL_ONLY | WEIGHTS | BATCH),
    "GR(ID) + in-batch negatives": ("GR(ID)", MODEL_ONLY | BATCH),
}


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    suite = amazon.get_suite()
    return suite | {
        "title": "SIGMA and GR(ID) by the number of negatives drawn per batch.",
        "protocol": (
            "Leave-one-out as in amazon.py, without reranker and without refit.",
            "SIGMA also has all codes as negatives, and up to 16 items of each target's prefix.",
            "Rows with in-batch negatives add 1,024 targets of the batch to the negatives.",
            "The first table uses the whole catalogue as negatives.",
            "Values are per cent: mean ± sample standard deviation over seeds.",
        ),
        "data": {"Scientific": suite["data"]["Scientific"]},
        "methods": {
            name: {
                "fields": suite["methods"][base]["fields"] | fields,
                "has_baselines": False,
                "stage": "sft",
            }
            for name, (base, fields) in METHODS.items()
        },
        "modes": ("exclude_seen",),
        "published": {},
        "sweeps": {
            "negatives per batch": {
                "methods": tuple(METHODS),
                "fields": ("num_negatives",),
                "values": (4, 32, 256, 2048),
                "seeds": suite["seeds"],
            }
        },
    }
