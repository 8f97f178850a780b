"""Changes the catalogue of an export, without training.

    python -m sigma_jax.catalogue add --export=FOLDER --items=new.jsonl
    python -m sigma_jax.catalogue remove --export=FOLDER --items=old.jsonl
    python -m sigma_jax.catalogue restore --export=FOLDER --items=old.jsonl
    python -m sigma_jax.catalogue list --export=FOLDER
    python -m sigma_jax.catalogue activate --export=FOLDER --version=0002
    python -m sigma_jax.catalogue rollback --export=FOLDER

`add` reads items as the items table of training (item_id and any columns), embeds them with the
frozen encoder, gives them SIDs by the frozen codebooks and writes a new version. `remove` and
`restore`, which brings removed items back as they were, need item_id alone. Each starts from the
active version, or from --version, and makes its own the active one at once, unless
--activate=false; the others stay. Processes that answer take it up at their next refresh
(sigma_jax/serving/engine.py).
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
GIVEN = {"text": "text_vectors", "id": "id_vectors", "image": "visual_vectors"}


def define_flags() -> None:
    """This command's flags; only where it runs as the command."""
    flags.DEFINE_string("export", None, "The export.", required=True)
    flags.DEFINE_string("items", None, "add, remove, restore: a file, .jsonl, .parquet or .csv.")
    flags.DEFINE_string("version", None, "activate: which. Else: the one to start from.")
    flags.DEFINE_bool("activate", True, "Whether the new version is used at once.")
    for name in GIVEN.values():
        flags.DEFINE_string(name, None, "add: vectors of the items, .npy in their order.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    action = argv[1] if len(argv) == 2 else ""
    if action not in ACTIONS:
        raise ValueError(f"say what to do: {', '.join(ACTIONS)}; got {' '.join(argv[1:])!r}.")
    folder = Path(FLAGS.export)
    if action == "list":
        print(listed(Bundle.open(folder)))
        return
    bundle = Bundle.open(folder)
    with locked(folder):
        print(change(bundle, action))


def change(bundle: Bundle, action: str) -> str:
    """Does what the flags say; a line about it."""
    if action == "activate":
        if not FLAGS.version:
            raise ValueError("activate needs --version; `list` shows those there are.")
        bundle.activate(FLAGS.version)
        return f"version {FLAGS.version} is active"
    if action == "rollback":
        return f"version {bundle.rollback()} is active"
    if not FLAGS.items:
        raise ValueError(f"{action} needs --items=FILE.")
    base = FLAGS.version or bundle.state()["active"]
    before = bundle.version(base)
    if action == "add":
        items = read_items(FLAGS.items, bundle)
        given = {
            kind: np.asarray(load_npy(getattr(FLAGS, flag)))
            for kind, flag in GIVEN.items()
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
    """A line for each version, the active one marked."""
    active = bundle.state()["active"]
    lines = []
    for name in bundle.names():
        found = bundle.describe(name)
        mark = "*" if name == active else " "
        recall = f"  ScaNN's recall {min(found['recall']):.3f}" if found.get("recall") else ""
        lines.append(
            f"{mark} {name}  {found['active_items']:>10} items  {found['comment']}{recall}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
