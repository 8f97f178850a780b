"""The capacity table: its arithmetic, and that its defaults are the figures that they name."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from launch.benchmarks import capacity
from launch.benchmarks.capacity import Assumptions, Figures, plan
from launch.benchmarks.result import read_result
from sigma_jax.serving.nearline import NearlineSettings

ROOT = Path(__file__).parents[1]
FIGURES = Figures(
    reads_a_second=500,
    cpu_seconds=0.02,
    chip_answers_a_second=1_000,
    user_bytes=1_000,
    event_bytes=300,
    id_bytes=100,
    list_bytes=10_000,
    context_bytes=1e6,
    chip_context_bytes=3e7,
)
# A user: 2.4 events a day, one visit of 8 events, 24 reads; at the peak everything is 3 times.
ASSUMED = Assumptions(
    events_a_user_day=2.4,
    events_a_visit=8,
    peak=3,
    reads_a_user_day=24,
    instructions_a_read=0.01,
    days_of_events=100,
    kept_hours=2,
    utilisation=0.5,
    redis_gb=10,
)


def test_the_needs_of_86_million_users():
    """As many users as a thousand times the seconds of a day, so that all is easy to reckon."""
    found = plan(86_400_000, ASSUMED, FIGURES)
    assert found.events_a_second == pytest.approx(7_200)
    assert found.reads_a_second == pytest.approx(72_000)
    assert found.instructions_a_second == pytest.approx(720)
    assert found.answers_a_second == pytest.approx(900 + 720)
    assert found.api_processes == 288  # 72,000 / (500 * 0.5)
    assert found.cores == 65  # 1,620 * 0.02 / 0.5 = 64.8
    assert found.chips == 4  # 1,620 / 500
    of_user = 1_000 + 240 * 300 + 7 * 2.4 * 100 + 10_000
    assert found.redis_gb == pytest.approx(86.4e6 * of_user / 1e9)
    assert found.redis_servers == 732  # 7,317 GB
    assert found.contexts_gb == pytest.approx(900 * 7_200 * 1e6 / 1e9)
    assert found.chip_contexts_gb == pytest.approx(30 * found.contexts_gb)


def test_a_store_keeps_a_bounded_number_of_events():
    long = dataclasses.replace(ASSUMED, days_of_events=1e6)
    longer = dataclasses.replace(ASSUMED, days_of_events=1e7)
    assert plan(1_000, long, FIGURES) == plan(1_000, longer, FIGURES)


def test_no_more_contexts_are_kept_than_there_are_users():
    always = dataclasses.replace(ASSUMED, kept_hours=1e6)
    assert plan(1_000, always, FIGURES).contexts_gb == pytest.approx(1.0)


def test_ten_users_need_one_of_each():
    found = plan(10, ASSUMED, FIGURES)
    assert (found.api_processes, found.cores, found.chips, found.redis_servers) == (1, 1, 1, 1)


@pytest.mark.parametrize("name", ["peak", "events_a_visit", "utilisation"])
def test_impossible_assumptions_are_refused(name):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(ASSUMED, **{name: 0})


def test_every_assumption_has_a_source_and_the_value_that_it_names():
    measured = read_result(ROOT / "launch" / "benchmarks" / "results" / "capacity.json")["log"]
    for field in dataclasses.fields(Assumptions):
        source = field.metadata["source"]
        assert source.startswith(("measured: log.", "assumed", "the default", "launch/")), source
        if name := re.match(r"measured: log\.(\w+)", source):
            assert field.default == pytest.approx(measured[name[1]], rel=0.01)
    assert Assumptions().lists == len(NearlineSettings().lists)
    folder = ROOT / "launch" / "kubernetes"
    scaled = yaml.safe_load_all((folder / "autoscale.yaml").read_text())
    [api] = [one for one in scaled if one["kind"] == "HorizontalPodAutoscaler"]
    target = api["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"]
    assert Assumptions().utilisation == target / 100
    assert f"- {Assumptions().redis_gb:g}gb\n" in (folder / "redis.yaml").read_text()


def test_a_plan_without_an_estimate_of_a_chip_has_no_chips():
    assert capacity.chip_answers([]) is None
    report = {"stage": "sft", "preset": "qwen3_0p6b", "flags": "--inference"}
    assert capacity.chip_answers([report | {"examples_per_second": 5.0}]) == 5.0
    unknown = dataclasses.replace(FIGURES, chip_answers_a_second=None)
    assert plan(10, ASSUMED, unknown).chips is None


def test_figures_are_those_of_the_stored_results():
    if not (capacity.RESULTS / "fewer_beams.json").exists():
        pytest.skip("launch/benchmarks/fewer_beams.py has no stored result yet")
    found = Figures.read()
    assert found.reads_a_second >= 100 and 0 < found.cpu_seconds < 1
    assert found.context_bytes == 2 * 3 * 2 * 64 * 4 * 232  # keys and values of the demo's prompt
    assert found.list_bytes > 10 * found.event_bytes
    assert capacity.USERS[0] == 10**4 and capacity.USERS[-1] == 4 * 10**8
