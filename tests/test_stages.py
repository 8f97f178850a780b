"""The graph of stages: a run trains those that it needs, in order, and names missing ones."""

import pytest
from linear_task import LinearConfig, LinearTask, linear_config
from ml_collections import ConfigDict

from sigma_jax import stages, train
from sigma_jax.runtime.artifacts import Recipe, read_manifest, write_artifact
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.files import plain
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.stages import STAGES, Stage


def test_every_stage_stands_below_those_it_needs():
    names = list(STAGES)
    for name, stage in STAGES.items():
        assert all(names.index(needed) < names.index(name) for needed in stage.needs)


def test_unknown_stage_is_named():
    with pytest.raises(ValueError, match=r"config\.stage='sfd' is unknown; use one of teacher,"):
        stages.task_classes("sfd")


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Names of the stages trained so far, of a graph: "top" needs "left" and "right", no other."""
    names = []

    def row(name: str, *needs: str) -> Stage:
        class StageTask(LinearTask):
            def __init__(self, config, workdir, seed, mesh=None):
                super().__init__(seed)
                assert all((workdir / needed).exists() for needed in needs)
                names.append(name)

        return Stage(needs=needs, classes=lambda: (LinearConfig, StageTask))

    graph = {"left": row("left"), "right": row("right"), "top": row("top", "left", "right")}
    monkeypatch.setattr(stages, "STAGES", graph)
    return names


def config_of(stage: str, **changes) -> ConfigDict:
    """The config of a run of the graph; `changes` are of the stage `left`."""
    fields = plain(linear_config(2))
    left = {**fields, "train": {**fields["train"], **changes}}
    run = {"stage": stage, "seed": 0, "data": {}, "mesh": plain(MeshConfig(-1, 1, 1))}
    own = left if stage == "left" else fields
    upstream = {"left": left, "right": fields} if stage == "top" else {}
    return ConfigDict({**run, **own, "upstream": upstream})


def run(config: ConfigDict, workdir, only: bool = True) -> None:
    if not (workdir / "data").exists():
        write_artifact(workdir, "data", Recipe({}, {}, 0), lambda folder: {})
    train.train(config, workdir, make_mesh(MeshConfig(-1, 1, 1)), only)


def test_a_stage_is_trained_after_the_two_independent_stages_that_it_needs(
    tmp_path, trained, monkeypatch
):
    write_artifact(tmp_path, "data", Recipe({}, {}, 0), lambda folder: {})
    data = read_manifest(tmp_path, "data").fingerprint
    monkeypatch.setattr(train, "prepare_data", lambda *_: data)
    run(config_of("top"), tmp_path, only=False)
    assert trained == ["left", "right", "top"]
    assert read_manifest(tmp_path, "right").inputs == {"data": data}
    assert read_manifest(tmp_path, "top").inputs == {
        "data": data,
        "left": read_manifest(tmp_path, "left").fingerprint,
        "right": read_manifest(tmp_path, "right").fingerprint,
    }
    run(config_of("top"), tmp_path, only=False)
    assert trained == ["left", "right", "top"]


def test_missing_stages_are_named_and_those_that_exist_are_not(tmp_path, trained):
    with pytest.raises(ValueError, match=r"lacks left, right, which top needs; run without --only"):
        run(config_of("top"), tmp_path)
    run(config_of("left"), tmp_path)
    with pytest.raises(ValueError, match=r"lacks right, which top needs; run without --only"):
        run(config_of("top"), tmp_path)
    run(config_of("right"), tmp_path)
    run(config_of("top"), tmp_path)
    assert trained == ["left", "right", "top"]


def test_a_stage_stays_valid_when_a_stage_that_it_does_not_need_changes(tmp_path, trained):
    run(config_of("left"), tmp_path)
    run(config_of("right"), tmp_path)
    with pytest.raises(ValueError, match=r"left was made with config\.train\.average_over = 0\.0"):
        run(config_of("top", average_over=0.5), tmp_path)
    run(config_of("right"), tmp_path)
    assert trained == ["left", "right"]
