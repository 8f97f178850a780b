"""Prompts of requests have the layout of training and show no row after the history's end."""

import dataclasses

import numpy as np
import pytest

from sigma_jax.prompts.inference import assemble_prompts, prompt_plan
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import Requests
from sigma_jax.tasks.requests import make_requests

V = 450  # more than the tokenizer has


@pytest.fixture(scope="module", params=["valid", "test"])
def requests(request, shop):
    return request.param, make_requests(shop, request.param, 4, 1000, 0.8)


@pytest.fixture(scope="module")
def tables(shop, semantic_ids, config):
    return PromptTables.make(shop, semantic_ids, config.layout, V, has_instructions=True)


def test_prompts_show_no_row_after_the_history_end(shop, tables, requests):
    """Later rows can change without changing a prompt."""
    split, requests = requests
    prompts = assemble_prompts(requests, shop.histories, tables, 120)
    histories = shop.histories
    start = histories.valid_start if split == "valid" else histories.test_start
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    is_later = np.arange(len(user)) >= start[user]
    item = np.where(is_later, (histories.item + 1) % 40, histories.item).astype(np.int32)
    changed = dataclasses.replace(shop, histories=dataclasses.replace(histories, item=item))
    again = assemble_prompts(requests, changed.histories, tables, 120)
    for name in prompts:
        assert np.array_equal(prompts[name], again[name])


def test_prompt_worked_example(shop, tables, config):
    """The tokens of each part, in order, written out by hand."""
    user = int(np.argmax(np.diff(shop.histories.offsets)))
    layout = dataclasses.replace(config.layout, history_length=3, num_favourites=1)
    tables = dataclasses.replace(tables, layout=layout)
    history_end = int(shop.histories.test_start[user])
    request = one_request(user, history_end, "i need query no. 3")
    prompt = assemble_prompts(request, shop.histories, tables, 100)
    rows = shop.histories.item[history_end - 3 : history_end]
    sessions = shop.histories.session[history_end - 3 : history_end]
    ends = np.append(sessions[1:] != sessions[:-1], True)

    def text(words, max_tokens=100):
        return tables.tokenizer.tokenizer(words, add_special_tokens=False)["input_ids"][:max_tokens]

    def slot(item):
        return [V + int(tables.semantic_ids.codes[item, 0]), V + 15]

    before = shop.histories.before(user, history_end - 3)
    counts = np.bincount(before)
    best = next(i for i in before[::-1] if counts[i] == counts.max())
    expected = text(shop.users.table["profile"][user].as_py(), config.layout.profile_tokens)
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


def test_a_window_that_moves_rarely(shop, tables):
    """Worked example of prompt_plan: history_length 6, window_step 4."""
    few = dataclasses.replace(tables, layout=dataclasses.replace(tables.layout, history_length=6))
    user = int(np.argmax(np.diff(shop.histories.offsets)))
    first = int(shop.histories.offsets[user])
    words = np.array([1], np.int32)
    dropped = []
    for size in range(5, 12):
        plan = prompt_plan(shop.histories, few, user, first + size, words, 4)
        rows = shop.histories.item[first : first + size]
        dropped.append(size - len(plan.history))
        np.testing.assert_array_equal(plan.history, rows[size - len(plan.history) :])
    assert dropped == [0, 0, 4, 4, 4, 4, 8]
    by_one = prompt_plan(shop.histories, few, user, first + 11, words)
    assert len(by_one.history) == 6


def test_a_user_without_history_gets_profile_and_instruction(shop, tables, config):
    words = tables.tokenizer.encode(["hidden gems for me please"], 99)[0].tolist()
    stranger = assemble_prompts(
        one_request(-1, 0, "hidden gems for me please"), shop.histories, tables, 60
    )
    assert stranger["token"][0, : stranger["length"][0]].tolist() == words
    history_end = int(shop.histories.offsets[1])
    known = assemble_prompts(
        one_request(1, history_end, "hidden gems for me please"), shop.histories, tables, 60
    )
    expected = tables.profile(1)[: config.layout.profile_tokens].tolist() + words
    assert known["token"][0, : known["length"][0]].tolist() == expected
    assert len(expected) > len(words)


@pytest.mark.parametrize(
    "instruction",
    ["", "   ", "冬の靴を探しています", "Ищу подарок 🎁", "x" * 1_000_000, "ab " * 400_000],
)
def test_any_text_makes_a_prompt(shop, tables, config, instruction):
    prompt = assemble_prompts(one_request(2, 0, instruction), shop.histories, tables, 80)
    size = prompt["length"][0]
    assert 1 <= size <= config.layout.profile_tokens + config.layout.instruction_tokens
    assert prompt["token"].max() < V


def test_short_rows_lose_the_oldest_items_first(shop, tables, config):
    user = int(np.argmax(np.diff(shop.histories.offsets)))
    history_end = int(shop.histories.test_start[user])
    request = one_request(user, history_end, "i need query no. 3")
    complete = assemble_prompts(request, shop.histories, tables, 200)
    size = int(complete["length"][0])
    full = complete["item"][0][complete["item"][0] >= 0].tolist()
    history = full[config.layout.num_favourites :]
    words = tables.tokenizer.encode(request.instruction, 99)[0].tolist()
    one_item = len(words) + len(tables.history_text) + config.layout.sid_in_prompt + 2
    shown_before = full
    for length in range(size, len(words) - 1, -1):
        prompt = assemble_prompts(request, shop.histories, tables, length)
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
            assert shown == full[: config.layout.num_favourites] + history[-kept:]
        shown_before = shown
    with pytest.raises(ValueError, match="has no room for an instruction"):
        assemble_prompts(request, shop.histories, tables, 3)
