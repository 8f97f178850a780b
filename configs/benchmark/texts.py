"""What knowledge of texts adds: items by who takes them, by stage 1, by pre-trained models.

    python -m sigma_jax.benchmark --suite=configs/benchmark/texts.py --data=FOLDER

FOLDER holds data sets as for configs/benchmark/amazon.py, without NAME.text.npy, and beside them
`minilm`, a sentence-transformers model, and `smollm2`, a Hugging Face folder of a language model,
whose hidden states are pooled as they are.
"""

from typing import Any

from sigma_jax.configs.benchmark import amazon

METHODS = {
    "ids alone": amazon.IDS_ONLY,
    "stage 1, from nothing": {},
    "MiniLM": {"data.text_encoder": "{data}/minilm"},
    "SmolLM2-135M": {"data.text_encoder": "{data}/smollm2"},
}


def get_suite() -> dict[str, Any]:
    """Fields of Suite (sigma_jax/benchmarking/suite.py)."""
    suite = amazon.get_suite()
    settings = amazon.METHODS["GR(ID)"]
    return suite | {
        "title": "GR(ID) with item vectors from ids alone, and from texts by three encoders.",
        "protocol": tuple(line for line in suite["protocol"] if "prefixes" not in line),
        "data": {name: source for name, source in suite["data"].items() if name != "Instruments"},
        "methods": {
            name: {"fields": settings | fields, "has_baselines": False}
            for name, fields in METHODS.items()
        },
        "published": {},
        "sweeps": {},
    }
