"""metrics.jsonl has one line per step, no later line of a killed run and no partial line."""

import json

import jax.numpy as jnp
import pytest

from sigma_jax.runtime.writer import METRICS, MetricWriter, clock, read_metrics


def written(folder, start, steps):
    writer = MetricWriter(folder, start, 10, "stage")
    for step in steps:
        writer.write(step, {"loss": jnp.float32(step)})
        writer.tick(step)
    return writer


def test_metrics_of_one_step_share_a_line(tmp_path):
    writer = written(tmp_path, 0, [1, 2])
    writer.write(2, {"eval/recall": 0.5})
    writer.close()
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0, "eval/recall": 0.5},
    ]


def test_resume_drops_later_lines_and_partial_lines(tmp_path):
    written(tmp_path, 0, [1, 2, 3, 4]).close()
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 5, "lo')
    written(tmp_path, 2, [3, 4, 5]).close()
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_metrics_are_fetched_one_call_late(tmp_path):
    writer = written(tmp_path, 0, [1, 2])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_loss_that_is_not_finite_is_written_and_reported(tmp_path):
    writer = MetricWriter(tmp_path, 0, 10, "stage")
    writer.write(1, {"loss": jnp.float32("inf"), "grad_norm": 1.0})
    with pytest.raises(ValueError, match=r"loss is inf at step 1 of stage; .* delete \S+ and run"):
        writer.flush()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": None, "grad_norm": 1.0}]


def test_tensorboard_events_are_written(tmp_path):
    written(tmp_path, 0, [1]).close()
    assert [path for path in tmp_path.iterdir() if "tfevents" in path.name]


def test_clock_shows_minutes_and_hours():
    assert [clock(7), clock(123), clock(3723)] == ["0:07", "2:03", "1:02:03"]
