"""Fewer beams under load: when a batch gets them, and that its programs are compiled before."""

import asyncio
import math
import threading

import pytest

from sigma_jax.serving.batcher import Batcher
from sigma_jax.serving.load import BeamChooser, FewerBeams, Load

RULES = FewerBeams.read(["2:0.5", "5:0.25"])


def chooser(size=4, **seconds):
    """A chooser to which all shares are known, with the times of a batch of `size`."""
    one = BeamChooser(RULES)
    for share, name in ((1.0, "all"), (0.5, "half"), (0.25, "quarter")):
        one.took(size, share, seconds.get(name, 1.0))
    return one


@pytest.mark.parametrize(
    ("waiting", "share"), [(0, 1.0), (1, 1.0), (2, 0.5), (4, 0.5), (5, 0.25), (999, 0.25)]
)
def test_a_longer_queue_leaves_fewer_beams(waiting, share):
    assert chooser().share(4, Load(waiting)) == share
    assert chooser().share(3, Load(waiting)) == share  # a batch of 3 is computed as one of 4
    assert BeamChooser().share(4, Load(waiting)) == 1.0


def test_a_share_is_not_used_before_it_is_compiled():
    one = BeamChooser(RULES)
    assert one.share(4, Load(999)) == 1.0
    one.took(4, 0.5, 1.0)
    assert one.share(4, Load(999)) == 0.5 and one.share(8, Load(999)) == 1.0
    one.took(4, 0.25, 1.0)
    assert one.share(4, Load(999)) == 0.25


@pytest.mark.parametrize(
    ("left", "share"),
    [
        ((9.0,), 1.0),
        ((9.0, 0.7), 0.5),  # the nearest deadline counts
        ((0.3,), 0.25),
        ((0.1, 9.0), 1.0),  # nothing could hold it: the index answers that request
        ((0.1, 0.7), 0.5),
        ((), 1.0),
        ((math.inf,), 1.0),
    ],
)
def test_a_near_deadline_leaves_as_many_beams_as_it_has_time_for(left, share):
    assert chooser(all=1.0, half=0.5, quarter=0.2).share(4, Load(0, left)) == share


def test_fewer_beams_that_take_no_less_time_are_not_used_for_a_deadline():
    assert chooser(all=1.0, half=1.1, quarter=1.2).share(4, Load(0, (1.05, 0.5))) == 1.0
    assert chooser(all=1.0, half=1.1, quarter=0.6).share(4, Load(0, (0.7,))) == 0.25


def test_expected_times_follow_the_newest():
    one = chooser(all=10.0, half=1.0)
    assert one.share(4, Load(0, (5.0,))) == 0.5
    for _ in range(20):
        one.took(4, 1.0, 2.0)
    assert one.share(4, Load(0, (5.0,))) == 1.0


@pytest.mark.parametrize(
    "texts", [["32"], ["32:2"], ["0:0.5"], ["a:0.5"], ["2:0.5", "3:0.6"], ["2:0.5", "2:0.2"]]
)
def test_wrong_rules_are_refused(texts):
    with pytest.raises(ValueError, match="fewer_beams"):
        FewerBeams.read(texts)


def test_rules_are_ordered():
    assert FewerBeams.read([]) == ()
    assert FewerBeams.read(["128:0.25", "32:0.5"]) == (FewerBeams(32, 0.5), FewerBeams(128, 0.25))


def test_batches_are_told_their_load():
    """The first request is computed alone; the next ones wait for it."""
    loads, sizes, begin = [], [], threading.Event()

    def compute(requests, load):
        begin.wait(10)
        loads.append((list(requests), load))
        return requests

    async def ask():
        batcher = Batcher(compute, 2)
        batcher.on_batch = sizes.append
        tasks = [asyncio.create_task(batcher.submit(0, 5.0))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.submit(n, 5.0 + n)) for n in (1, 2, 3)]
        await asyncio.sleep(0.05)
        begin.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2, 3]
        batcher.close()

    asyncio.run(ask())
    assert [(requests, load.waiting) for requests, load in loads] == [
        ([0], 0),
        ([1, 2], 1),
        ([3], 0),
    ]
    assert sizes == [1, 2, 1]
    for requests, load in loads:
        for number, left in zip(requests, load.seconds_left, strict=True):
            assert 0 < left <= 5.0 + number


def test_some_requests_of_a_batch_have_their_own_deadlines():
    load = Load(7, (1.0, 2.0, 3.0))
    assert load.for_requests([2, 0], 0.5) == Load(7, (2.5, 0.5))
    assert Load(7).for_requests([2, 0], 0.5) == Load(7)
