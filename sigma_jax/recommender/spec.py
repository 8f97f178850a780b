"""All that a saved recommender needs to be rebuilt from its folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from sigma_jax.generation.config import GenerationConfig
from sigma_jax.models.backbone import BackboneConfig
from sigma_jax.models.network import NetworkConfig
from sigma_jax.prompts.config import PromptLayout
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.files import plain, read_json
from sigma_jax.tasks import instructions

FILE = "recommender.json"


@dataclasses.dataclass(frozen=True)
class RecommenderSpec:
    """The settings of a recommender. Any stage that trains one writes them beside its weights."""

    backbone: BackboneConfig  # its sizes and types; the weights lie in the folder `backbone`
    network: NetworkConfig
    layout: PromptLayout
    has_instructions: bool  # it was trained with instructions
    has_instruction_only_contexts: bool  # it was trained on instructions without a history
    longtail_share: float  # share of interactions of the head; other items are the long tail
    generation: GenerationConfig  # how it ranks unless a caller says otherwise
    neighbours: int  # items kept for each item in the reranker's relations; 0: no reranker

    @property
    def depth(self) -> int:
        """Codes that the network can generate."""
        return self.layout.sid_generated

    @property
    def answers_instructions_alone(self) -> bool:
        """Whether the network can answer an instruction of a user without a history."""
        return self.network.has_item_head and self.has_instruction_only_contexts

    @property
    def wordings(self) -> dict[str, tuple[str, ...]]:
        """The trained wordings of each task."""
        return instructions.trained_wordings(self.has_instructions)

    def save(self, folder: Path) -> None:
        """Writes FOLDER/recommender.json."""
        (folder / FILE).write_text(json.dumps(plain(self), indent=1))

    @classmethod
    def load(cls, folder: Path, remedy: str) -> RecommenderSpec:
        """The spec in `folder`. ValueError, with `remedy`, if it is missing or damaged."""
        path = folder / FILE
        try:
            return to_dataclass(cls, read_json(path))
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{path} is damaged or of another version ({error}); {remedy}."
            ) from error
