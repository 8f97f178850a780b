"""Readers of files: `open_table` opens a file, a folder of parts or a glob as one table.

| file | reader |
|---|---|
| .parquet | `parquet.py` |
| .csv, .tsv, .txt | `delimited.py` |
| .jsonl, .ndjson, .json | `json_lines.py` |

Files of text may be compressed (.gz, .zst).
"""

from sigma_jax.data.readers.part import Opened, Part
from sigma_jax.data.readers.paths import (
    SUFFIXES,
    TABLE_SUFFIXES,
    candidates,
    files_of,
    find,
    open_table,
)

__all__ = [
    "SUFFIXES",
    "TABLE_SUFFIXES",
    "Opened",
    "Part",
    "candidates",
    "files_of",
    "find",
    "open_table",
]
