"""A proposed mapping as the text of a mapping file, with samples as comments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from yaml.reader import Reader

from sigma_jax.data.mapping.propose import Proposal
from sigma_jax.data.mapping.spec import FILL_IN

_MAX_SAMPLE = 40  # characters of a value that a comment shows
_MAX_LINE = 100
_LINE_END = re.compile(r"[\r\n\t\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+ *")


def render(proposals: Mapping[str, Proposal], left_out: Sequence[str], command: str) -> str:
    """The mapping file of `proposals`: YAML, with values of each column and what is not used."""
    lines = [
        f"# Proposed by {command}",
        "# from names of columns and first rows. Check each line; correct what is wrong.",
    ]
    if any(not proposal.look.has_header for proposal in proposals.values()):
        lines.append("# column_3 and the like have no name in the file; give them one in header.")
    if any(FILL_IN in proposal.section.values() for proposal in proposals.values()):
        lines.append(f"# {FILL_IN} is a question: the preparation stops until you answer it.")
    for table, proposal in proposals.items():
        lines += ["", f"{table}:"]
        for key, value in proposal.section.items():
            lines += [f"  # {_shown(line)}" for line in proposal.comments.get(key, ())]
            if key == "columns":
                lines.append("  columns:")
                lines += [
                    _column(ours, theirs, proposal.samples.get(ours, []))
                    for ours, theirs in value.items()
                ]
            elif key == "join":
                lines.append("  join:")
                for part in value:
                    fields = [f"      {name}: {_flow(inner)}" for name, inner in part.items()]
                    lines += ["    - " + fields[0].strip(), *fields[1:]]
            else:
                lines.append(f"  {key}: {_flow(value)}")
        if proposal.unused and proposal.look.has_header:
            lines += _wrapped("  # not used: ", proposal.unused)
    if left_out:
        lines += ["", "# Files that are not used:", *(f"# {_shown(reason)}" for reason in left_out)]
    return "\n".join(lines) + "\n"


def _shown(text: str) -> str:
    """`text` in a comment: on one line, with ? for characters that YAML does not allow."""
    return Reader.NON_PRINTABLE.sub("?", _LINE_END.sub(" ", text).rstrip())


def _column(ours: str, theirs: Any, samples: Sequence[str]) -> str:
    line = f"    {_flow(ours)}: {_flow(theirs)}"
    shown = [_shown(value) for value in samples]
    shown = [value if len(value) <= _MAX_SAMPLE else value[:_MAX_SAMPLE] + "…" for value in shown]
    return f"{line}  # {' | '.join(shown)}" if shown else line


def _wrapped(start: str, names: Sequence[str]) -> list[str]:
    lines = [start]
    for number, name in enumerate(names):
        part = _shown(name) + (", " if number < len(names) - 1 else "")
        if len(lines[-1]) + len(part) > _MAX_LINE:
            lines.append("  #   ")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...").strip()
