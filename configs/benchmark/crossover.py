"""Where codes begin to pay: SIGMA and GR(ID) by how many items are negatives of a batch.

    python -m sigma_jax.benchmark --suite=configs/benchmark/crossover.py --data=FOLDER

FOLDER as in configs/benchmark/amazon.py. A catalogue of thousands fits into every batch; of one of
10^8 the paper's 100,000 negatives are a thousandth. Fewer negatives of a small catalogue stand for
the large one. The models alone, without counts and without the refit.
"""

from typing import Any

from sigma_jax.configs.benchmark import amazon

ALONE = {"prior.neighbours": 0, "refits": False}
# The paper's sum of Eq. 4 and Eq. 5; the preset's weights are for whole catalogues as negatives.
WEIGHTS = {"ntp_weight": 1.0, "infonce_weight": 1.0}
BATCH = {"batch_negatives": 1_024}
METHODS = {
    "SIGMA": ("SIGMA", ALONE | WEIGHTS),
    "GR(ID)": ("GR(ID)", ALONE),
    "SIGMA + batch": ("SIGMA", ALONE | WEIGHTS | BATCH),
    "GR(ID) + batch": ("GR(ID)", ALONE | BATCH),
}


def get_suite() -> dict[str, Any]:
    """Fields of Suite (sigma_jax/benchmarking/suite.py)."""
    suite = amazon.get_suite()
    return suite | {
        "title": "SIGMA and GR(ID) by the number of negatives that a batch draws.",
        "protocol": (
            "Leave-one-out as in amazon.py; trained on what comes before the validation item, no",
            "counts, no refit. SIGMA's codes have all codes as negatives, and each target up to 16",
            "items of its own prefix, however few are drawn for a batch. + batch: 1,024 targets of",
            "the batch are negatives as well. The row without a number has the whole catalogue.",
            "Per cent; mean and sample deviation over seeds.",
        ),
        "data": {"Scientific": suite["data"]["Scientific"]},
        "methods": {
            name: {"fields": suite["methods"][base]["fields"] | fields, "has_baselines": False}
            for name, (base, fields) in METHODS.items()
        },
        "modes": ("exclude_seen",),
        "published": {},
        "sweeps": {
            "negatives of a batch": {
                "methods": tuple(METHODS),
                "fields": ("num_negatives",),
                "values": (4, 32, 256, 2048),
                "seeds": suite["seeds"],
            }
        },
    }
