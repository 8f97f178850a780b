"""Stage 3: trained parameters, reports, rankers, resuming, devices, refitting."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from processes import environment
from safetensors.numpy import load_file
from small_task import make_task, model_fields, placed

from sigma_jax.data.pipeline import open_shards
from sigma_jax.models.linear import INPUT_AXES
from sigma_jax.prompts.records import RECORDS, Record
from sigma_jax.recommender.parts import BEFORE_REFIT, RecommenderParts
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import PreparedData, SemanticIds
from sigma_jax.stages import stage_fields
from sigma_jax.train import train as train_stages

ROOT = Path(__file__).parents[2]


def loaded(workdir: Path, part: str = "") -> RecommenderParts:
    """The recommender of a trained workdir."""
    return RecommenderParts.of_workdir(workdir, PreparedData.load(workdir / "data"), part)


def generation_fields(trained, ranker: str) -> dict:
    """The settings of generation with another ranker."""
    return stage_fields(trained[0], "sft")[0]["generation"].to_dict() | {"ranker": ranker}


def test_trained_tables_move_and_frozen_ones_do_not(trained, task):
    _, workdir = trained
    before = task.model(nnx.Rngs(0))
    after = loaded(workdir).network
    assert not np.array_equal(before.sid_table[...], after.sid_table[...])
    trained_ids = before.item_encoder.trained["id"][...]
    assert not np.array_equal(trained_ids, after.item_encoder.trained["id"][...])
    assert "text" in task.tables() and "id" not in task.tables()
    assert task.param_group(("item_encoder", "trained", "id")) == "table"


def test_the_sid_table_learns_as_a_table_and_the_backbone_as_the_base(task):
    assert task.param_group(("sid_table",)) == "table"
    assert task.param_group(("backbone", "embedding")) == "base"


@pytest.mark.slow
def test_report_gives_hit_rates_of_every_task_there_is(task, model):
    rates = task.report(model, placed(task.tables()))
    assert {"hr10_item", "hr10_sid", "hr10_item_JustForYou", "hr10_sid_Query"} <= rates.keys()
    assert all(rates[f"hr10_sid{rest}"] >= rates[f"hr10_item{rest}"] for rest in ("", "_Query"))
    assert all(0 <= value <= 1 for value in rates.values())


@pytest.mark.slow
def test_a_network_without_an_item_head_is_reranked_after_three_steps_only(trained):
    fields = model_fields(trained, has_item_head=False)
    with pytest.raises(ValueError, match=r'has_item_head=True, or generation\.ranker="three_step"'):
        make_task(trained, model=fields, generation=generation_fields(trained, "exhaustive"))
    task = make_task(trained, model=fields)
    model = task.model(nnx.Rngs(0))
    reranker, fitted = task.fit_reranker(model, placed(task.tables()), task.fit_requests())
    assert fitted["reranker_targets"] and reranker.weights is not None


def test_semantic_ids_of_another_catalogue_are_refused(trained, tmp_path):
    config, workdir = trained
    other = shutil.copytree(workdir, tmp_path / "other")
    codes = SemanticIds.load(other / "tokenizer")
    SemanticIds(np.asarray(codes.codes[:-1]), codes.codebook_size).save(other / "tokenizer")
    with pytest.raises(ValueError, match=r"59 semantic IDs for 60 items"):
        make_task((config, other)).batches()


def run_stages(tables: Path, workdir: Path, die_at: int = 0) -> int:
    words = [sys.executable, str(ROOT / "tests" / "tiny_run.py"), tables, workdir, str(die_at)]
    done = subprocess.run(words, env=environment(1), capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9), done.stderr[-2000:]
    return done.returncode


def without_stage_3(trained, folder: Path) -> Path:
    other = shutil.copytree(trained[1], folder / "second")
    shutil.rmtree(other / "sft")
    shutil.rmtree(other / "train" / "sft")
    return other


def weights(workdir: Path) -> dict[str, np.ndarray]:
    own = load_file(workdir / "sft" / "weights.safetensors")
    return own | load_file(workdir / "sft" / "backbone" / "model.safetensors")


@pytest.mark.slow
def test_a_killed_stage_3_ends_with_the_same_bits(trained, tables_folder, tmp_path):
    other = without_stage_3(trained, tmp_path)
    assert run_stages(tables_folder, other, die_at=8) == -9
    assert not (other / "sft").exists()
    assert run_stages(tables_folder, other) == 0
    expected, found = weights(trained[1]), weights(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    logs = [w / "train" / "sft" / "metrics.jsonl" for w in (trained[1], other)]
    assert logs[0].read_text().count("\n") == logs[1].read_text().count("\n")


@pytest.mark.slow
def test_with_lora_the_saved_backbone_is_that_of_grounding_plus_the_adapters(trained, tmp_path):
    config, workdir = trained
    other = without_stage_3(trained, tmp_path)
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.backbone.lora_rank = 2
    train_stages(changed, other, make_mesh(MeshConfig(-1, 1, 1)))
    before = load_file(workdir / "grounding" / "backbone" / "model.safetensors")
    after = load_file(other / "sft" / "backbone" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert np.array_equal(value, after[name]) == (not name.endswith("_proj.weight")), name
        if name.endswith("_proj.weight"):
            assert np.linalg.matrix_rank(after[name] - value, tol=1e-6) == 2
    start = make_task((changed, other)).model(nnx.Rngs(0))
    moved = loaded(other).network
    assert moved.backbone.config.lora is None
    for name in ("sid_table", "up_projection", "item_head"):
        assert not np.array_equal(getattr(start, name)[...], getattr(moved, name)[...])


@pytest.mark.slow
def test_lora_in_16_bits_is_folded_before_anything_is_fitted(trained, tmp_path, monkeypatch):
    """Item vectors, head weights and reranker belong to the weights that are saved."""
    config, _ = trained
    other = without_stage_3(trained, tmp_path)
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.backbone.update(lora_rank=2, param_dtype="bfloat16")
    task = make_task((changed, other))
    model = task.model(nnx.Rngs(0))
    for name in INPUT_AXES:
        weight = model.backbone.layers[name + "_b"]
        weight[...] = weight[...] + 0.01
    (tmp_path / "out").mkdir()
    fitted, fit_head_weights = [], task.fit_head_weights

    def spy(model, *arguments):
        fitted.append(np.asarray(model.backbone.layers["gate"][0], np.float32))
        return fit_head_weights(model, *arguments)

    monkeypatch.setattr(task, "fit_head_weights", spy)
    task.finish(model, placed(task.tables()), tmp_path / "out")
    saved = load_file(tmp_path / "out" / "backbone" / "model.safetensors")
    [kept] = fitted
    stored = np.asarray(saved["model.layers.0.mlp.gate_proj.weight"], np.float32)
    np.testing.assert_array_equal(stored.T, kept)


def test_cold_items_are_negatives_only_where_the_config_says_so(trained):
    without, all_items = (
        make_task(trained, has_cold_negatives=value).tables() for value in (False, True)
    )
    popularity = np.asarray(make_task(trained).data.catalogue.popularity)
    np.testing.assert_array_equal(without["is_cold"], popularity == 0)
    assert (popularity == 0).any() and not all_items["is_cold"].any()
    assert sorted(without["by_prefix"]) == np.flatnonzero(popularity).tolist()
    assert sorted(all_items["by_prefix"]) == list(range(len(popularity)))


def test_codes_start_at_their_items_only_where_the_config_says_so(trained):
    at_items, at_random = (
        make_task(trained, starts_codes_at_items=value).model(nnx.Rngs(0))
        for value in (True, False)
    )
    assert not np.allclose(at_items.sid_table[...], at_random.sid_table[...], atol=1e-3)
    np.testing.assert_array_equal(at_items.up_projection[...], at_random.up_projection[...])


def test_a_recommender_of_an_earlier_version_is_refused(trained, tmp_path):
    other = shutil.copytree(trained[1], tmp_path / "old")
    path = other / "sft" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["format"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"/old/sft was made by an earlier version .* and run again"
    ):
        loaded(other)


def test_refitting_sees_validation_targets_and_no_test_target(trained):
    task = make_task(trained, refits=True)
    refit = task.refit()
    assert make_task(trained).refit() is None
    histories = task.data.histories

    def only_in(user: int, start: int, end: int) -> set[int]:
        """Items of some rows of a user that the user did not take before."""
        before = histories.item[histories.offsets[user] : start]
        return set(histories.item[start:end].tolist()) - set(before.tolist())

    def items_of_users(folder) -> dict[int, set[int]]:
        """All items of each user's records, targets included."""
        found, shards = defaultdict(set), open_shards(folder, RECORDS)
        for number in range(len(shards)):
            record = Record.from_bytes(shards[number])
            found[record.user] |= {*record.item.tolist(), *record.target.tolist()}
        return found

    num_valid = num_test = 0
    before, after = items_of_users(task.records), items_of_users(refit.records)
    for user in range(histories.num_users):
        valid, test = histories.valid_start[user], histories.test_start[user]
        of_valid = only_in(user, valid, test)
        of_test = only_in(user, test, histories.offsets[user + 1])
        num_valid += len(of_valid & after[user])
        num_test += len(of_test)
        assert not before[user] & (of_valid | of_test) and not after[user] & of_test
    assert num_valid > 20 and num_test > 20
    assert not len(refit.validation({"JustForYou": 50}))


@pytest.mark.slow
def test_a_refit_keeps_the_reranker_s_weights_and_changes_network_and_counts(trained, tmp_path):
    config, _ = trained
    other = without_stage_3(trained, tmp_path)
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.refits = True
    train_stages(changed, other, make_mesh(MeshConfig(-1, 1, 1)))
    assert (other / "train" / "sft" / "refit" / "checkpoints").exists()
    expected, found = weights(trained[1]), weights(other)
    assert any(not np.array_equal(found[name], value) for name, value in expected.items())
    before, after = (loaded(folder).reranker for folder in (trained[1], other))
    kept = dict(nnx.to_flat_state(nnx.state(loaded(other, BEFORE_REFIT).network)))
    for name, value in nnx.to_flat_state(nnx.state(loaded(trained[1]).network)):
        same = kept[name]
        np.testing.assert_array_equal(value.get_value(), same.get_value())
    assert before.weights == after.weights
    of_both = [reranker.tables.relations.covisitation.sum() for reranker in (before, after)]
    assert of_both[0] < of_both[1]
    assert len(after.tables.trends.item) > len(before.tables.trends.item)
