"""Sentences that exclude something or name several things: taken apart, and read as they stand.

    python -m launch.benchmarks.wishes --workdir=runs/sft-local

A line of the file of sentences has an instruction and either what it excludes (categories of
Complete Journey, words of a title) or the things that it names (lists of categories). The script
prints the share of excluded items among the first ten, and the share of the named things that the
first ten hold. No training reads the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from launch.benchmarks.instructions import answers, categories_of
from launch.benchmarks.result import write_result
from sigma_jax.recommender.recommender import Recommender
from sigma_jax.recommender.workdir import OpenWorkdir, load_workdir
from sigma_jax.reranking.lexical import words_of


def main() -> None:
    """Prints both shares for both ways, without a history and with one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--users", type=int, default=5, help="users with a history")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.sentences.read_text().splitlines()]
    apart = load_workdir(arguments.workdir)
    whole = dataclasses.replace(apart, recommender=without_wishes(apart.recommender))
    known = np.linspace(0, len(apart.data.users.table) - 1, arguments.users).astype(int).tolist()
    result: dict[str, Any] = {"sentences": len(rows)}
    for name, opened in (("taken apart", apart), ("as they stand", whole)):
        for who, users in (("nobody", [-1]), ("users", known)):
            shares = [shares_of(opened, rows, user) for user in users]
            excluded, held = np.mean(shares, axis=0).tolist()
            result[f"{name}, {who}"] = {"excluded": excluded, "named": held}
            print(f"{name}, {who}: excluded items {excluded:.3f}, named things held {held:.3f}")
    if arguments.output:
        write_result(arguments.output, result)


def without_wishes(recommender: Recommender) -> Recommender:
    """The recommender that reads each sentence as it stands."""
    parts = dataclasses.replace(recommender.parts, wishes=None)
    return Recommender(parts, recommender.generator.config, recommender.generator.trie)


def shares_of(opened: OpenWorkdir, rows: list[dict[str, Any]], user: int) -> tuple[float, float]:
    """(share of excluded items in a list, share of named things that a list holds)."""
    catalogue = opened.data.catalogue
    lists = answers(opened, [row["instruction"] for row in rows], user)
    excluded, held = [], []
    for row, items in zip(rows, lists, strict=True):
        names = categories_of(catalogue, items)
        if "things" in row:
            held.append(np.mean([bool(set(thing) & set(names)) for thing in row["things"]]))
            continue
        titles = [set(words_of(title)) for title in catalogue.titles(items)]
        kinds, words = set(row["excluded"]["categories"]), set(row["excluded"]["words"])
        wrong = [
            name in kinds or bool(words & title) for name, title in zip(names, titles, strict=True)
        ]
        excluded.append(np.mean(wrong))
    return float(np.mean(excluded)), float(np.mean(held))


if __name__ == "__main__":
    main()
