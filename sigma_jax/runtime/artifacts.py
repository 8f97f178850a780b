"""Artifacts: the folders that stages write, and the check that decides whether a stage runs.

An artifact is the folder WORKDIR/STAGE with its files and `manifest.json`. The manifest holds the
recipe that the artifact was made by. A stage is skipped when its artifact has the same recipe.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sigma_jax.provenance import provenance
from sigma_jax.runtime.files import atomic_folder, plain, read_json, write_json

FORMAT = 3  # of artifacts and of runs; another one is refused
INPUTS = "inputs."  # prefix of the inputs in the names of differing fields
MANIFEST = "manifest.json"
TRAIN = "train"  # WORKDIR/train/STAGE: the checkpoints and metrics of a run
RUN = "run.json"  # the recipe of a run, in its folder


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides an artifact's content. The same recipe makes the same artifact."""

    config: Mapping[str, Any]  # nested dicts of plain values
    inputs: Mapping[str, str]  # name -> fingerprint of an artifact, or hash of a file
    seed: int
    finish_fields: tuple[str, ...] = ()  # keys of `config` that only matter after training

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the recipe."""
        return fingerprint(self.config, self.inputs, self.seed)

    def of_artifact(self) -> dict[str, Any]:
        """The recipe as JSON holds it."""
        return plain({"config": self.config, "inputs": self.inputs, "seed": self.seed})

    def of_training(self) -> dict[str, Any]:
        """The content of `run.json`: the format, and the recipe without its `finish_fields`."""
        config = {k: v for k, v in self.config.items() if k not in self.finish_fields}
        recipe = {"config": config, "inputs": self.inputs, "seed": self.seed}
        return plain({"format": FORMAT, **recipe})


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of an artifact's `manifest.json`: where the artifact came from, and metrics."""

    format: int
    stage: str
    fingerprint: str  # of the recipe
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    commit: str  # this and the next three: provenance.py
    command: str
    versions: dict[str, str]
    machine: dict[str, Any]
    metrics: dict[str, Any]


def fingerprint(config: Mapping[str, Any], inputs: Mapping[str, str], seed: int) -> str:
    """SHA-256 of what decides an artifact's content; the order of keys does not matter."""
    text = json.dumps([plain(config), plain(inputs), seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_artifact(
    workdir: Path, stage: str, recipe: Recipe, write: Callable[[Path], Mapping[str, Any]]
) -> Manifest:
    """Makes the artifact WORKDIR/STAGE and returns its manifest.

    An artifact that is there already is replaced. If `write` raises, nothing changes.

    Args:
      write: writes the files into the folder that it is given; returns metrics for the manifest.
    """
    with atomic_folder(workdir / stage, replaces=True) as folder:
        metrics = write(folder)
        manifest = Manifest(
            format=FORMAT,
            stage=stage,
            fingerprint=recipe.fingerprint,
            config=plain(recipe.config),
            inputs=plain(recipe.inputs),
            seed=recipe.seed,
            **provenance(),
            metrics=plain(metrics),
        )
        write_json(folder / MANIFEST, dataclasses.asdict(manifest))
    return manifest


def read_manifest(workdir: Path, stage: str) -> Manifest:
    """The manifest of WORKDIR/STAGE.

    ValueError if it is missing, damaged or of another format.
    """
    path = workdir / stage / MANIFEST
    if not path.exists():
        raise ValueError(
            f"{path} is missing; run `python -m sigma_jax.train` with this --workdir and "
            f"without --only, which makes the stage {stage!r} first."
        )
    content = read_json(path)
    check_format(content, [path.parent, *_folders_of_other_formats(workdir)])
    names = {field.name for field in dataclasses.fields(Manifest)}
    if missing := sorted(names - set(content)):
        raise ValueError(
            f"{path} is damaged (no {', '.join(missing)}); delete {path.parent} and run again."
        )
    return Manifest(**{name: content[name] for name in names})


def check_format(content: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """ValueError unless a manifest or `run.json` has the format of this version.

    Args:
      folders: the folder of `content`, then others to delete as well.
    """
    number = content.get("format")
    if number == FORMAT:
        return
    age = "a later" if isinstance(number, int) and number > FORMAT else "an earlier"
    raise ValueError(
        f"{folders[0]} was made by {age} version of sigma_jax (format {number}; this version has "
        f"{FORMAT}); delete {' '.join(map(str, dict.fromkeys(folders)))} and run again."
    )


def _folders_of_other_formats(workdir: Path) -> list[Path]:
    """Artifacts and runs of other versions; other folders with a manifest.json are no artifacts."""
    contents = [pair for pair in _contents(workdir) if "inputs" in pair[1]]
    return [path.parent for path, content in contents if content.get("format") != FORMAT]


def _contents(workdir: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(path, content) of all manifests and `run.json` files in a workdir, sorted by path.

    Damaged files are left out; the code that needs such a file reports the damage.
    """
    found = []
    for path in sorted((*workdir.glob(f"*/{MANIFEST}"), *workdir.glob(f"{TRAIN}/*/{RUN}"))):
        try:
            found.append((path, read_json(path)))
        except ValueError:
            continue
    return found


def is_current(workdir: Path, stage: str, recipe: Recipe) -> bool:
    """Whether WORKDIR/STAGE was made by `recipe`; False where there is no such artifact.

    Raises:
      ValueError: another recipe made it; the first field that differs is named.
    """
    folder = workdir / stage
    if not folder.exists():
        return False
    if not (folder / MANIFEST).exists():
        raise ValueError(
            f"{folder} has no {MANIFEST}, so no run finished it; delete {folder} and run again."
        )
    manifest = read_manifest(workdir, stage)
    if manifest.fingerprint == recipe.fingerprint:
        return True
    made = {"config": manifest.config, "inputs": manifest.inputs, "seed": manifest.seed}
    check_same(made, recipe.of_artifact(), folder, stale_folders(workdir, stage, recipe))
    raise ValueError(
        f"{folder / MANIFEST} does not match its own fingerprint; delete {folder} and run again."
    )


def check_inputs(workdir: Path, stage: str) -> None:
    """ValueError if WORKDIR/STAGE is missing, or was made from artifacts that are not there now."""
    for name, wanted in read_manifest(workdir, stage).inputs.items():
        if read_manifest(workdir, name).fingerprint != wanted:
            raise ValueError(
                f"{workdir / stage} was made from another {workdir / name}; "
                f"delete {workdir / stage} and {workdir / TRAIN / stage} and train again."
            )


def stale_folders(workdir: Path, stage: str, recipe: Recipe) -> list[Path]:
    """Folders to delete before `stage` can be made by `recipe`, sorted.

    They hold the stage, or stages that read it, finished or not. The checkpoints of the stage stay
    if only `finish_fields` differ.
    """
    stale = []
    for path, content in _contents(workdir):
        is_stage = path.parent.name == stage and content != recipe.of_training()
        if is_stage or stage in content.get("inputs", {}):
            stale.append(path.parent)
    return sorted(stale)


def check_same(
    made: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path, stale: Sequence[Path] = ()
) -> None:
    """ValueError with the first field where the recipe of `folder` differs from the wanted one.

    Args:
      stale: the folders to delete before `wanted` can be followed; `folder` alone if empty.
    """
    difference = first_difference(plain(made), plain(wanted))
    if difference:
        name, old, new = difference
        reason = f"was made with {name} = {old}, this run has {new}"
        if name.startswith(INPUTS):
            reason = f"was made from another input {name.removeprefix(INPUTS)!r} than this run has"
        raise ValueError(
            f"{folder} {reason}; "
            f"use another --workdir or delete {' '.join(map(str, stale or [folder]))}"
            " and run again."
        )


def first_difference(old: Any, new: Any, name: str = "") -> tuple[str, str, str] | None:
    """(path, old value, new value) of the first field that differs between two plain values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else (name, json.dumps(old), json.dumps(new))
    for key in list(old) + [key for key in new if key not in old]:
        path = f"{name}.{key}" if name else key
        if key not in new:
            return path, json.dumps(old[key]), "no such field"
        if key not in old:
            return path, "nothing", json.dumps(new[key])
        if difference := first_difference(old[key], new[key], path):
            return difference
    return None


@dataclasses.dataclass(frozen=True)
class Pool:
    """A folder of finished artifacts by recipe, shared by workdirs whose later stages differ."""

    folder: Path | None  # None: nothing is shared

    def take(self, workdir: Path, stage: str, recipe: Recipe) -> None:
        """Makes WORKDIR/STAGE from the pool, if the pool has an artifact of this recipe."""
        if self.folder and not (workdir / stage).exists() and self._place(stage, recipe).exists():
            _link_tree(self._place(stage, recipe), workdir / stage)

    def give(self, workdir: Path, stage: str, recipe: Recipe) -> None:
        """Adds WORKDIR/STAGE, which `recipe` made, to the pool."""
        if self.folder and not self._place(stage, recipe).exists():
            _link_tree(workdir / stage, self._place(stage, recipe))

    def _place(self, stage: str, recipe: Recipe) -> Path:
        return self.folder / f"{stage}-{FORMAT}-{recipe.fingerprint[:20]}"


UNSHARED = Pool(None)


def _link_tree(source: Path, target: Path) -> None:
    """Makes `target` with the files of `source`: hard links, or copies on another file system."""
    with atomic_folder(target) as folder:
        folder.rmdir()  # copytree makes it
        try:
            shutil.copytree(source, folder, copy_function=os.link)
        except (OSError, shutil.Error):  # another file system
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(source, folder)
