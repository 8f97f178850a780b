"""Items become JSON text, and a tokenizer is trained on it."""

import dataclasses
import json

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from sigma_jax.configs.data import data_fields
from sigma_jax.data import text
from sigma_jax.data.config import DataConfig, TextTokenizerConfig
from sigma_jax.prepare import prepare
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import PreparedData

ODD_ITEMS = [
    {"item_id": "1", "name": 'say "hi"\n\\', "tags": ["x", "y"], "price": 2.5, "new": True},
    {"item_id": "2", "name": "茶 ☕", "tags": None, "price": None, "new": None},
    {"item_id": "3", "name": "", "tags": [], "price": None, "new": None},
    {"item_id": "4", "name": "  plain  ", "tags": ["z"], "price": 3.0, "new": False},
]


@pytest.fixture(scope="module")
def odd(tmp_path_factory, tiny_config):
    folder = tmp_path_factory.mktemp("odd")
    lines = "".join(json.dumps(row) + "\n" for row in ODD_ITEMS)
    (folder / "items.jsonl").write_text(lines)
    event = {"user_id": "u", "item_id": "1", "timestamp": 1_700_000_000}
    (folder / "interactions.jsonl").write_text(json.dumps(event) + "\n")
    out = folder / "out"
    out.mkdir()
    prepare(tiny_config(folder), 0, out)
    return PreparedData.load(out)


def test_item_text_is_json_of_the_known_values(odd):
    texts = odd.catalogue.texts(np.arange(4))
    want = [
        {"name": 'say "hi"\n\\', "tags": "x, y", "price": 2.5, "new": "true"},
        {"name": "茶 ☕"},
        {"id": "3"},
        {"name": "plain", "tags": "z", "price": 3.0, "new": "false"},
    ]
    assert [json.loads(found) for found in texts] == want
    assert [list(json.loads(found)) for found in texts] == [list(row) for row in want]


def test_title_falls_back_to_the_id(odd):
    assert odd.catalogue.titles(np.array([1, 2])) == ["茶 ☕", "3"]


def test_category_is_the_last_level_of_the_path(prepared):
    names = prepared.catalogue.categories.to_pylist()
    assert names == sorted(["Tea", "Coffee", "Soap", "Candles", "Garden", "Toys"])
    assert [names[row] for row in prepared.catalogue.category[:3]] == ["Tea", "Coffee", "Soap"]


def test_items_without_categories_have_none(odd):
    assert odd.catalogue.category.tolist() == [-1] * 4
    assert len(odd.catalogue.categories) == 0


def test_numbers_serve_as_title_and_category(tiny_config, tmp_path):
    """Pandas writes a column of integers with a gap as float64 to Parquet."""
    items = {"item_id": [1, 2, 3], "title": [1984, 2001, 42], "category": [7.0, None, 12.0]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    event = {"user_id": "u", "item_id": "1", "timestamp": 1_700_000_000}
    (tmp_path / "interactions.jsonl").write_text(json.dumps(event) + "\n")
    out = tmp_path / "out"
    out.mkdir()
    prepare(tiny_config(tmp_path), 0, out)
    catalogue = PreparedData.load(out).catalogue
    assert catalogue.titles(np.arange(3)) == ["1984", "2001", "42"]
    assert catalogue.categories.to_pylist() == ["12", "7"]
    assert catalogue.category.tolist() == [1, -1, 0]


def test_columns_of_the_text_can_be_chosen(tables_folder, tiny_config, tmp_path):
    prepare(tiny_config(tables_folder, **{"text.columns": ("brand", "title")}), 0, tmp_path)
    first = PreparedData.load(tmp_path).catalogue.texts(np.array([0]))[0]
    assert first == '{"brand": "brand 0", "title": "red tea no 0"}'


def test_missing_column_is_named(tables_folder, tiny_config, tmp_path):
    with pytest.raises(
        ValueError, match=r"items have no column 'kind'.*, or use '' to take a usual one"
    ):
        prepare(tiny_config(tables_folder, **{"text.category_column": "kind"}), 0, tmp_path)


@pytest.mark.parametrize(
    "words", ["красный чай", "紅茶をください", "شاي", "🫖 tea\t\n", "\x00\x7f"]
)
def test_the_trained_tokenizer_decodes_every_language_unchanged(prepared, words):
    tokenizer = AutoTokenizer.from_pretrained(prepared.text_tokenizer_folder)
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == words


def test_trained_tokenizer_learns_the_sentences_it_is_given():
    settings = TextTokenizerConfig(name="", vocab_size=400)
    trained = text.train_tokenizer(settings, ["recommend something"] * 20)
    assert len(trained("recommend something")["input_ids"]) <= 2
    assert trained.pad_token_id == 0 and trained.eos_token_id == 1


def test_tokenizer_of_a_folder_is_copied(prepared, data_config, tmp_path):
    settings = TextTokenizerConfig(name=str(prepared.text_tokenizer_folder), vocab_size=300)
    prepare(dataclasses.replace(data_config, text_tokenizer=settings), 0, tmp_path)
    loaded = [
        AutoTokenizer.from_pretrained(p / "text_tokenizer") for p in (tmp_path, prepared.folder)
    ]
    assert loaded[0].get_vocab() == loaded[1].get_vocab()


def test_tokenizer_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data.text_tokenizer.name='.*nothing' cannot be loaded"):
        text.load_tokenizer(tmp_path / "nothing")


def texts_of(con_items, **changes):
    """(title, category) of items, as rows of a dict of columns."""
    config = to_dataclass(DataConfig, data_fields("files")).text
    items = ibis.memtable(pa.table(con_items | {"source_row": list(range(3))}))
    texts = text.item_texts(items, dataclasses.replace(config, **changes))
    rows = ibis.duckdb.connect().to_pyarrow(texts.order_by("source_row")).to_pylist()
    return [(row["title"], row["category"]) for row in rows]


def test_an_empty_title_or_category_is_taken_from_the_next_column():
    columns = {
        "item_id": list("abc"),
        "title": pa.array([None, "A", " "], pa.string()),
        "name": ["B", "C", None],
        "categories": [["x", "y"], None, []],
        "category": ["Hats", "Shoes > Boots", None],
    }
    assert texts_of(columns) == [("B", "y"), ("A", "Boots"), ("c", None)]
    found = texts_of(columns, title_column="name", category_column="category")
    assert found == [("B", "Hats"), ("C", "Boots"), ("c", None)]


def test_json_lists_in_a_text_are_category_paths():
    columns = {
        "item_id": list("abc"),
        "title": list("abc"),
        "category": ['["Home", "Tea"]', "Home > Pots > ", "Garden"],
    }
    assert [category for _, category in texts_of(columns)] == ["Tea", "Pots", "Garden"]
