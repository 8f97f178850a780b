"""The command `knowledge` asks a recorded endpoint, and its table can be trained on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_endpoint import Recorded, chat

from sigma_jax.prepare import prepare
from sigma_jax.schema import PreparedData


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sigma_jax.knowledge", *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture
def endpoint():
    server = Recorded()
    yield server
    server.close()


def test_the_table_of_an_endpoint_is_read_by_prepare(
    endpoint, prepared, tables_folder, tiny_config, tmp_path
):
    workdir = prepared.folder.parent
    names = prepared.catalogue.categories.to_pylist()

    def answer(number, text):
        if "Which of them" in text:
            return chat(json.dumps(names[:2]))
        return chat(json.dumps([f"i am out of it {number}", f"a friend needs it {number}"]))

    endpoint.answer = answer
    output = tmp_path / "made" / "knowledge.jsonl"
    flags = [f"--workdir={workdir}", f"--output={output}", "--prompt_price=2", "--reply_price=8"]
    named = [f"--endpoint={endpoint.url}", "--model=small"]
    done = run(*flags, *named)
    assert not done.returncode, done.stderr
    themes = prepared.themes.names.to_pylist()
    assert len(endpoint.asked) == len(names) + len(themes)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 2 * len(names) + 2 * len(themes)
    assert f"{len(rows)} rows" in done.stdout and "cost 0.00" in done.stdout
    again = run(*flags, *named)
    assert f"{len(endpoint.asked)} known before, 0 asked now" in again.stdout
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows

    tables = Path(shutil.copytree(tables_folder, tmp_path / "tables"))
    shutil.copy(output, tables / "knowledge.jsonl")
    (tmp_path / "data").mkdir()
    card = prepare(tiny_config(tables), 0, tmp_path / "data")
    assert card["knowledge"] == len(rows) and card["unmatched_knowledge"] == 0
    known = PreparedData.load(tmp_path / "data").knowledge
    assert sorted(known.texts.to_pylist()) == sorted(row["text"] for row in rows)


def test_errors_are_one_line_and_replies_are_kept(endpoint, prepared, tmp_path):
    workdir, output = prepared.folder.parent, tmp_path / "knowledge.jsonl"
    endpoint.answer = lambda number, text: chat('["we need it"]' if number < 3 else "42")
    flags = (f"--output={output}", f"--endpoint={endpoint.url}", "--model=m", "--parallel=1")
    cases = {
        "name one model": (f"--workdir={workdir}", f"--output={output}"),
        "--model is missing": (f"--workdir={workdir}", *flags[:2]),
        "run python -m sigma_jax.prepare": (f"--workdir={tmp_path}", *flags),
        "does not end in .jsonl": (f"--workdir={workdir}", "--output=x.csv", *flags[1:]),
        "may cost more than 0.001": (
            f"--workdir={workdir}",
            *flags,
            "--prompt_price=1",
            "--max_cost=0.001",
        ),
    }
    for part, words in cases.items():
        done = run(*words)
        assert done.returncode == 1, part
        error = done.stderr.strip().splitlines()[-1]
        assert error.startswith("error: ") and part in error
    assert len(output.read_text().splitlines()) == 2
