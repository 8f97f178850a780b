"""Settings of generation: ranker, beams, retrieval and fusion (Eq. 6-11 of SIGMA)."""

from __future__ import annotations

import dataclasses
import math

from sigma_jax.shapes import power_of_two

RANKERS = ("three_step", "exhaustive")
FUSIONS = ("adaptive", "first_prefix")
NORMALISERS = ("exact", "retrieved")
RETRIEVALS = ("exact", "scann")
# Constants that may replace sigma of Eq. 11.
SIGMA_GRID = (0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How items are ranked.

    ValueError if a field has an unknown or impossible value.
    """

    # "three_step" searches beams over codes, then items inside their prefixes, and fuses both
    # (section 2.4). "exhaustive" scores all items at once by the item head.
    ranker: str
    num_beams: int  # K of Eq. 6
    num_retrieved: int  # M of Eq. 9, for each prefix; times num_beams without codes
    temperature: float  # tau of Eq. 11
    sigma: str | float  # "deviation" of the beam scores (Eq. 11), or a constant
    sigma_floor: float  # the least deviation; training has sigma 1 (Eq. 5)
    # Eq. 11 divides by a sum over all items of the prefix ("exact") or over "retrieved" items.
    normaliser: str
    fusion: str  # "adaptive" (APF), or "first_prefix": the ablation of Table 1
    batch_size: int  # prompts at a time
    early_beams: tuple[int, ...]  # beams after each level but the last; (): K after each
    # Beams that are less likely than the best by more than this, in log P, are dropped. 0: none is.
    beam_margin: float
    # Search inside a prefix. "exact" compares all items on the device. "scann" runs on the host,
    # for CPUs and prefixes of tens of thousands of items. It estimates the normaliser.
    retrieval: str

    def __post_init__(self):
        choices_of = {
            "ranker": RANKERS,
            "fusion": FUSIONS,
            "normaliser": NORMALISERS,
            "retrieval": RETRIEVALS,
        }
        for name, choices in choices_of.items():
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

    @property
    def margin(self) -> float:
        """`beam_margin`, infinite where it is 0."""
        return self.beam_margin or math.inf

    def widths(self, depth: int) -> tuple[int, ...]:
        """Beams after each of `depth` levels. ValueError if `early_beams` are not `depth` - 1."""
        if self.early_beams and depth and len(self.early_beams) != depth - 1:
            raise ValueError(
                f"generation.early_beams={self.early_beams} has {len(self.early_beams)} entries, "
                f"but {depth} codes are generated; give {depth - 1} widths, or none."
            )
        return (self.early_beams or (self.num_beams,) * (depth - 1)) + (self.num_beams,) * (
            depth > 0
        )

    def under_load(self, share: float) -> GenerationConfig:
        """The config with fewer beams, for times when only `share` of the work can be done.

        The number of beams becomes a power of two, so that few programs are compiled. With a
        `share` of 1 or more the config stays as it is.
        """
        if share >= 1:
            return self
        widths = (self.num_beams, *self.early_beams)
        last, *early = (max(power_of_two(int(width * share) + 1) // 2, 1) for width in widths)
        return dataclasses.replace(self, num_beams=last, early_beams=tuple(early))
