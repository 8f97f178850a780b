"""Gives older benchmark records the present names of methods, modes, sweeps and folders.

    python -m launch.convert_records launch/results

It rewrites each record.json below the folder (sigma_jax/benchmarking/record.py) and renames the
folders of its runs. Numbers stay as they are, and a record with present names does not change.

`run.command` stays too. It is the command that made the numbers, with the flags of its time; the
config hash belongs to it. `python -m sigma_jax.benchmark --dry_run` prints present commands.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigma_jax.benchmarking.record import NAME
from sigma_jax.runtime.files import read_json, write_json

MODES = {"kept": "include_seen", "left_out": "exclude_seen", "new": "unseen_targets"}
METHODS = {  # beginnings of the names of results
    "SIGMA without prior": "SIGMA without reranker",
    "Own most frequent": "User's most frequent",
}
FOLDERS = {  # parts of folder names, in this order
    "the_paper_s_letter": "paper_settings",
    "-_words_by_themselves": "-_instruction-only_contexts",
    "-_item_scores_before_codes": "-_item_head",
    "ids_alone": "IDs_only",
    "stage_1_from_nothing": "stage_1_from_scratch",
    "_batch_negatives_of_a_batch": "_in-batch_negatives_negatives_of_a_batch",
    "negatives_of_a_batch": "negatives_per_batch",
    "items_of_a_prefix_M": "items_per_prefix_M",
}


def present_name(name: str, changes: Mapping[str, str]) -> str:
    """`name` with every old part of `changes` replaced."""
    for old, new in changes.items():
        name = name.replace(old, new)
    return name


def convert(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with the present names of methods and modes."""
    methods = {
        present_name(method, METHODS): {
            MODES.get(mode, mode): summary for mode, summary in by_mode.items()
        }
        for method, by_mode in record["methods"].items()
    }
    return {**record, "methods": methods}


def convert_folder(folder: Path) -> int:
    """The number of records below `folder`, all of which have the present names afterwards.

    ValueError where a renamed run would replace another.
    """
    paths = sorted(folder.rglob(NAME))
    for path in paths:
        write_json(path, convert(read_json(path)))
        run = path.parent
        renamed = run.with_name(present_name(run.name, FOLDERS))
        if renamed != run:
            if renamed.exists():
                raise ValueError(f"{run} and {renamed} both exist; remove the one that is wrong.")
            run.rename(renamed)
    return len(paths)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m launch.convert_records FOLDER")
    print(f"{convert_folder(Path(sys.argv[1]))} records have the present names")
