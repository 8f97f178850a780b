"""Files and folders are written completely or not at all."""

import pytest

from sigma_jax.runtime.files import atomic_folder, write_json


def test_a_folder_that_is_not_finished_is_not_there(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_folder_replaces_another_only_where_it_is_asked_to(tmp_path):
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "made", replaces=True) as folder:
            assert not list(folder.iterdir())
            (folder / content).write_text(content)
    with pytest.raises(OSError), atomic_folder(tmp_path / "made") as folder:
        (folder / "newest").write_text("newest")
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "new"]


def test_a_folder_ignores_what_a_killed_process_left(tmp_path):
    (tmp_path / ".made.writing").mkdir()
    (tmp_path / ".made.writing" / "half").write_text("half")
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "a"]


def test_a_json_file_is_replaced_and_nothing_else_is_left(tmp_path):
    for value in (1, 2):
        write_json(tmp_path / "a.json", {"value": value})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n  "value": 2\n}\n'
