"""How to generate."""

from __future__ import annotations

import dataclasses
import math

from sigma_jax.shapes import power_of_two

RANKERS = ("three_step", "exhaustive")
FUSIONS = ("adaptive", "first_prefix")
NORMALISERS = ("exact", "retrieved")
RETRIEVALS = ("exact", "scann")
# Constants that are tried in place of Eq. 11's sigma.
SIGMA_GRID = (0.25, 0.35, 0.5, 0.7, 1.0)


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How to generate."""

    # How items are ranked: "three_step" searches beams over codes, then items inside their
    # prefixes,
    # and fuses both (section 2.4). "exhaustive" scores all items at once by the item head.
    ranker: str
    num_beams: int  # K of Eq. 6
    num_retrieved: int  # M of Eq. 9, for each prefix; without codes num_beams times as many
    temperature: float  # tau of Eq. 11
    sigma: str | float  # "deviation" of the beam scores (Eq. 11), or a constant in its place
    sigma_floor: float  # the least sigma; 1 is that of training (Eq. 5)
    normaliser: str  # of Eq. 11: over all items of the prefix ("exact") or the retrieved ones
    fusion: str  # "adaptive" (APF), or "first_prefix": the ablation of Table 1
    batch_size: int  # prompts at a time
    early_beams: tuple[int, ...]  # in place of K after the levels before the last; () is K for all
    beam_margin: float  # beams further behind the best, in log P, are dropped; 0: none is
    # Items inside a prefix: "exact", all compared on the device, or "scann", on the host: for CPUs
    # and prefixes of ten thousands of items (host_index.py). The normaliser is then estimated.
    retrieval: str

    def __post_init__(self):
        known = {
            "ranker": RANKERS,
            "fusion": FUSIONS,
            "normaliser": NORMALISERS,
            "retrieval": RETRIEVALS,
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"generation.{name}={getattr(self, name)!r} is unknown; use one of {choices}."
                )
        for name in ("num_beams", "num_retrieved", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"generation.{name}={getattr(self, name)}; use at least 1.")
        if self.sigma != "deviation" and not (
            isinstance(self.sigma, int | float) and 0 < self.sigma < math.inf
        ):
            raise ValueError(
                f'generation.sigma={self.sigma!r} is unknown; use "deviation" or a number above 0.'
            )
        if not self.temperature > 0:
            raise ValueError(f"generation.temperature={self.temperature}; the paper uses 0.05.")
        for name in ("sigma_floor", "beam_margin"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"generation.{name}={getattr(self, name)}; use 0 or more.")
        if any(width < 1 for width in self.early_beams):
            raise ValueError(f"generation.early_beams={self.early_beams}; use 1 or more each.")

    def widths(self, depth: int) -> tuple[int, ...]:
        """Beams after each of `depth` levels. ValueError where `early_beams` are of other many."""
        if self.early_beams and depth and len(self.early_beams) != depth - 1:
            raise ValueError(
                f"generation.early_beams={self.early_beams}, but {depth} codes are generated; give "
                f"{depth - 1} widths, or none."
            )
        return (self.early_beams or (self.num_beams,) * (depth - 1)) + (self.num_beams,) * (
            depth > 0
        )

    def under_load(self, share: float) -> GenerationConfig:
        """For times when only `share` of the work can be done: fewer beams, a power of two of them,
        so that few programs are compiled (Generator.at_load)."""
        if share >= 1:
            return self
        widths = (self.num_beams, *self.early_beams)
        last, *early = (max(power_of_two(int(width * share) + 1) // 2, 1) for width in widths)
        return dataclasses.replace(self, num_beams=last, early_beams=tuple(early))
