"""Promises of the commands: real items for anyone, and one clear line for a mistake.

Mistakes in the tables are in tests/data, those on the command line in tests/runtime/test_cli.py.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import environment
from tiny_run import tiny_run

from sigma_jax import train
from sigma_jax.evaluation.run import evaluate
from sigma_jax.recommend import recommend_one
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.runtime import cli, fit
from sigma_jax.runtime.artifacts import read_manifest
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.process import locked
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import PreparedData

ROOT = Path(__file__).parents[1]
ITEM = re.compile(r"^ *\d+\. +(\S+) .*  (i\d{3})  (.+)$")
SMALL = dict(count=5, beams=4)
ALL = dict(count=60, beams=8)  # 8 codes of one level lead to all 60 items


def recommend(
    workdir: Path, user: str | None, instruction: str, count: int, beams: int, exclude_seen=False
) -> str:
    """The table that the command prints for these flags."""
    options = RecommendOptions(count, exclude_seen=exclude_seen)
    return recommend_one(workdir, user, instruction, beams, options)


@pytest.fixture(scope="module")
def data(trained) -> PreparedData:
    return PreparedData.load(trained[1] / "data")


@pytest.fixture
def workdir(trained, tmp_path) -> Path:
    """A copy of the trained workdir, to be damaged."""
    return shutil.copytree(trained[1], tmp_path / "run")


def shown(text: str) -> dict[str, tuple[str, float]]:
    """item_id -> (title, probability) of a printed table, best first."""
    rows = [found.groups() for line in text.splitlines() if (found := ITEM.match(line))]
    assert len({item for _, item, _ in rows}) == len(rows)
    return {item: (title, float(probability)) for probability, item, title in rows}


def complaint(call, *arguments, **named) -> str:
    """The line a command prints for the error that `call` raises."""
    with pytest.raises((ValueError, OSError)) as caught:
        call(*arguments, **named)
    assert len(str(caught.value).splitlines()) == 1
    return cli.one_line(caught.value)


def run_train(config, workdir: Path, only: bool = False) -> None:
    train.train(config, workdir, make_mesh(MeshConfig(-1, 1, 1)), only)


def half_written(workdir: Path) -> list[Path]:
    return list(workdir.rglob("*writing*"))


@pytest.mark.parametrize("user", ["u03", "newcomer", None])
def test_everyone_gets_items_of_the_catalogue(trained, data, user):
    items = shown(recommend(trained[1], user, "tea for a party", **SMALL))
    assert len(items) == 5
    every = np.arange(60)
    titles = dict(zip(data.catalogue.ids(every), data.catalogue.titles(every), strict=True))
    assert {item: title for item, (title, _) in items.items()}.items() <= titles.items()
    probabilities = [probability for _, probability in items.values()]
    assert probabilities == sorted(probabilities, reverse=True)


def test_without_history_profile_and_instruction_decide(trained):
    said = [
        shown(recommend(trained[1], user, instruction, **SMALL))
        for user, instruction in (("newcomer", "tea"), ("newcomer", "coffee"), (None, "tea"))
    ]
    assert said[0] != said[1]
    assert said[0] != said[2]


@pytest.mark.parametrize(
    "instruction", ["推荐一些适合聚会的零食和茶 🎉", "green tea " * 100_000, "tea\nerror: no"]
)
def test_any_text_is_an_instruction(trained, instruction):
    text = recommend(trained[1], "u03", instruction, **SMALL)
    assert len(shown(text)) == 5
    assert len(text.splitlines()) == 7 and len(text.splitlines()[0]) < 250


def test_seen_items_are_included_or_excluded(trained, data):
    included, excluded = (
        set(shown(recommend(trained[1], "u03", "tea", **ALL, exclude_seen=exclude_seen)))
        for exclude_seen in (False, True)
    )
    row = data.users.row("u03")
    seen = data.histories.before(row, int(data.histories.offsets[row + 1]))
    assert included == set(data.catalogue.ids(np.arange(60)))
    assert excluded == included - set(data.catalogue.ids(seen)) != included


def test_fewer_items_than_asked_are_said(trained):
    text = recommend(trained[1], "u03", "tea", count=500, beams=8)
    assert text.splitlines()[-1] == "60 items instead of 500: no more under --beams=8."


@pytest.mark.parametrize(
    ("user", "instruction", "message"),
    [
        (
            "nobody",
            "tea",
            "user 'nobody' is not in the data; check --user, or leave it out for an unknown user.",
        ),
        ("u03", " \n", "--instruction is empty; say what is wanted, or leave the flag out."),
        ("u03", "tea \udcff", "--instruction is not UTF-8; check the terminal's encoding."),
    ],
)
def test_requests_that_cannot_be_served(trained, user, instruction, message):
    assert complaint(recommend, trained[1], user, instruction, **SMALL) == message


def damage(path: Path, how: str) -> None:
    if how == "missing":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(b"garbage" if how == "garbage" else content[: len(content) // 2])


@pytest.mark.parametrize("how", ["missing", "garbage", "cut"])
@pytest.mark.parametrize(
    "name",
    [
        "sft/manifest.json",
        "sft/recommender.json",
        "sft/reranker.json",
        "sft/weights.safetensors",
        "sft/backbone/config.json",
        "sft/backbone/model.safetensors",
        "tokenizer/semantic_ids.npy",
        "grounding/text_vectors.npy",
        "data/items.arrow",
        "data/text_tokenizer/tokenizer.json",
    ],
)
def test_damaged_files_of_a_workdir_are_named(trained, workdir, name, how):
    damage(workdir / name, how)
    folder = str(workdir / name.rpartition("/")[0])
    assert folder in complaint(recommend, workdir, "u03", "tea", **SMALL)
    assert folder in complaint(evaluate, trained[0], workdir)
    assert not (workdir / "evaluation").exists() and not half_written(workdir)


@pytest.mark.parametrize("stage", ["data", "grounding", "tokenizer", "sft"])
def test_missing_stages_are_named(trained, workdir, stage):
    shutil.rmtree(workdir / stage)
    for line in (
        complaint(recommend, workdir, "u03", "tea", **SMALL),
        complaint(evaluate, trained[0], workdir),
    ):
        assert f"{workdir / stage / 'manifest.json'} is missing; run" in line


def test_a_recommender_of_other_semantic_ids_is_refused(trained, workdir):
    manifest = workdir / "tokenizer" / "manifest.json"
    manifest.write_text(re.sub(r'("fingerprint": ")\w+', r"\1abc", manifest.read_text()))
    for line in (
        complaint(recommend, workdir, "u03", "tea", **SMALL),
        complaint(evaluate, trained[0], workdir),
    ):
        assert f"{workdir}/sft was made from another {workdir}/tokenizer; delete" in line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("records/contexts-00000.arrow", r"/records/contexts-\*.arrow is damaged"),
        ("tokenizer/semantic_ids.npy", r"/tokenizer/semantic_ids.npy is damaged"),
        ("grounding/backbone/config.json", r"/grounding/backbone/config.json is damaged"),
        ("data/text_tokenizer/tokenizer.json", r"/data/text_tokenizer/tokenizer.json is damaged"),
        ("train/sft/run.json", r"/train/sft/run.json is damaged .*; delete \S+/train/sft and run"),
        ("grounding/manifest.json", r"/grounding/manifest.json is damaged .*; delete \S+ and run"),
    ],
)
def test_damage_found_by_the_next_stage(trained, workdir, name, message):
    shutil.rmtree(workdir / "sft")
    shutil.rmtree(workdir / "train" / "sft" / "checkpoints")
    damage(workdir / name, "garbage")
    assert re.search(message, complaint(run_train, trained[0], workdir))
    assert not (workdir / "sft").exists() and not half_written(workdir)


def test_vectors_of_another_catalogue_are_counted(trained, workdir):
    path = workdir / "grounding" / "text_vectors.npy"
    np.save(path, np.load(path)[:-5])
    line = complaint(recommend, workdir, "u03", "tea", **SMALL)
    assert "has 55 text vectors for 60 items; delete" in line


def test_unfinished_folder_of_a_stage_is_named(trained, workdir):
    (workdir / "sft" / "manifest.json").unlink()
    line = complaint(run_train, trained[0], workdir)
    assert "/sft has no manifest.json, so no run finished it; delete" in line


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.steps", -5, "train.steps=-5; use 0 or more."),
        ("train.batch_size", 0, "train.batch_size=0; use 1 or more."),
        ("train.checkpoint_every", 0, "train.checkpoint_every=0; use 1 or more."),
        ("upstream.teacher.train.eval_every", -1, "train.eval_every=-1; use 0 or more."),
        ("upstream.grounding.optimizer.learning_rate", -1.0, "optimizer.learning_rate=-1.0; use 0"),
        ("optimizer.b1", 1.0, "optimizer.b1=1.0; use 0 <= b1 < 1."),
        ("optimizer.schedule", "cosin", "optimizer.schedule='cosin' is unknown; use one of"),
        ("optimizer.warmup_steps", 99, "optimizer.warmup_steps=99 is not within 0..train.steps=10"),
        ("num_negatives", -1, "num_negatives=-1; use 1 or more."),
        ("generation.temperature", 0.0, "generation.temperature=0.0; the paper uses"),
        ("generation.ranker", "beams", "generation.ranker='beams' is unknown; use one of"),
        ("label_smoothing", 1.5, "label_smoothing=1.5; use 0 <= label_smoothing < 1."),
        ("infonce_weight", -1.0, "infonce_weight=-1.0; use 0 or more."),
        ("model.item_encoder.inputs", ("id", "foo"), "inputs names ['foo']; known are id, text,"),
        ("evaluation.generation.sigma", "std", "generation.sigma='std' is unknown; use"),
        ("evaluation.generation.temperature", 0.0, "generation.temperature=0.0; the paper uses"),
        ("evaluation.requests", {"Foo": 3}, "evaluation.requests names ['Foo']; known are"),
        ("evaluation.requests", {"Query": -3}, "evaluation.requests={'Query': -3}; use 0 or more"),
        ("backbone.hf_folder", "qwen", "starts from the backbone of the stage grounding; give"),
        ("backbone.head_dim", 3, "head_dim=3 has no rotary halves"),
        ("prompt.layout.sid_generated", 4, "prompt.layout.sid_generated=4; use 0 to 3."),
        ("prompt.layout.sid_in_prompt", -1, "prompt.layout.sid_in_prompt=-1; use 0 or more."),
        ("prompt.layout.sid_generated", -1, "prompt.layout.sid_generated=-1; use 0 or more."),
        (
            "prompt.layout.item_query",
            "none",
            'prompt.layout.item_query="none" asks for no item; set',
        ),
        ("model.uses_full_vocabulary", True, "model.has_item_head=True needs code logits over"),
        (
            "model.item_encoder.inputs",
            ("id_embedding",),
            "inputs has 'id_embedding', which starts at random; put",
        ),
        (
            "upstream.tokenizer.inputs",
            ("id_embedding",),
            "inputs has ['id_embedding']; use names out of id, text,",
        ),
        ("train.epochs", -2.0, "train.epochs=-2.0; use 0 or more."),
        (
            "prompt.layout.row_tokens",
            40,
            "prompt.layout.row_tokens=40; these prompts need 57 or more.",
        ),
        ("prompt.packing.group_rows", 3, "train.batch_size=8 is no multiple of prompt.packing.gr"),
        ("upstream.teacher.model.heads", 3, "model.width=16 does not divide into 3 heads; use"),
        ("upstream.tokenizer.kmeans_rows", 0, "kmeans_rows=0; use 1 or more."),
        ("upstream.tokenizer.min_code_use", 1.5, "min_code_use=1.5; use a share, 0 to 1."),
        ("upstream.grounding.mixture", {"searches": 1.0}, "mixture.searches is no view; use"),
        ("upstream.grounding.mixture", {"search": -1.0}, "mixture.search=-1.0; use 0 to leave"),
        (
            "upstream.grounding.mixture",
            {"search": 0.0},
            "mixture={'search': 0.0} has no weight above 0",
        ),
        ("upstream.grounding.temperature", 0.0, "temperature=0.0; use more than 0"),
        ("data.memory_limit", "much", "data.memory_limit='much' is no size"),
        ("data.pairs.heldout_share", 1.5, "data.pairs.heldout_share=1.5 is no share"),
        ("data.text_tokenizer.vocab_size", 9, "vocab_size=9 is too small; use 261 or more."),
        ("data.path", "/nowhere", "data.path='/nowhere' is not a folder"),
    ],
)
def test_mistaken_settings_are_reported_before_any_work(
    tables_folder, tmp_path, field, value, message
):
    config = tiny_run(tables_folder, **{field: value})
    line = complaint(run_train, config, tmp_path / "run")
    assert message in line
    upstream, _, stage = field.rpartition(".")[0].partition("upstream.")
    if stage and not upstream:
        assert f"(its fields: --config.upstream.{stage.partition('.')[0]}.*): " in line
    assert not list(tmp_path.rglob("run/*"))


def test_an_error_of_an_upstream_stage_says_where_its_fields_stand(trained, workdir, monkeypatch):
    def fail(*_):
        raise ValueError("loss is nan; lower optimizer.learning_rate.")

    monkeypatch.setattr(train, "run_stage", fail)
    shutil.rmtree(workdir / "sft")
    message = "loss is nan; lower optimizer.learning_rate."
    assert complaint(run_train, trained[0], workdir) == message
    shutil.rmtree(workdir / "tokenizer")
    where = "stage tokenizer (its fields: --config.upstream.tokenizer.*): "
    assert complaint(run_train, trained[0], workdir) == where + message


@pytest.mark.parametrize(
    ("field", "value", "stages"),
    [
        ("train.steps", 11, ["sft"]),
        ("upstream.tokenizer.model.codebook_size", 16, ["tokenizer", "sft"]),
    ],
)
def test_other_settings_name_every_folder_to_delete(
    tables_folder, workdir, monkeypatch, field, value, stages
):
    config = tiny_run(tables_folder, **{field: value})
    line = complaint(run_train, config, workdir)
    found = re.search(r"was made with config\.(\S+) = .* or delete (.*) and run", line)
    name, folders = found.groups()
    assert field.endswith(name)
    wanted = {workdir / stage for stage in stages} | {workdir / "train" / s for s in stages}
    assert {Path(folder) for folder in folders.split()} == wanted
    for folder in folders.split():
        shutil.rmtree(folder)
    ran = []
    monkeypatch.setattr(train, "run_stage", lambda stage, *_: ran.append(stage))
    run_train(config, workdir)
    assert ran == stages


@pytest.mark.slow
def test_another_reranker_is_fitted_without_training_again(tables_folder, workdir, monkeypatch):
    metrics = workdir / "train" / "sft" / "metrics.jsonl"
    before = metrics.read_text()
    config = tiny_run(tables_folder, **{"reranker.neighbours": 7})
    line = complaint(run_train, config, workdir)
    assert "made with config.reranker.neighbours = 100, this run has 7;" in line
    assert line.endswith(f"or delete {workdir / 'sft'} and run again.")
    shutil.rmtree(workdir / "sft")
    monkeypatch.setattr(fit, "make_step", lambda *_: pytest.fail)  # nothing is trained
    run_train(config, workdir)
    assert read_manifest(workdir, "sft").config["reranker"]["neighbours"] == 7
    assert metrics.read_text() == before


def test_a_stage_alone_says_what_is_missing_before_it(trained, workdir):
    for stage in ("grounding", "sft"):
        shutil.rmtree(workdir / stage)
    line = complaint(run_train, trained[0], workdir, only=True)
    assert line == f"{workdir} lacks grounding, which sft needs; run without --only."


TEACHER = "--config.upstream.teacher."
CONFIG = """
from pathlib import Path
from tiny_run import tiny_run

def get_config(preset="tiny"):
    return tiny_run(Path({tables!r})).lock()
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            ["recommend", "--workdir=RUN", "--user=nobody"],
            "user 'nobody' is not in the data; check --user, or leave it out for an unknown user.",
            marks=pytest.mark.slow,
        ),
        (
            ["train", "--config=CONFIG", "--workdir=NEW", TEACHER + "train.batch_size=30"],
            "stage teacher (its fields: --config.upstream.teacher.*): batch_size=30 does not divide"
            " over 4 devices; use a multiple of 4.",
        ),
        (
            ["train", "--config=CONFIG", "--workdir=RUN", "--config.train.steps=11"],
            "RUN/sft was made with config.train.steps = 10, this run has 11; "
            "use another --workdir or delete RUN/sft RUN/train/sft and run again.",
        ),
        (["evaluate", "--config=CONFIG", "--workdir=NEW"], "NEW/sft/manifest.json is missing; run"),
        (
            ["recommend", "--workdir=RUN", "--users=u.jsonl", "--output=found.jsonl"],
            "--users and --output need --export=FOLDER; make an export with `sigma export`.",
        ),
    ],
)
def test_commands_end_with_one_line_and_status_1(workdir, tables_folder, words, message):
    config, new = workdir.parent / "tiny.py", workdir.parent / "new"
    config.write_text(CONFIG.format(tables=str(tables_folder)))
    places = {"RUN": str(workdir), "CONFIG": str(config), "NEW": str(new)}
    words, (message,) = (
        [re.sub("RUN|CONFIG|NEW", lambda found: places[found[0]], word) for word in group]
        for group in (words, [message])
    )
    assert last_line(words).startswith(f"error: {message}")
    made = [path.name for path in new.iterdir()] if new.exists() else []
    assert made == ([".lock"] if words[0] == "train" and str(new) in words[2] else [])


def last_line(words: list[str]) -> str:
    """Last line of stderr of a command that ends with status 1."""
    command = [sys.executable, "-m", f"sigma_jax.{words[0]}", *words[1:]]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(4), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_evaluate_keeps_out_of_a_workdir_where_another_is_at_work(workdir, tables_folder):
    config = workdir.parent / "tiny.py"
    config.write_text(CONFIG.format(tables=str(tables_folder)))
    with locked(workdir):
        line = last_line(["evaluate", f"--config={config}", f"--workdir={workdir}"])
    assert line.startswith(f"error: another command is writing to {workdir}; wait for it")
