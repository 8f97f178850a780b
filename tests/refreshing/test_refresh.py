"""A refresh from the command's function: two days, the export, a rollback, a killed refresh."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sparse
from conftest import START
from ml_collections import ConfigDict

from sigma_jax import refresh as command
from sigma_jax.configs import refresh as configs
from sigma_jax.histories import training_rows
from sigma_jax.recommender.parts import BEFORE_REFIT
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.workdir import load_workdir
from sigma_jax.refresh import NewFiles, refresh
from sigma_jax.refreshing.lineage import Lineage
from sigma_jax.refreshing.stages import Refresh, add_counts
from sigma_jax.reranking.history.covisitation import count_covisits
from sigma_jax.runtime.artifacts import read_manifest
from sigma_jax.schema import DAY, PreparedData, SemanticIds
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.engine import RecommendationEngine, SnapshotSettings

ITEMS = [
    {
        "item_id": f"new{row}",
        "title": f"warm soap no {row}",
        "brand": "brand 2",
        "category": "Home > Soap",
        "price": 2.5 + row,
    }
    for row in range(2)
]


def config_of(**changes) -> ConfigDict:
    """The smoke preset with one step of the stage sft and few requests."""
    config = configs.get_config("smoke").unlock()
    config.steps = ConfigDict({"teacher": 1, "grounding": 0, "grounding_head": 0, "sft": 1})
    config.judge_requests = ConfigDict({"JustForYou": 6})
    config.update(changes)
    return config


def day_file(folder: Path, day: int) -> Path:
    """Rows of one day after the log: 12 users take three items each, some of them new ones."""
    rng, time = np.random.default_rng(day), START + (366 + day) * DAY
    names = [f"i{row:03d}" for row in range(60)] + ["new0", "new1"] * 8
    rows = [
        {
            "user_id": f"u{user:02d}",
            "item_id": names[rng.integers(0, len(names))],
            "timestamp": time + 60 * user,
            "session_id": f"day {day}, {user}",
        }
        for user in range(12)
        for _ in range(3)
    ]
    rows.append(rows[0] | {"user_id": f"newcomer {day}", "item_id": "i003"})
    path = folder / f"day{day}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def place(trained, exported, tmp_path_factory):
    """A folder with copies of the training (`run`) and of its export (`export`), and new files."""
    folder = tmp_path_factory.mktemp("refresh")
    shutil.copytree(trained[1], folder / "run")
    shutil.copytree(exported, folder / "export")
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ITEMS))
    for day in range(3):
        day_file(folder, day)
    return folder


def files_of(place: Path, day: int) -> NewFiles:
    return NewFiles(str(place / f"day{day}.jsonl"), str(place / "items.jsonl"))


@pytest.fixture(scope="module")
def first(place):
    """The outcome of the first day, with the export."""
    return refresh(config_of(), place / "run", files_of(place, 0), place / "export")


@pytest.fixture(scope="module")
def second(place, first):
    """The outcome of the second day, without the export; `copy` is `run` before it."""
    shutil.copytree(place / "run", place / "copy")
    return refresh(config_of(), place / "run", files_of(place, 1))


def test_a_refresh_is_a_workdir_that_recommends_new_items(place, first):
    before, after = (
        PreparedData.load(folder / "data") for folder in (place / "run", first.workdir)
    )
    assert (
        len(after.catalogue) == 62 and after.histories.num_users == before.histories.num_users + 1
    )
    opened = load_workdir(first.workdir)
    batch = opened.parser.parse([{"user_id": "newcomer 0", "instruction": "soap"}])
    answer = opened.recommender.recommend(batch, RecommendOptions(62, exclude_seen=False))
    assert {60, 61} <= set(answer.items[0].tolist())
    trends = opened.recommender.parts.reranker.tables.trends
    assert trends.number.sum() == len(training_rows(after.histories))


def test_the_first_refresh_adds_to_the_counts_of_the_training(place, first):
    data = PreparedData.load(first.workdir / "data")
    found = sparse.load_npz(first.workdir / "counts" / "covisits.npz")
    expected = count_covisits(data.histories, len(data.catalogue))
    assert expected.nnz
    np.testing.assert_allclose(found.toarray(), expected.toarray(), rtol=1e-6)


@pytest.mark.parametrize("is_refitted", [False, True])
def test_the_counts_of_a_start_are_read_unless_it_was_refitted(place, first, tmp_path, is_refitted):
    start = tmp_path / "start"
    shutil.copytree(place / "run", start, ignore=shutil.ignore_patterns("refresh", "train"))
    stored = start / "counts" / "covisits.npz"
    sparse.save_npz(stored, 2 * sparse.load_npz(stored))
    if is_refitted:
        (start / "sft" / BEFORE_REFIT).mkdir()
    work = tmp_path / "work"
    shutil.copytree(first.workdir / "data", work / "data")
    add_counts(Refresh(start, work, SimpleNamespace(), 0))
    total = sparse.load_npz(work / "counts" / "covisits.npz").sum()
    counted = sparse.load_npz(first.workdir / "counts" / "covisits.npz").sum()
    assert total == pytest.approx(counted) if is_refitted else total > 1.5 * counted


def test_codes_of_known_items_stay_and_the_drift_is_reported(place, first):
    before, after = (
        np.asarray(SemanticIds.load(folder / "tokenizer").codes)
        for folder in (place / "run", first.workdir)
    )
    np.testing.assert_array_equal(after[:60], before)
    drift = read_manifest(first.workdir, "tokenizer").metrics["drift"]
    assert drift["new_items"] == 2 and len(drift["code_distance"]) == 3


def test_the_judged_rows_are_those_that_no_recommender_was_trained_on(place, first):
    data = PreparedData.load(first.workdir / "data")
    judged = data.histories.test_users()
    assert 0 < len(judged) < 13
    assert (data.histories.time[data.histories.test_start[judged]] >= START + 366 * DAY).all()
    assert first.judgement["running"] == "0000" and first.judgement["requests"] > 0
    counted = np.bincount(data.histories.item[training_rows(data.histories)], minlength=62)
    np.testing.assert_array_equal(data.catalogue.popularity, counted)


def test_the_new_version_is_active_only_if_it_is_accepted(place, first):
    state = Bundle.open(place / "export").state()
    assert first.version == "0002"
    assert (state["active"] == "0002") == first.judgement["is_accepted"]


def test_the_same_command_does_nothing_and_respects_a_rollback(place, first):
    bundle = Bundle.open(place / "export")
    bundle.activate("0002")
    engine = RecommendationEngine(place / "export", SnapshotSettings(beams=4))
    rows = [{"user_id": "a", "instruction": "soap", "history": []}]
    refreshed = engine.recommend(rows, RecommendOptions(5))
    assert bundle.rollback() == "0001" and engine.refresh()
    assert engine.recommend(rows, RecommendOptions(5)) != refreshed
    again = refresh(config_of(), place / "run", files_of(place, 0), place / "export")
    assert again == first and Bundle.open(place / "export").names() == ["0001", "0002"]
    assert Bundle.open(place / "export").state()["active"] == "0001"


class Killed(Exception):
    """A kill at a chosen moment."""


def test_a_killed_refresh_continues_to_the_same_result(place, second, monkeypatch):
    """The second day is killed after its data, after its stages, and is then finished."""
    copy = place / "copy"
    for name in ("run_stages", "write_judgement"):
        with monkeypatch.context() as patch:
            patch.setattr(command, name, lambda *_: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                refresh(config_of(), copy, files_of(place, 1))
        assert Lineage(copy).finished == ["0000", "0001"]
    with pytest.raises(ValueError, match="was made from another input 'interactions'"):
        refresh(config_of(), copy, files_of(place, 2))
    continued = refresh(config_of(), copy, files_of(place, 1))
    for file in ("sft/weights.safetensors", "data/history_item.npy", "counts/covisits.npz"):
        assert (continued.workdir / file).read_bytes() == (second.workdir / file).read_bytes()
    names = ("ndcg", "ndcg_before", "difference", "error")
    assert [continued.judgement[n] for n in names] == [second.judgement[n] for n in names]


def test_the_next_day_starts_from_the_newest_data_and_the_running_recommender(place, first, second):
    """After a rollback of the export the first recommender runs; no row of day 0 is lost."""
    before = PreparedData.load(first.workdir / "data").histories
    lineage = Lineage(place / "run")
    Bundle.open(place / "export").activate("0001")
    bundle = Bundle.open(place / "export")
    assert lineage.running(bundle) == "0000"
    assert lineage.running(bundle, "0001") == "0001"
    with pytest.raises(ValueError, match=r"--start=7: .* use one of 0000, 0001"):
        lineage.running(None, "7")
    data = PreparedData.load(second.workdir / "data").histories
    rows = read_manifest(second.workdir, "data").metrics["refresh"]["rows"]
    assert second.name == "0002" and len(data.item) == len(before.item) + rows
    assert len(training_rows(data)) > len(training_rows(before))


def test_a_day_without_new_rows_is_no_failure_of_the_command(place, first, monkeypatch, capsys):
    (place / "quiet.csv").write_text("user_id,item_id,timestamp,session_id\n")
    given = {"interactions": str(place / "quiet.csv"), "items": "", "export": "", "start": ""}
    flags = {"config": config_of(), "workdir": str(place / "run"), "activate": True}
    vectors = dict.fromkeys(command.VECTORS, "")
    monkeypatch.setattr(command, "FLAGS", SimpleNamespace(**given, **flags, **vectors))
    finished = Lineage(place / "run").finished
    command.main([])
    assert "quiet.csv has no rows, so the recommender stays as it is." in capsys.readouterr().out
    assert Lineage(place / "run").finished == finished
