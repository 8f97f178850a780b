"""Settings of a refresh."""

from __future__ import annotations

import dataclasses

from sigma_jax.data.config import ColumnsConfig
from sigma_jax.runtime.config import check_at_least
from sigma_jax.schema import TASKS

CHOICES = ("error", "drop")


@dataclasses.dataclass(frozen=True)
class RefreshConfig:
    """All settings of a refresh; configs/refresh.py fills them."""

    # Stage -> steps of its training from the old weights; 0 keeps the weights, which then cost no
    # time. New items get their vectors in both cases.
    steps: dict[str, int]
    # Learning rates are this share of the rates of the first training.
    rate_share: float
    # Share of the contexts of the stage `sft` that have new rows as targets. The others are a
    # replay of old ones.
    new_share: float
    # Share of the users of the newest day whose rows of that day judge the refresh. They are
    # trained on in the next refresh.
    judge_share: float
    judge_requests: dict[str, int]  # task -> most requests of the judgement
    late_rows: str  # new rows from before the end of the known log: "error" refuses, "drop" drops
    # New rows whose item is neither known nor among the new items: "error" refuses, "drop" drops.
    # A first preparation that dropped such rows, or rare items, drops them always.
    unknown_items: str
    # Train the tokenizer anew, so that every item gets a new semantic ID. False: the codebooks are
    # frozen.
    rebuilds_codebooks: bool
    # Read new files as the mapping file of the first preparation says, if it had one. False: they
    # have the columns of our tables.
    uses_mapping: bool
    columns: ColumnsConfig  # names of columns of the new files, where they are other than ours
    memory_limit: str  # of DuckDB, such as "2GB"
    threads: int  # of DuckDB

    def __post_init__(self):
        check_at_least(0, self, "rate_share")
        for name in ("new_share", "judge_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is no share; use 0 to 1.")
        if not self.judge_share:
            raise ValueError("judge_share=0 leaves no user to judge a refresh; use more than 0.")
        for name in ("late_rows", "unknown_items"):
            if (value := getattr(self, name)) not in CHOICES:
                raise ValueError(f"{name}={value!r} is unknown; use {' or '.join(CHOICES)}.")
        if unknown := set(self.judge_requests) - set(TASKS):
            raise ValueError(
                f"judge_requests names {sorted(unknown)}; known are {', '.join(TASKS)}."
            )
        if negative := {stage: steps for stage, steps in self.steps.items() if steps < 0}:
            raise ValueError(f"steps={negative}; use 0 or more.")
