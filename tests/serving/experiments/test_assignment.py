"""Who gets which arm: stable, by shares, independent between experiments."""

import numpy as np
import pytest

from sigma_jax.serving.experiments.assignment import (
    EXPERIMENT,
    NO_TREATMENT,
    Arm,
    Experiment,
    RunningExperiments,
    check_together,
    point_of,
    treatment_of,
)
from sigma_jax.serving.stores.base import open_store

USERS = [f"user {n}" for n in range(20_000)]


def halves(name="one", **fields):
    return Experiment(name, (Arm("a", 0.5), Arm("b", 0.5, **fields)))


def test_points_never_change():
    """Other points would move users between the arms of experiments that run."""
    assert point_of("summer", "ann") == pytest.approx(0.3194459, abs=1e-7)
    assert point_of("", "") == pytest.approx(0.7283713, abs=1e-7)
    assert point_of("a", "bc") != point_of("ab", "c")
    assert 0 <= point_of("s", "\ud800") < 1


def test_users_come_to_arms_by_their_shares():
    experiment = Experiment("x", (Arm("a", 0.5), Arm("b", 0.2), Arm("c", 0.1)))

    def names():
        return [arm.name if (arm := experiment.arm_of(user)) else "" for user in USERS]

    arms = names()
    for name, share in {"a": 0.5, "b": 0.2, "c": 0.1, "": 0.2}.items():
        expected, deviation = share * len(USERS), np.sqrt(share * (1 - share) * len(USERS))
        assert abs(arms.count(name) - expected) < 4 * deviation
    assert arms == names()


def test_experiments_split_independently():
    def is_first(experiment):
        return np.array([experiment.arm_of(user).name == "a" for user in USERS])

    one, two = is_first(halves("one")), is_first(halves("two"))
    assert abs((one & two).mean() - 0.25) < 0.02 and abs(np.corrcoef(one, two)[0, 1]) < 0.03
    same_salt = Experiment("three", halves().arms, salt="one")
    assert (is_first(same_salt) == one).all()


def test_a_treatment_joins_the_arms_of_a_user():
    lists = Experiment("lists", (Arm("a", 1e-9), Arm("b", 1 - 1e-9, lists={"home": "tea"})))
    beams = Experiment("z", (Arm("a", 1e-9), Arm("b", 0.9, "new", ranking={"reranks": False})))
    found = {
        len(one.arms): one for user in USERS[:99] for one in [treatment_of([lists, beams], user)]
    }
    assert found[1].arms == {"lists": "b"} and found[1].export == ""
    both = found[2]
    assert both.arms == {"lists": "b", "z": "b"} and both.lists == {"home": "tea"}
    assert both.export == "new" and both.ranking == {"reranks": False}
    assert treatment_of([], "ann") is NO_TREATMENT


def test_experiments_that_change_the_same_thing_do_not_run_together():
    check_together(halves("two", export="new"), [halves("one", lists={"home": "tea"})])
    check_together(halves("one", export="new"), [halves("one", export="newer")])
    with pytest.raises(ValueError, match=r"'one' runs and changes the list 'home' too; stop it"):
        check_together(halves("two", lists={"home": "x"}), [halves("one", lists={"home": "tea"})])


@pytest.mark.parametrize(
    "arms, message",
    [
        ((Arm("a", 0.5),), r"has the arms \['a'\]; name two or more"),
        ((Arm("a", 0.5), Arm("a", 0.5)), "name two or more"),
        ((Arm("a", 0.7), Arm("b", 0.5)), "the shares add up to 1.2"),
        ((Arm("a", 0.0), Arm("b", 0.5)), "give each arm more than 0"),
    ],
)
def test_arms_that_cannot_be_compared(arms, message):
    with pytest.raises(ValueError, match=message):
        Experiment("x", arms)


def test_stopped_experiments_treat_nobody(tmp_path):
    store = open_store(str(tmp_path / "store.db"))
    shop = store.tenant("shop")
    experiment = Experiment("x", (Arm("a", 0.5), Arm("b", 0.5, rules={"r": {"kind": "pin"}})))
    shop.put_document(EXPERIMENT, "x", experiment.to_json())
    running = RunningExperiments(shop)
    assert running.by_name == {"x": experiment}
    assert running.treatment("ann").arms == {"x": experiment.arm_of("ann").name}
    assert running.treatment("") is NO_TREATMENT
    shop.put_document(EXPERIMENT, "x", experiment.to_json() | {"stopped": 5.0})
    running.forget()
    assert running.treatment("ann") is NO_TREATMENT
    store.close()
