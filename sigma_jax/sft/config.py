"""Settings of stage 3."""

from __future__ import annotations

import dataclasses

from sigma_jax.generation.config import GenerationConfig
from sigma_jax.models.backbone import BackboneConfig
from sigma_jax.models.item_encoder import OWN, TABLES
from sigma_jax.models.network import NetworkConfig
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.recommender.spec import RecommenderSpec
from sigma_jax.reranking.reranker import RerankerConfig
from sigma_jax.runtime.config import OptimizerConfig, TrainConfig, check_at_least


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Everything about stage 3."""

    optimizer: OptimizerConfig
    train: TrainConfig
    backbone: BackboneConfig
    starts_from_grounding: bool  # with the backbone of stage 1, where that was trained
    model: NetworkConfig
    prompt: PromptConfig
    negatives_per_target: int  # drawn from the target's own prefix; 0: shared by the batch instead
    num_negatives: int  # drawn once a step for the whole batch (Eq. 5); 100,000 in the paper
    # Targets of the batch that are negatives of the others too, for the item head (others do not
    # read it), where num_negatives is not the whole catalogue; popular items, which these are,
    # count less.
    batch_negatives: int
    uses_prefix_condition: bool  # negatives share the target's SID prefix (Eq. 5)
    ntp_weight: float  # of Eq. 4
    infonce_weight: float  # of Eq. 5
    # Of the loss that puts whatever satisfies the instruction before what does not, for the open
    # query; 0: the target alone says what was meant.
    constraint_weight: float
    label_smoothing: float  # of Eq. 4
    generation: GenerationConfig  # how it ranks: in reports, and unless a caller says otherwise
    reranker: RerankerConfig  # fitted when training is done
    refits: bool  # then train anew, as long as was best, on the validation targets too
    report_requests: int  # validation requests a task, while training
    report_beams: int

    def __post_init__(self):
        weights = ("ntp_weight", "infonce_weight", "constraint_weight")
        counts = ("negatives_per_target", "batch_negatives", "report_requests")
        check_at_least(0, self, *counts, *weights)
        check_at_least(1, self, "num_negatives", "report_beams")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}; use 0 <= it < 1.")
        if unknown := set(self.model.item_encoder.inputs) - set(TABLES):
            raise ValueError(
                f"model.item_encoder.inputs names {sorted(unknown)}; known are {', '.join(TABLES)}."
            )
        encoder = self.model.item_encoder
        if OWN in encoder.inputs and OWN not in encoder.trainable:
            raise ValueError(
                f"model.item_encoder.inputs has {OWN!r}, which starts at random; put it into "
                "model.item_encoder.trainable too."
            )
        rows, group = self.train.batch_size, self.prompt.packing.group_rows
        if rows % group:
            raise ValueError(
                f"train.batch_size={rows} is no multiple of prompt.packing.group_rows={group}; "
                "change one of them."
            )
        if self.model.has_item_head and self.model.uses_full_vocabulary:
            raise ValueError(
                "model.has_item_head=True needs code logits over one level; set "
                "model.uses_full_vocabulary=False."
            )
        if self.constraint_weight and not self.model.has_item_head:
            raise ValueError(
                f"constraint_weight={self.constraint_weight} is of the item head; set "
                "model.has_item_head=True, or the weight to 0."
            )
        if not self.prompt.layout.sid_generated and not self.model.has_item_head:
            raise ValueError(
                "prompt.layout.sid_generated=0 generates no code, so that only an item head finds "
                "items; set model.has_item_head=True."
            )
        if not self.prompt.layout.generates_item and self.model.has_item_head:
            raise ValueError(
                'prompt.layout.item_query="none" asks for no item; set model.has_item_head=False.'
            )
        if self.model.has_task_head and not self.prompt.has_instructions:
            raise ValueError(
                "model.has_task_head=True has no instruction to read where "
                "prompt.mixture.branches_per_context=0; set it to False."
            )
        is_exhaustive = self.generation.ranker == "exhaustive"
        if is_exhaustive and self.prompt.layout.sid_generated and not self.model.has_item_head:
            raise ValueError(
                'generation.ranker="exhaustive" scores all items by the item head; set '
                'model.has_item_head=True, or generation.ranker="three_step".'
            )
        folder = self.backbone.hf_folder
        if folder and self.starts_from_grounding:
            raise ValueError(
                f"backbone.hf_folder={folder} would not be read: the backbone is grounding's, "
                f"which starts from it by --config.upstream.grounding.backbone.hf_folder={folder} "
                f"--config.data.text_tokenizer.name={folder}; give these two instead."
            )

    @property
    def temperature(self) -> float:
        """tau of Eq. 5, which is that of Eq. 11."""
        return self.generation.temperature

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
