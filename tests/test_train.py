"""The training loop resumes exactly, on any mesh, and names mistakes clearly."""

import json
import subprocess
import sys
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
from flax import nnx
from linear_task import LinearTask, linear_config, recipe, run
from processes import environment

from sigma_jax.runtime import fit as loop
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "linear_task.py"


def slow(value: int):
    """A parameter of a test that only `pytest -m ''` runs."""
    return pytest.param(value, marks=pytest.mark.slow)


def start(folder: Path, steps: int, die_at: int = 0, devices: int = 1, how: str = "kill"):
    """Runs the linear stage in a new process: (exit status, its output)."""
    words = [sys.executable, str(SCRIPT), str(folder), str(steps), str(die_at), how]
    done = subprocess.run(
        words, env=environment(devices), capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, -9), done.stderr[-2000:]
    return done.returncode, done.stdout


def lines(path: Path) -> list[dict]:
    """The lines of the metrics file of a run."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(folder, printed parameters) of ten steps without an interruption."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, start(folder, 10)[1]


@pytest.mark.slow
@pytest.mark.parametrize("die_at", [slow(1), 5, slow(8)])
def test_a_killed_run_continues_to_the_same_result(tmp_path, reference, die_at):
    """The kill comes before the first checkpoint, possibly during its save, and well after it."""
    assert start(tmp_path, 10, die_at)[0] == -9
    resumed = (tmp_path / "checkpoints" / "5").exists()
    assert resumed or die_at < 8
    assert start(tmp_path, 10)[1] == reference[1]

    wanted = (reference[0] / "batches.txt").read_text().splitlines()
    seen = (tmp_path / "batches.txt").read_text().splitlines()
    assert seen[die_at:] == wanted[5 if resumed else 0 :]
    assert lines(tmp_path) == lines(reference[0])


@pytest.mark.slow
@pytest.mark.parametrize("signal_at", [slow(2), slow(5), 7])
def test_sigterm_saves_and_no_step_is_repeated(tmp_path, reference, signal_at):
    status, output = start(tmp_path, 10, signal_at, how="term")
    assert status == 0
    assert output == f"linear: saved after step {signal_at + 1} of 10, stopped by SIGTERM\n"
    assert (tmp_path / "checkpoints" / str(signal_at + 1)).exists()
    assert start(tmp_path, 10)[1] == reference[1]
    assert (tmp_path / "batches.txt").read_text() == (reference[0] / "batches.txt").read_text()
    assert lines(tmp_path) == lines(reference[0])


@pytest.mark.slow
def test_sigterm_in_the_last_step_is_handled(tmp_path, reference):
    message = "linear: saved after step 10 of 10, stopped by SIGTERM\n"
    assert start(tmp_path, 10, 9, how="term") == (0, message)
    assert start(tmp_path, 10)[1] == reference[1]


def test_metrics_have_one_line_per_step(reference):
    assert [line["step"] for line in lines(reference[0])] == list(range(1, 11))
    assert [line["mean_step"] for line in lines(reference[0])] == list(range(10))


def test_finished_run_trains_no_more(reference):
    assert start(reference[0], 10)[1] == reference[1]
    assert len((reference[0] / "batches.txt").read_text().splitlines()) == 10


@pytest.mark.slow
def test_loss_on_eight_devices_equals_loss_on_one(tmp_path, reference):
    start(tmp_path, 10, devices=8)
    for line, expected in zip(lines(tmp_path), lines(reference[0]), strict=True):
        np.testing.assert_allclose(line["loss"], expected["loss"], rtol=1e-5)


@pytest.mark.slow
def test_resumes_on_another_mesh(tmp_path, reference):
    assert start(tmp_path, 10, 8, devices=1)[0] == -9
    start(tmp_path, 10, devices=8)
    for line, expected in zip(lines(tmp_path), lines(reference[0]), strict=True):
        np.testing.assert_allclose(line["loss"], expected["loss"], rtol=1e-5)


def test_frozen_parameters_stay_and_variables_move(tmp_path):
    model = run(tmp_path, 3)
    np.testing.assert_array_equal(model.bias[...], np.ones(4))
    assert int(model.calls[...]) == 3


def test_zero_steps_leave_the_initial_model(tmp_path):
    model = run(tmp_path, 0)
    fresh = LinearTask().model(nnx.Rngs(0))
    np.testing.assert_array_equal(model.weight[...], fresh.weight[...])


def fit(task, folder: Path, **changes):
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    return loop.fit(task, linear_config(**changes), recipe(), folder, mesh, 0, "linear")


def test_the_step_is_compiled_once(tmp_path):
    class Counted(LinearTask):
        traces = 0

        def model(self, rngs):
            model = super().model(rngs)
            model.scale = nnx.Param(jax.numpy.array(0.1))  # of a weak type
            return model

        def param_group(self, path):
            return "base" if path == ("scale",) else super().param_group(path)

        def loss(self, model, tables, batch, key):
            self.traces += 1
            value, parts = super().loss(model, tables, batch, key)
            return value + model.scale[...] ** 2, parts

    task = Counted()
    fit(task, tmp_path, steps=4)
    assert task.traces == 1


def test_short_data_is_an_error(tmp_path):
    class Short(LinearTask):
        def batches(self, rows=None):
            return grain.MapDataset.range(4).map(self.make_batch)

    with pytest.raises(ValueError, match=r"holds 4 batches, train.steps=10"):
        fit(Short(), tmp_path)


def test_nan_loss_is_an_error_and_not_saved(tmp_path):
    class Bad(LinearTask):
        def loss(self, model, tables, batch, key):
            value, parts = super().loss(model, tables, batch, key)
            return jax.numpy.where(batch["step"][0] == 6, jax.numpy.nan, value), parts

    with pytest.raises(ValueError, match=r"loss is nan at step 7 .*learning_rate"):
        fit(Bad(), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]


def test_reports_come_with_the_steps_they_belong_to(tmp_path):
    *_, metrics = fit(LinearTask(), tmp_path, eval_every=4)
    reported = {
        line["step"]: line["eval/calls"] for line in lines(tmp_path) if "eval/calls" in line
    }
    assert reported == {4: 4, 8: 8, 10: 10}
    assert metrics == {"calls": 10}


class Peaked(LinearTask):
    """A task whose reports are best after four steps; batch `die_at` raises."""

    def __init__(self, die_at: int = 10**6):
        super().__init__()
        self.die_at = die_at

    def make_batch(self, step):
        if step >= self.die_at:
            raise RuntimeError("cut off")
        return super().make_batch(step)

    def report(self, model, tables):
        calls = int(model.calls[...])
        return {"calls": calls, "score": -abs(calls - 4)}


def test_the_step_with_the_best_report_is_kept(tmp_path):
    model, _, metrics = fit(Peaked(), tmp_path, eval_every=2, keep_best="score")
    assert int(model.calls[...]) == 4
    assert metrics == {"calls": 4, "score": 0, "kept_step": 4, "steps": 10}
    last, _, _ = fit(Peaked(), tmp_path / "last", eval_every=2)
    assert int(last.calls[...]) == 10
    early, _, _ = fit(Peaked(), tmp_path / "early", steps=4)
    assert not np.array_equal(model.weight[...], last.weight[...])
    assert early.weight[...].shape == model.weight[...].shape


def test_without_reports_the_last_step_is_kept(tmp_path):
    class WithoutReports(Peaked):
        def report(self, model, tables):
            return {}

    settings = {"eval_every": 2, "keep_best": "score", "patience": 1}
    model, _, metrics = fit(WithoutReports(), tmp_path, **settings)
    assert int(model.calls[...]) == 10 and metrics == {}


@pytest.mark.parametrize("die_at", [slow(5), 7])
def test_a_kill_does_not_change_which_step_is_kept(tmp_path, die_at):
    settings = {"eval_every": 2, "keep_best": "score", "checkpoint_every": 3, "average_over": 0.3}
    with pytest.raises(Exception, match="cut off"):
        fit(Peaked(die_at), tmp_path, **settings)
    model, _, _ = fit(Peaked(), tmp_path, **settings)
    reference, _, _ = fit(Peaked(), tmp_path / "reference", **settings)
    np.testing.assert_array_equal(model.weight[...], reference.weight[...])
    assert int(model.calls[...]) == 4


def test_a_repeated_report_with_other_last_digits_changes_nothing(tmp_path):
    """As on another mesh: killed after the best was saved, before the next checkpoint."""
    settings = {"eval_every": 2, "keep_best": "score", "checkpoint_every": 3}
    with pytest.raises(Exception, match="cut off"):
        fit(Peaked(5), tmp_path, **settings)

    class Higher(Peaked):
        def report(self, model, tables):
            metrics = super().report(model, tables)
            return metrics | {"score": metrics["score"] + 1e-6}

    model, _, metrics = fit(Higher(), tmp_path, **settings)
    assert int(model.calls[...]) == 4 and metrics["kept_step"] == 4


@pytest.mark.parametrize("die_at", [10**6, slow(5), slow(7)])
def test_training_ends_when_patience_runs_out(tmp_path, die_at):
    """The best step is 4 and reports come every 2: with a patience of 2 it ends after step 8."""
    settings = {"eval_every": 2, "keep_best": "score", "checkpoint_every": 3, "patience": 2}
    seen = []

    class Counted(Peaked):
        def report(self, model, tables):
            seen.append(int(model.calls[...]))
            return super().report(model, tables)

    if die_at < 10:
        with pytest.raises(Exception, match="cut off"):
            fit(Peaked(die_at), tmp_path, **settings)
    for _ in range(2):  # the second time as after a kill before the artifact was written
        model, _, metrics = fit(Counted(), tmp_path, **settings)
        assert int(model.calls[...]) == 4 and metrics["kept_step"] == 4
        assert max(seen) == 8
    reference, _, _ = fit(Peaked(), tmp_path / "reference", **settings | {"patience": 0})
    np.testing.assert_array_equal(model.weight[...], reference.weight[...])


def test_patience_without_reports_is_refused():
    with pytest.raises(ValueError, match=r"train\.patience=2 .*keep_best"):
        linear_config(patience=2)


def test_an_unknown_metric_to_keep_by_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"keep_best='hits' is not a metric .*calls, score"):
        fit(Peaked(), tmp_path, eval_every=2, keep_best="hits")


def test_a_share_of_the_steps_equals_the_full_run_at_that_step(tmp_path):
    settings = linear_config(eval_every=2, keep_best="score")
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    kept = loop.fit(Peaked(), settings, recipe(), tmp_path / "a", mesh, 0, "linear")[0]
    plain = linear_config()
    part = loop.fit(Peaked(), plain, recipe(), tmp_path / "b", mesh, 0, "linear", 0.4)[0]
    np.testing.assert_array_equal(part.weight[...], kept.weight[...])


def after(folder: Path, share: float, **changes) -> np.ndarray:
    """The weight after `share` of ten steps."""
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    config = linear_config(**changes)
    model = loop.fit(Peaked(), config, recipe(), folder, mesh, 0, "linear", share)[0]
    return np.asarray(model.weight[...])


def test_the_average_is_over_a_share_of_the_steps(tmp_path):
    weights = [after(tmp_path / str(step), step / 10) for step in range(1, 5)]
    of_all = after(tmp_path / "all", 0.4, average_over=1.0)
    np.testing.assert_allclose(of_all, np.mean(weights, axis=0), rtol=1e-6)
    of_two = after(tmp_path / "two", 0.4, average_over=0.2)
    halves = np.average(weights, axis=0, weights=[1 / 8, 1 / 8, 1 / 4, 1 / 2])
    np.testing.assert_allclose(of_two, halves, rtol=1e-6)


def test_epochs_become_steps_and_train_steps_is_their_limit(tmp_path):
    """An epoch has 4 steps; the warmup of 2 steps is longer than the shortest training."""
    for steps, epochs, expected in (
        (0, 1.5, 6),
        (9, 1.5, 6),
        (3, 1.5, 3),
        (3, 0.0, 3),
        (0, 0.2, 1),
    ):
        folder = tmp_path / f"{steps}-{epochs}"
        model, _, _ = fit(Peaked(), folder, steps=steps, epochs=epochs)
        assert int(model.calls[...]) == expected, (steps, epochs)
