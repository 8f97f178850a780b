"""ScaNN's index as part of an export: it finds what comparing all finds, and follows the items."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_export import new_items, one, users_of, write_rows

from sigma_jax.catalogue import listed
from sigma_jax.export import about_retrieval
from sigma_jax.index import scann_searcher as searcher
from sigma_jax.index.host_index import HostIndex
from sigma_jax.serving import bundle as bundle_module
from sigma_jax.serving.bundle import Bundle, export
from sigma_jax.serving.catalogue_update import add_items, read_items, set_active
from sigma_jax.serving.engine import Answering, Living
from sigma_jax.serving.requests import read_users

COUNT = 10


@pytest.fixture(scope="module")
def indexed(trained, tmp_path_factory) -> Path:
    """Read only; ScaNN searches its larger prefixes."""
    folder = tmp_path_factory.mktemp("indexed") / "small"
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(HostIndex, scann_above=16)
        patch.setattr(bundle_module, "HostIndex", small)
        said = export(trained[1], folder, "scann")
    assert about_retrieval(said).startswith(f"ScaNN searches {len(said['recall'])} prefixes")
    return folder


def lists(answering, rows, tmp_path):
    path = write_rows(tmp_path / "users.jsonl", rows)
    return answering.recommend(one(read_users(str(path), answering.reading, 100)), COUNT)


def same(bundle, rows, tmp_path) -> None:
    """Both ways of looking find the same, apart from what ScaNN may miss."""
    both = [Answering.of(bundle, beams=8, retrieval=kind) for kind in ("", "exact")]
    assert both[0].generator.host is not None and both[1].generator.host is None
    found, expected = (lists(answering, rows, tmp_path) for answering in both)
    overlap = [len(set(a) & set(b)) for a, b in zip(found.items, expected.items, strict=True)]
    assert np.mean(overlap) >= 0.9 * COUNT
    first = found.items[:, 0] == expected.items[:, 0]
    np.testing.assert_allclose(found.log_probs[first, 0], expected.log_probs[first, 0], atol=0.1)
    return found


def test_an_index_is_exported_and_follows_the_catalogue(indexed, data, tmp_path):
    own = Path(shutil.copytree(indexed, tmp_path / "own"))
    bundle, rows = Bundle.open(own), users_of(data, 12)
    found = same(bundle, rows, tmp_path)
    living = Living(own, beams=8)
    gone = np.unique(found.items[:, 0])[:3]
    version = bundle.version()
    assert set(version.index.recall) and min(version.index.recall.values()) >= searcher.RECALL
    ids = version.catalogue.ids(gone)
    bundle.activate(bundle.add_version(set_active(version, ids, False), "less"))
    assert not np.isin(same(bundle, rows, tmp_path).items, gone).any()
    items = read_items(str(write_rows(tmp_path / "new.jsonl", new_items(40))), bundle)
    name = bundle.add_version(add_items(bundle, bundle.version(), items, {}), "more")
    bundle.activate(name)
    found = same(bundle, rows, tmp_path)
    assert living.refresh() and living.now.generator.host is not None
    again = lists(living.now, rows, tmp_path)
    np.testing.assert_array_equal(again.items, found.items)
    back = set_active(bundle.version(), ids, True)
    bundle.activate(bundle.add_version(back, "back"))
    same(bundle, rows, tmp_path)
    assert "ScaNN's recall" in listed(bundle)
    bundle.activate("0001")
    same(bundle, rows, tmp_path)


def test_without_scann_all_can_still_be_compared(indexed, data, tmp_path, monkeypatch):
    monkeypatch.setattr(searcher, "HAS_SCANN", False)
    bundle = Bundle.open(indexed)
    with pytest.raises(ValueError, match="--retrieval=exact"):
        Answering.of(bundle)
    answering = Answering.of(bundle, beams=8, retrieval="exact")
    assert (lists(answering, users_of(data, 2), tmp_path).items >= 0).all()


def test_a_hint_where_scann_would_be_faster():
    assert "largest holds 30 items" in about_retrieval({"largest_prefix": 30})
    assert "--retrieval=scann is faster" in about_retrieval({"largest_prefix": 30_000})
    assert "compared whole" in about_retrieval({"largest_prefix": 30, "recall": []})
