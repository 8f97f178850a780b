"""A suite of two methods, and files with results of its runs; nothing is trained."""

import json

from sigma_jax.benchmarking.record import write_record
from sigma_jax.benchmarking.suite import Method, Source, Suite


def tiny_suite(**changes) -> Suite:
    """Two methods, two seeds, one data set; `changes` replace fields."""
    fields = {
        "title": "Tiny",
        "protocol": ("One line.",),
        "seeds": (0, 1),
        "data": {"A": Source("configs/sft.py:smoke", {"data.path": "{data}/A"})},
        "methods": {
            "SIGMA": Method({}, True, "sft"),
            "GR(ID)": Method({"prompt.layout.sid_generated": 0}, False, "sft"),
        },
        "modes": ("exclude_seen",),
        "levels": ("item",),
        "columns": ("Recall@5", "Recall@10", "NDCG@5", "NDCG@10"),
        "published": {"A": {"TIGER": {"Recall@10": 6.48}}},
        "published_level": "item",
        "headline": "Recall@10",
        "sweeps": {},
    }
    return Suite(**fields | changes)


def write_results(folder, run, recall_10, method="SIGMA", ndcg_gain=0.032, model="SIGMA", **more):
    """Writes results.json and record.json of `run`; `more`: results of further methods."""
    values = {"Recall@5": recall_10 - 0.1, "Recall@10": recall_10, "NDCG@5": 0.02}
    values["NDCG@10"] = 0.02 + ndcg_gain
    summary = {f"item.{name}": {"mean": value} for name, value in values.items()}
    summary["item.HR@10"] = summary["item.Recall@10"]
    methods = {method: {"exclude_seen": {"tasks": {"JustForYou": summary}, "average": summary}}}
    made = {"config_hash": "c0ffee", "data_hash": "da7a", "seconds": 7.0, "command": "python -m x"}
    made["model"] = model
    workdir = run.workdir(folder)
    (workdir / "evaluation").mkdir(parents=True)
    results = {"methods": methods | more, "run": made}
    (workdir / "evaluation" / "results.json").write_text(json.dumps(results))
    write_record(workdir, tiny_suite().columns, tiny_suite().levels)
