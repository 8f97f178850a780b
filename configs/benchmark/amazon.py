"""Next-item recommendation on Amazon reviews, leave-one-out, against published figures.

    python -m sigma_jax.benchmark --suite=configs/benchmark/amazon.py --data=FOLDER

FOLDER holds one folder a data set (configs/data.py says which files). Where a file NAME.text.npy
stands beside the others, SIGMA takes its text vectors instead of training stage 1.
"""

from typing import Any

from sigma_jax.configs import common

CONFIG = "configs/sft.py:amazon"

# Every method is a setting of one model.
METHODS = {
    "SIGMA": {},
    "GR(ID)": common.GR_ID | {"prompt.row_tokens": 40},
    "GR(SID)": common.GR_SID | {"prompt.row_tokens": 144},
    "SIGMA, the paper's letter": {
        "model.has_item_head": False,
        "prompt.sid_in_prompt": 1,
        "prompt.item_query": "token",
        "ntp_weight": 1.0,
        "infonce_weight": 1.0,
        "prompt.row_tokens": 128,
        "negatives_per_target": 0,
        "prior.neighbours": 0,
        "evaluation.generation.sigma_floor": 0.0,
    },
}

# The method that searches codes on any data; SIGMA does where they are worth it.
LETTER = ("SIGMA, the paper's letter",)

# Recall@5, Recall@10, NDCG@5, NDCG@10 in per cent, as their authors printed them.
PUBLISHED = {
    "Beauty": {
        "SASRec, full softmax": (5.43, 8.21, 3.15, 4.05),
        "TIGER": (4.54, 6.48, 3.21, 3.84),
        "LC-Rec (Qwen3-1.7B)": (5.25, 7.91, 3.52, 4.38),
        "LETTER-LC-Rec": (5.05, 7.03, 3.50, 4.18),
        "RPG": (5.50, 8.09, 3.81, 4.64),
        "OneRec-Think 1.7B": (5.63, 7.91, 3.98, 4.71),
        "EAGER-LLM 7B": (5.48, 8.30, 3.69, 4.59),
    },
    "Instruments": {
        "TIGER": (8.70, 10.58, 7.37, 7.97),
        "LC-Rec (LLaMA-7B)": (8.24, 10.06, 7.12, 7.72),
        "LETTER-LC-Rec": (9.13, 11.15, 7.89, 8.54),
        "EAGER-LLM 7B": (9.91, 12.24, 8.51, 9.26),
    },
}

COLUMNS = ("Recall@5", "Recall@10", "NDCG@5", "NDCG@10")

# Where nothing is known of items but who takes them, vectors and codes are the teacher's.
IDS_ONLY = {
    "upstream.tokenizer.inputs": ("id",),
    "model.item_encoder.inputs": ("id",),
    "model.item_encoder.trainable": ("id",),
}


def get_suite() -> dict[str, Any]:
    """Fields of Suite (sigma_jax/benchmarking/suite.py)."""
    return {
        "title": "Next item, leave-one-out: the last item is the test, the one before validation.",
        "protocol": (
            "All items ranked, ties at random (by item number for items of one SID); hits by item.",
            "Histories of at most 20 items; every user with three interactions is judged.",
            "Trained on what comes before the validation item; checkpoint, fusion and counts'",
            "weights chosen on validation, then trained anew on that item too (before the refit:",
            "not); the test items looked at once, after that. Where the data has times, counts",
            "know the day of a request, and trends only what was taken before it; co-visitation",
            "and other relations of items are made of all training rows, as the baselines'.",
            "SIGMA looks into 32 prefixes (of one code) and 20 items of each, GR(ID) at 640 items.",
            "Per cent; mean and sample deviation over seeds. Published figures keep seen items",
            "unless their authors say otherwise.",
        ),
        "seeds": (0, 1, 2),
        "data": {
            name: {"config": CONFIG, "fields": {"data.path": f"{{data}}/{name}"} | more}
            for name, more in (("Scientific", {}), ("Beauty", {}), ("Instruments", IDS_ONLY))
        },
        "methods": {
            name: {"fields": fields, "has_baselines": name == "SIGMA"}
            for name, fields in METHODS.items()
        },
        "modes": ("exclude_seen", "include_seen"),
        "levels": ("item",),
        "published_level": "item",
        "columns": COLUMNS,
        "published": {
            data: {name: dict(zip(COLUMNS, row, strict=True)) for name, row in rows.items()}
            for data, rows in PUBLISHED.items()
        },
        "headline": "NDCG@10",
        "sweeps": {
            "prefixes K": {
                "methods": LETTER,
                "fields": ("evaluation.generation.num_beams",),
                "values": (1, 2, 4, 8, 16, 32, 64, 128),
                "seeds": (0,),
            },
            "items of a prefix M": {
                "methods": LETTER,
                "fields": ("evaluation.generation.num_retrieved",),
                "values": (1, 2, 5, 10, 20),
                "seeds": (0,),
            },
            "temperature tau": {
                "methods": ("GR(ID)",),  # which ranks as SIGMA does where codes add nothing
                "fields": ("temperature", "evaluation.generation.temperature"),
                "values": (0.05, 0.07, 0.1, 0.15),
                "seeds": (0,),
            },
        },
    }
