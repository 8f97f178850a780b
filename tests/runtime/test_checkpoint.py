"""The newest checkpoints are kept, damage is survived, and another recipe is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.runtime.artifacts import Recipe
from sigma_jax.runtime.checkpoint import Checkpoints

RECIPE = Recipe({"width": 8}, {"data": "abc"}, 0)


def state(value: float) -> dict:
    random = jax.random.normal(jax.random.key(int(value)), (64, 64))
    return {"a": random + value, "half": jnp.full((3,), value, jnp.bfloat16), "n": jnp.int32(value)}


def saved(folder, steps=(1, 2, 3), keep=2):
    with Checkpoints(folder, keep, RECIPE) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))
        return checkpoints.steps()


def restored(folder):
    with Checkpoints(folder, 2, RECIPE) as checkpoints:
        return checkpoints.restore(state(0))


def data_files(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.parent.name == "d"]


def flip_a_bit(folder):
    path = max(data_files(folder), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "bit": flip_a_bit,
    "cut": lambda folder: [path.write_bytes(path.read_bytes()[:9]) for path in data_files(folder)],
    "gone": lambda folder: [path.unlink() for path in data_files(folder)],
    "empty": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


def test_newest_two_are_kept(tmp_path):
    assert saved(tmp_path, (1, 2, 3, 4)) == [3, 4]


def test_state_comes_back_bit_for_bit(tmp_path):
    saved(tmp_path)
    back, step = restored(tmp_path)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, back, state(3))


def test_random_keys_come_back(tmp_path):
    with Checkpoints(tmp_path, 2, RECIPE) as checkpoints:
        checkpoints.save(1, {"key": jax.random.key(5)})
        back, _ = checkpoints.restore({"key": jax.random.key(0)})
    assert jax.random.bits(back["key"]) == jax.random.bits(jax.random.key(5))


def test_without_checkpoints_the_state_is_as_it_was(tmp_path):
    back, step = restored(tmp_path)
    assert step == 0
    jax.tree.map(np.testing.assert_array_equal, back, state(0))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_newest_falls_back_to_the_one_before(tmp_path, caplog, damage):
    saved(tmp_path)
    damage(tmp_path / "checkpoints" / "3")
    back, step = restored(tmp_path)
    assert step == 2
    np.testing.assert_array_equal(back["a"], state(2)["a"])
    assert "checkpoints/3 is damaged" in caplog.text
    assert saved(tmp_path, (3,)) == [2, 3]  # the step can be saved again


def test_all_damaged_is_one_clear_error(tmp_path):
    saved(tmp_path)
    for step in (2, 3):
        flip_a_bit(tmp_path / "checkpoints" / str(step))
    with pytest.raises(ValueError, match=r"every checkpoint of .* was damaged; delete "):
        restored(tmp_path)


def test_half_saved_checkpoint_is_not_seen(tmp_path):
    saved(tmp_path)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    assert restored(tmp_path)[1] == 3


def test_fields_read_after_training_may_change(tmp_path):
    for prior in (1, 2):
        Checkpoints(tmp_path, 2, Recipe({"width": 8, "prior": prior}, {}, 0, ("prior",)))
    with pytest.raises(ValueError, match=r"made with config.width = 8, this run has 16"):
        Checkpoints(tmp_path, 2, Recipe({"width": 16, "prior": 2}, {}, 0, ("prior",)))


def test_a_run_of_an_earlier_version_is_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "run.json"
    content = json.loads(path.read_text())
    del content["format"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{tmp_path} was made by an earlier version .* delete"):
        restored(tmp_path)


def test_another_recipe_is_refused(tmp_path):
    saved(tmp_path)
    other = Recipe({"width": 16}, {"data": "abc"}, 0)
    with pytest.raises(ValueError, match=r"made with config.width = 8, this run has 16; use anoth"):
        Checkpoints(tmp_path, 2, other)
