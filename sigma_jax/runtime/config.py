"""Frozen dataclasses of settings, filled from a config file's ConfigDict.

Dataclasses have no defaults: every value stands in configs/. An unknown key, a missing key and a
value of another type are errors that name the field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW (runtime/optimizer.py)."""

    learning_rate: float  # peak, for the parameter group "base"
    table_learning_rate: float  # peak, for the group "table": embedding tables learnt from scratch
    weight_decay: float  # each step shrinks a parameter by this, times its learning rate
    warmup_steps: int  # steps in which the learning rate rises from 0 to its peak
    schedule: str  # after the warmup: "cosine" or "linear" down to 0, or "constant"
    clip_norm: float  # limit of the norm of the whole gradient; 0: no limit
    b1: float  # decay of the running mean of gradients
    b2: float  # decay of the running mean of squared gradients

    def __post_init__(self):
        for name in ("learning_rate", "table_learning_rate", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}; use 0 or more.")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}; use 0 <= {name} < 1.")


MAY_BE_0 = ("steps", "epochs", "eval_every", "average_over", "patience")  # fields of train


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop (runtime/fit.py)."""

    # Length in steps; with `epochs`, the limit of their steps. 0: no training, or no limit.
    steps: int
    epochs: float  # passes over the stage's examples; 0: the length is `steps`
    batch_size: int  # rows of the global batch
    accumulate: int  # parts that a batch is split into, to save memory; 1: no split
    log_every: int  # steps
    eval_every: int  # steps between reports on held-out data; 0: only at the end
    checkpoint_every: int  # steps
    keep_checkpoints: int  # number of newest checkpoints on disk
    # Share of the steps over which parameters are averaged for reports and artifact; 0: none.
    average_over: float
    patience: int  # training ends after so many reports without a new best; 0: never
    keep_best: str  # metric of the reports; the step with its highest value is kept; "": the last

    def __post_init__(self):
        for field in dataclasses.fields(self)[:-1]:
            check_at_least(0 if field.name in MAY_BE_0 else 1, self, field.name, group="train.")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"train.batch_size={self.batch_size} does not divide into train.accumulate="
                f"{self.accumulate} parts; use a multiple of {self.accumulate}."
            )
        if self.patience and not (self.keep_best and self.eval_every):
            raise ValueError(
                f"train.patience={self.patience} needs reports to compare; set train.keep_best "
                "and train.eval_every, or patience to 0."
            )
        if self.average_over > 1:
            raise ValueError(f"train.average_over={self.average_over}; use a share, 0 to 1.")

    def of_examples(self, epoch_steps: float) -> TrainConfig:
        """The same settings with `epochs` converted to steps, of `epoch_steps` each."""
        if not self.epochs:
            return self
        steps = math.ceil(self.epochs * epoch_steps)
        return dataclasses.replace(self, steps=min(steps, self.steps or steps), epochs=0.0)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1, at most once, takes all that remain."""

    data: int  # replicas of the parameters
    fsdp: int  # parameters are sharded over these
    tensor: int  # layers are sharded over these


def check_at_least(minimum: float, config: Any, *names: str, group: str = "") -> None:
    """ValueError naming the first of the fields `names` that is below `minimum`, or NaN.

    Args:
      group: prefix of the name in the message, such as "train.".
    """
    for name in names:
        value = getattr(config, name)
        if not value >= minimum:
            raise ValueError(f"{group}{name}={value}; use {minimum} or more.")


def to_dataclass(cls: type[T], config: Mapping[str, Any], name: str = "") -> T:
    """`cls` filled from `config`, including nested dataclasses.

    Args:
      cls: a dataclass with fields of type bool, int, float, str, Path, Literal, Optional, tuple,
        dict or dataclass.
      config: dict or ConfigDict.
      name: the place of `config` in the whole config, for messages: "optimizer".

    Raises:
      ValueError: a key is unknown or missing, or a value has another type; the field is named.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(typing.cast(Any, cls))}
    dot = f"{name}." if name else ""
    for key in config:
        if key not in fields:
            raise ValueError(f"config.{dot}{key} is unknown; {did_you_mean(key, fields)}")
    values = {}
    for key, hint in fields.items():
        if key not in config:
            raise ValueError(f"config.{dot}{key} is missing; add it to the config file.")
        values[key] = _convert(hint, config[key], f"{dot}{key}")
    return cls(**values)


def did_you_mean(key: str, known: typing.Iterable[str]) -> str:
    """The remedy for a mistyped `key`: the nearest known name."""
    known = sorted(known)
    if not known:
        return "there are no names to choose from; remove it."
    return f"did you mean {difflib.get_close_matches(key, known, 1, 0.0)[0]!r}?"


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping) and not hasattr(value, "items"):
            raise _type_error(name, value, "a group of fields")
        return to_dataclass(typing.cast(type, hint), value, name)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, name)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"config.{name} is {value!r}; {did_you_mean(str(value), arguments)}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, name)
    if origin is dict:
        if not isinstance(value, Mapping) and not hasattr(value, "items"):
            raise _type_error(name, value, "a group of fields")
        return {
            _convert(arguments[0], key, f"{name}'s key"): _convert(
                arguments[1], item, f"{name}.{key}"
            )
            for key, item in value.items()
        }
    return _convert_plain(hint, value, name)


def _convert_union(arguments: tuple, value: Any, name: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [argument for argument in arguments if argument is not type(None)]
    if float in choices and isinstance(value, str):
        # An override keeps the type of the field's value: over "deviation", 1.0 comes as "1.0".
        with contextlib.suppress(ValueError):
            return float(value)
    for choice in choices[:-1]:
        try:
            return _convert(choice, value, name)
        except ValueError:
            continue
    return _convert(choices[-1], value, name)


def _convert_tuple(arguments: tuple, value: Any, name: str) -> tuple:
    if not isinstance(value, tuple | list):
        raise _type_error(name, value, "a tuple, such as '(1, 2)'")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise ValueError(f"config.{name} is {tuple(value)}; it takes {len(arguments)} values.")
    items = zip(arguments, value, strict=True)
    return tuple(_convert(hint, item, f"{name}[{k}]") for k, (hint, item) in enumerate(items))


def _convert_plain(hint: Any, value: Any, name: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    # bool is a subclass of int, but `steps = True` is a mistake, not one step.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _type_error(name, value, f"a value of type {hint.__name__}")
    return value


def _type_error(name: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"config.{name} is {value!r} ({type(value).__name__}); give {wanted}.")
