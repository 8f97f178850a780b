"""Stage `teacher`: SASRec, whose item table is the ID vectors of section 2.1 of SIGMA.

    python -m sigma_jax.train --config=configs/teacher.py --workdir=runs/demo

It runs before the other stages, unless the user's data has ID vectors.
"""

from ml_collections import ConfigDict

from sigma_jax.configs import common, data

BASE = {
    "optimizer": common.optimizer(
        4e-3, table_learning_rate=1.5e-2, weight_decay=0.01, warmup_steps=20, b2=0.98
    ),
    "train": common.train(300, 64, eval_every=150),
    "model": {
        "width": 64,
        "layers": 2,
        "heads": 2,
        "history": 64,
        "dropout": 0.1,
        "block": "plain",
    },
    "loss_positions": 12,
    "targets_per_position": 8,
    "loss": "softmax",
    "gbce_calibration": 0.75,
    "full_softmax_items": 200_000,
    "sampled_negatives": 8_192,
    "report_users": 1_000,
    "refits": False,
}

# For several passes over a log, not for the steps of about a minute.
PASSES = {
    "report_users": 5_000,
    "optimizer.learning_rate": 2e-3,
    "optimizer.table_learning_rate": 6e-3,
}

AMAZON = PASSES | {
    "train": common.train(
        0, 128, epochs=20.0, eval_every=200, checkpoint_every=400, keep_best="ndcg_10"
    ),
    "model.history": 20,
    "model.dropout": 0.4,
    "loss_positions": 6,
    "targets_per_position": 1,
    "refits": True,  # as SIGMA is
}

# A log of any size: 20 passes over it, but at most 3,000 steps.
FILES = PASSES | {
    "train": common.train(
        3_000, 64, epochs=20.0, eval_every=200, checkpoint_every=400, keep_best="ndcg_10"
    ),
    "model.dropout": 0.3,
}

PAPER = {
    "train": common.train(100_000, 8_192, log_every=100),
    "model.width": 128,
    "model.layers": 4,
    "model.heads": 4,
    "model.history": 128,
    "optimizer.learning_rate": 1e-3,
    "optimizer.table_learning_rate": 3e-3,
    "optimizer.warmup_steps": 2_000,
    "loss_positions": 16,
    "report_users": 10_000,
}

# Suites evaluate it as a baseline.
EVALUATION = {
    "is_evaluated": False,
    "split": "test",
    "requests": common.EVALUATED,
    "has_baselines": False,
    "has_slow_baselines": False,
    "has_filtered_baselines": True,
}

CHANGES = {
    "amazon": AMAZON,
    "files": FILES,
    "smoke": {
        "train": common.train(20, 16),
        "optimizer.warmup_steps": 5,
        "model.width": 16,
        "model.layers": 1,
        "model.history": 32,
        "loss_positions": 4,
        "report_users": 100,
    },
    "qwen3_0p6b": PAPER,
    "qwen3_4b": PAPER,
    "qwen3_4b_lora": PAPER,
}


def stage_fields(preset: str) -> ConfigDict:
    """The fields of TeacherConfig (sigma_jax/teacher/task.py) under `preset`."""
    return common.select(preset, BASE, CHANGES)


def get_config(preset: str = "local") -> ConfigDict:
    """The config of a training of this stage: its own fields and those of every run."""
    upstream = {}
    config = common.run_config(
        "teacher", preset, stage_fields(preset), data.data_fields(preset), upstream
    )
    config.evaluation = common.select(preset, EVALUATION, common.EVALUATED_CHANGES)
    return config.lock()
