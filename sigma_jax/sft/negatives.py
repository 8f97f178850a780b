"""Tables from which the stage `sft` draws negatives (Eq. 5 of SIGMA)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int


def negative_tables(
    prefix: Int[np.ndarray, " I"], is_cold: Bool[np.ndarray, " I"]
) -> dict[str, np.ndarray]:
    """The items that can be negatives, by prefix.

    Args:
      is_cold: items that are no negatives. An item without interactions may be new; as a negative
        of every target it would rank below all other items.

    Returns:
      is_cold: bool [I], as given.
      prefix_start: int32 [prefixes+1], where the items of each prefix start in `by_prefix`.
      by_prefix: int32, the items that are not cold, sorted by prefix.
    """
    warm = np.flatnonzero(~is_cold)
    counts = np.bincount(prefix[warm], minlength=int(prefix.max(initial=-1)) + 1)
    return {
        "is_cold": is_cold,
        "prefix_start": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "by_prefix": warm[np.argsort(prefix[warm], kind="stable")].astype(np.int32),
    }
