"""Three methods and one seed, to check within minutes that a suite runs.

    python -m sigma_jax.benchmark --suite=configs/benchmark/smoke.py

The models are trained for a few steps, so the results say nothing about the methods.
"""

from typing import Any

from sigma_jax.configs.benchmark import table1

FEW = {"evaluation.has_slow_baselines": False}


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    suite = table1.get_suite()
    methods = ("SIGMA", "GR(ID)")
    gsasrec = {"fields": {"loss": "gbce"}, "has_baselines": False, "stage": "teacher"}
    return suite | {
        "title": "Smoke test of the benchmark suites; the results say nothing about the methods.",
        "seeds": (0,),
        "data": {"Complete Journey": {"config": "configs/sft.py:smoke", "fields": FEW}},
        "methods": {name: suite["methods"][name] for name in methods} | {"gSASRec": gsasrec},
        "sweeps": {
            "prefixes K": suite["sweeps"]["prefixes K"] | {"methods": ("SIGMA",), "values": (2, 8)}
        },
    }
