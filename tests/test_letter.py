"""Each difference from the paper is a switch, and the full-size presets are the paper's letter."""

import pytest

from sigma_jax.configs import letter, sft
from sigma_jax.configs.benchmark import amazon


def value_of(config, path):
    for part in path.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("preset", ["qwen3_0p6b", "qwen3_4b", "qwen3_4b_lora"])
def test_the_full_size_presets_are_the_letter(preset):
    config = sft.get_config(preset)
    differing = {
        field: value_of(config, field)
        for field, value in letter.LETTER.items()
        if value_of(config, field) != value
    }
    assert not differing


def test_each_switch_changes_a_default():
    """Otherwise it belongs out of the list."""
    configs = [sft.get_config(preset) for preset in ("local", "amazon", "files")]
    for name, fields in letter.SWITCHES.items():
        assert any(
            value_of(config, field) != value
            for config in configs
            for field, value in fields.items()
        ), name


def test_the_method_of_the_suite_is_the_letter():
    fields = amazon.METHODS[amazon.PAPER_SETTINGS]
    assert {field: fields[field] for field in letter.LETTER} == letter.LETTER


def test_switches_do_not_contradict_one_another():
    values = {}
    for fields in letter.SWITCHES.values():
        for field, value in fields.items():
            assert values.setdefault(field, value) == value, field
