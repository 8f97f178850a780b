"""An export with the index of ScaNN: it finds what an exact search finds, and follows updates."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_export import new_items, only, users_of, write_rows

from sigma_jax.catalogue import listed
from sigma_jax.export import about_retrieval
from sigma_jax.index import scann_searcher as searcher
from sigma_jax.index.host_index import HostIndex
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.serving import bundle as bundle_module
from sigma_jax.serving.bundle import Bundle, export
from sigma_jax.serving.catalogue_update import add_items, read_items, set_active
from sigma_jax.serving.engine import CatalogueSnapshot, RecommendationEngine, SnapshotSettings

COUNT = 10


@pytest.fixture(scope="module")
def indexed(trained, tmp_path_factory) -> Path:
    """An export for the exhaustive ranker, whose one prefix ScaNN searches; read only."""
    workdir = shutil.copytree(trained[1], tmp_path_factory.mktemp("exhaustive") / "run")
    path = workdir / "sft" / "recommender.json"
    spec = json.loads(path.read_text())
    spec["generation"]["ranker"] = "exhaustive"
    path.write_text(json.dumps(spec))
    folder = tmp_path_factory.mktemp("indexed") / "small"
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(HostIndex, scann_above=16)
        patch.setattr(bundle_module, "HostIndex", small)
        manifest = export(workdir, folder, "scann")
    shown = about_retrieval(manifest)
    assert shown.startswith(f"ScaNN searches {len(manifest['recall'])} prefixes")
    return folder


def lists(snapshot, rows, tmp_path):
    path = write_rows(tmp_path / "users.jsonl", rows)
    batch = only(snapshot.parser.read(str(path), 100))
    return snapshot.recommend(batch, RecommendOptions(COUNT))


def settings(retrieval: str = "") -> SnapshotSettings:
    return SnapshotSettings(beams=8, retrieval=retrieval)


def has_host_index(snapshot) -> bool:
    return snapshot.recommender.generator.host_index is not None


def same_lists(bundle, rows, tmp_path):
    """The lists by ScaNN, which are those of the exact search but for what ScaNN may miss."""
    both = [CatalogueSnapshot.load(bundle, settings=settings(kind)) for kind in ("", "exact")]
    assert [has_host_index(snapshot) for snapshot in both] == [True, False]
    found, expected = (lists(snapshot, rows, tmp_path) for snapshot in both)
    overlap = [len(set(a) & set(b)) for a, b in zip(found.items, expected.items, strict=True)]
    assert np.mean(overlap) >= 0.9 * COUNT
    first = found.items[:, 0] == expected.items[:, 0]
    np.testing.assert_allclose(found.log_probs[first, 0], expected.log_probs[first, 0], atol=0.1)
    return found


@pytest.mark.slow
def test_an_index_is_exported_and_follows_the_catalogue(indexed, data, tmp_path):
    folder = Path(shutil.copytree(indexed, tmp_path / "folder"))
    bundle, rows = Bundle.open(folder), users_of(data, 12)
    found = same_lists(bundle, rows, tmp_path)
    engine = RecommendationEngine(folder, settings())
    removed = np.unique(found.items[:, 0])[:3]
    version = bundle.version()
    assert set(version.index.recall) and min(version.index.recall.values()) >= searcher.RECALL
    ids = version.catalogue.ids(removed)
    bundle.activate(bundle.add_version(set_active(version, ids, False), "less"))
    assert not np.isin(same_lists(bundle, rows, tmp_path).items, removed).any()
    items = read_items(str(write_rows(tmp_path / "new.jsonl", new_items(40))), bundle)
    name = bundle.add_version(add_items(bundle, bundle.version(), items, {}), "more")
    bundle.activate(name)
    found = same_lists(bundle, rows, tmp_path)
    assert engine.refresh() and has_host_index(engine.current)
    of_engine = lists(engine.current, rows, tmp_path)
    np.testing.assert_array_equal(of_engine.items, found.items)
    restored = set_active(bundle.version(), ids, True)
    bundle.activate(bundle.add_version(restored, "restored"))
    same_lists(bundle, rows, tmp_path)
    assert "ScaNN's recall" in listed(bundle)
    bundle.activate("0001")
    same_lists(bundle, rows, tmp_path)


def test_without_scann_the_exact_search_still_works(indexed, data, tmp_path, monkeypatch):
    monkeypatch.setattr(searcher, "HAS_SCANN", False)
    bundle = Bundle.open(indexed)
    with pytest.raises(ValueError, match="--retrieval=exact"):
        CatalogueSnapshot.load(bundle)
    snapshot = CatalogueSnapshot.load(bundle, settings=settings("exact"))
    assert (lists(snapshot, users_of(data, 2), tmp_path).items >= 0).all()


def test_a_hint_where_scann_would_be_faster():
    assert "largest holds 30 items" in about_retrieval({"largest_prefix": 30})
    assert "--retrieval=scann is faster" in about_retrieval({"largest_prefix": 30_000})
    assert "is exact" in about_retrieval({"largest_prefix": 30, "recall": []})
