"""Table 1 of the SIGMA paper on public data: seven tasks on Complete Journey.

    python -m sigma_jax.benchmark --suite=configs/benchmark/table1.py

All rows are settings of one model. The table also shows the paper's results on its own data.
"""

from typing import Any

from sigma_jax.configs import common

# The preset represents history items by their vectors alone, and the last code is the item query.
# The paper puts codes into the prompt and adds a query token.
SID1 = {"prompt.layout.sid_in_prompt": 1, "prompt.layout.item_query": "token"}
SID4 = SID1 | {"prompt.layout.sid_in_prompt": 4, "prompt.layout.row_tokens": 640}

METHODS = {
    "SIGMA": {},
    "SIGMA (SID1 ID -> SID1 ID)": SID1,
    "SIGMA (SID4 ID -> SID1 ID)": SID4,
    "SIGMA (SID4 ID -> SID2 ID)": SID4 | {"prompt.layout.sid_generated": 2},
    "- semantic grounding": {"upstream.grounding_head.head.weight": 0.0},
    "- APF (first prefix only)": {
        "evaluation.generation.fusion": "first_prefix",
    },
    "- pre-trained item vectors": {
        "model.item_encoder.inputs": ("id_embedding",),
        "model.item_encoder.trainable": ("id_embedding",),
    },
    "- prefix condition": {"uses_prefix_condition": False},
    "- a tenth of the negatives": {"negatives_per_target": 2, "num_negatives": 410},
    "- instruction-only contexts": {
        "constraint_weight": 0.0,
        "prompt.mixture.instruction_only_share": 0.0,
        "prompt.mixture.wording_dropout": 0.0,
    },
    "- item head": {
        "model.has_item_head": False,
        "evaluation.has_other_fusions": True,
        "constraint_weight": 0.0,
        "ntp_weight": 1.0,
        "infonce_weight": 1.0,
    },
    "GR(SID)": common.GR_SID | {"prompt.layout.row_tokens": 512},
    "GR(ID)": common.GR_ID,
}

# Fewer steps than the preset's, since the suite trains each method with three seeds. Rows are long
# enough for the longest prompt with one code per item: those methods learn from the same targets.
TRAINING = {"train.steps": 320, "prompt.layout.row_tokens": 352}
REQUESTS = {f"evaluation.requests.{task}": 400 for task in common.EVALUATED}
REQUESTS["evaluation.requests.JustForYou"] = 1_000

COLUMNS = ("HR@1", "HR@5", "HR@10", "HR@20")
PAPER = {
    "SIGMA (SID1 ID -> SID1 ID)": (9.61, 24.73, 33.76, 43.05),
    "SIGMA (SID4 ID -> SID1 ID)": (9.50, 24.89, 33.37, 42.77),
    "SIGMA (SID4 ID -> SID2 ID)": (8.91, 21.33, 28.43, 36.02),
    "- semantic grounding": (7.80, 19.10, 25.85, 33.24),
    "- APF (first prefix only)": (9.31, 22.82, 30.18, 37.73),
    "- pre-trained item vectors": (8.13, 21.82, 30.24, 39.11),
    "- prefix condition": (9.03, 23.79, 32.40, 41.34),
    "- a tenth of the negatives": (8.43, 22.87, 31.70, 40.86),
    "GR(SID)": (8.01, 16.17, 22.41, 26.41),
    "GR(ID)": (7.31, 20.15, 28.98, 37.37),
    "online model (SASRec)": (6.25, 15.16, 21.32, 30.06),
}


def get_suite() -> dict[str, Any]:
    """The fields of Suite (sigma_jax/benchmarking/suite.py)."""
    return {
        "title": "Table 1 of the SIGMA paper on Complete Journey: average over seven tasks.",
        "protocol": (
            "Each request ranks all items; the target is an item of the held-out basket that fits",
            "the task. Histories have 64 items and 16 favourites.",
            "All but GR(ID) search 32 prefixes with 20 items each. With an item head, all items",
            "are reranked.",
            f"Training takes {TRAINING['train.steps']} steps.",
            "Test instructions use the wordings of training.",
            "The paper's results are on its own data: compare the order of methods, not the level.",
            "Values are per cent: mean ± sample standard deviation over seeds.",
        ),
        "seeds": (0, 1, 2),
        "data": {
            "Complete Journey": {
                "config": "configs/sft.py:local",
                "fields": TRAINING | REQUESTS,
            }
        },
        "methods": {
            name: {"fields": fields, "has_baselines": name == "SIGMA", "stage": "sft"}
            for name, fields in METHODS.items()
        },
        "modes": ("include_seen", "exclude_seen"),
        "levels": ("sid", "item"),
        "columns": COLUMNS,
        "published": {
            "Complete Journey": {
                name: dict(zip(COLUMNS, row, strict=True)) for name, row in PAPER.items()
            }
        },
        "published_level": "sid",
        "headline": "HR@10",
        "sweeps": {
            "prefixes K": {
                "methods": ("- item head",),
                "fields": ("evaluation.generation.num_beams",),
                "values": (1, 2, 4, 8, 16, 32, 64),
                "seeds": (0,),
            },
            "items per prefix M": {
                "methods": ("- item head",),
                "fields": ("evaluation.generation.num_retrieved",),
                "values": (1, 2, 5, 10, 20),
                "seeds": (0,),
            },
        },
    }
