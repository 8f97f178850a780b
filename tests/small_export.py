"""Rows of the files that an export reads, and an export of another training."""

import json
from pathlib import Path

from sigma_jax.runtime.files import read_json, to_json
from sigma_jax.schema import DAY, PreparedData
from sigma_jax.serving.files import file_hashes


def new_items(count: int = 3) -> list[dict]:
    """Rows of soaps that the catalogue does not have."""
    return [
        {
            "item_id": f"new{row}",
            "title": f"warm soap no {row}",
            "brand": "brand 2",
            "category": "Home > Soap" if row else "Home > Novelties",
            "price": 2.5 + row,
        }
        for row in range(count)
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Writes JSON lines into `path`, and returns it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def users_of(data: PreparedData, count: int) -> list[dict]:
    """Request rows of the first users, with their whole history."""
    histories, ids = data.histories, data.catalogue.table["item_id"].to_pylist()
    now = int(histories.time.max()) + DAY
    rows = []
    for user in range(count):
        own = slice(histories.offsets[user], histories.offsets[user + 1])
        profile = data.users.table["profile"][user].as_py()
        events = zip(histories.item[own], histories.time[own], histories.session[own], strict=True)
        rows.append(
            {
                "user_id": data.users.table["user_id"][user].as_py(),
                **(json.loads(profile) if profile else {}),
                "instruction": ("tea", "something for christmas", "recommend something")[user % 3],
                "timestamp": now,
                "history": [
                    {"item_id": ids[item], "timestamp": int(time), "session_id": f"s{session}"}
                    for item, time, session in events
                ],
            }
        )
    return rows


def only(batches):
    """The only element of `batches`."""
    [batch] = batches
    return batch


def with_other_weights(export: Path, model: str) -> None:
    """Turns an export into that of another training: its features count the other way round."""
    path = export / "model" / "reranker" / "reranker.json"
    content = read_json(path)
    content["of"]["ever"] = [-5.0 for _ in content["of"]["ever"]]
    path.write_text(json.dumps(content))
    manifest = export / "model" / "manifest.json"
    fields = read_json(manifest)
    manifest.unlink()
    manifest.write_text(to_json(fields | {"files": file_hashes(export / "model")}))
    top = read_json(export / "manifest.json")
    top["fingerprints"]["sft"] = model
    (export / "manifest.json").write_text(to_json(top))
