"""Stage `grounding`: item vectors from texts (section 2.1 of SIGMA).

    python -m sigma_jax.train --config=configs/grounding.py --workdir=runs/demo

Presets:
  `local`: Complete Journey on two CPU cores; `files`: the same for your own tables; `amazon`;
  `smoke`.
  `smollm2_135m`: the data of `local`, with low-rank additions to SmolLM2-135M.
  `qwen3_0p6b`, `qwen3_4b`, `qwen3_4b_lora`: the paper's settings; they need
  `--config.backbone.hf_folder=FOLDER`.
"""

from ml_collections import ConfigDict

from sigma_jax.configs import common, data, teacher

BACKBONE = {
    "hf_folder": "",
    "width": 128,
    "num_layers": 3,
    "num_heads": 2,  # few wide heads: they can attend to one item among a hundred
    "num_kv_heads": 2,
    "head_dim": 64,
    "mlp_width": 384,
    "rope_theta": 1_000_000.0,
    "norm_eps": 1e-6,
    "is_tied": True,
    "has_qk_norm": True,
    "dropout": 0.0,
    "dtype": "float32",
    "param_dtype": "float32",
    "remat": "none",
    "lora_rank": 0,
    "lora_alpha": 32.0,
}

BASE = {
    # On two cores many small batches teach more than many negatives. The embeddings have a higher
    # rate. With 1e-3 for the layers too, recall@10 of queries halves.
    "optimizer": common.optimizer(3e-4, table_learning_rate=1e-2, warmup_steps=10),
    "train": common.train(160, 64, eval_every=80, checkpoint_every=40),
    "backbone": BACKBONE,
    "encoder": {"width": 64, "pooling": "mean", "is_causal": True},
    "max_tokens": 64,
    "token_quantile": 0.99,
    "query_instruction": "",
    "mixture": {
        "search": 1.0,
        "visual": 1.0,
        "theme": 0.25,
        "co_occurrence": 2.0,
        "knowledge": 0.5,
    },
    "temperature": 0.05,
    "id_temperature": 0.05,
    "kd_weight": 1.0,
    "masks_false_negatives": True,
    "encode_rows": 0,
    "loss_rows": 4_096,
    "eval_pairs": 500,
    "eval_candidates": 2_000,
    "eval_batch_size": 256,
}

AMAZON = {
    "train": common.train(400, 64, eval_every=200, checkpoint_every=100),
    "max_tokens": 48,
}

SMOKE = {
    "train": common.train(6, 16, log_every=2, eval_every=0, checkpoint_every=3),
    "optimizer.warmup_steps": 2,
    "backbone.width": 32,
    "backbone.num_layers": 2,
    "backbone.num_heads": 2,
    "backbone.num_kv_heads": 1,
    "backbone.head_dim": 16,
    "backbone.mlp_width": 64,
    "max_tokens": 24,
    "eval_pairs": 64,
    "eval_candidates": 256,
}

# The paper: batches of 16,384 pairs, temperature 0.05, AdamW at 2e-5 after 2,000 steps of warmup.
# The sizes are read from the folder. The published sizes below are for a start from scratch.
QWEN3_0P6B = {
    "optimizer": common.optimizer(2e-5, warmup_steps=2_000),
    "train": common.train(20_000, 16_384, log_every=20, eval_every=2_000, checkpoint_every=1_000),
    "backbone.width": 1_024,
    "backbone.num_layers": 28,
    "backbone.num_heads": 16,
    "backbone.num_kv_heads": 8,
    "backbone.head_dim": 128,
    "backbone.mlp_width": 3_072,
    "backbone.rope_theta": 1_000_000.0,
    "backbone.dtype": "bfloat16",
    "backbone.remat": "layer",
    "encoder.pooling": "last",
    "max_tokens": 128,
    "encode_rows": 4_096,
    "masks_false_negatives": False,  # Eq. 1 masks none
    "eval_pairs": 2_000,
    "eval_candidates": 100_000,
    "eval_batch_size": 4_096,
}

QWEN3_4B = {
    **QWEN3_0P6B,
    "backbone.width": 2_560,
    "backbone.num_layers": 36,
    "backbone.num_heads": 32,
    "backbone.mlp_width": 9_728,
}

# The layers' matrices are frozen in 16 bits and get low-rank additions. The additions and the
# parameters around the backbone take ten times the learning rate of full training (Schulman et al.
# 2025, LoRA Without Regret). Needs `hf_folder`.
LORA = {
    "backbone.lora_rank": 32,
    "backbone.param_dtype": "bfloat16",
    "optimizer.learning_rate": 2e-4,
}

# SmolLM2-135M on two cores: a third of the work of full training. It is trained in this stage where
# the data has no sentence encoder: --config.data.text_encoder=
SMOLLM2_135M = {
    "optimizer": common.optimizer(1e-3, table_learning_rate=1e-3, warmup_steps=10),
    "backbone": {
        **BACKBONE,
        "hf_folder": common.SMOLLM2,
        "has_qk_norm": False,
        "remat": "light",
        "lora_rank": 32,
    },
}

CHANGES = {
    "smollm2_135m": SMOLLM2_135M,
    "amazon": AMAZON,
    "smoke": SMOKE,
    "qwen3_0p6b": QWEN3_0P6B,
    "qwen3_4b": QWEN3_4B,
    "qwen3_4b_lora": {**QWEN3_4B, **LORA},
}


def stage_fields(preset: str) -> ConfigDict:
    """The fields of GroundingConfig (sigma_jax/grounding/task.py) of a preset."""
    return common.select(preset, BASE, CHANGES)


def get_config(preset: str = "local") -> ConfigDict:
    """The fields of this stage and of the run; `upstream` has those of the teacher."""
    upstream = {"teacher": teacher.stage_fields(preset)}
    config = common.run_config(
        "grounding", preset, stage_fields(preset), data.data_fields(preset), upstream
    )
    return config.lock()
