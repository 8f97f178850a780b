"""The command runs once, leaves nothing if it fails, and names an error in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from sigma_jax.configs.common import PRESETS
from sigma_jax.configs.data import data_fields
from sigma_jax.data.config import DataConfig
from sigma_jax.prepare import prepare_workdir
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import PreparedData
from sigma_jax.tasks.instructions import available_tasks

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tables_folder):
    fields = data_fields("qwen3_0p6b")
    fields.path = str(tables_folder)
    fields.memory_limit, fields.threads = "500MB", 1
    fields.text_tokenizer.vocab_size = 400
    return ConfigDict({"seed": 0, "data": fields})


def test_second_run_does_nothing_and_other_settings_are_refused(config, tmp_path):
    first = prepare_workdir(config, tmp_path)
    before = (tmp_path / "data" / "manifest.json").stat().st_mtime_ns
    assert prepare_workdir(config, tmp_path) == first
    assert (tmp_path / "data" / "manifest.json").stat().st_mtime_ns == before
    assert PreparedData.load(tmp_path / "data").catalogue.table.num_rows == first.metrics["items"]
    config.data.threads = 2  # does not change the result
    assert prepare_workdir(config, tmp_path) == first
    config.data.pairs.min_count = 7
    with pytest.raises(ValueError, match=r"min_count.*; use another --workdir or delete"):
        prepare_workdir(config, tmp_path)


def test_data_card_names_counts_checksums_and_examples(config, tmp_path):
    card = prepare_workdir(config, tmp_path).metrics
    assert len(card["files"]["items"]) == 64
    for view in ("search", "visual", "theme", "co_occurrence", "knowledge"):
        assert card["pairs"][view]["count"] > 0
        assert len(card["pairs"][view]["examples"]) == 3
    assert card["split"]["users_with_test_target"] == 40
    assert card["users_without_history"] == 1
    assert card["unavailable"] == {}
    page = (tmp_path / "data" / "card.md").read_text()
    assert page.endswith("\n") and "## Warnings\n\nNone.\n" in page


def test_preset_files_takes_tables_without_title_and_category(config, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "items.csv").write_text("item_id,label,colour\n1,tea pot,red\n2,cup,blue\n")
    lines = [f"u,{item},{1_700_000_000 + time}" for time, item in enumerate((1, 2, 1, 2))]
    text = "\n".join(["user_id,item_id,timestamp", *lines])
    (folder / "interactions.csv").write_text(text + "\n")
    config.data = data_fields("files")
    config.data.path = str(folder)
    config.data.memory_limit, config.data.threads = "500MB", 1
    card = prepare_workdir(config, tmp_path).metrics
    assert card["items"] == 2
    page = (tmp_path / "data" / "card.md").read_text()
    assert "| items | 2 |" in page and "| interactions | 4 |" in page
    assert "- every interaction is a session of its own;" in page  # there is no session_id
    assert f"| Query | {card['unavailable']['Query']} |" in page
    assert PreparedData.load(tmp_path / "data").catalogue.titles([0, 1]) == ["tea pot", "cup"]


def test_files_are_identified_by_their_use(config, tmp_path, tables_folder):
    """Two files share a name; the data is refused after they are swapped."""
    folder = tmp_path / "tables"
    for name in ("items.csv", "interactions.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((tables_folder / name).read_bytes())
    for name in ("id", "visual"):
        (folder / name).mkdir()
        vectors = (tables_folder / f"{name}_vectors.npy").read_bytes()
        (folder / name / "vectors.npy").write_bytes(vectors)
    config.data.path = str(folder)
    config.data.files.id_vectors = "id/vectors.npy"
    config.data.files.visual_vectors = "visual/vectors.npy"
    checksums = prepare_workdir(config, tmp_path).metrics["files"]
    assert set(checksums) == {"items", "interactions", "id_vectors", "visual_vectors"}
    assert checksums["id_vectors"] != checksums["visual_vectors"]
    config.data.files.id_vectors = "visual/vectors.npy"
    config.data.files.visual_vectors = "id/vectors.npy"
    with pytest.raises(
        ValueError,
        match=r"made from another input '\w+_vectors' than .*; use another --workdir or delete",
    ):
        prepare_workdir(config, tmp_path)


def test_card_names_tasks_and_views_without_data(config, tmp_path, tables_folder):
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("items.csv", "interactions.parquet"):
        (folder / name).write_bytes((tables_folder / name).read_bytes())
    config.data.path = str(folder)
    config.data.themes.calendar = False
    card = prepare_workdir(config, tmp_path).metrics
    assert set(card["unavailable"]) == {
        "Query",
        "Season",
        "Holiday",
        "knowledge pairs",
        "search pairs",
        "visual pairs",
        "theme pairs",
    }


def test_card_names_every_task_that_stage_3_drops(config, tmp_path, tables_folder):
    """A season without dates makes no request, although the theme has items."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("items.csv", "interactions.parquet"):
        (folder / name).write_bytes((tables_folder / name).read_bytes())
    item = (folder / "items.csv").read_text().splitlines()[1].split(",")[0]
    (folder / "themes.csv").write_text(f"theme,kind,item_id\nspring,season,{item}\n")
    config.data.path = str(folder)
    config.data.themes.calendar = False
    card = prepare_workdir(config, tmp_path).metrics
    reasons = available_tasks(PreparedData.load(tmp_path / "data"))
    assert reasons["Season"] and card["unavailable"]["Season"] == reasons["Season"]
    assert {task for task, why in reasons.items() if why} <= set(card["unavailable"])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fills_the_dataclass(preset):
    to_dataclass(DataConfig, data_fields(preset))


def test_unknown_choice_is_named():
    fields = data_fields("local")
    fields.split.kind = "random"
    with pytest.raises(ValueError, match=r"data.split.kind='random' is unknown; use one of leave"):
        to_dataclass(DataConfig, fields)


def test_failed_run_leaves_nothing_and_exits_with_one_line(tmp_path, tables_folder):
    folder, workdir = tmp_path / "tables", tmp_path / "run"
    folder.mkdir()
    (folder / "items.csv").write_bytes((tables_folder / "items.csv").read_bytes())
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\nu,nothing,1700000000\n")
    command = [sys.executable, "-m", "sigma_jax.prepare", "--config=configs/sft.py:qwen3_0p6b"]
    command += [f"--config.data.path={folder}", "--config.data.memory_limit=500MB"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "item_id='nothing' is not in items" in errors[0]
    assert "Traceback" not in done.stderr
    assert [path.name for path in workdir.iterdir()] == [".lock"]


def test_mapped_files_are_prepared_and_another_mapping_is_another_input(config, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "goods.csv").write_text("code,label\n1,tea pot\n2,cup\n")
    lines = [f"u,{item},{1_700_000_000 + time}" for time, item in enumerate((1, 2, 1, 2))]
    (folder / "log.csv").write_text("\n".join(["who,code,at", *lines]) + "\n")
    mapping = (
        "items: {file: goods.csv, columns: {item_id: code, title: label}}\n"
        "interactions: {file: log.csv, columns: {user_id: who, item_id: code, timestamp: at}}\n"
    )
    (folder / "mapping.yaml").write_text(mapping)
    config.data = data_fields("files")
    config.data.path, config.data.text_encoder = str(folder), ""
    config.data.memory_limit, config.data.threads = "500MB", 1
    card = prepare_workdir(config, tmp_path).metrics
    assert card["items"] == 2 and set(card["files"]) == {"mapping", "items", "interactions"}
    assert PreparedData.load(tmp_path / "data").catalogue.titles([0, 1]) == ["tea pot", "cup"]
    (folder / "mapping.yaml").write_text(mapping.replace(", title: label", ""))
    with pytest.raises(ValueError, match=r"made from another input 'mapping'"):
        prepare_workdir(config, tmp_path)
