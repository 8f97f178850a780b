"""Items and profiles as JSON text, and the tokenizer of these texts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from sigma_jax.data import database, oddities
from sigma_jax.data.config import TextConfig, TextTokenizerConfig
from sigma_jax.data.engines.dialect import (
    joined_list,
    json_string,
    last_level,
    text_of_number,
    trimmed,
)
from sigma_jax.data.tables import as_text

PAD, END = "<|pad|>", "<|end|>"
MAX_TITLE_CHARS = 120
MAX_TOKENIZER_TEXTS = 100_000  # most texts of each kind that a tokenizer is trained on
_NOT_TEXT = ("item_id", "user_id", "source_row")
_TITLES = ("title", "name")
_CATEGORIES = ("category_path", "categories", "category")


def item_texts(items: ir.Table, config: TextConfig) -> ir.Table:
    """item_id, source_row, title, text, category and num_truncated of each item.

    num_truncated counts the values that are longer than config.max_chars. An item without any value
    gets the text {"id": ...}; its title is its id.

    Raises:
      ValueError: the config names a column that `items` does not have.
    """
    names = _text_columns(items, config)
    separator = config.category_separator
    values = {name: clean_value(items[name], separator, name in _CATEGORIES) for name in names}
    titles = _choose_columns(items, config.title_column, "title_column", _TITLES) or names[:1]
    title = category = ibis.null("string")
    for column in titles:
        given = as_text(clean_value(items[column], separator, False))
        title = ibis.coalesce(title, given[:MAX_TITLE_CHARS].nullif(""))
    for column in _category_columns(items, config):
        path = as_text(clean_value(items[column], separator, True))
        name = trimmed(last_level(path, separator))[:MAX_TITLE_CHARS].nullif("")
        category = ibis.coalesce(category, name)
    return items.select(
        "item_id",
        "source_row",
        title=ibis.coalesce(title, items["item_id"]),
        text=ibis.coalesce(json_text(values, config), json_text({"id": items["item_id"]}, config)),
        category=category,
        num_truncated=count_truncated(values, config),
    )


def category_notes(
    con: ibis.BaseBackend, file: str, items: ir.Table, config: TextConfig
) -> list[str]:
    """Notes on categories that are read in part, or seem to be written in another way."""
    columns = _category_columns(items, config)
    notes = []
    for column in columns:
        kind = items[column].type()
        if not (kind.is_array() and kind.value_type.is_array()):
            continue
        several = database.count(con, items.filter(items[column].length() > 1))
        if several:
            notes.append(
                f"{file}: {several} items have several paths in {column}; the first is their "
                "category, and the others are not read"
            )
    texts = [column for column in columns if items[column].type().is_string()]
    return notes + oddities.separator_notes(con, file, items, texts, config.category_separator)


def user_texts(users: ir.Table, config: TextConfig) -> ir.Table:
    """user_id and profile of each user. The profile is a JSON object; "" if nothing is known."""
    names = [name for name in users.columns if name not in _NOT_TEXT]
    values = {name: clean_value(users[name], config.category_separator, False) for name in names}
    empty = ibis.literal("")
    profile = ibis.coalesce(json_text(values, config), empty) if values else empty
    return users.select("user_id", profile=profile)


def json_text(values: dict[str, ir.Value], config: TextConfig) -> ir.StringValue:
    """A JSON object of the values in their order, without empty ones; null if all are empty.

    Worked example: title Soap, brand null, price 2.5 -> {"title": "Soap", "price": 2.5}
    """
    if not values:
        return ibis.null("string")
    parts = []
    for name, value in values.items():
        if value.type().is_string():
            shown = json_string(value[: config.max_chars])
            value = value.nullif("")
        elif value.type().is_floating():
            shown = text_of_number(value)
        else:
            shown = value.cast("string")
        key = json.dumps(name, ensure_ascii=False) + ": "
        parts.append(value.isnull().ifelse(ibis.null("string"), ibis.literal(key) + shown))
    body = ibis.literal(", ").join(parts)  # skips nulls
    return (body == "").ifelse(ibis.null("string"), ibis.literal("{") + body + "}")


def count_truncated(values: dict[str, ir.Value], config: TextConfig) -> ir.IntegerValue:
    """The number of values of a row that are longer than config.max_chars."""
    total = ibis.literal(0)
    for value in values.values():
        if value.type().is_string():
            total = total + (value.length() > config.max_chars).fill_null(False).cast("int64")
    return total


def clean_value(value: ir.Value, separator: str, is_path: bool) -> ir.Value:
    """A column as a number or a trimmed string.

    Lists are joined: by `separator` if the column is a category path, by ", " otherwise. A list of
    category paths gives the first path. NaN and infinity become null.

    Worked example: [["Home", "Kitchen"], ["Gifts"]] -> "Home > Kitchen"
    """
    kind = value.type()
    if kind.is_array() and kind.value_type.is_array():
        paths = value.map(lambda path: path.cast("array<string>").join(separator))
        if is_path:  # of several paths the first counts
            return trimmed((paths.length() > 0).ifelse(paths[0], ibis.null("string")))
        return trimmed(value.flatten().cast("array<string>").join(", "))
    if kind.is_array():
        return trimmed(value.cast("array<string>").join(separator if is_path else ", "))
    if kind.is_floating():
        usable = ~(value.isnan() | value.isinf())
        return usable.ifelse(value, ibis.null(kind))
    if kind.is_numeric():
        return value
    if kind.is_timestamp() and kind.scale == 9:  # not every engine has nanoseconds
        value = value.cast(dt.Timestamp(timezone=kind.timezone, scale=6))
    text = trimmed(value.cast("string"))
    return joined_list(text, separator) if is_path and kind.is_string() else text


def _text_columns(items: ir.Table, config: TextConfig) -> list[str]:
    """The columns of the text; without config.columns all of them, the title first."""
    for name in config.columns:
        _choose_columns(items, name, "columns", ())
    if config.columns:
        return list(config.columns)
    names = [name for name in items.columns if name not in _NOT_TEXT]
    return sorted(names, key=lambda name: name not in _TITLES)


def _category_columns(items: ir.Table, config: TextConfig) -> list[str]:
    """The columns of the category: the first of them that has a value counts."""
    return _choose_columns(items, config.category_column, "category_column", _CATEGORIES)


def _choose_columns(items: ir.Table, given: str, field: str, usual: tuple[str, ...]) -> list[str]:
    """`given`, or the columns of `usual` in `items`. ValueError if there is no column `given`."""
    if given and given not in items.columns:
        remedy = "use '' to take a usual one" if usual else "use () to take all"
        raise ValueError(
            f"data.text.{field}: items have no column {given!r} "
            f"(found: {', '.join(items.columns)}); correct it, or {remedy}."
        )
    return [given] if given else [name for name in usual if name in items.columns]


def save_tokenizer(
    folder: Path, config: TextTokenizerConfig, texts: Iterable[str]
) -> dict[str, int | str]:
    """Writes a Hugging Face tokenizer to `folder`. Returns its kind and vocabulary size.

    Args:
      folder: where to write.
      config: names a tokenizer, or says how to train one.
      texts: the texts that it is trained on.

    Raises:
      ValueError: the named tokenizer cannot be loaded.
    """
    if config.name:
        tokenizer = load_tokenizer(config.name)
        tokenizer.save_pretrained(folder)
        return {"kind": config.name, "vocab_size": len(tokenizer)}
    tokenizer = train_tokenizer(config, texts)
    tokenizer.save_pretrained(folder)
    return {"kind": "byte-level BPE trained on the texts", "vocab_size": len(tokenizer)}


def load_tokenizer(name: str | Path):
    """The Hugging Face tokenizer in a folder or on the hub. ValueError if it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"data.text_tokenizer.name={str(name)!r} cannot be loaded ({message}); "
            "give a folder with tokenizer.json, a hub name, or '' to train one."
        ) from error


def train_tokenizer(config: TextTokenizerConfig, texts: Iterable[str]):
    """A byte-level BPE trained on `texts`, with padding and end tokens. It encodes any language."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
