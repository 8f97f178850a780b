"""The pool of instructions: its rows, its vectors, and the slots that hold them in a batch."""

import numpy as np
import pytest
from shop_fixtures import changed_prompt
from small_prompts import V, make_batches

from sigma_jax.models.item_encoder import INSTRUCTION
from sigma_jax.prompts.instruction_pool import InstructionPool, write_pool
from sigma_jax.prompts.instruction_tables import InstructionTables
from sigma_jax.prompts.layout import HISTORY_TASK
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import TASKS
from sigma_jax.tasks.composition import composed_instructions

WIDTH = 5


def encode(texts):
    """A vector that tells texts apart."""
    return np.array([[len(text), *map(ord, text[:4].ljust(4))] for text in texts], np.float32)


@pytest.fixture(scope="module", params=["vector", "both"])
def reading(request, config):
    """A prompt config that reads vectors."""
    return changed_prompt(config, instruction=request.param)


@pytest.fixture(scope="module")
def pool(shop, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    assert write_pool(shop, config, encode, folder, 3)["instructions"] > 50
    return InstructionPool.load(folder)


def test_rows_hold_the_composed_instructions_and_their_vectors(shop, config, pool):
    mixture = config.mixture
    composed = composed_instructions(
        shop, config.wordings, mixture.instruction_variants, mixture.wording_dropout, 3
    )
    for task, slot_value, sentences in composed:
        rows = pool.rows(TASKS[task], slot_value)
        assert pool.texts.take(list(rows)).to_pylist() == sentences
        np.testing.assert_array_equal(pool.vectors[rows.start : rows.stop], encode(sentences))


def test_a_drawn_instruction_is_one_of_its_slot_value(shop, semantic_ids, reading, pool):
    prompts = PromptTables.make(shop, semantic_ids, reading.layout, V, True)
    tables = InstructionTables.make(shop, prompts, reading, pool)
    rng = np.random.default_rng(0)
    drawn = {tables.draw("Category", 2, rng)[1] for _ in range(50)}
    assert drawn == set(pool.rows("Category", 2))
    tokens, row = tables.draw("Discover", -1, rng)
    assert row in pool.rows("Discover", 0) and tokens[0] == prompts.instruction_token
    text = prompts.tokenizer.tokenizer.decode(tokens[1:])
    expected = pool.texts[row].as_py() if reading.layout.instruction == "both" else ""
    assert text == expected


def test_slots_of_a_batch_name_rows_of_their_task(records, shop, semantic_ids, reading, pool):
    """Each instructed branch begins with a slot; history supervision has none."""
    batch = make_batches(records, shop, semantic_ids, reading, pool=pool)[0]
    slot = PromptTables.make(shop, semantic_ids, reading.layout, V, True).instruction_token
    is_slot = batch["item"] <= INSTRUCTION
    np.testing.assert_array_equal(is_slot, batch["token"] == slot)
    number = {pair: n for pair, n in pool.place.items()}
    tasks_of_row = np.repeat([task for task, _ in number], np.diff(pool.offsets))
    seen = 0
    for row, target in zip(*np.nonzero(batch["target_weight"]), strict=True):
        start = batch["start_position"][row, target]
        branch = batch["branch"][row, start]
        slots = np.flatnonzero(is_slot[row] & (batch["branch"][row] == branch) & (branch > 0))
        task = batch["target_task"][row, target]
        assert len(slots) == (task != HISTORY_TASK)
        for place in slots:
            assert tasks_of_row[INSTRUCTION - batch["item"][row, place]] == task
            seen += 1
    assert seen > 5
