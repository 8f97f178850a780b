"""What the shapes of a training follow from, where there is no data yet."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a catalogue and what earlier stages make of it."""

    items: int
    vectors: dict[str, int]  # pre-trained vectors of items: their width, by name
    levels: int  # of SIDs
    codebook_size: int
    categories: int
