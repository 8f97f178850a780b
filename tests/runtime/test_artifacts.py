"""Artifacts are complete or absent, and belong to a recipe."""

import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from sigma_jax.runtime import artifacts
from sigma_jax.runtime.artifacts import (
    FORMAT,
    UNSHARED,
    Pool,
    Recipe,
    is_current,
    read_manifest,
    write_artifact,
)

RECIPE = Recipe({"train": {"steps": 5}, "widths": (1, 2)}, {"data": "abc"}, 7)


def write(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "values.txt").write_text("1 2 3")
    return {"count": np.int64(3), "share": np.float32(0.5)}


def test_manifest_says_where_it_came_from(tmp_path):
    made = write_artifact(tmp_path, "teacher", RECIPE, write)
    assert read_manifest(tmp_path, "teacher") == made
    assert made.metrics == {"count": 3, "share": 0.5}
    assert (made.config, made.seed) == ({"train": {"steps": 5}, "widths": [1, 2]}, 7)
    assert "jax" in made.versions
    assert (tmp_path / "teacher" / "deep" / "values.txt").read_text() == "1 2 3"


def test_failed_write_leaves_what_was_there(tmp_path):
    write_artifact(tmp_path, "teacher", RECIPE, write)

    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_artifact(tmp_path, "teacher", RECIPE, fail)
    assert is_current(tmp_path, "teacher", RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_leftovers_of_a_killed_write_are_cleaned(tmp_path):
    (tmp_path / ".teacher.writing").mkdir()
    (tmp_path / ".teacher.writing" / "half.txt").write_text("half")
    assert not is_current(tmp_path, "teacher", RECIPE)
    write_artifact(tmp_path, "teacher", RECIPE, write)
    assert not (tmp_path / "teacher" / "half.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Recipe({"train": {"steps": 6}, "widths": (1, 2)}, {"data": "abc"}, 7), "steps = 5.* 6;"),
        (Recipe({"train": {"steps": 5}, "widths": (1,)}, {"data": "abc"}, 7), "widths = "),
        (Recipe({"train": {"steps": 5}}, {"data": "abc"}, 7), "this run has no such field"),
        (
            Recipe(RECIPE.config, {"data": "abd"}, 7),
            "was made from another input 'data' than this run has",
        ),
        (Recipe(RECIPE.config, RECIPE.inputs, 8), "seed = 7, this run has 8"),
    ],
)
def test_another_recipe_is_named_with_the_remedy(tmp_path, other, message):
    write_artifact(tmp_path, "teacher", RECIPE, write)
    with pytest.raises(ValueError, match=message) as caught:
        is_current(tmp_path, "teacher", other)
    assert "use another --workdir or delete" in str(caught.value)


def test_recipe_does_not_depend_on_the_order_of_keys():
    swapped = Recipe(ConfigDict({"widths": (1, 2), "train": {"steps": 5}}), {"data": "abc"}, 7)
    assert swapped.fingerprint == RECIPE.fingerprint


@pytest.mark.parametrize(
    "content", ["", "{", "[]", f'{{"format": {FORMAT}, "stage": "teacher"}}', '"\\ud800']
)
def test_damaged_manifest_is_one_clear_line(tmp_path, content):
    write_artifact(tmp_path, "teacher", RECIPE, write)
    (tmp_path / "teacher" / artifacts.MANIFEST).write_text(content)
    with pytest.raises(
        ValueError, match=r"manifest.json (is damaged|holds no).*run again"
    ) as caught:
        is_current(tmp_path, "teacher", RECIPE)
    assert "\n" not in str(caught.value)


def test_edited_manifest_is_noticed(tmp_path):
    write_artifact(tmp_path, "teacher", RECIPE, write)
    path = tmp_path / "teacher" / artifacts.MANIFEST
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "fingerprint": "0"}))
    with pytest.raises(ValueError, match="does not match its own fingerprint"):
        is_current(tmp_path, "teacher", RECIPE)


def test_artifacts_of_earlier_versions_are_refused_and_all_are_named(tmp_path):
    for stage in ("data", "teacher"):
        write_artifact(tmp_path, stage, RECIPE, write)
        manifest = tmp_path / stage / "manifest.json"
        content = json.loads(manifest.read_text())
        del content["format"]
        manifest.write_text(json.dumps(content | {"figures": content.pop("metrics")}))
    write_artifact(tmp_path, "tokenizer", RECIPE, write)
    message = (
        rf"{tmp_path}/teacher was made by an earlier version of sigma_jax \(format None; this "
        rf"version has {FORMAT}\); delete {tmp_path}/teacher {tmp_path}/data and run again\."
    )
    for read in (
        lambda: is_current(tmp_path, "teacher", RECIPE),
        lambda: read_manifest(tmp_path, "teacher"),
    ):
        with pytest.raises(ValueError, match=message):
            read()
    assert is_current(tmp_path, "tokenizer", RECIPE)


def test_artifacts_of_later_versions_are_refused(tmp_path):
    write_artifact(tmp_path, "teacher", RECIPE, write)
    manifest = tmp_path / "teacher" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', '"format": 99'))
    with pytest.raises(ValueError, match=r"was made by a later version of sigma_jax \(format 99;"):
        read_manifest(tmp_path, "teacher")


def test_missing_manifest_says_what_makes_it(tmp_path):
    with pytest.raises(ValueError, match="without --only"):
        read_manifest(tmp_path, "grounding")


def test_a_pool_gives_what_another_workdir_has_made(tmp_path):
    recipe, other = Recipe({"size": 3}, {}, 0), Recipe({"size": 4}, {}, 0)
    pool = Pool(tmp_path / "pool")
    first, second = tmp_path / "first", tmp_path / "second"

    write_artifact(first, "data", recipe, write)
    pool.give(first, "data", recipe)
    pool.give(first, "data", recipe)  # what is there stays
    pool.take(second, "data", other)
    assert not (second / "data").exists()
    pool.take(second, "data", recipe)
    assert is_current(second, "data", recipe)
    assert (second / "data" / "deep" / "values.txt").read_text() == "1 2 3"
    shutil.rmtree(first)
    pool.take(second, "data", recipe)
    assert read_manifest(second, "data").metrics["count"] == 3


def test_without_a_pool_nothing_is_shared(tmp_path):
    recipe = Recipe({}, {}, 0)
    UNSHARED.give(tmp_path, "data", recipe)
    UNSHARED.take(tmp_path, "data", recipe)
    assert not list(tmp_path.iterdir())
