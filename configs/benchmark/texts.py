"""GR(ID) with different item vectors: from IDs only, from `grounding`, from text encoders.

    python -m sigma_jax.benchmark --suite=configs/benchmark/texts.py --data=FOLDER

FOLDER holds the data sets of configs/benchmark/amazon.py without NAME.text.npy, and two models:

    minilm     a sentence-transformers model
    smollm2    a language model in a Hugging Face folder; its hidden states are pooled
"""

from typing import Any

from sigma_jax.configs.benchmark import amazon

METHODS = {
    "IDs only": amazon.IDS_ONLY,
    "stage 1, from scratch": {},
    "MiniLM": {"data.text_encoder": "{data}/minilm"},
    "SmolLM2-135M": {"data.text_encoder": "{data}/smollm2"},
}


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    suite = amazon.get_suite()
    settings = amazon.METHODS["GR(ID)"]
    return suite | {
        "title": "GR(ID) with item vectors from IDs only, and from texts by three encoders.",
        "protocol": tuple(line for line in suite["protocol"] if "prefixes" not in line),
        "data": {name: source for name, source in suite["data"].items() if name != "Instruments"},
        "methods": {
            name: {"fields": settings | fields, "has_baselines": False, "stage": "sft"}
            for name, fields in METHODS.items()
        },
        "published": {},
        "sweeps": {},
    }
