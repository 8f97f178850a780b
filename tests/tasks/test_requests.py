"""Requests aim at what their task means, and reach no row at or after their cut."""

import dataclasses

import numpy as np
import pytest

from sigma_jax.prompts.inference import assemble_prompts
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import TASKS, Requests
from sigma_jax.tasks.constraints import allowed_items
from sigma_jax.tasks.instructions import (
    HELDOUT_PHRASINGS,
    TRAIN_PHRASINGS,
    render,
    slot_value_texts,
)
from sigma_jax.tasks.requests import make_requests
from sigma_jax.tasks.targets import TaskTables

V = 450


@pytest.fixture(scope="module", params=["valid", "test"])
def requests(request, shop):
    return request.param, make_requests(shop, request.param, 4, 1000, 0.8)


@pytest.fixture(scope="module")
def tables(shop, semantic_ids, config):
    return PromptTables.make(shop, semantic_ids, config, V)


def test_every_user_with_a_target_is_asked_for_once_a_task(shop, requests):
    split, requests = requests
    histories = shop.histories
    start = histories.valid_start if split == "valid" else histories.test_start
    expected = np.flatnonzero(start < histories.offsets[1:])
    assert np.array_equal(requests.user[requests.task == 0], expected)
    assert len(np.unique(requests.user * 7 + requests.task)) == len(requests)
    assert np.array_equal(requests.history_end, start[requests.user])
    assert set(requests.task.tolist()) == set(range(7))


def test_targets_satisfy_their_task(shop, requests):
    histories, longtail = shop.histories, TaskTables.make(shop, 0.8).is_longtail
    category = shop.catalogue.category
    _, requests = requests
    allowed = allowed_items(shop, requests)
    for row in range(len(requests)):
        user, history_end, target = (
            int(getattr(requests, n)[row]) for n in ("user", "history_end", "target")
        )
        task, slot_value = TASKS[requests.task[row]], int(requests.slot_value[row])
        assert target in histories.item[history_end : histories.session_end(history_end, user)]
        before = histories.before(user, history_end)
        match task:
            case "Query" | "Category" | "Season" | "Holiday":
                assert target in allowed.of(row)
            case _:
                assert slot_value == -1 and allowed.of(row) is None
        if task == "Category":
            assert (category[allowed.of(row)] == slot_value).all()
            assert len(allowed.of(row)) == (category == slot_value).sum()
        if task == "Longtail":
            assert longtail[target]
        if task == "Discover":
            assert category[target] not in category[before]
        if task in ("Season", "Holiday"):
            assert slot_value in shop.themes.active(int(histories.time[history_end]))
            assert shop.themes.kinds[slot_value].as_py() == task.lower()


def test_phrasings_come_from_the_given_set(shop, requests):
    split, asked = requests
    for phrasings in (HELDOUT_PHRASINGS, TRAIN_PHRASINGS):
        requests = make_requests(shop, split, 4, 1000, 0.8, phrasings)
        assert np.array_equal(requests.target, asked.target)
        used = set()
        for row, sentence in enumerate(requests.instruction):
            task = TASKS[requests.task[row]]
            texts = slot_value_texts(shop, task)
            text = texts[requests.slot_value[row]] if texts else None
            options = [render(task, text, phrasing) for phrasing in phrasings[task]]
            used.add((task, options.index(sentence)))
        assert len(used) > len(TASKS)


def test_requests_depend_on_the_seed_but_not_on_the_order_of_lines(shop):
    asked = make_requests(shop, "valid", 4, 1000, 0.8)
    histories = shop.histories
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    rng = np.random.default_rng(0)
    order = np.lexsort((rng.random(len(user)), histories.session, user))
    item = histories.item[order]
    assert not np.array_equal(item, histories.item)
    turned = dataclasses.replace(shop, histories=dataclasses.replace(histories, item=item))
    again = make_requests(turned, "valid", 4, 1000, 0.8)
    for name in ("user", "history_end", "task", "slot_value", "target", "instruction"):
        assert np.array_equal(getattr(again, name), getattr(asked, name)), name
    other = make_requests(shop, "valid", 5, 1000, 0.8)
    assert not np.array_equal(other.target, asked.target)


def test_a_smaller_sample_is_part_of_the_larger(shop):
    whole = make_requests(shop, "valid", 4, 1000, 0.8)
    few = make_requests(shop, "valid", 4, 3, 0.8)
    assert np.bincount(few.task).max() == 3
    keys = [set(zip(r.user, r.task, r.target, r.instruction, strict=True)) for r in (whole, few)]
    assert keys[1] < keys[0]


def test_unknown_split_is_refused(shop):
    with pytest.raises(ValueError, match="split 'train' is unknown"):
        make_requests(shop, "train", 0, 1, 0.8)


def test_prompts_show_nothing_at_or_after_their_cut(shop, tables, config, requests):
    """Whatever the later rows hold, the prompts are the same."""
    split, requests = requests
    prompts = assemble_prompts(requests, shop, tables, config, 120)
    histories = shop.histories
    start = histories.valid_start if split == "valid" else histories.test_start
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    is_later = np.arange(len(user)) >= start[user]
    item = np.where(is_later, (histories.item + 1) % 40, histories.item).astype(np.int32)
    changed = dataclasses.replace(shop, histories=dataclasses.replace(histories, item=item))
    again = assemble_prompts(requests, changed, tables, config, 120)
    for name in prompts:
        assert np.array_equal(prompts[name], again[name])


def test_prompt_worked_example(shop, tables, config):
    """Every part in its place, counted by hand."""
    user = int(np.argmax(np.diff(shop.histories.offsets)))
    config = dataclasses.replace(config, history_length=3, num_favourites=1)
    history_end = int(shop.histories.test_start[user])
    request = one_request(user, history_end, "i need query no. 3")
    prompt = assemble_prompts(request, shop, tables, config, 100)
    rows = shop.histories.item[history_end - 3 : history_end]
    sessions = shop.histories.session[history_end - 3 : history_end]
    ends = np.append(sessions[1:] != sessions[:-1], True)

    def text(words, most=100):
        return tables.encoder.tokenizer(words, add_special_tokens=False)["input_ids"][:most]

    def slot(item):
        return [V + int(tables.semantic_ids.codes[item, 0]), V + 15]

    before = shop.histories.before(user, history_end - 3)
    counts = np.bincount(before)
    best = next(i for i in before[::-1] if counts[i] == counts.max())
    expected = text(shop.users.table["profile"][user].as_py(), config.profile_tokens)
    expected = expected + text("\nbought most often: ") + slot(best) + text("\nbought lately: ")
    for item, is_end in zip(rows, ends, strict=True):
        expected = expected + slot(item) + (text("\n") if is_end else [])
    expected = expected + text("i need query no. 3")
    size = prompt["length"][0]
    assert prompt["token"][0, :size].tolist() == expected
    shown = prompt["item"][0]
    assert shown[shown >= 0].tolist() == [best, *rows]
    assert (prompt["token"][0][shown >= 0] == V + 15).all()
    assert prompt["position"][0, :size].tolist() == list(range(size))
    assert prompt["segment"][0].tolist() == [1] * size + [0] * (100 - size)


def one_request(user, history_end, instruction):
    none = np.array([-1])
    return Requests(
        np.array([user]), np.array([history_end]), np.array([0]), none, none, [instruction]
    )


def test_a_user_without_history_gets_profile_and_instruction(shop, tables, config):
    words = tables.encoder.encode(["hidden gems for me please"], 99)[0].tolist()
    stranger = assemble_prompts(
        one_request(-1, 0, "hidden gems for me please"), shop, tables, config, 60
    )
    assert stranger["token"][0, : stranger["length"][0]].tolist() == words
    history_end = int(shop.histories.offsets[1])
    known = assemble_prompts(
        one_request(1, history_end, "hidden gems for me please"), shop, tables, config, 60
    )
    expected = tables.profile(1)[: config.profile_tokens].tolist() + words
    assert known["token"][0, : known["length"][0]].tolist() == expected
    assert len(expected) > len(words)


@pytest.mark.parametrize(
    "instruction",
    ["", "   ", "冬の靴を探しています", "Ищу подарок 🎁", "x" * 1_000_000, "ab " * 400_000],
)
def test_any_text_makes_a_prompt(shop, tables, config, instruction):
    prompt = assemble_prompts(one_request(2, 0, instruction), shop, tables, config, 80)
    size = prompt["length"][0]
    assert 1 <= size <= config.profile_tokens + config.instruction_tokens
    assert prompt["token"].max() < V


def test_short_rows_lose_the_oldest_items_first(shop, tables, config):
    user = int(np.argmax(np.diff(shop.histories.offsets)))
    history_end = int(shop.histories.test_start[user])
    request = one_request(user, history_end, "i need query no. 3")
    whole = assemble_prompts(request, shop, tables, config, 200)
    size = int(whole["length"][0])
    full = whole["item"][0][whole["item"][0] >= 0].tolist()
    history = full[config.num_favourites :]
    words = tables.encoder.encode(request.instruction, 99)[0].tolist()
    one_item = len(words) + len(tables.history_text) + config.sid_in_prompt + 2
    shown_before = full
    for length in range(size, len(words) - 1, -1):
        prompt = assemble_prompts(request, shop, tables, config, length)
        end = prompt["length"][0]
        assert end <= length
        assert prompt["token"][0, end - len(words) : end].tolist() == words
        shown = prompt["item"][0][prompt["item"][0] >= 0].tolist()
        assert len(shown) <= len(shown_before)
        # The history ends with its latest items; favourites go only when one item is left.
        kept = 0
        while kept < len(history) and shown[-1 - kept :] == history[-1 - kept :]:
            kept += 1
        assert kept >= 1 or length < one_item
        if kept > 1:
            assert shown == full[: config.num_favourites] + history[-kept:]
        shown_before = shown
    with pytest.raises(ValueError, match="has no room for an instruction"):
        assemble_prompts(request, shop, tables, config, 3)
