"""One point in time for all users: training before it, test after it. Beauty.

    python -m sigma_jax.benchmark --suite=configs/benchmark/time_split.py --data=FOLDER

FOLDER is as in configs/benchmark/amazon.py. Leave-one-out lets a method count what other users did
after a request. A split by time does not. Validation begins at 80 per cent of the interactions and
test at 90; a user's target is in their first session of that time.
"""

from typing import Any

from sigma_jax.configs import common
from sigma_jax.configs.benchmark import amazon

SPLIT = {
    "data.split.kind": "by_time",
    "data.split.valid_from": "0.8",
    "data.split.test_from": "0.9",
}
PROTOCOL = (
    "Validation begins at 80 per cent of the interactions, test at 90 per cent.",
    "A user's target is in their first session of that time.",
    "Every user with such a session can be tested, with a history or without.",
    "All methods are trained again, or counted again, with all before the test.",
    'Rows "before refit" show them without that step.',
    "Values are per cent: mean ± sample standard deviation over seeds.",
)


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    suite = amazon.get_suite()
    beauty = suite["data"]["Beauty"]
    return suite | {
        "title": "Next item, split by time: training before validation before test.",
        "protocol": PROTOCOL,
        "data": {"Beauty": beauty | {"fields": beauty["fields"] | SPLIT}},
        "methods": {
            "SIGMA": suite["methods"]["SIGMA"],
            "GR(ID)": suite["methods"]["GR(ID)"] | {"fields": common.GR_ID},
            **{name: suite["methods"][name] for name in amazon.SASREC},
        },
        "published": {},
        "sweeps": {},
    }
