"""Changes the catalogue of an export, without training.

    python -m sigma_jax.catalogue add --export=FOLDER --items=new.jsonl
    python -m sigma_jax.catalogue remove --export=FOLDER --items=old.jsonl
    python -m sigma_jax.catalogue restore --export=FOLDER --items=old.jsonl
    python -m sigma_jax.catalogue list --export=FOLDER
    python -m sigma_jax.catalogue activate --export=FOLDER --version=0002
    python -m sigma_jax.catalogue rollback --export=FOLDER

`add` reads a table like the items table of the training: item_id and any columns. The frozen
encoder makes vectors of the items, and the frozen codebooks their SIDs. `remove` and `restore` need
only item_id. `restore` brings removed items back as they were.

`add`, `remove` and `restore` write a new version. It starts from the active version, or from
--version. The new version is active at once, unless --activate=false. Old versions stay. Running
engines load the active version at their next refresh (sigma_jax/serving/engine.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from sigma_jax.data.vectors import load_npy
from sigma_jax.runtime import cli
from sigma_jax.runtime.process import locked
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.catalogue_update import add_items, read_ids, read_items, set_active

FLAGS = flags.FLAGS
ACTIONS = ("add", "remove", "restore", "list", "activate", "rollback")
VECTOR_FLAGS = {"text": "text_vectors", "id": "id_vectors", "image": "visual_vectors"}


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("export", None, "Folder of the export.", required=True)
    flags.DEFINE_string("items", None, "add, remove, restore: a file, .jsonl, .parquet or .csv.")
    flags.DEFINE_string("version", None, "The version to activate, or to start from.")
    flags.DEFINE_bool("activate", True, "Whether the new version is active at once.")
    for name in VECTOR_FLAGS.values():
        flags.DEFINE_string(name, None, "add: vectors of the new items, a .npy in their order.")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    action = argv[1] if len(argv) == 2 else ""
    if action not in ACTIONS:
        given = " ".join(argv[1:])
        raise ValueError(f"the action is {given!r}; use one of {', '.join(ACTIONS)}.")
    folder = Path(FLAGS.export)
    if action == "list":
        print(listed(Bundle.open(folder)))
        return
    bundle = Bundle.open(folder)
    with locked(folder):
        print(change(bundle, action))


def change(bundle: Bundle, action: str) -> str:
    """Changes the export as the flags say; returns a line about it."""
    if action == "activate":
        if not FLAGS.version:
            raise ValueError("activate needs --version=NAME; `list` shows all versions.")
        bundle.activate(FLAGS.version)
        return f"version {FLAGS.version} is active"
    if action == "rollback":
        return f"version {bundle.rollback()} is active"
    if not FLAGS.items:
        raise ValueError(f"{action} needs --items=FILE.")
    base = FLAGS.version or bundle.state()["active"]
    bundle = bundle.at(base)
    before = bundle.version(base)
    if action == "add":
        items = read_items(FLAGS.items, bundle)
        given = {
            kind: np.asarray(load_npy(getattr(FLAGS, flag)))
            for kind, flag in VECTOR_FLAGS.items()
            if getattr(FLAGS, flag)
        }
        version = add_items(bundle, before, items, given)
        comment = f"{items.num_rows} items of {FLAGS.items} added"
    else:
        ids = read_ids(FLAGS.items)
        version = set_active(before, ids, action == "restore")
        comment = f"{len(ids)} items of {FLAGS.items} {action}d"
    comment += f", based on {base}"
    name = bundle.add_version(version, comment)
    if FLAGS.activate:
        bundle.activate(name)
    return f"version {name}: {comment}" + (", active" if FLAGS.activate else ", not active")


def listed(bundle: Bundle) -> str:
    """A line for each version; a star marks the active one."""
    active = bundle.state()["active"]
    lines = []
    for name in bundle.names():
        manifest = bundle.describe(name)
        mark = "*" if name == active else " "
        recall = f"  ScaNN's recall {min(manifest['recall']):.3f}" if manifest.get("recall") else ""
        lines.append(
            f"{mark} {name}  {manifest['active_items']:>10} items  {manifest['comment']}{recall}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
