"""Promises of the public API: a recommender is loaded, asked and configured from Python."""

import subprocess
import sys

import pytest

import sigma_jax
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.requests import DEFAULT_INSTRUCTION
from sigma_jax.recommender.workdir import load_workdir


def test_a_trained_workdir_answers_from_python_in_two_lines(trained):
    recommender = sigma_jax.load_recommender(trained[1])
    [answer] = recommender.recommend([{"user_id": "u1", "instruction": "tea"}], count=3)
    assert answer["user_id"] == "u1" and len(answer["items"]) == 3
    opened = load_workdir(trained[1])
    batch = opened.parser.parse([{"user_id": "u1", "instruction": "tea"}])
    found = opened.recommender.recommend(batch, RecommendOptions(3))
    ids = opened.data.catalogue.ids(found.items[0])
    assert [item["item_id"] for item in answer["items"]] == list(ids)
    assert recommender.recommend([]) == []


def test_a_request_without_an_instruction_says_the_default_one(trained):
    recommender = sigma_jax.load_recommender(trained[1])
    [without] = recommender.recommend([{"user_id": "u1"}], count=3)
    [default] = recommender.recommend(
        [{"user_id": "u1", "instruction": DEFAULT_INSTRUCTION}], count=3
    )
    assert without == default


def test_fields_of_a_config_are_set_by_name_and_unknown_ones_are_named():
    config = sigma_jax.load_config("configs/sft.py:smoke", {"train.steps": 3})
    assert config.train.steps == 3
    with pytest.raises(ValueError, match=r"train\.step is unknown; did you mean 'steps'"):
        sigma_jax.load_config("configs/sft.py:smoke", {"train.step": 3})


def test_a_folder_that_holds_no_recommender_is_named(tmp_path):
    with pytest.raises(ValueError, match="neither a trained workdir"):
        sigma_jax.load_recommender(tmp_path)


def test_importing_the_package_imports_no_jax():
    code = "import sys, sigma_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
