"""The refreshes of a workdir: WORKDIR/refresh/0001, 0002, ..., each a complete workdir."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sigma_jax.runtime.artifacts import MANIFEST, read_manifest
from sigma_jax.serving.bundle import Bundle, fingerprints_of

FOLDER = "refresh"
FIRST = "0000"  # the workdir itself
JUDGEMENT = "judgement"  # artifact; a refresh that has it is finished


@dataclasses.dataclass(frozen=True)
class Lineage:
    """A trained workdir and its refreshes, by name."""

    workdir: Path

    def folder(self, name: str) -> Path:
        """The workdir of a refresh, or the first one."""
        return self.workdir if name == FIRST else self.workdir / FOLDER / name

    @property
    def finished(self) -> list[str]:
        """FIRST and the finished refreshes, oldest first."""
        paths = (self.workdir / FOLDER).glob(f"*/{JUDGEMENT}/{MANIFEST}")
        return [FIRST, *sorted(path.parents[1].name for path in paths)]

    @property
    def newest(self) -> str:
        """The newest finished refresh, whose data has all rows."""
        return self.finished[-1]

    @property
    def next_name(self) -> str:
        """The name of the refresh that follows the finished ones."""
        return f"{int(self.newest) + 1:04d}"

    def is_accepted(self, name: str) -> bool:
        """Whether a finished refresh was judged good enough; always True for FIRST."""
        return name == FIRST or read_manifest(self.folder(name), JUDGEMENT).metrics["is_accepted"]

    def running(self, bundle: Bundle | None, given: str = "") -> str:
        """The refresh whose recommender answers now.

        Args:
          bundle: an export; the model of its active version is the running one.
          given: a name that is taken instead.

        Returns:
          without both the newest refresh that was accepted.

        Raises:
          ValueError: `given` is no finished refresh, or the export is of another training.
        """
        finished = self.finished
        if given:
            if given not in finished:
                raise ValueError(
                    f"--start={given}: {self.workdir} has no such finished refresh; use one of "
                    f"{', '.join(finished)}."
                )
            return given
        if bundle is None:
            return next(name for name in reversed(finished) if self.is_accepted(name))
        for name in reversed(finished):
            if fingerprints_of(self.folder(name)) == bundle.fingerprints:
                return name
        raise ValueError(
            f"{bundle.folder} was exported from another training than {self.workdir} and its "
            "refreshes; give the --workdir that it was exported from."
        )
