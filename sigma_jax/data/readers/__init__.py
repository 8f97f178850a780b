"""Readers of files: `open_table` opens a file, a folder of parts or a glob as one table.

| file | reader |
|---|---|
| .parquet | `parquet.py` |
| .csv, .tsv, .txt | `delimited.py` |
| .jsonl, .ndjson, .json | `json_lines.py` |

Files of text may be compressed (.gz, .zst).
"""

from sigma_jax.data.readers.find import (
    SUFFIXES,
    TABLE_SUFFIXES,
    candidates,
    files_of,
    find,
    open_table,
)
from sigma_jax.data.readers.part import Opened, Part

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
