"""The report of an experiment: who counts, what a hit is, and the command that prints it."""

import json

import pytest
from absl.testing import flagsaver

from sigma_jax import experiment as command
from sigma_jax.serving.experiments.assignment import EXPERIMENT, Arm, Experiment
from sigma_jax.serving.experiments.exposures import ExposureLog
from sigma_jax.serving.experiments.report import has_hit, make_report
from sigma_jax.serving.stores.base import Event, Exposure, StoreError

DAY = 86_400
BEAMS = Experiment("beams", (Arm("control", 0.5), Arm("few", 0.5)), started=0.0)


@pytest.fixture
def shop(store):
    return store.tenant("default")


def exposure(user, arm, when, items=("tea",), experiment="beams"):
    return Exposure(experiment, arm, user, "home", when // 3600, when, items)


def test_a_hit_is_a_shown_item_taken_within_the_window():
    shown = [exposure("ann", "few", 1000, ("tea", "milk")), exposure("ann", "few", 9000, ("ice",))]
    end = 1000 + DAY

    def hit(item, when, kinds=(), kind="view"):
        return has_hit(shown, [Event("ann", item, when, kind)], end, kinds)

    assert hit("tea", 1000) and hit("milk", end) and hit("ice", 9000)
    assert not hit("tea", 999) and not hit("tea", end + 1)  # before, too late
    assert not hit("ice", 8999) and not hit("soap", 2000)  # not shown yet, never shown
    assert hit("tea", 2000, {"view"}) and not hit("tea", 2000, {"purchase"})


def test_only_exposed_users_whose_window_is_over_count(shop):
    shop.add_exposures([exposure("a", "control", 0), exposure("b", "few", 10)])
    shop.add_exposures([exposure("c", "few", 50), exposure("c", "few", 90_000)])
    shop.add_exposures([exposure("late", "few", DAY), exposure("both", "few", 0)])
    shop.add_exposures([exposure("both", "control", 4000), exposure("x", "few", 0, ("tea",), "x")])
    shop.add_events([Event("b", "tea", 20), Event("nobody", "tea", 20), Event("late", "tea", DAY)])
    shop.add_events([Event("c", "tea", 90_001)])  # after the window of c's first exposure
    report = make_report(BEAMS, shop, DAY, now=DAY + 50)
    control, few = report.arms
    assert (control.exposed, control.users, control.hits, control.hit_rate) == (1, 1, 0, 0)
    assert (few.exposed, few.waiting, few.users, few.hits, few.exposures) == (3, 1, 2, 1, 4)
    assert few.hit_rate == 0.5 and report.mixed_users == 1
    [comparison] = report.comparisons
    assert (comparison.arm, comparison.control, comparison.difference) == ("few", "control", 0.5)
    assert comparison.verdict == "open" and comparison.decided_at is None
    assert make_report(BEAMS, shop, DAY, ["purchase"], now=9e9).arms[1].hits == 0


def test_a_report_without_users(shop):
    report = make_report(BEAMS, shop, DAY)
    assert [arm.hit_rate for arm in report.arms] == [None, None]
    assert report.comparisons[0].difference is None and not report.has_mismatch
    for window, alpha, message in ((0, 0.05, "the window has 0 seconds"), (1, 1.0, "alpha=1")):
        with pytest.raises(ValueError, match=message):
            make_report(BEAMS, shop, window, (), alpha)


def fill(shop, users, is_hit, lost=()):
    """Exposes users, each in its arm; those of `is_hit` take the item."""
    shop.put_document(EXPERIMENT, "beams", BEAMS.to_json())
    names = {f"u{n}": BEAMS.arm_of(f"u{n}").name for n in range(users)}
    shown = [(user, arm) for user, arm in names.items() if user not in lost]
    shop.add_exposures([exposure(user, arm, 100 * n) for n, (user, arm) in enumerate(shown)])
    taken = [
        Event(user, "tea", 100 * n + 1) for n, (user, arm) in enumerate(shown) if is_hit(n, arm)
    ]
    shop.add_events(taken)
    return names


def test_a_difference_is_decided_and_stays_decided(shop):
    fill(shop, 1_500, lambda n, arm: n % (2 if arm == "few" else 10) == 0)
    report = make_report(BEAMS, shop, DAY, now=200_000 + DAY)
    [comparison] = report.comparisons
    assert comparison.verdict == "ahead" and comparison.always_low > 0
    assert comparison.always_low < comparison.low < comparison.difference
    assert comparison.high < comparison.always_high and not report.has_mismatch
    # On the day of the decision the report already said so, and just before it did not.
    at = comparison.decided_at
    assert make_report(BEAMS, shop, DAY, now=at).comparisons[0].verdict == "ahead"
    assert make_report(BEAMS, shop, DAY, now=at - 1).comparisons[0].verdict == "open"


def test_an_arm_that_loses_users_is_a_mismatch(shop):
    names = {f"u{n}": BEAMS.arm_of(f"u{n}").name for n in range(800)}
    lost = [user for user, arm in names.items() if arm == "few"][::4]
    fill(shop, 800, lambda n, arm: False, lost)
    report = make_report(BEAMS, shop, DAY)
    assert report.has_mismatch and report.sample_ratio_p < 0.001
    assert "a mismatch: an arm loses users" in command.text_of(report)


def test_the_command_prints_the_report(shop, store, capsys, tmp_path):
    fill(shop, 60, lambda n, arm: n % 3 == 0)
    command_flags = {"store": str(store.path), "name": "beams", "tenant": "default"}
    if "window_hours" not in command.FLAGS:
        command.define_flags()
    command.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**command_flags):
        command.main(["", "report"])
        text = capsys.readouterr().out
        command.FLAGS.format = "json"
        command.main(["", "report"])
        fields = json.loads(capsys.readouterr().out)
        command.main(["", "list"])
        assert "beams  runs, started 1970-01-01 00:00  control 50 %, few 50 %" in (
            capsys.readouterr().out
        )
        command.FLAGS.name = "none"
        with pytest.raises(ValueError, match="--name=none is no experiment; the store has beams"):
            command.main(["", "report"])
        command.FLAGS.store = str(tmp_path / "typo.db")
        with pytest.raises(ValueError, match=r"typo\.db does not exist; give the store of a ser"):
            command.main(["", "report"])
        assert not (tmp_path / "typo.db").exists()
        with pytest.raises(ValueError, match="the action is 'stop'; use one of report, list"):
            command.main(["", "stop"])
    lines = text.splitlines()
    assert "within 24 hours" in lines[0] and lines[3].split()[0] == "control"
    assert sum(arm["users"] for arm in fields["arms"]) == 60
    assert f"{fields['arms'][1]['hit_rate']:.4f}" in lines[4]
    assert "no decision yet" in text and "users come to the arms by their shares" in text
    assert fields["comparisons"][0]["verdict"] == "open" and fields["has_mismatch"] is False


def test_the_log_repeats_what_a_store_did_not_take(shop, monkeypatch):
    log = ExposureLog(shop)
    arms = {"beams": "few"}
    log.add([BEAMS], arms, "ann", "home", ["tea"], 100.7)
    log.add([BEAMS], arms, "ann", "home", ["milk"], 3599)  # the same hour
    log.add([BEAMS], arms, "ann", "summer", ["ice"], 3599)
    with monkeypatch.context() as patched:

        def fail(self, exposures):
            raise StoreError("full")

        patched.setattr(type(shop), "add_exposures", fail)
        assert log.flush() == 0
    log.add([BEAMS], arms, "ann", "home", ["soap"], 3601)
    assert log.flush() == 3 and log.flush() == 0
    log.add([BEAMS], arms, "ann", "home", ["soap"], 3700)  # it is known: nothing is sent
    assert log.flush() == 0
    found = {(one.list_name, one.bucket): one for one in shop.exposures("beams", "", 9)}
    assert found[("home", 0)].items == ("tea",) and found[("home", 0)].time == 100
    assert set(found) == {("home", 0), ("summer", 0), ("home", 1)}
