"""Two methods, one seed, in minutes, to see that a suite runs; its figures mean nothing.

python -m sigma_jax.benchmark --suite=configs/benchmark/smoke.py
"""

from typing import Any

from sigma_jax.configs.benchmark import table1


def get_suite() -> dict[str, Any]:
    """Fields of Suite (sigma_jax/benchmarking/suite.py)."""
    suite = table1.get_suite()
    methods = ("SIGMA", "GR(ID)")
    return suite | {
        "title": "A suite in minutes; its figures mean nothing.",
        "seeds": (0,),
        "data": {"Complete Journey": {"config": "configs/sft.py:smoke", "fields": {}}},
        "methods": {name: suite["methods"][name] for name in methods},
        "sweeps": {
            "prefixes K": suite["sweeps"]["prefixes K"] | {"methods": ("SIGMA",), "values": (2, 8)}
        },
    }
