"""Amazon reviews in the files that the papers of the field share.

| file | holds | |
|---|---|---|
| NAME.inter.json | {"user": [item, ...]} in order of time | required |
| NAME.item.json | {"item": {"title", "brand", "description", "categories", ...}} | optional |
| NAME.time.json | {"user": [unix seconds, ...]}, one for each item of inter | optional |
| NAME.cf32.npy | float32 [items, 32], ID vectors, row i for item i | optional |
| NAME.text.npy | float32 [items, width], text vectors, row i for item i | optional |

Users and items are numbers from 0. Without times the interactions have the order of the file.
"""

from __future__ import annotations

from pathlib import Path

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from sigma_jax.data import database
from sigma_jax.data.config import DataConfig
from sigma_jax.data.tables import Tables

FIELDS = ("title", "brand", "price", "description")
_COMMA = "\x1f"  # replaces ", " inside a category's name while paths are split at ","


@ibis.udf.scalar.builtin(name="json_extract_string")
def _json_strings(value: dt.JSON, path: str) -> dt.Array[dt.String]:
    """The strings at a path with a star. The database computes them."""


def paths(config: DataConfig) -> dict[str, Path]:
    """The files of the dataset in config.path, by kind such as "inter.json".

    Raises:
      ValueError: the folder does not hold exactly one NAME.inter.json.
    """
    folder = Path(config.path)
    found = sorted(folder.glob("*.inter.json")) if config.path else []
    if len(found) != 1:
        raise ValueError(
            f"data.path={config.path!r} holds {len(found)} NAME.inter.json files; set "
            "--config.data.path to the folder of one dataset."
        )
    name = found[0].name.removesuffix(".inter.json")
    files = {
        kind: path
        for kind in ("inter.json", "item.json", "time.json", "cf32.npy", "text.npy")
        if (path := folder / f"{name}.{kind}").exists()
    }
    if not config.use_id_vectors:
        files.pop("cf32.npy", None)
    if config.files.text_vectors:
        files["text.npy"] = Path(config.files.text_vectors)
    return files


def read(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of the dataset in config.path. ValueError names a file that is missing or bad."""
    files = paths(config)
    interactions = _interactions(con, files)
    vectors, texts = files.get("cf32.npy"), files.get("text.npy")
    return Tables(
        items=_items(con, files, interactions),
        interactions=interactions,
        id_vectors=str(vectors) if vectors else None,
        text_vectors=str(texts) if texts else None,
        names={
            "items": str(files.get("item.json", files["inter.json"])),
            "interactions": str(files["inter.json"]),
        },
        files={kind: str(path) for kind, path in files.items()},
        has_times="time.json" in files,
        has_composed_searches=False,
    )


def _interactions(con: ibis.BaseBackend, paths: dict[str, Path]) -> ir.Table:
    """user_id, item_id and timestamp, in the order of users and of their lists."""
    lists = _read_map(con, paths["inter.json"], "BIGINT[]")
    if "time.json" in paths:
        times = _read_map(con, paths["time.json"], "BIGINT[]").rename(times="value")
        lists = lists.left_join(times, "key")
        lists = lists.select("key", "value", "times")
        lengths = lists["value"].length(), lists["times"].length().fill_null(-1)
        wrong = database.rows(con, lists.filter(lengths[0] != lengths[1]).limit(1))
        if wrong:
            raise ValueError(
                f"{paths['time.json']}: user {wrong[0]['key']!r} has "
                f"{len(wrong[0]['times'] or [])} times for {len(wrong[0]['value'])} items; "
                "give one time for each item."
            )
        lists = lists.select("key", value=lists["value"].zip(lists["times"]))
    rows = lists.unnest("value", offset="place")
    if "time.json" in paths:
        rows = rows.mutate(item_id=rows["value"]["f1"], timestamp=rows["value"]["f2"])
    else:
        rows = rows.mutate(item_id=rows["value"], timestamp=ibis.null("int64"))
    ordered = rows.order_by(rows["key"].cast("int64"), "place")
    return database.save(
        con, "amazon_interactions", ordered.select("item_id", "timestamp", user_id="key")
    )


def _items(con: ibis.BaseBackend, paths: dict[str, Path], interactions: ir.Table) -> ir.Table:
    """The items of both files, in order of their numbers: row i of the vectors is item i."""
    interacted = interactions.select(item_id=interactions["item_id"]).distinct()
    if "item.json" not in paths:
        return database.save(con, "amazon_items", interacted.order_by("item_id"))
    texts = _read_map(con, paths["item.json"], "JSON")
    metadata = texts["value"]
    texts = texts.select(
        item_id=texts["key"].cast("int64"),
        **{field: metadata[field].str for field in FIELDS},
        categories=_category_path(metadata["categories"]),
    )
    ids = interacted.union(texts.select("item_id"), distinct=True)
    joined = ids.left_join(texts, "item_id").drop("item_id_right").order_by("item_id")
    return database.save(con, "amazon_items", joined)


def _category_path(value: ir.JSONValue) -> ir.StringValue:
    """The path "A > B > C" from [["A", "B", "C"]], ["A", "B", "C"] or "A,B,C"."""
    nested, flat = (_json_strings(value, path).join(" > ") for path in ("$[0][*]", "$[*]"))
    joined = value.str.replace(", ", _COMMA).replace(",", " > ").replace(_COMMA, ", ")
    return ibis.coalesce(nested.nullif(""), flat.nullif(""), joined)


def _read_map(con: ibis.BaseBackend, path: Path, value_type: str) -> ir.Table:
    """key and value of a JSON file that is one object. ValueError if it is something else."""
    size = 2 * path.stat().st_size + 1024
    quoted = str(path).replace("'", "''")
    entries = con.sql(
        "SELECT unnest(map_entries(json)) AS entry FROM read_json("
        f"'{quoted}', records = false, format = 'unstructured', maximum_object_size = {size}, "
        f"columns = {{'json': 'MAP(VARCHAR, {value_type})'}})"
    )
    table = entries.select(key=entries["entry"]["key"], value=entries["entry"]["value"])
    with database.errors_of_file(str(path), "save it as one JSON object"):
        return database.save(con, "amazon_" + path.name.replace(".", "_"), table)
