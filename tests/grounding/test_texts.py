"""Tests of tokens on disk: equal to fresh tokens for any chunks; equal texts share a key."""

import numpy as np
import pytest

from sigma_jax.grounding import texts
from sigma_jax.grounding.texts import first_equal, load_tokenizer, padded, token_table


def test_padding_follows_the_worked_example():
    offsets, tokens = np.array([0, 3, 4]), np.array([5, 6, 7, 8], np.int32)
    batch, lengths = padded(offsets, tokens, np.array([0, 1]), 2)
    np.testing.assert_array_equal(batch, [[5, 6], [8, 0]])
    np.testing.assert_array_equal(lengths, [2, 1])


@pytest.mark.parametrize("chunk", [7, 1000])
def test_rows_hold_the_tokens_of_their_texts(data, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(texts, "CHUNK", chunk)
    table = token_table(data, tmp_path / "cache", 64, 1.0, "find: ")
    tokenizer = load_tokenizer(data.text_tokenizer_folder)
    expected = data.catalogue.texts(np.arange(48))
    expected += ["find: " + text for text in data.pairs["search"].left_texts.to_pylist()]
    tokens, lengths = table.batch(np.arange(len(expected)))
    assert table.first_row == {"search": 48} and table.length % 8 == 0 and table.truncated == 0
    for text, row, length in zip(expected, tokens, lengths, strict=True):
        assert tokenizer.decode(list(row[:length])) == text
        assert not row[length:].any()
    np.testing.assert_array_equal(table.key, [expected.index(text) for text in expected])


def test_long_texts_are_cut_and_counted(data, tmp_path):
    table = token_table(data, tmp_path / "cache", 4, 1.0, "")
    assert table.length == 4 and table.batch(np.array([0]))[0].shape == (1, 4)
    assert table.truncated > 0.8  # all texts but the queries


def test_tokens_are_written_once_for_the_same_settings(data, tmp_path, monkeypatch):
    first = token_table(data, tmp_path / "cache", 16, 1.0, "")
    monkeypatch.setattr(texts, "_write", lambda *_: pytest.fail("written twice"))
    again = token_table(data, tmp_path / "cache", 16, 0.5, "")
    np.testing.assert_array_equal(again.tokens, first.tokens)
    monkeypatch.undo()
    assert len(token_table(data, tmp_path / "cache", 16, 1.0, "other ").tokens) > len(first.tokens)


def test_a_text_without_tokens_becomes_token_0(data):
    assert texts.encode(load_tokenizer(data.text_tokenizer_folder), ["", "tea"], 9)[0] == [0]


def test_first_equal_gives_the_index_of_the_first_equal_element():
    np.testing.assert_array_equal(first_equal(np.array([7, 9, 7, 9, 1])), [0, 1, 0, 1, 4])


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no tokenizer"):
        load_tokenizer(tmp_path)
