"""Settings of the stage `sft`, which trains the recommender (section 2.3 of SIGMA)."""

from __future__ import annotations

import dataclasses
from typing import Any

from sigma_jax.generation.config import GenerationConfig
from sigma_jax.models.backbone import BackboneConfig
from sigma_jax.models.item_encoder import ID_EMBEDDING, TABLES, ItemEncoderConfig
from sigma_jax.models.network import NetworkConfig
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.recommender.spec import RecommenderSpec
from sigma_jax.reranking.reranker import RerankerConfig
from sigma_jax.runtime.config import OptimizerConfig, TrainConfig, check_at_least


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """All settings of the stage `sft`."""

    optimizer: OptimizerConfig
    train: TrainConfig
    backbone: BackboneConfig
    starts_from_grounding: bool  # start from the backbone of the stage `grounding`, if trained
    model: NetworkConfig
    prompt: PromptConfig
    negatives_per_target: int  # from the target's own prefix; 0: the batch shares its negatives
    num_negatives: int  # drawn once a step for the whole batch (Eq. 5); 100,000 in the paper
    # Targets of the batch that are negatives of the other targets too. Only the item head reads it,
    # and only if num_negatives is less than the catalogue. Targets are often popular items, so the
    # loss corrects for that.
    batch_negatives: int
    uses_prefix_condition: bool  # negatives share the target's SID prefix (Eq. 5)
    ntp_weight: float  # of Eq. 4
    infonce_weight: float  # of Eq. 5
    # Weight of the item head's loss that ranks items that satisfy the instruction above others.
    # 0: only the target counts.
    constraint_weight: float
    label_smoothing: float  # of Eq. 4
    # Code vectors start at the mean vector of their items; False: at random, as in the paper.
    starts_codes_at_items: bool
    # Items without training interactions are negatives too, as in the paper. False: they are not,
    # since as negatives of every target they would rank below all other items.
    has_cold_negatives: bool
    generation: GenerationConfig  # of reports, and of the trained recommender by default
    reranker: RerankerConfig  # fitted after training
    # Train anew after that fit, with the validation targets, for the best number of steps.
    refits: bool
    report_requests: int  # validation requests for each task, in reports while training
    report_beams: int  # beams of these reports

    def __post_init__(self):
        weights = ("ntp_weight", "infonce_weight", "constraint_weight")
        counts = ("negatives_per_target", "batch_negatives", "report_requests")
        check_at_least(0, self, *counts, *weights)
        check_at_least(1, self, "num_negatives", "report_beams")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={self.label_smoothing}; use 0 <= label_smoothing < 1."
            )
        check_item_encoder(self.model.item_encoder)
        rows, group = self.train.batch_size, self.prompt.packing.group_rows
        if rows % group:
            raise ValueError(
                f"train.batch_size={rows} is no multiple of prompt.packing.group_rows={group}; "
                "change one of them."
            )
        self._check_heads()
        if self.model.has_task_head and not self.prompt.has_instructions:
            raise ValueError(
                "model.has_task_head=True has no instruction to read where "
                "prompt.mixture.branches_per_context=0; set it to False."
            )
        folder = self.backbone.hf_folder
        if folder and self.starts_from_grounding:
            raise ValueError(
                f"backbone.hf_folder={folder} is not read, because this stage starts from the "
                "backbone of the stage grounding; give "
                f"--config.upstream.grounding.backbone.hf_folder={folder} "
                f"--config.data.text_tokenizer.name={folder} instead."
            )

    def _check_heads(self) -> None:
        """ValueError where other settings do not fit `model.has_item_head`."""
        has_item_head, layout = self.model.has_item_head, self.prompt.layout
        if has_item_head and self.model.uses_full_vocabulary:
            raise ValueError(
                "model.has_item_head=True needs code logits over one level; set "
                "model.uses_full_vocabulary=False."
            )
        if self.constraint_weight and not has_item_head:
            raise ValueError(
                f"constraint_weight={self.constraint_weight} belongs to the item head; set "
                "model.has_item_head=True, or the weight to 0."
            )
        if not layout.sid_generated and not has_item_head:
            raise ValueError(
                "prompt.layout.sid_generated=0 generates no code, so that only an item head finds "
                "items; set model.has_item_head=True."
            )
        if not layout.generates_item and has_item_head:
            raise ValueError(
                'prompt.layout.item_query="none" asks for no item; set model.has_item_head=False.'
            )
        if self.generation.ranker == "exhaustive" and layout.sid_generated and not has_item_head:
            raise ValueError(
                'generation.ranker="exhaustive" scores all items by the item head; set '
                'model.has_item_head=True, or generation.ranker="three_step".'
            )

    @property
    def draws_per_target(self) -> bool:
        """Whether each target of Eq. 5 has negatives of its own, out of its prefix."""
        return bool(self.negatives_per_target and self.uses_prefix_condition)

    @property
    def temperature(self) -> float:
        """tau of Eq. 5, which equals tau of Eq. 11."""
        return self.generation.temperature

    def with_layout(self, **changes: Any) -> SftConfig:
        """The config with other fields of the prompts' layout."""
        layout = dataclasses.replace(self.prompt.layout, **changes)
        return dataclasses.replace(self, prompt=dataclasses.replace(self.prompt, layout=layout))

    @property
    def spec(self) -> RecommenderSpec:
        """The settings that a saved recommender needs."""
        return RecommenderSpec(
            self.backbone,
            self.model,
            self.prompt.layout,
            self.prompt.has_instructions,
            self.prompt.has_instruction_only_contexts,
            self.prompt.longtail_share,
            self.generation,
            self.reranker.neighbours,
        )


def check_item_encoder(encoder: ItemEncoderConfig) -> None:
    """ValueError if `encoder` reads unknown vectors, or an ID embedding that is not trained."""
    if unknown := set(encoder.inputs) - set(TABLES):
        raise ValueError(
            f"model.item_encoder.inputs names {sorted(unknown)}; known are {', '.join(TABLES)}."
        )
    if ID_EMBEDDING in encoder.inputs and ID_EMBEDDING not in encoder.trainable:
        raise ValueError(
            f"model.item_encoder.inputs has {ID_EMBEDDING!r}, which starts at random; put it into "
            "model.item_encoder.trainable too."
        )
