"""Preflight compiles the program that training runs: the same shapes, groups and loss."""

import dataclasses

import jax
import pytest
from flax import nnx
from small_task import make_task, placed

from sigma_jax.generation import generator as generate
from sigma_jax.generation.config import RANKERS
from sigma_jax.recommender import ranking
from sigma_jax.recommender.recommender import Recommender
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.preflight.estimate import CatalogueSizes
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.runtime.state import split_model
from sigma_jax.sft.abstract_shapes import abstract_stage, inference


def sizes_of(task) -> CatalogueSizes:
    codes, items = task.semantic_ids, len(task.data.catalogue)
    widths = {name: vectors.shape[1] for name, vectors in task.vectors.items()}
    categories = len(task.data.catalogue.categories)
    return CatalogueSizes(items, widths, codes.levels, codes.codebook_size, categories)


def shapes(arrays) -> dict:
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in arrays.items()}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"batch_negatives": 8}, {"constraint_weight": 0.0}])
def test_shapes_are_those_of_a_training(trained, changes):
    task = make_task(trained, **changes)
    model = task.model(nnx.Rngs(0))
    tables, batch = task.tables(), task.batches()[0]
    found = abstract_stage(task.config, model.backbone.config, sizes_of(task))
    assert shapes(found.batch) == shapes(batch)
    # These sizes depend on the data: constraints of an item, and prefixes in use.
    of_data = {"constraints", "prefix_start", "by_prefix"}
    expected = shapes(tables)
    assert found.tables.keys() == expected.keys()
    assert {k: v for k, v in shapes(found.tables).items() if k not in of_data} == {
        k: v for k, v in expected.items() if k not in of_data
    }
    template, params, rest = split_model(model, task.param_group)
    other, abstract_params, others = split_model(found.model, found.param_group)
    assert shapes(abstract_params) == shapes(params) and shapes(others) == shapes(rest)
    assert other.param_groups == template.param_groups
    key = jax.random.key(0)
    value, parts = jax.eval_shape(found.loss, model, tables, batch, key)
    assert value.shape == () and parts.keys() == task.loss(model, tables, batch, key)[1].keys()


def leaves(tree) -> list:
    return [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("ranker", RANKERS)
def test_inference_is_compiled_for_the_arrays_of_a_recommender(task, model, monkeypatch, ranker):
    called = {}

    def spy(module, name):
        own = getattr(module, name)

        def call(*arguments):
            called[name] = arguments
            return own(*arguments)

        monkeypatch.setattr(module, name, call)

    spy(generate, "search_beams"), spy(ranking, "rank")
    batch = task.validation({"JustForYou": 4})
    tables = placed(task.frozen_tables())
    generation = dataclasses.replace(task.config.generation, num_beams=4, ranker=ranker)
    recommender = Recommender(task.parts(model, tables), generation)
    recommender.recommend(batch)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    backbone = model.backbone.config
    found = inference(task.config, recommender.generator.config, backbone, sizes_of(task), mesh)
    state, tables, _, scorer, index, prompts = found.arguments
    _, own_state, own_tables, _, own_scorer, own_prompts, *_ = called["search_beams"]
    own_index, _, _, inputs, *_ = called["rank"]
    assert leaves(state) == leaves(own_state) and leaves(tables) == leaves(own_tables)
    for name in ("vectors", "sorted_items", "row_of_item"):
        assert leaves(getattr(index, name)) == leaves(getattr(own_index, name))
    assert leaves(scorer) == leaves(own_scorer.nodes)
    assert leaves(index.vectors) == leaves(own_scorer.vectors)
    assert not leaves(inputs)
    longest = task.config.prompt.layout.row_tokens
    assert [len(shape) for shape, _ in leaves(prompts)] == [2, 2, 2, 2, 1]
    assert [kind for _, kind in leaves(prompts)] == [kind for _, kind in leaves(own_prompts)]
    assert prompts.tokens.shape == (found.examples, longest) and found.flops > 0
    answer = jax.eval_shape(found.run, *found.arguments)
    assert answer.items.shape == (found.examples, 10)
