"""A small shop with everything the seven tasks need, drawn at random.

Fixtures import what is slow to import: every test process reads this file.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sigma_jax.prompts.config import (
    MixtureConfig,
    PackingConfig,
    PromptConfig,
    PromptLayout,
    TargetConfig,
)
from sigma_jax.schema import (
    DAY,
    TASKS,
    Catalogue,
    Histories,
    Links,
    PreparedData,
    Queries,
    SemanticIds,
    Themes,
    Users,
)
from sigma_jax.tasks import instructions

VOCABULARY = 400


def shop_histories(rng: np.random.Generator, users: int, items: int) -> Histories:
    """Users with 1 to 9 sessions of 1 to 4 rows; the last two are validation and test."""
    item, time, session, offsets, valid, test = [], [], [], [0], [], []
    for _ in range(users):
        starts = []
        for number in range(rng.integers(1, 10)):
            starts.append(len(item))
            day = int(rng.integers(30)) + 30 * number
            for _ in range(rng.integers(1, 5)):
                item.append(int(items * rng.random() ** 2))
                time.append(day * DAY)
                session.append(number)
        offsets.append(len(item))
        starts = [*starts, len(item), len(item)]
        has_targets = len(starts) > 4
        valid.append(starts[-4] if has_targets else len(item))
        test.append(starts[-3] if has_targets else len(item))
    wide = [np.array(a, np.int64) for a in (time, offsets, valid, test)]
    return Histories(
        np.array(item, np.int32), wide[0], np.array(session, np.int32), wide[1], wide[2], wide[3]
    )


def shop_tokenizer(folder: Path, texts: list[str]) -> None:
    """Writes a tokenizer trained on `texts` into `folder`."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(str(folder))


def make_shop(folder: Path, users: int = 30, items: int = 40, seed: int = 0) -> PreparedData:
    """A shop with searches, categories and themes; its tokenizer is written into `folder`."""
    rng = np.random.default_rng(seed)
    histories = shop_histories(rng, users, items)
    category = rng.integers(-1, 6, items).astype(np.int32)
    training = np.zeros(items, np.int64)
    for user in range(users):
        np.add.at(
            training, histories.item[histories.offsets[user] : histories.valid_start[user]], 1
        )
    names = [f"item {i}" for i in range(items)]
    table = pa.table({"item_id": names, "text": names, "title": names})
    categories = pa.array([f"Aisle  {'ABCDEF'[i]}" for i in range(6)])
    profile = [f"age: {rng.integers(20, 23)}" if u % 4 else "" for u in range(users)]
    edges = rng.integers(0, [[8], [items]], (2, 60))
    themes = rng.integers(0, [[4], [items]], (2, 80))
    starts = np.array([0, 60, 200, 20, 150, 100]) * DAY
    shop_tokenizer(folder / "text_tokenizer", instructions.all_sentences() + profile)
    return PreparedData(
        folder,
        Catalogue(table, category, categories, training),
        histories,
        Users(pa.table({"user_id": [f"u{u}" for u in range(users)], "profile": profile})),
        Queries(pa.array([f"Query No. {q}" for q in range(8)]), Links.from_edges(*edges, 8)),
        Themes(
            pa.array(["Winter", "Spring", "Easter Day", "Trend"]),
            pa.array(["season", "season", "holiday", "trend"]),
            Links.from_edges(*themes, 4),
            np.array([0, 0, 1, 1, 2, 3], np.int32),
            starts,
            starts + 70 * DAY,
        ),
        {},
        None,
        None,
        None,
    )


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> PreparedData:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def semantic_ids() -> SemanticIds:
    codes = np.random.default_rng(1).integers(0, 5, (40, 3)).astype(np.int32)
    return SemanticIds(codes, 5)


@pytest.fixture(scope="session")
def config() -> PromptConfig:
    return PromptConfig(
        PromptLayout(
            sid_in_prompt=1,
            slot_in_prompt=True,
            sid_generated=2,
            item_query="token",
            history_length=6,
            num_favourites=2,
            session_marker=True,
            profile_tokens=5,
            instruction="tokens",
            instruction_tokens=24,
            row_tokens=160,
        ),
        TargetConfig(
            window_stride=4,
            task_targets_per_boundary=3,
            longtail_share=0.8,
            history_targets=4,
            history_targets_per_boundary=2,
            cold_start_weight=0.5,
        ),
        MixtureConfig(
            task_weights=dict.fromkeys(TASKS, 1.0),
            branches_per_context=3,
            instruction_only_share=0.0,
            wording_dropout=0.0,
            instruction_variants=2,
            shuffle_sessions=True,
        ),
        PackingConfig(row_targets=12, group_rows=2, contexts_per_group=3),
    )


def changed_prompt(config: PromptConfig, **changes) -> PromptConfig:
    """`config` with other settings; each key is a field of one of its groups."""
    groups = {}
    for group in dataclasses.fields(config):
        part = getattr(config, group.name)
        names = {field.name for field in dataclasses.fields(part)} & set(changes)
        groups[group.name] = dataclasses.replace(part, **{n: changes.pop(n) for n in names})
    assert not changes, f"no settings of prompts: {sorted(changes)}"
    return PromptConfig(**groups)


@pytest.fixture(scope="session")
def records(shop, config, tmp_path_factory) -> Path:
    """A folder with the shop's records."""
    from sigma_jax.prompts.records import write_records

    folder = tmp_path_factory.mktemp("records")
    write_records(shop, config, folder, seed=3)
    return folder


@pytest.fixture(scope="module")
def task(trained):
    """Stage 3 of the small training."""
    from small_task import make_task

    return make_task(trained)


@pytest.fixture(scope="module")
def model(task):
    """Before its first step."""
    from flax import nnx

    return task.model(nnx.Rngs(0))
