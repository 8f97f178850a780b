"""Parts of a running service are killed under load (launch/benchmarks/chaos.py, one kill each)."""

import dataclasses
import shutil

import pytest

from launch.benchmarks import chaos
from sigma_jax.serving.nearline import HOME
from sigma_jax.serving.stores.base import Event, StoredList, open_store


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("store, kills", [("redis", 3), ("sqlite", 2)])
def test_killed_parts_lose_no_event_and_leave_no_user_stale(exported, tmp_path, store, kills):
    if store == "redis" and shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    report = chaos.run(exported, tmp_path, store, kills, seconds=1.0)
    assert report.is_good, report
    assert sum(report.kills.values()) == kills == len(report.kills)
    assert report.acknowledged > 50 and report.errors_while_down > 0


def test_what_is_lost_is_found(tmp_path):
    """A report on a store in which something is wrong of every kind."""
    store = open_store(str(tmp_path / "store.db"))
    tenant = store.tenant(chaos.TENANT)
    tenant.add_events([Event("user-0", "i", 5, event_id=name) for name in ("e0", "e1")])
    tenant.add_events([Event("user-1", "i", 5, event_id="e2")])
    newest = tenant.events("user-0", 9)[1]
    for user in ("user-0", "user-1"):
        one = StoredList((), 0.0, "m", "0001", newest)
        tenant.put_lists({user: {HOME: one}}, 60)
    calls = {"acknowledged": ["e0", "e1", "e2", "e3"], "reads": [], "errors": []}
    calls["errors"] = [[10.0, 10.5, "503", "event 1"], [50.0, 50.1, "500", "read of user-0"]]
    report = chaos.judged(store, calls, [("api", 9.0, 12.0), ("worker", 49.0, 60.0)])
    assert report.lost == ["e3"] and report.stale == ["user-1"] and report.waiting == 2
    assert report.errors_while_down == 1 and report.errors_otherwise == ["read of user-0: 500"]
    assert not report.is_good
    good = dataclasses.replace(report, lost=[], stale=[], waiting=0, errors_otherwise=[])
    assert good.is_good and not dataclasses.replace(good, twice=["e0"]).is_good
    store.close()
