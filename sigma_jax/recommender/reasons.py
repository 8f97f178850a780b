"""Explanations in words: how an item's probability came about, for people and for an API."""

from __future__ import annotations

from typing import Any

import numpy as np

from sigma_jax.recommender.explanations import Explanations, ItemSteps
from sigma_jax.reranking.history.relations import RELATION_UNITS, TODAY
from sigma_jax.reranking.history.repeats import REPEAT_UNITS
from sigma_jax.reranking.reranker import FEATURES
from sigma_jax.reranking.trending import MEMORY, UNIT

RELATED = {
    "covisitation": "users take it with or after {} items",
    "reverse_covisitation": "users take it before {} items",
    "embedding_neighbours": "its vector is near to {} items",
    "ease": "the item-item model predicts it from {} items",
}
LEAST = 1e-6  # of a contribution that is listed
NOTHING = -0.005  # values above it are shown as 0.00


def beams_of(explanations: Explanations, row: int) -> list[dict[str, Any]]:
    """The beams of a request, best first: codes, and log P of the prefix."""
    return [
        {"codes": codes.tolist(), "score": round(float(score), 4)}
        for codes, score in zip(explanations.codes[row], explanations.scores[row], strict=True)
        if np.isfinite(score)
    ]


def steps_of(
    steps: ItemSteps, row: int, place: int, beam_score: float, log_prob: float
) -> dict[str, Any]:
    """The steps to the probability of an item, as JSON.

    With the names of the result:

        log(network) = beam_score + log(in_prefix)
        log(summed) = log(network) + score - a constant of the request
        score = sum of the contributions

    Args:
      row: of the request.
      place: of the item in its list.
      beam_score: log P of its prefix; 0 for an item in no beam.
      log_prob: of the item, calibrated.
    """

    def at(values: np.ndarray) -> np.ndarray:
        return values[row, place]

    network = float(at(steps.network))
    contributions = at(steps.values) * at(steps.weights)
    codes = at(steps.codes).tolist()
    return {
        "codes": codes if all(code >= 0 for code in codes) else [],
        "beam_score": _rounded(beam_score),
        "sigma": _rounded(at(steps.sigma)),
        "in_prefix": _share(network - beam_score),
        "network": _share(network),
        "score": _rounded(contributions.sum()),
        "summed": _share(at(steps.summed)),
        "ranked": _share(at(steps.ranked)),
        "probability": _share(log_prob),
        "features": _features(steps, row, place),
    }


def _features(steps: ItemSteps, row: int, place: int) -> list[dict[str, Any]]:
    """The features of an item that say something, those that mattered most first.

    A feature matters where its part of the score differs from that of a typical candidate, or where
    the interactions read it.
    """
    found = []
    arrays = (steps.values, steps.weights, steps.typical, steps.interactions)
    columns = zip(FEATURES, *(array[row, place].tolist() for array in arrays), strict=False)
    for name, value, weight, typical, interaction in columns:
        contribution = value * weight
        if max(abs(contribution), abs(typical), abs(interaction)) < LEAST:
            continue
        found.append(
            {
                "feature": name,
                "words": in_words(name, value),
                "value": _rounded(value),
                "weight": _rounded(weight),
                "contribution": _rounded(contribution),
                "typical": _rounded(typical),
                "interaction": _rounded(interaction),
                "factor": _rounded(np.exp(np.clip(contribution - typical, -80, 80))),
            }
        )
    return sorted(found, key=_weight_of, reverse=True)


def _weight_of(feature: dict[str, Any]) -> float:
    """How much a feature mattered."""
    return abs(feature["contribution"] - feature["typical"]) + abs(feature["interaction"])


def in_words(feature: str, value: float) -> str:
    """The meaning of a feature's value for an item, in words."""
    name, is_today = feature.removesuffix(TODAY), feature.endswith(TODAY)
    if name in RELATED:
        strength = RELATION_UNITS[feature] * np.expm1(value)
        of_history = "today's" if is_today else "the latest"
        return f"{RELATED[name].format(of_history)}, strength {strength:.2g}"
    if feature in MEMORY:
        count = UNIT * np.expm1(value)
        span = "in all" if feature == "ever" else f"in the last {feature}, older ones count less"
        return f"{count:.3g} interactions of all users {span}"
    match feature:
        case "repeat_count":
            count = REPEAT_UNITS[feature] * np.expm1(value)
            return f"the user took it before: {count:.2g} times, older sessions count less"
        case "repeat_model":
            chance = REPEAT_UNITS[feature] * np.expm1(value)
            return f"its rhythm says that the user takes it again: {100 * chance:.0f} per cent"
        case "instruction_score":
            if value > NOTHING:
                return "it fits the instruction alone, whoever asks"
            times = np.exp(min(-value, 80.0))
            return f"for the instruction alone it is {times:.3g} times less likely than what fits"
        case "lexical_match":
            if value > NOTHING:
                return "no item's text has more words of the instruction"
            return f"its text lacks words of the instruction: {value:.2f}, 0 is the best match"
        case "semantic_group_match":
            if value > NOTHING:
                return "its category is the nearest to the instruction"
            return f"its category is further from the instruction than the nearest: {value:.2f}"
        case _:
            nearer = "nearer to" if value > 0 else "further from"
            return f"its text is {nearer} the instruction than its category: {value:.2f}"


def _share(log_prob: float | np.ndarray) -> float:
    """The probability, with six digits that count."""
    return float(f"{float(np.exp(min(float(log_prob), 0.0))):.6g}")


def _rounded(value: float | np.ndarray) -> float:
    return float(f"{float(value):.6g}")
