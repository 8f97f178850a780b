"""Recommendations as rows of a file and as a table on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sigma_jax.recommender.ranking import Recommendations
from sigma_jax.recommender.reasons import beams_of, steps_of
from sigma_jax.schema import Catalogue, RequestBatch

OUTPUTS = (".jsonl", ".parquet")
ITEM = pa.struct(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("probability", pa.float32()),  # of Eq. 10 of SIGMA, with the reranker
        # Rank of the item's prefix among the beams, from 1; 0: it is in no beam.
        ("prefix", pa.int32()),
        ("cosine", pa.float32()),  # of query and item (Eq. 9)
    ]
)
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("instruction", pa.string()),
        ("version", pa.string()),  # of the catalogue
        ("items", pa.list_(ITEM)),  # best first; fewer if no more were found
    ]
)


def rows_of(
    batch: RequestBatch, recommended: Recommendations, catalogue: Catalogue, version: str
) -> list[dict[str, Any]]:
    """A row of SCHEMA for each request; `version` is the name of the catalogue version.

    Explained recommendations have the fields of reasons.py besides.
    """
    rows = []
    for number, user in enumerate(batch.users.table["user_id"].to_pylist()):
        items = recommended.items[number]
        items = items[items >= 0]
        columns = (
            catalogue.ids(items),
            catalogue.titles(items),
            np.exp(recommended.log_probs[number]).tolist(),
            (recommended.beams[number] + 1).tolist(),
            recommended.cosines[number].tolist(),
        )
        names = ITEM.names
        chosen = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=False)]
        row = {
            "user_id": user,
            "instruction": batch.requests.instruction[number],
            "version": version,
            "items": chosen,
        }
        if recommended.explanations is not None:
            _explain(row, recommended, number)
        rows.append(row)
    return rows


def _explain(row: dict[str, Any], recommended: Recommendations, number: int) -> None:
    """Adds `beams` to a row and `explanation` to each of its items (reasons.py)."""
    explanations = recommended.explanations
    row["beams"] = beams_of(explanations, number)
    for place, item in enumerate(row["items"]):
        item["explanation"] = steps_of(
            explanations.of_items,
            number,
            place,
            float(recommended.beam_scores[number, place]),
            float(recommended.log_probs[number, place]),
        )


def text_table(recommended: Recommendations, row: int, catalogue: Catalogue) -> str:
    """A text table of one request's items with probability, prefix, cosine and title."""
    lines = [f"{'':>4}{'probability':>12}{'beam':>6}{'log P(prefix)':>15}{'cosine':>8}  item"]
    items = recommended.items[row]
    items = items[items >= 0]
    names = zip(catalogue.ids(items), catalogue.titles(items), strict=True)
    for rank, (item_id, title) in enumerate(names):
        probability = np.exp(recommended.log_probs[row, rank])
        beam_score = recommended.beam_scores[row, rank]
        lines.append(
            f"{rank + 1:>3}.{probability:>12.5f}{recommended.beams[row, rank] + 1:>6}"
            f"{beam_score:>15.3f}{recommended.cosines[row, rank]:>8.3f}  {item_id}  {title}"
        )
    return "\n".join(lines)


class RowWriter:
    """Writes rows of SCHEMA into a file, part by part."""

    def __init__(self, path: Path, suffix: str):
        """`suffix`: one of OUTPUTS."""
        self._path, self._is_parquet = path, suffix == ".parquet"

    def __enter__(self) -> RowWriter:
        if self._is_parquet:
            self._file = pq.ParquetWriter(self._path, SCHEMA)
        else:
            self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Adds `rows`."""
        if self._is_parquet:
            self._file.write_table(pa.Table.from_pylist(rows, SCHEMA))
            return
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
