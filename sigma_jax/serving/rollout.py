"""Rollout of another model: which export of several answers, agreed upon in the store.

The exports that may answer stand beside the first one, and their names begin with its name and a
dash: `shop`, `shop-autumn`. So a tenant reaches no export of another one in the same folder.

The store says which export is active, so that all processes agree. Each looks every few seconds,
loads the active one beside its own, answers recent requests by it, and puts it in place. No request
waits.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

from sigma_jax.runtime.files import read_json
from sigma_jax.serving.bundle import MANIFEST
from sigma_jax.serving.engine import RecommendationEngine, SnapshotSettings
from sigma_jax.serving.stores.base import TenantStore

MODEL = "model"  # kind of the document with the active export, by the name of the first one


def open_active(
    first: Path, store: TenantStore, settings: SnapshotSettings = SnapshotSettings()
) -> Rollout:
    """The rollout of a tenant, with its active export loaded.

    Raises:
      StoreError: the store does not answer.
      ValueError: the export is missing or damaged.
    """
    name = first.absolute().name
    state = store.document(MODEL, name) or {"active": name}
    folder = first if state["active"] == name else first.absolute().parent / state["active"]
    return Rollout(RecommendationEngine(folder, settings), first, store)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The exports of a tenant. All functions may run in several threads."""

    engine: RecommendationEngine
    first: Path  # the export that answers until another is activated
    store: TenantStore
    _changing: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def names(self) -> list[str]:
        """The names of the exports that may answer, ascending; damaged ones are left out."""
        found = (path.parent.name for path in self._root.glob(f"*/{MANIFEST}"))
        return sorted(name for name in found if self._is_export(name))

    def folder(self, name: str) -> Path:
        """The folder of an export. ValueError if there is none that may answer by this name."""
        if not self._is_export(name):
            raise ValueError(
                f"{self._root} has no export {name!r} for {self._name}; use one of "
                f"{', '.join(self.names())}, or copy it there as {self._name}-NAME."
            )
        return self.first if name == self._name else self._root / name

    def active(self) -> str:
        """The name of the active export, as the store says."""
        return self._state()["active"]

    def follow(self) -> bool:
        """Puts the active version of the active export in place; False if it is there already.

        Raises:
          StoreError: the store does not answer.
          ValueError: the export is missing on this machine, or damaged.
        """
        return self.engine.refresh(self.folder(self.active()))

    def activate(self, name: str) -> None:
        """Makes an export the active one of all processes, after this process has loaded it.

        ValueError if it is missing or damaged; then the old one stays.
        """
        with self._changing:
            state = self._state()
            if name != state["active"]:
                self._put(name, [*state["before"], state["active"]])

    def rollback(self) -> str:
        """Makes the export active that was active before, and returns its name.

        ValueError if there was none, or it is missing or damaged.
        """
        with self._changing:
            state = self._state()
            if not state["before"]:
                raise ValueError(f"no model was active before {state['active']}.")
            *before, name = state["before"]
            self._put(name, before)
            return str(name)

    def _put(self, name: str, before: list[str]) -> None:
        self.engine.loaded(self.folder(name))  # what cannot be loaded never becomes active
        content = {"active": name, "before": before}
        self.store.put_document(MODEL, self._name, content)
        self.follow()

    def _state(self) -> dict[str, Any]:
        return self.store.document(MODEL, self._name) or {"active": self._name, "before": []}

    @property
    def _root(self) -> Path:
        return self.first.absolute().parent

    @property
    def _name(self) -> str:
        return self.first.absolute().name

    def _is_export(self, name: str) -> bool:
        """Whether an export of this name may answer, and its manifest can be read."""
        if "/" in name or (name != self._name and not name.startswith(f"{self._name}-")):
            return False
        try:
            return "fingerprints" in read_json(self._root / name / MANIFEST)
        except (OSError, ValueError):
            return False
