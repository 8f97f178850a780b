"""Results of the benchmarks, stored with the commit, the command and the machine that made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sigma_jax.provenance import provenance


def write_result(path: Path, result: Any) -> None:
    """Writes {"provenance": ..., "result": ...} as JSON."""
    content = {"provenance": provenance(), "result": result}
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_result(path: Path) -> Any:
    """The result that `write_result` wrote."""
    return json.loads(path.read_text())["result"]
