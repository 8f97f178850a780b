"""Covisits that a training keeps beside the recommender."""

import json
import shutil

import numpy as np

from sigma_jax.baselines.registry import specs
from sigma_jax.reranking.history.covisitation import count_covisits, kept_counts
from sigma_jax.schema import PreparedData


def test_a_training_keeps_its_counts(trained):
    _, workdir = trained
    data = PreparedData.load(workdir / "data")
    expected = count_covisits(data.histories, len(data.catalogue))
    assert expected.nnz and (kept_counts(workdir) != expected).nnz == 0


def test_counts_of_other_data_are_not_read(trained, tmp_path):
    for name in ("data", "counts"):
        shutil.copytree(trained[1] / name, tmp_path / name)
    assert kept_counts(tmp_path) is not None
    manifest = tmp_path / "counts" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["inputs"]["data"] = "of another log"
    manifest.write_text(json.dumps(content))
    assert kept_counts(tmp_path) is None
    shutil.rmtree(tmp_path / "counts")
    assert kept_counts(tmp_path) is None


def test_the_baseline_reads_counts_that_are_there(trained):
    data = PreparedData.load(trained[1] / "data")
    counted = count_covisits(data.histories, len(data.catalogue))
    fitted = [
        specs(data, {}, 0, covisits=given)["Co-visitation"].count(data).covisits.toarray()
        for given in (lambda data: None, lambda data: counted, lambda data: 2 * counted)
    ]
    np.testing.assert_allclose(fitted[0], fitted[1])
    np.testing.assert_allclose(2 * fitted[0], fitted[2], rtol=1e-6)
