"""Fewer beams under load: which share of its beams a batch of requests is computed with.

Beams are what a request can do with less of (GenerationConfig.under_load). A batch gets fewer of
them in two cases:

- Many requests wait behind it. Rules say from how many on, and which share is left.
- The nearest deadline in it ends sooner than a batch of its size took lately with more beams.

A share is used for batches of a size only once its programs are compiled.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from sigma_jax.shapes import power_of_two

NEWEST = 0.3  # weight of the newest time in the expected one


@dataclasses.dataclass(frozen=True)
class FewerBeams:
    """A rule: from `waiting` requests on, a batch gets `share` of the beams.

    ValueError for a value that makes no sense.
    """

    waiting: int  # requests that wait behind the batch
    share: float

    def __post_init__(self):
        if self.waiting < 1 or not 0 < self.share < 1:
            raise ValueError(
                f"fewer_beams {self.waiting}:{self.share:g}: use WAITING:SHARE with 1 or more "
                "waiting requests and a share between 0 and 1, such as 32:0.5."
            )

    @classmethod
    def read(cls, texts: Sequence[str]) -> tuple[FewerBeams, ...]:
        """The rules of texts such as "32:0.5". ValueError unless more waiting means fewer beams."""
        rules = []
        for text in texts:
            waiting, _, share = text.partition(":")
            try:
                rules.append(cls(int(waiting), float(share)))
            except ValueError as error:
                raise ValueError(f"--fewer_beams has {text!r}: {error}") from None
        ordered = sorted(rules, key=lambda rule: rule.waiting)
        for less, more in itertools.pairwise(ordered):
            if less.waiting == more.waiting or less.share <= more.share:
                raise ValueError(
                    f"--fewer_beams={','.join(texts)}: a longer queue needs a smaller share; "
                    "such as 32:0.5,128:0.25."
                )
        return tuple(ordered)


@dataclasses.dataclass(frozen=True)
class Load:
    """The load when a batch of requests begins."""

    waiting: int = 0  # requests that wait behind it
    seconds_left: tuple[float, ...] = ()  # until the deadlines of its requests; () for none

    def for_requests(self, numbers: Sequence[int], passed: float) -> Load:
        """The load for some requests of the batch, `passed` seconds after it began."""
        if not self.seconds_left:
            return self
        return Load(self.waiting, tuple(self.seconds_left[n] - passed for n in numbers))


class BeamChooser:
    """Chooses the share of the beams for each batch of requests."""

    def __init__(self, rules: Sequence[FewerBeams] = ()):
        """Args:
        rules: by rising number of waiting requests. Empty: every batch gets all beams.
        """
        self.rules = tuple(rules)
        # (requests, rounded up; share) -> expected seconds. Shares below 1 are here once they are
        # compiled.
        self._expected: dict[tuple[int, float], float] = {}

    def took(self, requests: int, share: float, seconds: float) -> None:
        """Notes the time of a batch. The share may be used for batches of its size from now on."""
        key = power_of_two(requests), share
        before = self._expected.get(key, seconds)
        self._expected[key] = before + NEWEST * (seconds - before)

    def share(self, requests: int, load: Load) -> float:
        """The share of the beams for a batch: 1, or that of a rule."""
        size = power_of_two(requests)
        least = min((r.share for r in self.rules if load.waiting >= r.waiting), default=1.0)
        known = {
            share: self._expected[size, share]
            for share in (rule.share for rule in self.rules)
            if (size, share) in self._expected
        }
        chosen = min((share for share in known if share >= least), default=1.0)
        seconds = self._expected.get((size, chosen))
        if seconds is None:
            return chosen
        # A deadline that the shortest batch would miss counts for nothing: the index answers.
        shortest = min([seconds, *known.values()])
        left = min((one for one in load.seconds_left if one >= shortest), default=seconds)
        for share in sorted((share for share in known if share < chosen), reverse=True):
            if seconds <= left:
                break
            if known[share] < seconds:
                chosen, seconds = share, known[share]
        return chosen
