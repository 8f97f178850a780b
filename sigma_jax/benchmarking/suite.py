"""A benchmark suite: which methods run on which data sets with which seeds.

A run is one method on one data set with one seed. It is made by one `sigma_jax.train` command in
its own workdir.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

from sigma_jax.evaluation.score import MODES

TEACHER = "upstream.teacher."  # prefix of the fields of that stage in the config of another


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: a config file with its preset, and the fields that this data set changes."""

    config: str  # configs/sft.py:amazon
    fields: dict[str, Any]  # {"data.path": "{data}/Beauty"}; {data} is replaced by --data


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: the config fields that it changes, applied after those of the data set."""

    fields: dict[str, Any]
    has_baselines: bool  # its runs evaluate the baselines of sigma_jax/baselines too
    # "sft"; "teacher" trains and evaluates SASRec alone, by the same preset of configs/teacher.py
    # and the data set's fields of `data` and of `upstream.teacher`.
    stage: str

    def __post_init__(self):
        if self.stage not in ("sft", "teacher"):
            raise ValueError(f"stage={self.stage!r} is no stage of a method; use sft or teacher.")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Methods under several values of one setting, for a plot."""

    methods: tuple[str, ...]
    fields: tuple[str, ...]  # config fields; each is set to the value
    values: tuple[Any, ...]  # numbers
    seeds: tuple[int, ...]

    def run_name(self, method: str, name: str, value: float) -> str:
        """The name of `method` in the runs of the sweep `name`: "SIGMA, prefixes K 8"."""
        return f"{method}, {name} {value:g}"


@dataclasses.dataclass(frozen=True)
class Suite:
    """The fields of a file of configs/benchmark."""

    title: str
    protocol: tuple[str, ...]  # facts that a reader of the tables needs, one per line
    seeds: tuple[int, ...]
    data: dict[str, Source]
    methods: dict[str, Method]
    modes: tuple[str, ...]  # some of MODES, in the order of the tables
    levels: tuple[str, ...]  # "item", "sid"
    columns: tuple[str, ...]  # metrics of a row, such as Recall@10
    published: dict[str, dict[str, dict[str, float]]]  # data -> row -> column -> per cent
    published_level: str  # level of the published hits
    headline: str  # the metric of the plots
    sweeps: dict[str, Sweep]  # name of the setting -> its sweep

    def __post_init__(self):
        if unknown := set(self.modes) - set(MODES):
            raise ValueError(f"suite.modes names {sorted(unknown)}; known are {', '.join(MODES)}.")
        for name in ("seeds", "data", "methods"):
            if not getattr(self, name):
                raise ValueError(f"suite.{name} is empty; name at least one.")
        for name, sweep in self.sweeps.items():
            if not sweep.methods or set(sweep.methods) - set(self.methods):
                raise ValueError(
                    f"suite.sweeps[{name!r}].methods is {sweep.methods}; name at least one method, "
                    f"and only methods of the suite: {', '.join(self.methods)}."
                )

    def method(self, name: str) -> Method:
        """The method `name` of the suite or of one of its sweeps. KeyError if there is none."""
        if name in self.methods:
            return self.methods[name]
        for sweep_name, sweep in self.sweeps.items():
            for base, value in itertools.product(sweep.methods, sweep.values):
                if name == sweep.run_name(base, sweep_name, value):
                    changes = dict.fromkeys(sweep.fields, value)
                    return Method(self.methods[base].fields | changes, False, "sft")
        raise KeyError(name)


@dataclasses.dataclass(frozen=True)
class Run:
    """One method on one data set with one seed."""

    data: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """DATA/METHOD/SEED, as --runs takes it."""
        return f"{self.data}/{self.method}/{self.seed}"

    def workdir(self, folder: Path) -> Path:
        """FOLDER/DATA/METHOD-SEED; characters that are unsafe in file names become "_"."""
        parts = (self.data, f"{self.method}-{self.seed}")
        return folder.joinpath(*(re.sub(r"[^\w.=-]+", "_", part).strip("_") for part in parts))


def planned_runs(suite: Suite) -> list[Run]:
    """All runs of the suite in their order.

    The order is seed by seed, so that a stopped suite has complete tables of fewer seeds. The runs
    of the sweeps follow.
    """
    runs = [
        Run(data, method, seed)
        for seed in suite.seeds
        for data in suite.data
        for method in suite.methods
    ]
    return runs + [
        Run(data, sweep.run_name(method, name, value), seed)
        for name, sweep in suite.sweeps.items()
        for seed in sweep.seeds
        for data in suite.data
        for value in sweep.values
        for method in sweep.methods
    ]


def train_arguments(
    suite: Suite, run: Run, data_folder: str, workdir: Path, artifacts: Path
) -> list[str]:
    """The arguments of `python -m sigma_jax.train` for `run`.

    Args:
      data_folder: replaces {data} in the fields of the data set.
      workdir: the run's own folder.
      artifacts: the folder of stages that runs share.
    """
    source, method = suite.data[run.data], suite.method(run.method)
    config, fields = source.config, {**source.fields, **method.fields}
    if method.stage == "teacher":
        config = re.sub(r"[^/]+\.py", "teacher.py", config)
        of_data = {
            name.removeprefix(TEACHER): value
            for name, value in source.fields.items()
            if name.startswith(("data.", TEACHER))
        }
        fields = {**of_data, "evaluation.is_evaluated": True, **method.fields}
    for name in ("has_baselines", "has_slow_baselines"):
        fields.setdefault(f"evaluation.{name}", method.has_baselines)
    fields["seed"] = run.seed
    arguments = [f"--config={config}", f"--workdir={workdir}", f"--artifacts={artifacts}"]
    for name, value in fields.items():
        text = value.format(data=data_folder) if isinstance(value, str) else value
        arguments.append(f"--config.{name}={text}")
    return arguments
