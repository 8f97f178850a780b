"""Sources of tables, one file each: `paths` names its files, `read` returns its tables."""

from __future__ import annotations

import ibis

from sigma_jax.data.config import DataConfig
from sigma_jax.data.sources import amazon, complete_journey, files
from sigma_jax.data.tables import Tables


def paths(config: DataConfig) -> dict[str, str]:
    """The files that config.source reads, by their use. ValueError if a required one is missing."""
    match config.source:
        case "files":
            return files.paths(config)
        case "amazon":
            return {kind: str(path) for kind, path in amazon.paths(config).items()}
        case _:
            return complete_journey.paths()


def read(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of config.source, not checked yet. ValueError names a file that is bad."""
    match config.source:
        case "files":
            return files.read(con, config)
        case "amazon":
            return amazon.read(con, config)
        case _:
            return complete_journey.read(con, config)
