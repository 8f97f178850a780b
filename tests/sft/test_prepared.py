"""Records, batches and prompts of the data that `prepare` writes."""

import numpy as np
from shop_fixtures import changed_prompt

from sigma_jax.prompts.inference import assemble_prompts
from sigma_jax.prompts.layout import HISTORY_TASK
from sigma_jax.prompts.packing import batches
from sigma_jax.prompts.records import write_records
from sigma_jax.prompts.sampling import training_tables
from sigma_jax.schema import TASKS, SemanticIds
from sigma_jax.tasks.constraints import allowed_items
from sigma_jax.tasks.instructions import available_tasks
from sigma_jax.tasks.requests import make_requests


def test_prepared_data_become_batches_and_prompts(prepared, config, tmp_path):
    reasons = available_tasks(prepared)
    assert not any(reasons.values()), reasons
    written = write_records(prepared, config, tmp_path, seed=0)
    codes = np.random.default_rng(0).integers(0, 5, (len(prepared.catalogue), 3))
    semantic_ids = SemanticIds(codes.astype(np.int32), 5)
    vocabulary = 60_000  # no tokenizer of the tests is larger
    config = changed_prompt(config, row_tokens=400, row_targets=20, instruction_tokens=40)
    arguments = (prepared, semantic_ids, config, vocabulary)
    data = batches(tmp_path, *arguments, seed=1, batch_rows=4)
    seen = np.zeros(len(TASKS) + 1, np.int64)
    for step in range(20):
        batch = data[step]
        is_target = batch["target_weight"] > 0
        seen += np.bincount(batch["target_task"][is_target], minlength=len(seen))
        assert (batch["token"] <= vocabulary + 3 * 5 + 1).all()
        assert (batch["item"] < len(prepared.catalogue)).all()
        queries = np.take_along_axis(batch["token"], batch["query_position"], axis=1)
        assert (queries[is_target] == vocabulary + 3 * 5 + 1).all()
    for task in (*TASKS, "history"):
        index = HISTORY_TASK if task == "history" else TASKS.index(task)
        assert seen[index] > 0, task
    assert written["contexts"] > 0

    tables, _ = training_tables(*arguments)
    requests = make_requests(prepared, "test", 0, 50, config.targets.longtail_share)
    prompts = assemble_prompts(requests, prepared.histories, tables, 200)
    assert (prompts["length"] > 0).all()
    allowed = allowed_items(prepared, requests)
    for row in np.flatnonzero(allowed.row >= 0):
        assert requests.target[row] in allowed.of(row)
