"""Stage `tokenizer`: semantic IDs from item vectors (section 2.2 of SIGMA).

    python -m sigma_jax.train --config=configs/tokenizer.py --workdir=runs/demo

`--config.method=kmeans` uses residual k-means instead of the RQ-VAE.
"""

from ml_collections import ConfigDict

from sigma_jax.configs import common, data, grounding, grounding_head, teacher

BASE = {
    "method": "rqvae",
    "inputs": ("text",),
    "optimizer": common.optimizer(1e-3, weight_decay=0.0, warmup_steps=20),
    "train": common.train(400, 1024),
    "model": {
        "levels": 4,
        "codebook_size": 256,
        "latent_size": 64,
        "hidden_sizes": (128,),
        "commitment": 0.25,
        "decay": 0.98,
        "revive_below": 0.05,
    },
    "kmeans_rows": 16_384,
    "kmeans_iterations": 10,
    "encode_rows": 8_192,
    "report_rows": 16_384,
    "min_code_use": 0.5,
}

PAPER = {
    "train": common.train(50_000, 16_384, log_every=100),
    "optimizer.warmup_steps": 2_000,
    "model.hidden_sizes": (512, 256, 128),
    "model.decay": 0.99,
    "kmeans_rows": 262_144,
    "kmeans_iterations": 20,
    "encode_rows": 65_536,
    "report_rows": 65_536,
}

CHANGES = {
    # About as many prefixes as items in each prefix, so that beams can cover all prefixes.
    "amazon": {"model.codebook_size": 128},
    "smoke": {
        "train": common.train(20, 64),
        "optimizer.warmup_steps": 5,
        "model.codebook_size": 32,
        "model.hidden_sizes": (32,),
        "kmeans_iterations": 4,
        "min_code_use": 0.25,
    },
    "qwen3_0p6b": PAPER,
    "qwen3_4b": PAPER,
    "qwen3_4b_lora": PAPER,
}


def stage_fields(preset: str) -> ConfigDict:
    """The fields of TokenizerConfig (sigma_jax/tokenizer/task.py) of a preset."""
    return common.select(preset, BASE, CHANGES)


def get_config(preset: str = "local") -> ConfigDict:
    """The fields of this stage and of the run; `upstream` has those of the stages before it."""
    upstream = {
        "teacher": teacher.stage_fields(preset),
        "grounding": grounding.stage_fields(preset),
        "grounding_head": grounding_head.stage_fields(preset),
    }
    config = common.run_config(
        "tokenizer", preset, stage_fields(preset), data.data_fields(preset), upstream
    )
    return config.lock()
