"""What preflight compiles is what training runs: the same shapes, labels and loss."""

import jax
import pytest
from flax import nnx
from small_task import make_task

from sigma_jax.models.sizes import Sizes
from sigma_jax.runtime.state import take_apart
from sigma_jax.sft.sketch import sketch


def shapes(arrays) -> dict:
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in arrays.items()}


@pytest.mark.parametrize("changes", [{}, {"batch_negatives": 8}, {"constraint_weight": 0.0}])
def test_shapes_are_those_of_a_training(trained, changes):
    task = make_task(trained, **changes)
    model, codes = task.model(nnx.Rngs(0)), task.semantic_ids
    tables, batch = task.tables(), task.batches()[0]
    widths = {name: vectors.shape[1] for name, vectors in task.vectors.items()}
    categories = len(task.data.catalogue.categories)
    sizes = Sizes(len(task.data.catalogue), widths, codes.levels, codes.codebook_size, categories)
    found = sketch(task.config, model.backbone.config, sizes)
    assert shapes(found.batch) == shapes(batch)
    # How many demands an item satisfies, and how many prefixes are taken, the data says.
    data_says = {"constraints", "prefix_start", "by_prefix"}
    expected = shapes(tables)
    assert found.tables.keys() == expected.keys()
    assert {k: v for k, v in shapes(found.tables).items() if k not in data_says} == {
        k: v for k, v in expected.items() if k not in data_says
    }
    template, params, rest = take_apart(model, task.label)
    other, sketched, others = take_apart(found.model, found.label)
    assert shapes(sketched) == shapes(params) and shapes(others) == shapes(rest)
    assert other.labels == template.labels
    key = jax.random.key(0)
    value, parts = jax.eval_shape(found.loss, model, tables, batch, key)
    assert value.shape == () and parts.keys() == task.loss(model, tables, batch, key)[1].keys()
