"""The worth of each part of SIGMA's language and of its reranker, on the demo.

    python -m sigma_jax.benchmark --suite=configs/benchmark/ablations.py --data=FOLDER

It needs the extra `demo`. FOLDER holds a table knowledge.jsonl, as `python -m sigma_jax.knowledge`
writes it, for the run "with knowledge" alone. `python -m launch.benchmarks.instructions` reads
sentences of shoppers with a trained run.
"""

from typing import Any

from sigma_jax.configs.benchmark import demo

METHODS = {
    "SIGMA": {},
    "no pre-trained encoder": {"data.text_encoder": ""},
    "no grounding": {"upstream.grounding_head.head.weight": 0.0},
    "no instruction vectors": {"prompt.layout.instruction": "tokens"},
    "no rhythm features": {"reranker.has_repeat_model": False},
    "no interactions": {"reranker.has_interactions": False},
    "no reranker": {"reranker.neighbours": 0},
    "with knowledge": {"data.files.knowledge": "{data}/knowledge.jsonl"},
}


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    return demo.get_suite() | {
        "title": "The demo without its parts.",
        "methods": {
            name: {"fields": fields, "has_baselines": False, "stage": "sft"}
            for name, fields in METHODS.items()
        },
        "modes": ("include_seen",),
    }
