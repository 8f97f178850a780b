"""SIGMA to the letter: each part where a default differs from the paper, and the paper's value.

`SWITCHES` names the fields of configs/sft.py that bring a part back to the paper. The presets
qwen3_* use all of them; so does the method "SIGMA, paper settings" of the benchmark suites.
configs/benchmark/letter.py measures what each is worth, and docs/ranking.md lists them.
"""

from typing import Any


def ranker(**fields: Any) -> dict[str, Any]:
    """Fields of the ranker, in the reports of training and in the evaluation."""
    of_training = {f"generation.{name}": value for name, value in fields.items()}
    return of_training | {f"evaluation.{name}": value for name, value in of_training.items()}


SWITCHES: dict[str, dict[str, Any]] = {
    "no floor of sigma": ranker(sigma_floor=0.0),
    "temperature 0.05": ranker(temperature=0.05),
    "no reranker": {"reranker.neighbours": 0},
    # The constraint loss is one of the item head.
    "no item head": {"model.has_item_head": False, "constraint_weight": 0.0},
    "no task head": {"model.has_task_head": False},
    "no copying": {"model.copies_history": False},
    "softmax over the vocabulary": {"model.uses_full_vocabulary": True},
    "equal losses": {"ntp_weight": 1.0, "infonce_weight": 1.0},
    "no constraint loss": {"constraint_weight": 0.0},
    "negatives of the batch": {"negatives_per_target": 0, "batch_negatives": 0},
    "cold items as negatives": {"has_cold_negatives": True},
    "frozen item vectors": {"model.item_encoder.trainable": ()},
    "no linear path": {"model.item_encoder.has_linear_path": False},
    "random codes at the start": {"starts_codes_at_items": False},
    "a code for each item": {"prompt.layout.sid_in_prompt": 1},
    "instructions as text": {"prompt.layout.instruction": "tokens"},
    "query token": {"prompt.layout.item_query": "token", "model.query_reads_code": False},
    "no favourites": {"prompt.layout.num_favourites": 0},
    "no session marker": {"prompt.layout.session_marker": False},
    # A sample is one user, history, instruction and target.
    "one target a sample": {
        "prompt.targets.history_targets": 0,
        "prompt.mixture.branches_per_context": 1,
    },
    "no sample without a history": {"prompt.mixture.instruction_only_share": 0.0},
    "fixed wordings and orders": {
        "prompt.mixture.wording_dropout": 0.0,
        "prompt.mixture.shuffle_sessions": False,
    },
    "last parameters": {"train.average_over": 0.0, "train.keep_best": "", "train.patience": 0},
    "no refit": {"refits": False},
    "no mask of false negatives": {"upstream.grounding.masks_false_negatives": False},
}

# Switches that change something only together with others.
NEEDS: dict[str, tuple[str, ...]] = {
    "softmax over the vocabulary": ("no item head",),
}

LETTER: dict[str, Any] = {
    name: value for fields in SWITCHES.values() for name, value in fields.items()
}


def of_stage() -> dict[str, Any]:
    """The fields of LETTER that belong to the stage `sft` itself."""
    others = ("evaluation.", "upstream.", "train.")
    return {name: value for name, value in LETTER.items() if not name.startswith(others)}


def of_evaluation() -> dict[str, Any]:
    """The fields of LETTER under `evaluation`, without that prefix."""
    prefix = "evaluation."
    return {
        name.removeprefix(prefix): value
        for name, value in LETTER.items()
        if name.startswith(prefix)
    }
