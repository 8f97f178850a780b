"""A recommender whose instructions and items a pre-trained sentence encoder reads."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from small_export import new_items, only, users_of, write_rows
from tiny_run import tiny_run

from sigma_jax import train
from sigma_jax.data.vectors import item_vectors, unit_rows
from sigma_jax.models.item_encoder import INSTRUCTION
from sigma_jax.recommender.parts import RecommenderParts
from sigma_jax.recommender.recommender import (
    Recommender,
    RecommendOptions,
    with_general_instructions,
)
from sigma_jax.recommender.workdir import load_workdir
from sigma_jax.reranking.novelty import Novelty
from sigma_jax.reranking.reranker import FEATURES
from sigma_jax.reranking.semantic import SemanticArrays
from sigma_jax.runtime.artifacts import read_manifest
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import TASKS, PreparedData
from sigma_jax.serving.bundle import Bundle, export
from sigma_jax.serving.catalogue_update import add_items, read_items
from sigma_jax.serving.engine import CatalogueSnapshot, RecommendationEngine, SnapshotSettings

ENCODER = Path(__file__).parents[1] / "golden" / "encoder_bert"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spoken(tables_folder, tmp_path_factory):
    """A workdir that is trained with the encoder."""
    tables = tmp_path_factory.mktemp("tables") / "shop"
    shutil.copytree(tables_folder, tables)
    for path in tables.glob("text_vectors.*"):
        path.unlink()
    changes = {"data.text_encoder": str(ENCODER), "reranker.fit_requests": 300}
    config = tiny_run(tables, **changes)
    workdir = tmp_path_factory.mktemp("spoken")
    train.train(config, workdir, make_mesh(MeshConfig(-1, 1, 1)))
    return workdir


@pytest.fixture(scope="module")
def export_of(spoken, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "shop"
    export(spoken, folder)
    return folder


@pytest.fixture
def lowered(monkeypatch):
    """The durations of programs that are made ready; read its length."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_new_item_and_a_new_category_need_no_program(export_of, data, tmp_path, lowered):
    """Instructions and histories are answered by the programs of the version before."""
    folder = tmp_path / "shop"
    shutil.copytree(export_of, folder)
    engine, bundle = RecommendationEngine(folder), Bundle.open(folder)
    rows = users_of(data, 3)
    for row in rows:
        row["instruction"] = "something warm for a rainy day"
    engine.recommend(rows)
    assert lowered
    [item] = new_items(1)
    for more in ({}, {"item_id": "another", "category": "never seen"}):
        path = write_rows(tmp_path / "new.jsonl", [item | more])
        before = engine.current.version
        bundle.add_version(add_items(bundle, before, read_items(str(path), bundle), {}), "more")
        bundle.activate(bundle.names()[-1])
        count = len(lowered)
        assert engine.refresh()
        engine.recommend(rows)
        assert len(lowered) == count
    assert len(engine.current.version.catalogue) == len(before.catalogue) + 1


def test_the_encoder_replaces_grounding_and_prompts_hold_vectors(spoken):
    assert not (spoken / "grounding").exists()
    data = PreparedData.load(spoken / "data")
    vectors, plain = item_vectors(spoken)["text"], data.text_vectors
    width = plain.shape[1]
    assert vectors.shape[1] == width + 64
    np.testing.assert_allclose(unit_rows(vectors[:, :width]), unit_rows(plain), atol=1e-6)
    assert read_manifest(spoken, "instructions").inputs.keys() == {"data", "grounding_head"}
    parts = RecommenderParts.of_workdir(spoken, data)
    assert parts.spec.layout.has_instruction_vectors and parts.reranker.novelty is not None
    assert len(parts.reranker.weights.calibration) == len(parts.reranker.weights.of["ease"])
    opened = load_workdir(spoken)
    path = write_rows(spoken / "u.jsonl", users_of(data, 3))
    batch = only(opened.parser.read(str(path), 9))
    prompts = opened.recommender.prompts(batch)
    assert (prompts.items <= INSTRUCTION).sum(axis=1).tolist() == [1, 1, 1]
    expected = parts.encoder(batch.requests.instruction)
    assert expected.shape[1] == vectors.shape[1]
    np.testing.assert_allclose(prompts.instructions[:, 0], expected, atol=1e-6)


def test_a_novel_instruction_is_read_as_a_general_one_where_lists_are_reranked(spoken, monkeypatch):
    opened = load_workdir(spoken)
    recommender, reranker = opened.recommender, opened.recommender.parts.reranker
    batch = only(
        opened.parser.read(str(write_rows(spoken / "u.jsonl", users_of(opened.data, 3))), 9)
    )
    variants = [RecommendOptions(6), RecommendOptions(6, reranks=False)]

    compare = Novelty.compare

    def answers(is_novel, **weights):
        def compared(novelty, texts, vectors):
            return compare(novelty, texts, vectors)[0], np.full(len(texts), is_novel)

        monkeypatch.setattr(Novelty, "compare", compared)
        changed = dataclasses.replace(reranker.weights, **weights)
        other = recommender.with_reranker(dataclasses.replace(reranker, weights=changed))
        return other.recommend_variants(batch, variants)

    rows = len(TASKS) + 1
    nothing = {
        "of": {name: (0.0,) * rows for name in FEATURES},
        "sigma": recommender.sigma(variants[1]),
    }
    known, novel = answers(False), answers(True, **nothing)
    np.testing.assert_array_equal(novel[1].items, known[1].items)
    texts = np.ones(len(batch.requests), bool)
    general = recommender.recommend(with_general_instructions(batch, texts), variants[1])
    np.testing.assert_array_equal(novel[0].items, general.items)
    np.testing.assert_allclose(novel[0].cosines, general.cosines, atol=1e-6)
    assert np.abs(general.cosines - known[1].cosines).max() > 1e-5


def test_the_export_answers_as_the_workdir_wherever_the_encoder_was(spoken, export_of):
    data = PreparedData.load(spoken / "data")
    path = write_rows(spoken / "u.jsonl", users_of(data, 6))
    opened = load_workdir(spoken)
    snapshot = CatalogueSnapshot.load(Bundle.open(export_of), settings=SnapshotSettings("tea"))
    batches = [only(parser.read(str(path), 9)) for parser in (opened.parser, snapshot.parser)]
    options = RecommendOptions(8)
    expected = opened.recommender.recommend(batches[0], options)
    found = snapshot.recommend(batches[1], options)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-3)
    assert (export_of / "model" / "sentence_encoder" / "modules.json").exists()
    assert (export_of / "model" / "grounding_head" / "weights.safetensors").exists()


def test_what_people_say_goes_with_the_export(spoken, export_of):
    data = PreparedData.load(spoken / "data")
    parts = RecommenderParts.of_workdir(spoken, data)
    bundle = Bundle.open(export_of)
    vectors, group = bundle.parts(bundle.version()).knowledge
    np.testing.assert_array_equal(vectors, parts.knowledge[0])
    np.testing.assert_array_equal(group, parts.knowledge[1])
    assert len(vectors) == len(data.knowledge.texts) > 1
    # The first text speaks of an item: its group is that of the item.
    assert data.knowledge.item[0] >= 0
    assert group[0] == data.catalogue.category[data.knowledge.item[0]]
    np.testing.assert_allclose(vectors[:1], parts.encoder(["the first one"]), atol=1e-5)
    recommender = Recommender(parts, parts.spec.generation)
    known = recommender._semantic_arrays()
    plain = SemanticArrays.make(recommender.generator.tables["text"], parts.group)
    counts = [int((one.group_of_text < one.num_groups).sum()) for one in (known, plain)]
    assert counts[0] == counts[1] + len(vectors)


def test_a_new_item_is_read_as_those_of_the_training(spoken, export_of, tmp_path):
    data = PreparedData.load(spoken / "data")
    row = {"item_id": "copy", **json.loads(data.catalogue.texts([5])[0])}
    bundle = Bundle.open(export_of)
    items = read_items(str(write_rows(tmp_path / "items.jsonl", [row, *new_items(1)])), bundle)
    version = add_items(bundle, bundle.version(), items, {})
    texts = version.vectors["text"]
    np.testing.assert_allclose(texts[len(data.catalogue)], texts[5], atol=1e-5)
    assert not np.allclose(texts[-1], texts[5])
