"""A training run of all stages at the size of a test, over the tables of conftest.py.

    python tests/tiny_run.py TABLES WORKDIR DIE_AT

The command trains all stages. It sends itself SIGKILL before step DIE_AT of stage 3 (0: never).
"""

import os
import signal
import sys
from pathlib import Path

from ml_collections import ConfigDict

from sigma_jax.configs import sft

TASKS = ("JustForYou", "Query", "Category", "Longtail", "Discover", "Season", "Holiday")


def tiny_run(tables: Path, **changes) -> ConfigDict:
    """The smoke preset over the files in `tables`, with smaller sizes.

    Keys of `changes` are dotted paths of config fields.
    """
    config = sft.get_config("smoke")
    # Only the full-size presets have the config fields for own files.
    with config.unlocked():
        config.data = sft.data.data_fields("qwen3_0p6b")
    settings = {
        "data.path": str(tables),
        "data.use_id_vectors": False,
        "data.memory_limit": "500MB",
        "data.threads": 1,
        "data.text_tokenizer.vocab_size": 400,
        "data.pairs.min_count": 2,
        "data.pairs.heldout_share": 0.1,
        "upstream.teacher.train.steps": 6,
        "upstream.teacher.train.checkpoint_every": 3,
        "upstream.grounding.train.steps": 4,
        "upstream.grounding.backbone.width": 16,
        "upstream.grounding.backbone.mlp_width": 32,
        "upstream.grounding.backbone.head_dim": 8,
        "upstream.grounding_head.train.steps": 4,
        "upstream.grounding_head.train.checkpoint_every": 2,
        "upstream.tokenizer.train.steps": 6,
        "upstream.tokenizer.train.checkpoint_every": 3,
        "upstream.tokenizer.model.levels": 3,
        "upstream.tokenizer.model.codebook_size": 8,
        "backbone.width": 16,
        "backbone.mlp_width": 32,
        "backbone.head_dim": 8,
        "train.steps": 10,
        "train.log_every": 1,
        "train.checkpoint_every": 5,
        "prompt.layout.history_length": 12,
        "prompt.layout.num_favourites": 4,
        "prompt.targets.window_stride": 6,
        "prompt.layout.row_tokens": 192,
        "prompt.packing.row_targets": 24,
        "model.has_item_head": True,
        "generation.ranker": "three_step",
        "ntp_weight": 1.0,
        "infonce_weight": 1.0,
        "constraint_weight": 0.0,
        "num_negatives": 100_000,
        "report_requests": 8,
        "report_beams": 4,
        "evaluation.generation.ranker": "three_step",
        "evaluation.generation.num_beams": 4,
        "evaluation.generation.batch_size": 16,
        "evaluation.requests": ConfigDict(dict.fromkeys(TASKS, 12)),
    }
    for name, value in (settings | changes).items():
        *parents, last = name.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config


def main(tables: str, workdir: str, die_at: int) -> None:
    """Trains all stages; with `die_at`, sends SIGKILL before that step of stage 3."""
    import jax

    from sigma_jax import train
    from sigma_jax.runtime import fit
    from sigma_jax.runtime.config import MeshConfig
    from sigma_jax.runtime.sharding import make_mesh

    assert jax.device_count() >= 1
    original = fit.numbered_batches

    def dying(task, start, steps, mesh):
        for done, batch in original(task, start, steps, mesh):
            if die_at and done == die_at and type(task).__name__ == "SftTask":
                os.kill(os.getpid(), signal.SIGKILL)
            yield done, batch

    fit.numbered_batches = dying
    config = tiny_run(Path(tables))
    train.train(config, Path(workdir), make_mesh(MeshConfig(-1, 1, 1)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
