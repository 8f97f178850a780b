"""Settings of prompts: their layout, their targets, the mixture of a batch, and its packing.

`PromptLayout` is all that a saved model needs to build the prompt of a request. The other groups
say how training contexts are made.
"""

from __future__ import annotations

import dataclasses

from sigma_jax.runtime.config import check_at_least
from sigma_jax.schema import TASKS
from sigma_jax.tasks import instructions

ITEM_QUERIES = ("token", "code", "none")
INSTRUCTIONS = ("tokens", "vector", "both")
HEADINGS_TOKENS = 30  # at most, of the two texts before the favourites and before the history


@dataclasses.dataclass(frozen=True)
class PromptLayout:
    """The parts of a prompt and how long each may be."""

    sid_in_prompt: int  # x: code tokens of each item, 0..L
    slot_in_prompt: bool  # each item ends with the slot token, which carries its fused vector
    sid_generated: int  # y: code tokens generated, 0..L
    # The position whose hidden state queries the item: a "token" of its own after the codes, the
    # last "code", or "none". With "none" the items of one SID get one score, as in GR(SID).
    item_query: str
    history_length: int  # items of the history
    num_favourites: int  # the user's most frequent items before that history; 0: none
    session_marker: bool  # a line break token after each session
    profile_tokens: int  # a longer profile is cut
    # The model reads the "tokens" of an instruction; or its "vector" by the sentence encoder of the
    # data, in one slot; or "both". Without such an encoder it reads tokens.
    instruction: str
    instruction_tokens: int  # a longer instruction is cut
    row_tokens: int  # T: tokens of a training row, and of the longest prompt

    def __post_init__(self):
        counts = ("sid_in_prompt", "sid_generated", "num_favourites", "profile_tokens")
        check_at_least(0, self, *counts, group="prompt.layout.")
        lengths = ("history_length", "instruction_tokens", "row_tokens")
        check_at_least(1, self, *lengths, group="prompt.layout.")
        if not self.sid_in_prompt and not self.slot_in_prompt:
            raise ValueError(
                "prompt.layout.sid_in_prompt=0 and prompt.layout.slot_in_prompt=False leave no "
                "token for an item; change one of them."
            )
        if self.item_query not in ITEM_QUERIES:
            raise ValueError(
                f"prompt.layout.item_query={self.item_query!r} is unknown; "
                f"use one of {ITEM_QUERIES}."
            )
        if self.instruction not in INSTRUCTIONS:
            raise ValueError(
                f"prompt.layout.instruction={self.instruction!r} is unknown; "
                f"use one of {INSTRUCTIONS}."
            )
        if not self.sid_generated and not self.generates_item:
            raise ValueError(
                'prompt.layout.sid_generated=0 and prompt.layout.item_query="none" leave nothing '
                "to predict; change one of them."
            )

    def check(self, levels: int) -> None:
        """Raises ValueError if a prompt would hold more codes than SIDs of `levels` codes have."""
        for name in ("sid_in_prompt", "sid_generated"):
            if getattr(self, name) > levels:
                raise ValueError(f"prompt.layout.{name}={getattr(self, name)}; use 0 to {levels}.")

    @property
    def has_instruction_tokens(self) -> bool:
        """Whether the model reads the tokens of instructions."""
        return self.instruction != "vector"

    @property
    def has_instruction_vectors(self) -> bool:
        """Whether the model reads the sentence vectors of instructions."""
        return self.instruction != "tokens"

    @property
    def generates_item(self) -> bool:
        """Whether the model tells the items of one SID apart."""
        return self.item_query != "none"

    @property
    def has_query_token(self) -> bool:
        """Whether a query token follows the codes of a target."""
        return self.item_query == "token" and self.sid_generated > 0

    @property
    def item_tokens(self) -> int:
        """Tokens of one item in a prompt: its codes and its slot."""
        return self.sid_in_prompt + self.slot_in_prompt

    @property
    def target_tokens(self) -> int:
        """Tokens of one target: its codes and the query token."""
        return self.sid_generated + self.has_query_token


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """The targets that a training context carries."""

    window_stride: int  # items between the ends of a user's training windows
    task_targets_per_boundary: int  # instructed targets kept per session boundary and task
    longtail_share: float  # the head is the most popular items with this share of interactions
    history_targets: int  # history-supervision targets per context; 0: off
    history_targets_per_boundary: int  # of these, at one session boundary
    cold_start_weight: float  # of targets without a history, relative to others; 0: none

    def __post_init__(self):
        counts = ("window_stride", "task_targets_per_boundary", "history_targets_per_boundary")
        check_at_least(1, self, *counts, group="prompt.targets.")
        check_at_least(0, self, "history_targets", "cold_start_weight", group="prompt.targets.")


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """The draws of training: tasks, contexts without a history, and varied wordings."""

    task_weights: dict[str, float]  # of the instructed tasks; 0 or absent: not trained
    branches_per_context: int  # instructed targets per context; 0: no instructions
    # Share of the contexts without a history, which hold as many instructions as fill a row.
    instruction_only_share: float
    # Share of an instruction's wording that training leaves out (half) or replaces (half).
    wording_dropout: float
    # Training has so many sentences of each query, category and theme, if the model reads vectors.
    instruction_variants: int
    shuffle_sessions: bool  # a new order of the items of each session, every time

    def __post_init__(self):
        shares = ("instruction_only_share", "wording_dropout")
        check_at_least(0, self, "branches_per_context", *shares, group="prompt.mixture.")
        check_at_least(1, self, "instruction_variants", group="prompt.mixture.")
        for name in shares:
            if getattr(self, name) >= 1:
                raise ValueError(f"prompt.mixture.{name}={getattr(self, name)}; use less than 1.")
        if unknown := set(self.task_weights) - set(TASKS):
            raise ValueError(
                f"prompt.mixture.task_weights names {sorted(unknown)}; "
                f"known are {', '.join(TASKS)}."
            )
        if any(weight < 0 for weight in self.task_weights.values()):
            raise ValueError(f"prompt.mixture.task_weights={self.task_weights}; use 0 or more.")


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """How contexts fill the rows of a batch."""

    row_targets: int  # N: targets of a row
    group_rows: int  # contexts are packed in groups of this many rows ...
    contexts_per_group: int  # ... each of this many contexts; 0: as many as fit

    def __post_init__(self):
        check_at_least(1, self, "row_targets", "group_rows", group="prompt.packing.")
        check_at_least(0, self, "contexts_per_group", group="prompt.packing.")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """All settings of prompts."""

    layout: PromptLayout
    targets: TargetConfig
    mixture: MixtureConfig
    packing: PackingConfig

    def __post_init__(self):
        # One branch and one item must fit after all else is dropped.
        layout = self.layout
        wording = layout.instruction_tokens + HEADINGS_TOKENS if self.has_instructions else 0
        least = wording + layout.item_tokens + layout.sid_generated + 1
        if layout.row_tokens < least:
            raise ValueError(
                f"prompt.layout.row_tokens={layout.row_tokens}; these prompts need {least} or more."
            )

    @property
    def has_instructions(self) -> bool:
        """Whether instructions are trained; without them a prompt is a history alone."""
        return self.mixture.branches_per_context > 0

    @property
    def has_instruction_only_contexts(self) -> bool:
        """Whether instructions without a history are trained."""
        return self.has_instructions and self.mixture.instruction_only_share > 0

    @property
    def trained_tasks(self) -> dict[str, float]:
        """The tasks that the model learns, with their weights."""
        if not self.has_instructions:
            return {"JustForYou": 1.0}
        return {task: weight for task, weight in self.mixture.task_weights.items() if weight > 0}

    @property
    def longtail_share(self) -> float:
        """Share of interactions of the head; all other items are the long tail."""
        return self.targets.longtail_share

    @property
    def wordings(self) -> dict[str, tuple[str, ...]]:
        """The trained wordings of each task."""
        return instructions.trained_wordings(self.has_instructions)
