"""A catalogue that changes without training."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from small_export import new_items, only, users_of, write_rows

from sigma_jax.models.hf import load_backbone
from sigma_jax.models.weights import named_parameters
from sigma_jax.recommender.parts import ITEM_ROWS, RecommenderParts
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.reranking.history.embedding_neighbours import nearest_items
from sigma_jax.serving.bundle import MANIFEST, Bundle, export
from sigma_jax.serving.catalogue_update import (
    add_items,
    extended_neighbours,
    read_ids,
    read_items,
    set_active,
)
from sigma_jax.serving.engine import CatalogueSnapshot, SnapshotSettings


def as_new(data, rows) -> list[dict]:
    """Items of the catalogue under new ids, which their texts do not hold."""
    return [{"item_id": f"copy{row}", **json.loads(data.catalogue.texts([row])[0])} for row in rows]


def with_items(export_copy, data, tmp_path, rows, name="items.jsonl"):
    bundle = Bundle.open(export_copy)
    items = read_items(str(write_rows(tmp_path / name, rows)), bundle)
    return bundle, add_items(bundle, bundle.version(), items, {})


def test_an_item_with_the_text_of_another_gets_its_vectors_and_codes(export_copy, data, tmp_path):
    """Its text alone decides; other vectors are means of its neighbours' vectors."""
    bundle, version = with_items(export_copy, data, tmp_path, as_new(data, [5, 17]))
    first = bundle.version()
    for place, row in enumerate((5, 17)):
        number = len(first) + place
        assert version.catalogue.texts([number]) == data.catalogue.texts([row])
        np.testing.assert_allclose(
            version.vectors["text"][number], first.vectors["text"][row], atol=1e-5
        )
        assert version.catalogue.category[number] == data.catalogue.category[row]
        neighbours = np.argsort(-first.vectors["text"] @ version.vectors["text"][number])[:10]
        for kind in ("id", "image"):
            expected = first.vectors[kind][neighbours].mean(axis=0)
            np.testing.assert_allclose(version.vectors[kind][number], expected, atol=1e-5)
    assert (version.semantic_ids.codes[: len(first)] == first.semantic_ids.codes).all()


@pytest.mark.slow
def test_new_items_are_recommended_at_once_and_old_answers_stay(export_copy, data, tmp_path):
    bundle, version = with_items(export_copy, data, tmp_path, new_items(3))
    settings = SnapshotSettings("tea", beams=8)
    before = CatalogueSnapshot.load(bundle, settings=settings)
    assert version.catalogue.categories.to_pylist()[-1] == "Novelties"
    assert bundle.add_version(version, "three soaps") == "0002"
    assert bundle.state()["active"] == "0001"
    bundle.activate("0002")
    after = CatalogueSnapshot.load(Bundle.open(export_copy), settings=settings)
    path = write_rows(tmp_path / "u.jsonl", users_of(data, 6))
    batch = only(after.parser.read(str(path), 9))
    count = len(version)
    options = RecommendOptions(count)
    new, old = after.recommend(batch, options), before.recommend(batch, options)
    for row in range(6):
        assert sorted(new.items[row]) == list(range(count))
        order = [item for item in new.items[row] if item < count - 3]
        assert np.corrcoef(np.argsort(order), np.argsort(old.items[row][: count - 3]))[0, 1] > 0.95
    rows = [{"user_id": "x", "history": ["new1", "i003"]}]
    batch = only(after.parser.read(str(write_rows(tmp_path / "v.jsonl", rows)), 9))
    assert batch.histories.item[:2].tolist() == [count - 2, 3]
    assert (after.recommend(batch, RecommendOptions(5)).items >= 0).all()


def test_any_version_can_be_activated_and_rolled_back(export_copy, data, tmp_path):
    bundle, version = with_items(export_copy, data, tmp_path, new_items(1))
    second = bundle.add_version(version, "one more")
    third = bundle.add_version(set_active(version, ["i000", "new0"], False), "two less")
    assert bundle.names() == ["0001", second, third]
    bundle.activate(second)
    bundle.activate(third)
    bundle.activate(third)
    assert bundle.version().is_active.sum() == len(version) - 2
    assert bundle.rollback() == second and bundle.rollback() == "0001"
    with pytest.raises(ValueError, match="no version was active before 0001"):
        bundle.rollback()
    with pytest.raises(ValueError, match="has no version '0009'; it has 0001, 0002, 0003"):
        bundle.activate("0009")
    bundle.activate(second)
    bundle.activate(third)
    shutil.rmtree(export_copy / "catalogue" / second)
    with pytest.raises(ValueError, match=second):
        bundle.rollback()
    assert bundle.state()["active"] == third


@pytest.mark.parametrize("files", [None, ["a"], {"a": 1}])
def test_a_manifest_with_a_malformed_list_of_files_is_damaged(export_copy, files):
    path = export_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"files": files}))
    with pytest.raises(ValueError, match=r"manifest.json is missing or damaged"):
        Bundle.open(export_copy)


def test_items_that_cannot_be_added_or_removed_are_named(export_copy, data, tmp_path):
    bundle = Bundle.open(export_copy)
    first = bundle.version()

    def complaint(call, *arguments):
        with pytest.raises(ValueError) as caught:
            call(*arguments)
        return str(caught.value)

    path = str(write_rows(tmp_path / "twice.jsonl", [*new_items(2), *new_items(1)]))
    for call in (lambda: read_items(path, bundle), lambda: read_ids(path)):
        assert "row 3: item_id='new0' is in row 1 too" in complaint(call)
    known = read_items(str(write_rows(tmp_path / "old.jsonl", as_new(data, [1]))), bundle)
    known = known.set_column(0, "item_id", [["i001"]])
    assert complaint(add_items, bundle, first, known, {}).startswith(
        "row 1: item_id='i001' is in the catalogue already"
    )
    items = read_items(str(write_rows(tmp_path / "new.jsonl", new_items(2))), bundle)
    wrong = {"id": np.zeros((2, 3), np.float32)}
    assert "id vectors have shape (2, 3); the new items need (2, 16)" in complaint(
        add_items, bundle, first, items, wrong
    )
    assert complaint(set_active, first, ["gone"], False) == (
        "item 'gone' is not in the catalogue; check the file."
    )
    everything = first.catalogue.table["item_id"].to_pylist()
    assert "leave one at least" in complaint(set_active, first, everything, False)
    bare = str(write_rows(tmp_path / "bare.jsonl", [{"item_id": "bare"}]))
    assert "has none of the columns title, brand, category, price" in complaint(
        read_items, bare, bundle
    )
    assert "'i001' was not removed" in complaint(set_active, first, ["i001"], True)
    gone = set_active(first, ["i001"], False)
    np.testing.assert_array_equal(set_active(gone, ["i001"], True).is_active, first.is_active)


def test_the_text_of_a_new_item_is_made_as_in_training(export_copy, tmp_path):
    bundle = Bundle.open(export_copy)
    row = new_items(1)[0]
    path = tmp_path / "new.csv"
    names = ["price", "colour", *[name for name in row if name != "price"]]
    values = [str((row | {"colour": "red"})[name]) for name in names]
    path.write_text(",".join(names) + "\n" + ",".join(values) + "\n")
    plain = read_items(str(write_rows(tmp_path / "new.jsonl", [row])), bundle)
    assert read_items(str(path), bundle)["text"].to_pylist() == plain["text"].to_pylist()


def test_neighbour_lists_do_not_grow_with_the_catalogue():
    vectors = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = nearest_items(vectors[:70], 5)
    for start in (70, 80, 90):
        near = extended_neighbours(near, vectors[: start + 10], start, 5)
        sizes = np.diff(near.indptr)
        assert sizes.max() == 5 and (sizes[start:] == 5).all()
    expected = nearest_items(vectors, 5)
    np.testing.assert_allclose(near[90:].toarray(), expected[90:].toarray(), atol=1e-5)
    assert near[:70, 70:].nnz > 50  # lists of old items hold new ones


def test_given_vectors_of_new_items_are_kept(export_copy, data, tmp_path):
    bundle = Bundle.open(export_copy)
    items = read_items(str(write_rows(tmp_path / "new.jsonl", new_items(2))), bundle)
    given = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    version = add_items(bundle, bundle.version(), items, {"id": given})
    np.testing.assert_array_equal(version.vectors["id"][-2:], given)


@pytest.mark.parametrize(
    "name", ["model/weights.safetensors", "model/backbone/model.safetensors", "model/items.json"]
)
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_damaged_export_is_refused(export_copy, name, how):
    path = export_copy / name
    if how == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is {how}"):
        Bundle.open(export_copy)


def test_a_damaged_version_is_refused_and_the_one_before_serves(export_copy, data, tmp_path):
    bundle, version = with_items(export_copy, data, tmp_path, new_items(1))
    bundle.activate(bundle.add_version(version, "one more"))
    path = export_copy / "catalogue" / "0002" / "fused.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"fused\.npy is damaged"):
        bundle.version()
    bundle.rollback()
    assert len(bundle.version()) == len(version) - 1


def test_other_formats_and_other_folders_are_refused(export_copy, tmp_path):
    manifest = json.loads((export_copy / MANIFEST).read_text())
    (export_copy / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ValueError, match="has format 99"):
        Bundle.open(export_copy)
    with pytest.raises(ValueError, match="is no export"):
        Bundle.open(tmp_path)


def test_a_failed_export_leaves_nothing_behind(trained, exported, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="exists already"):
        export(trained[1], exported)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("sigma_jax.serving.bundle.first_version", fail)
    with pytest.raises(OSError, match="disk full"):
        export(trained[1], tmp_path / "half")
    assert not list(tmp_path.iterdir())


def test_orbax_holds_the_backbone_as_it_was_trained(trained, data, tmp_path):
    """The recommender that answers may hold it in fewer bits."""
    workdir = shutil.copytree(trained[1], tmp_path / "workdir")
    path = workdir / "sft" / "recommender.json"
    stored = json.loads(path.read_text())
    stored["backbone"]["dtype"] = "bfloat16"
    path.write_text(json.dumps(stored))
    export(workdir, tmp_path / "out")
    stored = ocp.load(tmp_path / "out" / "model" / "orbax")
    backbone = load_backbone(workdir / "sft" / "backbone", dtype="float32", param_dtype="float32")
    network = RecommenderParts.of_workdir(workdir, data).network
    assert network.backbone.layers["gate"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(stored["backbone.layers.gate"], backbone.layers["gate"][...])


def test_orbax_and_safetensors_hold_the_same_parameters(trained, exported, data):
    network = RecommenderParts.of_workdir(trained[1], data).network
    named = {name: np.asarray(value[...]) for name, value in named_parameters(network).items()}
    stored = ocp.load(exported / "model" / "orbax")
    assert stored.keys() == named.keys()
    for name, value in named.items():
        np.testing.assert_array_equal(np.asarray(stored[name]), value, err_msg=name)
    bundle = Bundle.open(exported)
    exported_network = bundle.parts(bundle.version()).network
    for name, value in named_parameters(exported_network).items():
        array = np.asarray(value[...])
        if name.startswith(ITEM_ROWS):  # it has room for more items
            array = array[: len(named[name])]
        np.testing.assert_array_equal(array, named[name], err_msg=name)
