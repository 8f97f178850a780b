"""A workdir answers a known user as its export does, given the user's history."""

import json

import pytest
from small_export import users_of, write_rows

from sigma_jax.recommend import recommend_file, recommend_one
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.workdir import load_workdir
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.engine import CatalogueSnapshot, SnapshotSettings

BEAMS = 4


@pytest.mark.slow
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_command_prints_the_items_of_an_export_given_the_same_history(
    trained, exported, tmp_path, exclude_seen
):
    data = load_workdir(trained[1]).data
    options = RecommendOptions(5, exclude_seen)
    snapshot = CatalogueSnapshot.load(Bundle.open(exported), settings=SnapshotSettings(beams=BEAMS))
    rows = users_of(data, 3)
    path = write_rows(tmp_path / "users.jsonl", rows)
    recommend_file(snapshot, str(path), tmp_path / "found.jsonl", options)
    answers = map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())
    for row, answer in zip(rows, answers, strict=True):
        printed = recommend_one(trained[1], row["user_id"], row["instruction"], BEAMS, options)
        shown = [line.split("  ")[-2] for line in printed.splitlines()[2:]]
        assert shown == [item["item_id"] for item in answer["items"]]


def test_an_open_workdir_answers_with_the_settings_it_was_trained_with(trained):
    opened = load_workdir(trained[1])
    assert opened.recommender.generator.config == opened.recommender.spec.generation
    assert opened.parser.known is opened.data
    fewer = load_workdir(trained[1], beams=2)
    assert fewer.recommender.generator.config.num_beams == 2
