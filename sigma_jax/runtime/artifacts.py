"""What a stage leaves in the workdir: a folder with files and `manifest.json`, all or nothing.

An artifact is written into a hidden folder beside its place, brought to disk and renamed, so a
killed run leaves either no artifact or a whole one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
TRAIN = "train"  # WORKDIR/train/STAGE: a run under way
RUN = "run.json"  # in it: what the run is made from
PACKAGES = ("sigma_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides an artifact's content. The same recipe makes the same artifact."""

    config: Mapping[str, Any]  # nested dicts of plain values
    inputs: Mapping[str, str]  # name -> fingerprint of an earlier artifact, or hash of a file
    seed: int
    finish_fields: tuple[str, ...] = ()  # of config, where read only when training is over

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the recipe."""
        return fingerprint(self.config, self.inputs, self.seed)

    def of_artifact(self) -> dict[str, Any]:
        """As JSON holds it."""
        return plain({"config": self.config, "inputs": self.inputs, "seed": self.seed})

    def of_training(self) -> dict[str, Any]:
        """The same without `finish_fields`: what decides the checkpoints of a run."""
        config = {k: v for k, v in self.config.items() if k not in self.finish_fields}
        return plain({"config": config, "inputs": self.inputs, "seed": self.seed})


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`manifest.json` of an artifact: where its content came from, and figures about it."""

    stage: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    versions: dict[str, str]
    command: str
    figures: dict[str, Any]


def fingerprint(config: Mapping[str, Any], inputs: Mapping[str, str], seed: int) -> str:
    """SHA-256 of what decides an artifact's content; the order of keys does not matter."""
    text = json.dumps([plain(config), plain(inputs), seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any) -> Any:
    """`value` as JSON holds it: dataclasses and ConfigDicts to dicts, tuples to lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide results."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def command_line() -> str:
    """The command this process was started with, to stand beside its figures."""
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    words = ["python", "-m", module.name] if module else ["python", sys.argv[0]]
    return " ".join(words + sys.argv[1:])


def write_artifact(
    workdir: Path, stage: str, recipe: Recipe, write: Callable[[Path], Mapping[str, Any]]
) -> Manifest:
    """Makes WORKDIR/STAGE: `write(folder)` writes the files and returns figures for the manifest.

    An artifact already there is replaced. If `write` raises, nothing changes.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    target, beside = workdir / stage, workdir / f".{stage}.writing"
    shutil.rmtree(beside, ignore_errors=True)  # a killed run's
    beside.mkdir()
    try:
        figures = write(beside)
        manifest = Manifest(
            stage=stage,
            fingerprint=recipe.fingerprint,
            config=plain(recipe.config),
            inputs=plain(recipe.inputs),
            seed=recipe.seed,
            versions=versions(),
            command=command_line(),
            figures=plain(figures),
        )
        write_json(beside / MANIFEST, dataclasses.asdict(manifest))
        for path in beside.rglob("*"):
            sync(path)
        sync(beside)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    os.replace(beside, target)
    sync(workdir)
    return manifest


def to_json(value: Any) -> str:
    """`value` as indented JSON text."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, beside and renamed."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(to_json(value) + "\n")
    sync(beside)
    os.replace(beside, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError if it is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; delete {path.parent} and run again.") from None
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete {path.parent} and run again."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; delete {path.parent} and run again.")
    return value


def read_manifest(workdir: Path, stage: str) -> Manifest:
    """The manifest of WORKDIR/STAGE. ValueError if it is missing or damaged."""
    path = workdir / stage / MANIFEST
    if not path.exists():
        raise ValueError(
            f"{path} is missing; run `python -m sigma_jax.train` with this --workdir and "
            f"without --only, which makes the stage {stage!r} first."
        )
    value = read_json(path)
    names = {field.name for field in dataclasses.fields(Manifest)}
    if missing := sorted(names - set(value)):
        raise ValueError(
            f"{path} is damaged (no {', '.join(missing)}); delete {path.parent} and run again."
        )
    return Manifest(**{name: value[name] for name in names})


def is_current(workdir: Path, stage: str, recipe: Recipe) -> bool:
    """Whether WORKDIR/STAGE was made by `recipe`; False where there is no such artifact.

    Raises:
      ValueError: it was made by another recipe; the first field that differs is named.
    """
    if not (workdir / stage).exists():
        return False
    if not (workdir / stage / MANIFEST).exists():
        raise ValueError(
            f"{workdir / stage} has no {MANIFEST}, so no run finished it; "
            f"delete {workdir / stage} and run again."
        )
    manifest = read_manifest(workdir, stage)
    if manifest.fingerprint == recipe.fingerprint:
        return True
    made = {"config": manifest.config, "inputs": manifest.inputs, "seed": manifest.seed}
    check_same(made, recipe.of_artifact(), workdir / stage, stale_folders(workdir, stage, recipe))
    raise ValueError(
        f"{workdir / stage / MANIFEST} does not match its own fingerprint; "
        f"delete {workdir / stage} and run again."
    )


@dataclasses.dataclass(frozen=True)
class Pool:
    """A folder of finished artifacts by recipe, shared by workdirs that differ in later stages."""

    folder: Path | None  # None: nothing is shared

    def take(self, workdir: Path, stage: str, recipe: Recipe) -> None:
        """Makes WORKDIR/STAGE of the pool's artifact of this recipe, where that is to be had."""
        if self.folder and not (workdir / stage).exists() and self._place(stage, recipe).exists():
            _link_tree(self._place(stage, recipe), workdir / stage)

    def give(self, workdir: Path, stage: str, recipe: Recipe) -> None:
        """Shares WORKDIR/STAGE, which `recipe` has made."""
        if self.folder and not self._place(stage, recipe).exists():
            _link_tree(workdir / stage, self._place(stage, recipe))

    def _place(self, stage: str, recipe: Recipe) -> Path:
        return self.folder / f"{stage}-{recipe.fingerprint[:20]}"


UNSHARED = Pool(None)


def _link_tree(source: Path, target: Path) -> None:
    """`target` with the files of `source`, whole or not at all; linked, where that can be."""
    beside = target.with_name(f".{target.name}.linking")
    shutil.rmtree(beside, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, beside, copy_function=os.link)
    except (OSError, shutil.Error):  # another file system
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(source, beside)
    os.replace(beside, target)


def check_inputs(workdir: Path, stage: str) -> None:
    """ValueError if WORKDIR/STAGE is missing, or an artifact it was made from is not that one."""
    for name, wanted in read_manifest(workdir, stage).inputs.items():
        if read_manifest(workdir, name).fingerprint != wanted:
            raise ValueError(
                f"{workdir / stage} was made from another {workdir / name}; "
                f"delete {workdir / stage} and {workdir / TRAIN / stage} and train again."
            )


def stale_folders(workdir: Path, stage: str, recipe: Recipe) -> list[Path]:
    """Folders that hold `stage` or what was made from it, finished or under way, and have to go
    for `recipe` to be followed. The stage's own checkpoints stay where only its end differs."""
    found = []
    for path in (*workdir.glob(f"*/{MANIFEST}"), *workdir.glob(f"{TRAIN}/*/{RUN}")):
        try:
            made = read_json(path)
        except ValueError:
            made = {}  # damaged: told where it is read for its own sake
        is_own = path.parent.name == stage and made != recipe.of_training()
        if is_own or stage in made.get("inputs", {}):
            found.append(path.parent)
    return sorted(found)


def check_same(
    made: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path, stale: Sequence[Path] = ()
) -> None:
    """ValueError naming the first field where what made `folder` differs from what is wanted.

    Args:
      stale: the folders to delete for `wanted` to be made; `folder` alone if not given.
    """
    difference = first_difference(plain(made), plain(wanted))
    if difference:
        name, old, new = difference
        raise ValueError(
            f"{folder} was made with {name} = {old}, this run has {new}; "
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


def sync(path: Path) -> None:
    """Brings a file or folder to disk, so that a rename never outruns its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
