"""Scores, the printed table and the report page."""

import dataclasses
import html
import json
import re

import numpy as np
import pyarrow as pa
import pytest

from sigma_jax import metrics
from sigma_jax.evaluation.page import SECTIONS, collect_report_data, write_report
from sigma_jax.evaluation.plots import hit_rates, read_curves
from sigma_jax.evaluation.score import HIT_RATE_CUTOFFS, score, targets_are_unseen
from sigma_jax.evaluation.table import render_summary, render_table, write_json
from sigma_jax.schema import (
    TASKS,
    Catalogue,
    Histories,
    Links,
    PreparedData,
    Queries,
    RelevancePairs,
    Requests,
    SemanticIds,
    Themes,
    Users,
)

ITEMS, USERS = 60, 30
FOLLOWING = {"Holiday": {"instruction": {"constraint@10": {"mean": 0.1625}}, "no instruction": {}}}
NASTY = 'x <script src="//evil"> & "y"'


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    item = rng.integers(0, 25, USERS * 6)  # some come again
    item = item.astype(np.int32)
    session = np.tile(np.arange(6, dtype=np.int32), USERS)
    offsets = np.arange(0, USERS * 6 + 1, 6)
    histories = Histories(
        item, session.astype(np.int64), session, offsets, offsets[1:] - 2, offsets[1:] - 1
    )
    names = [NASTY if i % 9 == 0 else f"item {i}" for i in range(ITEMS)]
    table = pa.table({"item_id": names, "text": names, "title": names})
    category = rng.integers(0, 4, ITEMS).astype(np.int32)
    popularity = np.bincount(item, minlength=ITEMS)
    catalogue = Catalogue(table, category, pa.array(list("abcd")), popularity)
    links = Links.from_edges(rng.integers(0, 4, 50), rng.integers(0, ITEMS, 50), 4)
    none = np.zeros(0, np.int64)
    themes = Themes(pa.array(list("stuv")), pa.array(["season"] * 4), links, none, none, none)
    ids = rng.integers(0, ITEMS, 8).astype(np.int32)
    is_heldout = np.zeros(8, bool)
    texts = pa.array(["q", NASTY, "r", "s"])
    pairs = {
        "search": RelevancePairs("search", ids % 4, ids, texts, is_heldout),
        "co_occurrence": RelevancePairs("co_occurrence", ids, ids[::-1], None, is_heldout),
    }
    users = Users(pa.table({"user_id": [str(u) for u in range(USERS)]}))
    queries = Queries(pa.array(list("wxyz")), links)
    folder = tmp_path_factory.mktemp("data")
    return PreparedData(
        folder, catalogue, histories, users, queries, themes, pairs, None, None, None
    )


@pytest.fixture(scope="module")
def requests(data):
    size = USERS * len(TASKS)
    user = np.tile(np.arange(USERS, dtype=np.int32), len(TASKS))
    task = np.repeat(np.arange(len(TASKS), dtype=np.int32), USERS)
    is_bound = np.isin(task, [TASKS.index(t) for t in ("Query", "Category", "Season", "Holiday")])
    slot_value = np.where(is_bound, user % 4, -1).astype(np.int32)
    history_end = data.histories.test_start[user]
    return Requests(
        user, history_end, task, slot_value, data.histories.item[history_end], [""] * size
    )


@pytest.fixture(scope="module")
def rankings(requests):
    rng = np.random.default_rng(1)

    def draw():
        rows = np.stack([rng.permutation(ITEMS)[:20] for _ in range(len(requests))])
        rows = rows.astype(np.int32)
        rows[::7, 12:] = -1
        return rows

    names = ("SIGMA", "Popularity", "SASRec <restricted>")
    return {name: {"include_seen": draw(), "exclude_seen": draw()} for name in names}


@pytest.fixture(scope="module")
def semantic_ids():
    rng = np.random.default_rng(2)
    return SemanticIds(rng.integers(0, 4, (ITEMS, 3)).astype(np.int32), 4)


@pytest.fixture(scope="module")
def results(rankings, requests, data, semantic_ids):
    return score(rankings, requests, data, semantic_ids)


def test_scores_equal_metrics_of_each_task(results, rankings, requests, data, semantic_ids):
    shown = results["methods"]["SIGMA"]["include_seen"]["tasks"]["Query"]
    rows = requests.task == TASKS.index("Query")
    chosen, target = rankings["SIGMA"]["include_seen"][rows], requests.target[rows]
    ranks = metrics.sid_ranks(chosen, target, semantic_ids.codes)
    for k in HIT_RATE_CUTOFFS:
        hits = metrics.hits(ranks, k)
        assert shown[f"sid.HR@{k}"]["mean"] == pytest.approx(hits.mean())
        assert shown[f"sid.HR@{k}"]["error"] == pytest.approx(metrics.standard_error(hits))
    assert shown["item.Recall@5"] == shown["item.HR@5"]
    allowed = [set(data.queries.items.of(a).tolist()) for a in requests.slot_value[rows]]
    fits = [
        sum(i in a for i in row[:10]) / min(10, len(a))
        for row, a in zip(chosen, allowed, strict=True)
    ]
    assert shown["constraint@10"]["mean"] == pytest.approx(np.mean(fits))
    assert "constraint@10" not in results["methods"]["SIGMA"]["include_seen"]["tasks"]["JustForYou"]


def test_cold_targets_are_reported_apart(rankings, requests, data, semantic_ids, results):
    assert "Recall@10 of cold targets" not in render_table(results)
    popularity = np.array(data.catalogue.popularity)
    popularity[requests.target[::5]] = 0
    catalogue = dataclasses.replace(data.catalogue, popularity=popularity)
    changed = dataclasses.replace(data, catalogue=catalogue)
    results = score(rankings, requests, changed, semantic_ids)
    shown = results["methods"]["SIGMA"]["include_seen"]["tasks"]["JustForYou"]
    rows = requests.task == TASKS.index("JustForYou")
    chosen, target = rankings["SIGMA"]["include_seen"][rows][:, :10], requests.target[rows]
    hit, is_cold = (chosen == target[:, None]).any(axis=1), popularity[target] == 0
    assert 0 < is_cold.sum() < len(is_cold)
    for name, which in (("cold", is_cold), ("warm", ~is_cold)):
        assert shown[f"{name}.Recall@10"]["n"] == which.sum()
        assert shown[f"{name}.Recall@10"]["mean"] == pytest.approx(hit[which].mean())
    assert "Recall@10 of cold targets" in render_table(results)


def test_average_weights_tasks_equally_and_has_the_error_of_a_mean(results):
    summary = results["methods"]["Popularity"]["include_seen"]
    estimates = [task["item.HR@10"] for task in summary["tasks"].values()]
    average = summary["average"]["item.HR@10"]
    assert average["mean"] == pytest.approx(np.mean([e["mean"] for e in estimates]))
    variance = sum(e["error"] ** 2 for e in estimates) / len(estimates) ** 2
    assert average["error"] == pytest.approx(np.sqrt(variance))


def test_unseen_targets_are_those_that_the_history_lacks(results, rankings, requests, data):
    is_unseen = targets_are_unseen(data, requests)
    for row in range(len(requests)):
        history = data.histories.before(requests.user[row], requests.history_end[row])
        assert is_unseen[row] == (requests.target[row] not in history)
    assert results["unseen_targets"] == is_unseen.sum() < len(requests)
    rows = is_unseen & (requests.task == 0)
    ranks = metrics.item_ranks(rankings["SIGMA"]["exclude_seen"][rows], requests.target[rows])
    shown = results["methods"]["SIGMA"]["unseen_targets"]["tasks"]["JustForYou"]["item.HR@20"]
    assert shown["mean"] == pytest.approx(metrics.hits(ranks, 20).mean())
    assert shown["n"] == rows.sum()


def test_every_score_passes_the_inequality_and_wrong_shapes_are_named(
    results, rankings, requests, data, semantic_ids
):
    assert results["warnings"] == []
    short = {"Mine": {"include_seen": rankings["SIGMA"]["include_seen"][:, :10]}}
    with pytest.raises(ValueError, match=r"Mine \(include_seen\).*20 columns"):
        score(short, requests, data, semantic_ids)


def test_methods_may_lack_a_mode_and_tasks_may_be_absent(rankings, requests, data, semantic_ids):
    rows = np.flatnonzero(requests.task < 2)
    one_mode = {"Mine": {"include_seen": rankings["SIGMA"]["include_seen"][rows]}}
    results = score(one_mode, requests.take(rows), data, semantic_ids)
    assert list(results["methods"]["Mine"]) == ["include_seen"]
    assert list(results["methods"]["Mine"]["include_seen"]["tasks"]) == ["JustForYou", "Query"]
    assert "Query" in render_table(results)


def test_table_is_narrow_and_holds_every_method_task_and_level(results, tmp_path):
    text = render_table(results)
    assert max(len(line) for line in text.splitlines()) <= 120
    for method in results["methods"]:
        assert method in text
    mean = results["methods"]["SIGMA"]["exclude_seen"]["average"]["sid.HR@20"]["mean"]
    assert f"{100 * mean:.2f}" in text
    warned = render_table(results | {"warnings": ["odd"]})
    assert "WARNING: odd" in warned
    write_json(results, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_summary_is_a_part_of_the_table_and_names_the_files(results, tmp_path):
    without_report = render_summary(results, tmp_path)
    assert "report.html" not in without_report
    (tmp_path / "report.html").touch()
    summary = render_summary(results | {"warnings": ["odd"]}, tmp_path)
    table = render_table(results).splitlines()
    added = [line for line in summary.splitlines() if line not in table]
    assert added == [
        "WARNING: odd",
        f"All results: {tmp_path / 'table.txt'}",
        f"Report with plots: {tmp_path / 'report.html'}",
    ]
    assert "semantic IDs" not in summary
    assert summary.count("Average over tasks") == 2 and summary.count("HR@10 by task") == 1


def test_order_of_methods_survives_the_file(results, tmp_path):
    write_json(results, tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text())
    assert render_table(stored) == render_table(results)


def test_plot_shows_a_filtered_baseline_only_where_the_filter_changes_it(
    rankings, requests, data, semantic_ids
):
    is_query = (requests.task == TASKS.index("Query"))[:, None]
    filtered = np.where(
        is_query, np.sort(requests.target)[::-1][:, None], rankings["SIGMA"]["include_seen"]
    )
    both = {"Popularity": rankings["SIGMA"], "Popularity + filter": {"include_seen": filtered}}
    results = score(both, requests, data, semantic_ids)
    assert "+ filter" in hit_rates(results, "Query", "include_seen", "item")
    assert "+ filter" not in hit_rates(results, "JustForYou", "include_seen", "item")


@pytest.fixture(scope="module")
def page(results, data, semantic_ids, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    lines = [{"step": s, "loss": 3 / s, "loss_ntp": 2 / s, "rate": 1.0} for s in range(1, 9)]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 9, "lo'  # killed while writing
    (folder / "metrics.jsonl").write_text(text)
    files = {"grounding": folder / "metrics.jsonl", "sft": folder / "absent.jsonl"}
    rng = np.random.default_rng(3)
    sigma = {task: [*rng.random(9).tolist(), float("nan")] for task in TASKS}
    run = {"command": f"python -m sigma_jax.evaluate {NASTY}", "data_hash": "feed1234"}
    report_data = collect_report_data(data, semantic_ids, {"tokenizer": {"error": 0.25}})
    report_data["recommendations"] = [{"user": "7", "instruction": NASTY, "items": [NASTY, "b"]}]
    write_report(
        results
        | {"deviation": sigma, "sigma": 0.7, "run": run, "instruction_following": FOLLOWING}
        | {"calibration": {"all": {"error": 0.035, "groups": [[0.1, 0.2, 9], [0.4, 0.35, 9]]}}},
        files,
        report_data,
        folder / "report.html",
    )
    return (folder / "report.html").read_text()


def test_page_contains_every_section_with_data(page, results):
    for key, title in SECTIONS.items():
        assert f'<section id="{key}"><h2>{html.escape(title)}' in page
    assert "This run has no data" not in page
    assert "expected calibration error 0.035; probability and share: 0.10 0.20, 0.40 0.35" in page
    assert "<td>Holiday, instruction</td><td>16.25</td><td>-</td>" in page
    for expected in (*TASKS, "feed1234", "Loss of stage grounding", "perplexity", "co_occurrence"):
        assert expected in page
    for mode in ("include_seen", "exclude_seen", "unseen_targets"):
        mean = results["methods"]["SIGMA"][mode]["tasks"]["Holiday"]["item.HR@20"]["mean"]
        assert f"<td>{100 * mean:.2f}</td>" in page


def test_page_is_self_contained_and_escapes_its_content(page):
    outside = re.sub(r'src="data:image/png;base64,[^"]*"', "", page)
    assert "http" not in outside
    assert not re.search(r"<(script|link|iframe)|\ssrc=|@import|url\(", html_tags(outside))
    assert "<script" not in page and "<restricted>" not in page
    assert html.escape(NASTY) in page


def html_tags(text: str) -> str:
    """The tags without the text between them."""
    return "".join(re.findall(r"<[^>]*>", text))


def test_every_plot_has_an_alternative_text_with_its_values(page, results):
    texts = [html.unescape(text) for text in re.findall(r'<img alt="([^"]*)"', page)]
    assert len(texts) == page.count("<img ") and all(len(text) > 40 for text in texts)
    estimate = results["methods"]["SIGMA"]["include_seen"]["tasks"]["Discover"]["item.HR@10"]
    shown = f"SIGMA {100 * estimate['mean']:.2f} ± {100 * estimate['error']:.2f}"
    assert any("Discover" in text and shown in text for text in texts)


def test_page_names_missing_sections(results, tmp_path):
    write_report(results, {}, {}, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("This run has no data") == 7
    assert all(f'<section id="{key}">' in page for key in SECTIONS)


def test_report_data_counts_codes_and_collisions(data, semantic_ids):
    report_data = collect_report_data(data, semantic_ids, {})
    counts = {}
    for code in map(tuple, semantic_ids.codes.tolist()):
        counts[code] = counts.get(code, 0) + 1
    for size, number in enumerate(report_data["collisions"], start=1):
        assert number == sum(count == size for count in counts.values())
    assert report_data["code_counts"].sum(1).tolist() == [ITEMS] * 3
    assert report_data["code_counts"][1, 2] == (semantic_ids.codes[:, 1] == 2).sum()
    assert report_data["pairs"]["search"]["count"] == 8
    assert len(report_data["pairs"]["search"]["examples"]) == 5


def test_metrics_file_is_read_up_to_a_broken_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    steps, values = read_curves(path)["loss"]
    assert steps.tolist() == [1] and values.tolist() == [2.0]


def test_scoring_does_not_change_the_requests(requests, rankings, data, semantic_ids):
    before = {f.name: getattr(requests, f.name) for f in dataclasses.fields(requests)[:-1]}
    before = {name: array.copy() for name, array in before.items()}
    score(rankings, requests, data, semantic_ids)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(requests, name), array)
