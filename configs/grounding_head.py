"""Stage `grounding_head`: a head beside a pre-trained sentence encoder (section 2.1 of SIGMA).

    python -m sigma_jax.train --config=configs/grounding_head.py --workdir=runs/demo

It is trained where a sentence encoder makes the text vectors (`data.text_encoder`). Elsewhere the
stage `grounding` trains an encoder. Presets as in configs/grounding.py.
"""

from ml_collections import ConfigDict

from sigma_jax.configs import common, data, grounding, teacher

# Settings that both ways of grounding share.
SHARED = ("temperature", "id_temperature", "kd_weight", "masks_false_negatives", "loss_rows")
REPORT = ("eval_pairs", "eval_candidates")

BASE = {
    "optimizer": common.optimizer(1e-3, warmup_steps=20),
    "train": common.train(600, 256, log_every=100, eval_every=0, checkpoint_every=300),
    # The head weighs little beside the encoder, which knows more than the pairs do.
    "head": {"width": 64, "hidden_width": 256, "weight": 0.3},
    "mixture": grounding.BASE["mixture"],
    **{name: grounding.BASE[name] for name in (*SHARED, *REPORT)},
}

LARGE = {
    "train": common.train(20_000, 16_384, log_every=100, eval_every=5_000, checkpoint_every=5_000),
    "optimizer.warmup_steps": 500,
    "masks_false_negatives": False,  # Eq. 1 masks none
    **{name: grounding.QWEN3_0P6B[name] for name in REPORT},
}

CHANGES = {
    "smoke": {
        "train": common.train(6, 16, log_every=2, eval_every=0, checkpoint_every=3),
        "optimizer.warmup_steps": 2,
        **{name: grounding.SMOKE[name] for name in REPORT},
    },
    **dict.fromkeys(("qwen3_0p6b", "qwen3_4b", "qwen3_4b_lora"), LARGE),
}


def stage_fields(preset: str) -> ConfigDict:
    """The fields of GroundingHeadConfig (sigma_jax/grounding/head_task.py) of a preset."""
    return common.select(preset, BASE, CHANGES)


def get_config(preset: str = "local") -> ConfigDict:
    """The fields of this stage and of the run; `upstream` has those of the teacher."""
    upstream = {"teacher": teacher.stage_fields(preset)}
    config = common.run_config(
        "grounding_head", preset, stage_fields(preset), data.data_fields(preset), upstream
    )
    return config.lock()
