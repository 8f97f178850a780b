"""Next-item recommendation on Amazon reviews, leave-one-out, against published results.

    python -m sigma_jax.benchmark --suite=configs/benchmark/amazon.py --data=FOLDER

FOLDER holds one folder per data set; configs/data.py lists the files. If NAME.text.npy is among
them, SIGMA uses its text vectors and does not train the stage `grounding`.
"""

from typing import Any

from sigma_jax.configs import common, letter
from sigma_jax.schema import TASKS

CONFIG = "configs/sft.py:amazon"

PAPER_SETTINGS = "SIGMA, paper settings"

# The only task here. Samples of the paper have an instruction.
JUST_FOR_YOU = {
    f"prompt.mixture.task_weights.{task}": float(task == "JustForYou") for task in TASKS
}

# All methods are settings of one model.
METHODS = {
    "SIGMA": {},
    "GR(ID)": common.GR_ID | {"prompt.layout.row_tokens": 40},
    "GR(SID)": common.GR_SID | {"prompt.layout.row_tokens": 144},
    PAPER_SETTINGS: {
        **letter.LETTER,
        **JUST_FOR_YOU,
        "evaluation.has_other_fusions": True,
        # As many targets as the other methods have in 10 epochs.
        "train.epochs": 50.0,
        "prompt.layout.row_tokens": 128,
    },
}

# Trainings of the stage `teacher` alone. The run of "SASRec" evaluates the baselines that are not
# trained too.
SASREC = {
    "SASRec": {},
    "SASRec, sampled softmax": {"full_softmax_items": 0, "sampled_negatives": 256},
    "gSASRec": {"loss": "gbce", "gbce_calibration": 0.75, "sampled_negatives": 256},
    "eSASRec": {"model.block": "ligr", "full_softmax_items": 0, "sampled_negatives": 256},
    "HSTU": {"model.block": "hstu"},
}
# Chosen by launch/benchmarks/tune_sasrec.py, where they differ from the preset.
TUNED: dict[str, dict[str, Any]] = {
    "SASRec": {"model.width": 128},
    "eSASRec": {"optimizer.learning_rate": 1e-3},
    "HSTU": {"model.width": 128, "optimizer.learning_rate": 1e-3},
}

# COLUMNS in per cent, as published by the authors.
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

# For data without item texts: vectors and codes come from the teacher alone.
IDS_ONLY = {
    "upstream.tokenizer.inputs": ("id",),
    "model.item_encoder.inputs": ("id",),
    "model.item_encoder.trainable": ("id",),
}

PROTOCOL = (
    "Each request ranks all items; a hit is the target item itself.",
    "Ties are broken at random; items of one semantic ID tie by item number.",
    "Histories have at most 20 items.",
    "Every user with at least three interactions is tested.",
    "Training uses the interactions before the validation item.",
    "Checkpoint, fusion and reranking weights are chosen on validation.",
    "Then the model is trained again with the validation item, and tested.",
    "All baselines are refitted with the validation item too, and choose their settings on it.",
    'Rows "before refit" show a method without that last step.',
    "If the data has timestamps, reranking features know the day of the request.",
    "Trending features then see only earlier interactions.",
    'Baselines "with a memory" know the day too, and see only earlier interactions.',
    "Item-item features are computed from all training interactions, as in the other baselines.",
    "SIGMA, its paper settings and GR(SID) search 32 prefixes with 20 items each.",
    "SIGMA and GR(ID) rerank all items of a catalogue of up to 16,384 items;",
    "of a larger one they rerank 640 items and those that a feature may raise.",
    "Values are per cent: mean ± sample standard deviation over seeds.",
    "Published results include seen items unless their authors say otherwise.",
)

SWEEPS = {
    "prefixes K": {
        "methods": (PAPER_SETTINGS,),
        "fields": ("evaluation.generation.num_beams",),
        "values": (1, 2, 4, 8, 16, 32, 64, 128),
        "seeds": (0,),
    },
    "items per prefix M": {
        "methods": (PAPER_SETTINGS,),
        "fields": ("evaluation.generation.num_retrieved",),
        "values": (1, 2, 5, 10, 20),
        "seeds": (0,),
    },
    "temperature tau": {
        "methods": ("GR(ID)",),  # ranks as SIGMA does
        "fields": ("generation.temperature", "evaluation.generation.temperature"),
        "values": (0.05, 0.07, 0.1, 0.15),
        "seeds": (0,),
    },
}


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    return {
        "title": "Next item, leave-one-out: last item for test, second to last for validation.",
        "protocol": PROTOCOL,
        "seeds": (0, 1, 2),
        "data": {
            name: {"config": CONFIG, "fields": {"data.path": f"{{data}}/{name}"} | more}
            for name, more in (("Scientific", {}), ("Beauty", {}), ("Instruments", IDS_ONLY))
        },
        "methods": {
            name: {"fields": fields, "has_baselines": False, "stage": "sft"}
            for name, fields in METHODS.items()
        }
        | {
            name: {
                "fields": fields | TUNED.get(name, {}),
                "has_baselines": name == "SASRec",
                "stage": "teacher",
            }
            for name, fields in SASREC.items()
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
        "sweeps": SWEEPS,
    }
