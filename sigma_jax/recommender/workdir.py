"""A trained workdir, opened: its recommender, its data and the parser of requests to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sigma_jax.data.config import TextConfig
from sigma_jax.recommender.parts import RecommenderParts
from sigma_jax.recommender.recommender import Recommender
from sigma_jax.recommender.requests import DEFAULT_INSTRUCTION, ItemIndex, RequestParser
from sigma_jax.runtime.artifacts import check_inputs, read_manifest
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import PreparedData


@dataclasses.dataclass(frozen=True)
class OpenWorkdir:
    """The recommender of a workdir, with the data it was trained on."""

    recommender: Recommender
    data: PreparedData
    parser: RequestParser


def load_workdir(workdir: Path, beams: int = 0) -> OpenWorkdir:
    """Opens a trained workdir. ValueError if it is not trained, or a file is damaged.

    Args:
      beams: number of beams; 0: as the recommender was trained to answer.
    """
    check_inputs(workdir, "sft")
    data = PreparedData.load(workdir / "data")
    parts = RecommenderParts.of_workdir(workdir, data)
    generation = parts.spec.generation
    generation = dataclasses.replace(generation, num_beams=beams or generation.num_beams)
    prepared = read_manifest(workdir, "data")
    settings = prepared.config["data"]
    has_sessions = prepared.metrics["sessions_hold_several_items"]
    parser = RequestParser(
        ItemIndex(data.catalogue),
        to_dataclass(TextConfig, settings["text"], "text"),
        parts.spec.has_instructions,
        DEFAULT_INSTRUCTION,
        int(data.histories.time.max(initial=0)),
        has_sessions,
        settings["split"]["session_gap_seconds"] if has_sessions else 0,
        known=data,
    )
    return OpenWorkdir(Recommender(parts, generation), data, parser)
