"""Stage 3: instructions to recommendations (section 2.3 of SIGMA).

What `train.py` asks of a stage, for the recommender: batches of contexts with branches, the model,
the loss Eq. 4 + Eq. 5, and hit rates on validation requests while it trains.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import grain
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int64

from sigma_jax import metrics
from sigma_jax.data.pipeline import open_shards
from sigma_jax.data.vectors import item_vectors
from sigma_jax.generation.generator import Generator, all_item_vectors
from sigma_jax.generation.head_weights import (
    HEAD_WEIGHTS,
    JUDGED,
    HeadWeights,
    beam_search_helps,
    fit_head_weights,
)
from sigma_jax.models.hf import save_backbone
from sigma_jax.models.network import RecommenderNetwork
from sigma_jax.models.weights import copy_weights, save_weights
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.prompts.inference import prompts_of
from sigma_jax.prompts.packing import batches, contexts_that_fit
from sigma_jax.prompts.records import RECORDS, record_settings, write_records
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.recommender.build import backbone_source, frozen_tables, make_recommender
from sigma_jax.recommender.trained import (
    BEFORE_REFIT,
    WEIGHTS,
    generation_config,
    hit_rates,
    told_by,
    word_table,
)
from sigma_jax.reranking.fit import fit_reranker
from sigma_jax.reranking.lexical import WordTable
from sigma_jax.reranking.reranker import Counts, Prior
from sigma_jax.runtime import hosts
from sigma_jax.runtime.artifacts import Recipe, is_current, write_artifact
from sigma_jax.runtime.files import plain, read_json
from sigma_jax.schema import TASKS, PreparedData, Requests, SemanticIds
from sigma_jax.sft.config import SftConfig
from sigma_jax.sft.loss import recommender_loss
from sigma_jax.sft.negatives import negative_tables
from sigma_jax.tasks.constraints import Constraints, allowed_items
from sigma_jax.tasks.requests import make_requests

FIT_BEAMS = 32  # when the prior is fitted


class SftTask:
    """Stage 3 as `train.py` sees it."""

    def __init__(
        self,
        config: SftConfig,
        workdir: Path,
        seed: int,
        mesh: Mesh | None = None,
        has_validation_rows: bool = False,
    ):
        self.config, self.workdir, self.seed = config, workdir, seed
        self.is_refit = has_validation_rows
        self.data = PreparedData.load(workdir / "data")
        if has_validation_rows:
            self.data = self.data.with_validation()
        self.semantic_ids = SemanticIds.load(workdir / "tokenizer")
        config.prompt.layout.check(self.semantic_ids.levels)
        self.vectors = item_vectors(workdir, len(self.data.catalogue))
        self.vocab_size = backbone_source(config, workdir, self.data)[1]
        self.records = write_record_shards(
            self.data, config.prompt, workdir, seed, has_validation_rows
        )
        self.prompt = config.prompt
        if not config.prompt.packing.contexts_per_group:
            most = contexts_that_fit(
                self.records, self.data, self.semantic_ids, config.prompt, self.vocab_size
            )
            packing = dataclasses.replace(config.prompt.packing, contexts_per_group=most)
            self.prompt = dataclasses.replace(config.prompt, packing=packing)

    @property
    def batch_rows(self) -> int:
        """Rows of the global batch."""
        return self.config.train.batch_size

    def batches(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """Element s is the batch of step s, or `rows` of it."""
        return batches(
            self.records,
            self.data,
            self.semantic_ids,
            self.prompt,
            self.vocab_size,
            self.seed,
            self.batch_rows,
            rows,
        )

    @property
    def epoch_steps(self) -> float:
        """Steps in which every context comes once."""
        packing = self.prompt.packing
        groups = self.batch_rows // packing.group_rows
        return len(open_shards(self.records, RECORDS)) / (groups * packing.contexts_per_group)

    def model(self, rngs: nnx.Rngs) -> RecommenderNetwork:
        """The recommender before its first step."""
        model = make_recommender(
            self.config, self.workdir, self.data, self.semantic_ids, self.vectors, rngs
        )
        # A sample of the catalogue suffices for means.
        rows = np.arange(0, len(self.data.catalogue), 1 + len(self.data.catalogue) // 20_000)
        codes = np.asarray(self.semantic_ids.codes)[rows]
        tables = frozen_tables(self.config, self.vectors, self.semantic_ids)
        model.start_codes(jnp.asarray(codes), jnp.asarray(rows), tables)
        return model

    def tables(self) -> dict[str, np.ndarray]:
        """Frozen item vectors, codes and prefixes, and what only the loss reads: what negatives are
        drawn from, and the demands each item satisfies."""
        tables = frozen_tables(self.config, self.vectors, self.semantic_ids)
        popularity = np.asarray(self.data.catalogue.popularity)
        tables |= negative_tables(tables["prefix"], popularity)
        if self.config.batch_negatives:
            share = popularity / max(popularity.sum(), 1)
            tables["popularity"] = share.astype(np.float32)  # nearly that of the targets
        if self.config.constraint_weight and self.config.prompt.has_instructions:
            catalogue = self.data.catalogue
            constraints = Constraints.make(self.data, self.config.prompt.longtail_share)
            tables["constraints"] = constraints.by_item(len(catalogue))
            tables["category"] = category = np.asarray(catalogue.category, np.int32)
            tables["category_sizes"] = np.bincount(
                category[category >= 0], minlength=len(catalogue.categories)
            )
        return tables

    def param_group(self, path: tuple[str, ...]) -> str:
        """Group of the optimizer."""
        return param_group(self.config, path)

    def loss(
        self,
        model: RecommenderNetwork,
        tables: Mapping[str, Array],
        batch: Mapping[str, Array],
        key,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Eq. 4 + Eq. 5 of SIGMA over all targets of the batch (sft/loss.py)."""
        return recommender_loss(self.config, model, tables, batch, key)

    def report(self, model: RecommenderNetwork, tables: Mapping[str, Array]) -> dict[str, float]:
        """HR@10 at item and SID level on validation requests, by task and on average."""
        if not self.config.report_requests:
            return {}
        most = dict.fromkeys(self.config.prompt.trained_tasks, self.config.report_requests)
        requests, prompts = self.validation(most)
        if not len(requests):
            return {}
        self.fit_head_weights(model, tables, requests, prompts)
        found = self.generator(model, tables, self.config.report_beams)(prompts, 10, None)
        return hit_rates(found.items, requests, self.semantic_ids)

    def fit_head_weights(
        self,
        model: RecommenderNetwork,
        tables: Mapping[str, Array],
        requests: Requests,
        prompts: Mapping[str, np.ndarray],
    ) -> HeadWeights | None:
        """The gains that make `requests` likeliest, put into a model with an item head."""
        layout = self.config.prompt.layout
        if not self.config.model.has_item_head or not layout.sid_generated:
            return None
        fitted = fit_head_weights(
            model,
            tables,
            prompts,
            requests.target,
            layout.sid_generated,
            layout.item_query,
            self.config.temperature,
        )
        fitted.put_into(model)
        return fitted

    def validation(self, most: Mapping[str, int]) -> tuple[Requests, dict[str, np.ndarray]]:
        """At most so many validation requests of each task, and their prompts."""
        prompt = self.config.prompt
        requests = make_requests(
            self.data,
            "valid",
            self.seed,
            max(most.values()),
            prompt.longtail_share,
            prompt.phrasings,
        )
        of_task = [np.flatnonzero(requests.task == number) for number in range(len(TASKS))]
        rows = [here[: most.get(task, 0)] for here, task in zip(of_task, TASKS, strict=True)]
        requests = requests.take(np.concatenate(rows))
        if not len(requests):
            return requests, {}
        return requests, prompts_of(requests, self.data, self.prompt_tables())

    def prompt_tables(self) -> PromptTables:
        """Tables for the prompts of requests."""
        prompt = self.config.prompt
        return PromptTables.make(
            self.data, self.semantic_ids, prompt.layout, self.vocab_size, prompt.has_instructions
        )

    def generator(
        self,
        model: RecommenderNetwork,
        tables: Mapping[str, Array],
        beams: int,
        words: WordTable | None = None,
    ) -> Generator:
        """Over the whole catalogue, as trained."""
        config = generation_config(self.config, beams, batch_size=32)
        layout = self.config.prompt.layout
        depth, query = layout.sid_generated, layout.item_query
        return Generator.create(model, tables, self.semantic_ids, depth, config, query, words)

    def fit_requests(self) -> tuple[Requests, dict[str, np.ndarray]]:
        """Validation requests mixed as in training, and their prompts."""
        weights = self.config.prompt.trained_tasks
        share = self.config.prior.fit_requests / max(weights.values())
        return self.validation({task: int(share * weight) for task, weight in weights.items()})

    def fit_reranker(
        self,
        model: RecommenderNetwork,
        tables: Mapping[str, Array],
        requests: Requests,
        prompts: dict[str, np.ndarray],
        gains: HeadWeights | None,
        folder: Path,
    ) -> tuple[HeadWeights | None, dict[str, float]]:
        """Fits and writes what counts say beside the model; the gains kept and figures.

        Where codes are searched with `gains`, the prior is fitted without them too, and they are
        kept only where the ranking is better for it.
        """
        counts = self.counts(model, tables)
        words = word_table(self.data, self.config.prompt)
        spoken = self.prompt_tables()
        allowed = allowed_items(self.data, requests)
        histories = self.data.histories

        def fit() -> tuple[Prior, dict[str, float], Int64[np.ndarray, " N"]]:
            """The prior of the model as it is, figures, and the targets' ranks with it."""
            generator = self.generator(model, tables, FIT_BEAMS, words)
            told = told_by(generator, requests, self.data, spoken, self.config)
            prior, figures = fit_reranker(
                generator, prompts, requests, histories, counts, told, allowed
            )
            choice = prior.choice(generator.config, requests, histories, told)
            found = generator.variants(prompts, JUDGED, [choice])[0]
            return prior, figures, metrics.item_ranks(found.items, requests.target)

        prior, figures, ranks = fit()
        if gains is not None and model.beam_search_helps:
            gains.none.put_into(model)
            open_prior, open_figures, open_ranks = fit()
            if beam_search_helps(ranks, open_ranks):
                gains.put_into(model)
            else:
                gains, prior, figures = gains.none, open_prior, open_figures
            for name, judged in (("codes", ranks), ("open", open_ranks)):
                figures[f"{name}_ndcg"] = float(metrics.ndcg(judged, JUDGED).mean())
        prior.save(folder)
        return gains, figures

    def counts(self, model: RecommenderNetwork, tables: Mapping[str, Array]) -> Counts:
        """What the prior counts in the training rows, and by the model's item vectors."""
        vectors = all_item_vectors(model, tables, len(self.data.catalogue))
        return Counts.make(self.data, vectors, self.config.prior.neighbours)

    def refit(self) -> SftTask | None:
        """The task to be trained after this one, on more rows; None where none is."""
        if not self.config.refits:
            return None
        config = dataclasses.replace(self.config, report_requests=0)  # nothing is unseen any more
        return SftTask(config, self.workdir, self.seed, has_validation_rows=True)

    def write_weights(self, model: RecommenderNetwork, folder: Path) -> None:
        """The weights, the backbone as a Hugging Face folder."""
        save_weights(model, folder / WEIGHTS, without=("backbone",))
        save_backbone(model.backbone, folder / "backbone")

    def finalize_on_all_hosts(self, model: RecommenderNetwork, mesh: Mesh) -> None:
        """Nothing: `finish` needs one process."""

    def finish(self, model: RecommenderNetwork, tables: Mapping[str, Array], folder: Path) -> dict:
        """Writes the weights, the backbone as a Hugging Face folder, the config and the prior.

        A refit puts its weights and counts in place of those in `folder`, which go to the folder
        BEFORE_REFIT; what was fitted on validation requests stays.
        """
        model.backbone.fold_lora()  # what is fitted is fitted to what is kept
        if self.is_refit:
            self.replace_weights(model, tables, folder)
            return {}
        requests, prompts = self.fit_requests() if self.config.prompt.trained_tasks else ([], {})
        figures = {}
        if len(requests):
            gains = self.fit_head_weights(model, tables, requests, prompts)
            if self.config.prior.neighbours:
                gains, figures = self.fit_prior(model, tables, requests, prompts, gains, folder)
            figures |= gains.figures if gains is not None else {}
        self.write_weights(model, folder)
        (folder / "config.json").write_text(json.dumps(plain(self.config), indent=1))
        return figures

    def replace_weights(
        self, model: RecommenderNetwork, tables: Mapping[str, Array], folder: Path
    ) -> None:
        """Puts the weights and counts of a refit in place of those in `folder`."""
        shutil.copytree(folder, folder / BEFORE_REFIT)
        if self.config.model.has_item_head:
            copy_weights(model, folder / WEIGHTS, HEAD_WEIGHTS)
        self.write_weights(model, folder)
        if (folder / "prior.json").exists():
            weights = Prior.load(folder).weights
            Prior(weights, self.counts(model, tables)).save(folder)


def param_group(config: SftConfig, path: tuple[str, ...]) -> str:
    """Group of a parameter: SID table, code bias and trained vectors are tables."""
    if path[0] in HEAD_WEIGHTS or config.backbone.is_frozen(path):
        return "frozen"
    is_table = path[0] in ("sid_table", "code_bias") or path[:2] == ("item_encoder", "trained")
    return "table" if is_table else "base"


def write_record_shards(
    data: PreparedData, prompt: PromptConfig, workdir: Path, seed: int, has_validation_rows: bool
) -> Path:
    """WORKDIR/records: the training contexts, made where they are missing.

    With validation rows among them they lie in WORKDIR/records-refit.

    ValueError if they were made with other settings.
    """
    settings = record_settings(prompt)
    inputs = {"data": read_json(data.folder / "manifest.json")["fingerprint"]}
    recipe = Recipe(settings, inputs, seed)
    name = "records-refit" if has_validation_rows else "records"

    def make() -> None:
        if not is_current(workdir, name, recipe):
            write_artifact(
                workdir, name, recipe, lambda folder: write_records(data, prompt, folder, seed)
            )

    hosts.by_first(make)
    return workdir / name
