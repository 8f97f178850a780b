"""The command `prepare --inspect`: looks at foreign files and writes a proposed mapping file."""

from __future__ import annotations

from pathlib import Path

from sigma_jax.data.mapping.look import FileLook, look_at_folder
from sigma_jax.data.mapping.propose import propose
from sigma_jax.data.mapping.render import render
from sigma_jax.data.mapping.spec import FILE, FILL_IN, NO_TIME, read_mapping

COMMAND = "python -m sigma_jax.prepare --inspect"


def inspect_folder(folder: Path, overwrite: bool) -> str:
    """Writes FOLDER/mapping.yaml, a proposal for the files in `folder`. Returns text to print.

    Args:
      overwrite: whether a mapping.yaml that is there is replaced.

    Raises:
      ValueError: `folder` is none or has no table or no log, or mapping.yaml is there.
    """
    if not folder.is_dir():
        raise ValueError(f"--inspect={folder} is not a folder; give the folder of your files.")
    path = folder / FILE
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; correct it by hand, or replace it with --overwrite.")
    looks, left_out = look_at_folder(folder)
    if not looks:
        reasons = f" ({'; '.join(left_out)})" if left_out else ""
        raise ValueError(
            f"--inspect={folder} has no table{reasons}; give the folder of your files."
        )
    proposals = propose(looks)
    used = {name for proposal in proposals.values() for name in _file_names(proposal.section)}
    left_out = left_out + [
        f"{look.names[0]}{_and_more(look)}: {', '.join(look.columns)}"
        for look in looks
        if not set(look.names) & used and str(look.file) not in used
    ]
    text = render(proposals, sorted(left_out), COMMAND)
    read_mapping(path, text.replace(FILL_IN, NO_TIME))  # what is proposed can be read
    path.write_text(text, encoding="utf-8")
    steps = f"Replace {FILL_IN} in it, check it" if FILL_IN in text else "Check it"
    return (
        f"{text}\nThis is {path} now. {steps}, then run:\n"
        f"python -m sigma_jax.prepare --config=configs/sft.py:files --config.data.path={folder} "
        "--workdir=runs/mine\n"
    )


def _file_names(section: dict) -> list[str]:
    """The files of a section and of its joins."""
    names = section["file"] if isinstance(section["file"], list) else [section["file"]]
    return [*names, *(name for part in section.get("join", []) for name in _file_names(part))]


def _and_more(look: FileLook) -> str:
    return f" and {len(look.names) - 1} more" if len(look.names) > 1 else ""
