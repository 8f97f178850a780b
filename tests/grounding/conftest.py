"""Fixtures: a workdir with a small catalogue in which items of one noun belong together."""

import json

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sigma_jax.schema import Catalogue, Histories, PreparedData, RelevancePairs, Users

ITEMS, GROUPS = 48, 6
COLOURS = ("red", "blue", "green", "white", "black", "pink", "grey", "gold")
NOUNS = ("tea", "soap", "bread", "milk", "paper", "rice")


def item_text(item: int) -> str:
    return json.dumps({"title": f"{COLOURS[item // GROUPS]} {NOUNS[item % GROUPS]}"})


def write_data(folder, has_id_vectors=True):
    """Items of one noun belong together; queries are nouns; item 47 has the text of item 5."""
    folder.mkdir(parents=True)
    texts = [item_text(item) for item in range(ITEMS)]
    texts[47] = texts[5]
    ids = [str(item) for item in range(ITEMS)]
    table = pa.table({"item_id": ids, "text": texts, "title": texts})
    category = np.arange(ITEMS, dtype=np.int32) % GROUPS
    catalogue = Catalogue(table, category, pa.array(NOUNS), np.ones(ITEMS, np.int64))
    catalogue.save(folder)
    none, one = np.zeros(0, np.int32), np.zeros(1, np.int64)
    Histories(none, none.astype(np.int64), none, one, one[:0], one[:0]).save(folder)
    Users(pa.table({"user_id": pa.array([], "string"), "profile": pa.array([], "string")})).save(
        folder
    )
    random = np.random.default_rng(0)
    right = random.integers(0, ITEMS, 300).astype(np.int32)
    partner = ((right + GROUPS * random.integers(1, 8, 300)) % ITEMS).astype(np.int32)
    is_heldout = np.arange(300) % 10 == 0
    RelevancePairs("co_occurrence", partner, right, None, is_heldout).save(folder)
    noun = (right % GROUPS).astype(np.int32)
    RelevancePairs("search", noun, right, pa.array(NOUNS), is_heldout).save(folder)
    if has_id_vectors:
        vectors = random.normal(size=(GROUPS, 5))[category] + 0.1 * random.normal(size=(ITEMS, 5))
        np.save(folder / "id_vectors.npy", vectors.astype(np.float32))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    (folder / "text_tokenizer").mkdir()
    tokenizer.save(str(folder / "text_tokenizer" / "tokenizer.json"))


@pytest.fixture
def workdir(tmp_path):
    """A workdir with prepared data."""
    write_data(tmp_path / "data")
    return tmp_path


@pytest.fixture
def data(workdir):
    return PreparedData.load(workdir / "data")
