"""A suite of two methods and results of its runs, as files, without any training."""

import json

from sigma_jax.benchmarking import suite as suites
from sigma_jax.benchmarking.record import write_record


def tiny_suite(**changes) -> suites.Suite:
    fields = {
        "title": "Tiny",
        "protocol": ("One line.",),
        "seeds": (0, 1),
        "data": {"A": suites.Source("configs/sft.py:smoke", {"data.path": "{data}/A"})},
        "methods": {
            "SIGMA": suites.Method({}, True),
            "GR(ID)": suites.Method({"prompt.sid_generated": 0}, False),
        },
        "modes": ("exclude_seen",),
        "levels": ("item",),
        "columns": ("Recall@5", "Recall@10", "NDCG@5", "NDCG@10"),
        "published": {"A": {"TIGER": {"Recall@10": 6.48}}},
        "published_level": "item",
        "headline": "Recall@10",
        "sweeps": {},
    }
    return suites.Suite(**fields | changes)


def write_results(folder, run, recall_10, method="SIGMA", ndcg_gain=0.032, **more):
    figures = {"Recall@5": recall_10 - 0.1, "Recall@10": recall_10, "NDCG@5": 0.02}
    figures["NDCG@10"] = 0.02 + ndcg_gain
    summary = {f"item.{name}": {"mean": value} for name, value in figures.items()}
    summary["item.HR@10"] = summary["item.Recall@10"]
    methods = {method: {"exclude_seen": {"tasks": {"JustForYou": summary}, "average": summary}}}
    made = {"config_hash": "c0ffee", "data_hash": "da7a", "seconds": 7.0, "command": "python -m x"}
    workdir = run.workdir(folder)
    (workdir / "evaluation").mkdir(parents=True)
    results = {"methods": methods | more, "run": made}
    (workdir / "evaluation" / "results.json").write_text(json.dumps(results))
    write_record(workdir, tiny_suite().columns, tiny_suite().levels)
