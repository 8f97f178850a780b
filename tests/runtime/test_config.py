"""Configs become dataclasses, and every mistake names its field."""

import dataclasses
from typing import Literal

import pytest
from ml_collections import ConfigDict

from sigma_jax.configs import common
from sigma_jax.runtime.config import MeshConfig, OptimizerConfig, TrainConfig, to_dataclass


@dataclasses.dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"]
    rate: float


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    sizes: tuple[int, ...]
    pair: tuple[str, float]
    weights: dict[str, float]
    name: str | None
    is_on: bool


GOOD = {
    "inner": {"kind": "a", "rate": 1},
    "sizes": (1, 2, 3),
    "pair": ["x", 2],
    "weights": {"u": 1, "v": 0.5},
    "name": None,
    "is_on": True,
}


@pytest.mark.parametrize("wrap", [dict, ConfigDict])
def test_nested_fields_are_converted(wrap):
    made = to_dataclass(Outer, wrap(GOOD))
    wanted = Outer(Inner("a", 1.0), (1, 2, 3), ("x", 2.0), {"u": 1.0, "v": 0.5}, None, True)
    assert made == wanted
    assert isinstance(made.inner.rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": {"kind": "a", "rat": 1}}, r"config.inner.rat is unknown; did you mean 'rate'"),
        ({"inner": {"kind": "a"}}, r"config.inner.rate is missing"),
        ({"inner": 3}, r"config.inner is 3 \(int\)"),
        ({"inner": {"kind": "c", "rate": 1}}, r"config.inner.kind is 'c'"),
        ({"sizes": (1, 2.5)}, r"config.sizes\[1\] is 2.5 \(float\)"),
        ({"sizes": 4}, r"config.sizes is 4"),
        ({"pair": ("x",)}, r"config.pair .* takes 2 values"),
        ({"weights": {"u": "x"}}, r"config.weights.u is 'x'"),
        ({"name": 3}, r"config.name is 3"),
        ({"is_on": 1}, r"config.is_on is 1"),
        ({"sizes": (True,)}, r"config.sizes\[0\] is True"),
    ],
)
def test_mistake_names_its_field(change, message):
    with pytest.raises(ValueError, match=message):
        to_dataclass(Outer, {**GOOD, **change})


@pytest.mark.parametrize(
    ("given", "wanted"), [("deviation", "deviation"), ("1.0", 1.0), (2, 2.0), (0.5, 0.5)]
)
def test_a_number_from_the_command_line_becomes_a_number_where_text_is_allowed(given, wanted):
    @dataclasses.dataclass(frozen=True)
    class Either:
        sigma: str | float

    made = to_dataclass(Either, {"sigma": given}).sigma
    assert (made, type(made)) == (wanted, type(wanted))


def test_shared_fields_fit_their_dataclasses():
    assert to_dataclass(TrainConfig, common.train(10, 4, log_every=2)).log_every == 2
    assert to_dataclass(OptimizerConfig, common.optimizer(1e-3)).learning_rate == 1e-3
    assert to_dataclass(MeshConfig, common.mesh()).data == -1


def test_a_preset_changes_only_the_fields_that_it_names():
    base = {"train": common.train(10, 4), "rate": 1.0}
    made = common.select("smoke", base, {"smoke": {"train.steps": 2}})
    assert (made.train.steps, made.train.batch_size, made.rate) == (2, 4, 1.0)
    assert base["train"].steps == 10
    assert common.select("local", base, {"smoke": {"train.steps": 2}}).train.steps == 10
    with pytest.raises(KeyError):
        common.select("smoke", base, {"smoke": {"train.stepz": 2}})
    with pytest.raises(ValueError, match=r"'smoek' is unknown; did you mean 'smoke'"):
        common.select("smoek", base, {})
