"""Renames methods, modes and folders of benchmark records that version 0.0 made.

    python launch/convert_records.py launch/results

A record (sigma_jax/benchmarking/record.py) that already has the present names stays as it is.
Numbers are not touched. `run.command` stays as well: it is the command that made the figures, with
the flags of that time. `python -m sigma_jax.benchmark --dry_run` prints today's commands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MODES = {"kept": "include_seen", "left_out": "exclude_seen", "new": "unseen_targets"}
METHODS = {
    "SIGMA without prior": "SIGMA without reranker",
    "SIGMA without prior, sigma of Eq. 11": "SIGMA without reranker, sigma of Eq. 11",
    "SIGMA without prior, constant sigma": "SIGMA without reranker, constant sigma",
    "SIGMA without prior, first prefix": "SIGMA without reranker, first prefix",
}


def convert(record: dict) -> dict:
    """`record` with the present names of its methods and modes."""
    methods = {
        METHODS.get(method, method): {
            MODES.get(mode, mode): summary for mode, summary in by_mode.items()
        }
        for method, by_mode in record["methods"].items()
    }
    return record | {"methods": methods}


def main(folder: str) -> None:
    """Rewrites every record.json below `folder`."""
    for path in sorted(Path(folder).rglob("record.json")):
        record = convert(json.loads(path.read_text()))
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
