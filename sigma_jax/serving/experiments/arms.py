"""The settings of an arm in action: its engine, its ranking options, its lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

from absl import logging

from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.serving.engine import RecommendationEngine
from sigma_jax.serving.experiments.assignment import NO_TREATMENT, Treatment

OPTIONS = ("reranks", "exclude_seen")  # fields of RecommendOptions that an arm may set
# Fields of GenerationConfig that an arm may set. Beams, ranker and search belong to an export.
GENERATION = ("temperature", "sigma", "fusion", "normaliser", "num_retrieved")


def ranking_options(
    ranking: Mapping[str, Any], engine: RecommendationEngine, count: int
) -> RecommendOptions:
    """The options of a request for `count` items under an arm's ranking settings.

    ValueError for a setting that no arm may have, or a value that makes no sense.
    """
    known = (*OPTIONS, *GENERATION)
    if unknown := sorted(set(ranking) - set(known)):
        raise ValueError(f"ranking.{unknown[0]} is unknown; use some of {', '.join(known)}.")
    for name in OPTIONS:
        if not isinstance(ranking.get(name, True), bool):
            raise ValueError(f"ranking.{name}={ranking[name]!r}; use true or false.")
    for name in ("temperature", "num_retrieved"):
        if not isinstance(ranking.get(name, 1), int | float):
            raise ValueError(f"ranking.{name}={ranking[name]!r}; use a number.")
    options = RecommendOptions(
        count, **{name: ranking[name] for name in OPTIONS if name in ranking}
    )
    changes = {name: ranking[name] for name in GENERATION if name in ranking}
    if not changes:
        return options
    generator = engine.current.recommender.generator
    config = generator.config
    if generator.trie.depth:  # all items of a list may be of one prefix
        config = dataclasses.replace(config, num_retrieved=max(config.num_retrieved, count))
    return dataclasses.replace(options, generation=dataclasses.replace(config, **changes))


def known_treatment(treatment: Treatment, exports: Container[str], who: str) -> Treatment:
    """The treatment; none where its export is missing.

    Args:
      exports: names of those that are there.
      who: the process, for the log.
    """
    if not treatment.export or treatment.export in exports:
        return treatment
    logging.log_every_n_seconds(
        logging.WARNING,
        "%s: an experiment names the export %r, which is missing; start it with "
        "--arm_exports=%s=FOLDER",
        60,
        who,
        treatment.export,
        treatment.export,
    )
    return NO_TREATMENT


def lists_of(treatment: Treatment, lists: Mapping[str, str]) -> dict[str, str]:
    """The lists of a user: the service's own, those of the arm in their place or beside them."""
    return {**lists, **treatment.lists}
