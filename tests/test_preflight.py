"""Preflight: a real compilation for TPUs that are not there, and the report on it."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sigma_jax.configs.sft import get_config
from sigma_jax.grounding.abstract_shapes import encode_choices
from sigma_jax.preflight import (
    Training,
    estimate_program,
    largest_batch,
    nearest_fit,
    program_metrics,
    read_training,
    render,
    training_metrics,
    with_rows,
)
from sigma_jax.runtime.config import MeshConfig, TrainConfig
from sigma_jax.runtime.preflight.estimate import (
    AbstractStage,
    Estimate,
    accumulation_choices,
    compile_inference,
    compile_step,
    too_large,
)
from sigma_jax.runtime.preflight.topology import CHIPS, GIB, SLICES, topology_of
from sigma_jax.runtime.sharding import make_mesh

pytest.importorskip("libtpu")
ROOT = Path(__file__).parents[1]
FOUND = Estimate(
    *(4, 3 * GIB, 20.0, 0.5, 0.1, 0.05, 0.4),
    {"a": 0.2, "b": 0.15},
    {"all-gather": 1e9},
    product_seconds=0.2,
)
STAGE = AbstractStage(None, None, None, {}, {}, 100, 5_000, 1e9)


@dataclasses.dataclass(frozen=True)
class Fields:
    train: TrainConfig


@dataclasses.dataclass(frozen=True)
class TextFields(Fields):
    encode_rows: int


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sigma_jax.preflight", *words]
    # The compiler for TPUs works as for users: without the settings of the tests.
    settings = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    env = {name: value for name, value in os.environ.items() if name not in settings}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[str, dict]:
    """(printed report, JSON report) of a small backbone.

    It computes in 16 bits with heads of 128, so that the kernels are compiled too.
    """
    path = tmp_path_factory.mktemp("preflight") / "report.json"
    done = run(
        "--config=configs/sft.py:smoke",
        "--topology=v5e-4",
        "--items=5000",
        "--config.mesh.data=2",
        "--config.mesh.fsdp=2",
        "--config.backbone.head_dim=128",
        "--config.backbone.dtype=bfloat16",
        "--config.backbone.remat=layer",
        f"--output={path}",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.mark.slow
def test_a_step_is_compiled_and_described(report):
    shown, found = report
    assert found["fits"] and 0 < found["memory"] < found["chip_memory"] == 16 * GIB
    assert found["chips"] == 4 and found["topology"] == "v5e:2x2" and found["items"] == 5000
    assert found["seconds"] > found["kernel_seconds"] > 0 and 0 < found["mfu"] < 1
    assert found["collectives"]["all-gather"] > 0  # weights are cut up over "fsdp"
    assert found["chip_hours"] == pytest.approx(4 * found["hours"])
    assert "sft:smoke on v5e:2x2, 4 chips (data 2 x fsdp 2 x tensor 1)" in shown
    assert "fits" in shown


@pytest.mark.slow
@pytest.mark.nightly
def test_no_chip_ever_holds_a_table_of_all_items():
    """Lookups of a batch and 4,096 negatives shared by all rows read the sharded table."""
    items, config = 2**21, get_config("smoke")
    with config.unlocked():
        config.negatives_per_target = 0
    training = read_training(config, items, 512)
    fields = with_rows(training.fields, 8)
    mesh = make_mesh(MeshConfig(1, -1, 1), topology_of("v5e-4")[2])
    compiled, _ = compile_step(
        training.abstract_stage(fields), fields.optimizer, fields.train, mesh
    )
    text = compiled.as_text()
    assert f"f32[{items // 4},64]" in text
    assert not re.search(rf"\[(\d+,)*{items}[,\]]", text)


@pytest.mark.slow
@pytest.mark.nightly
def test_inference_is_compiled_and_described(tmp_path):
    path = tmp_path / "report.json"
    words = ["--config=configs/sft.py:smoke", "--topology=v5e-4", "--items=5000"]
    done = run(*words, "--inference", f"--output={path}")
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["fits"] and found["chips"] == 1 and found["unit"] == "requests"
    assert found["batch_size"] == 32 and 0 < found["mfu"] < 1
    assert found["examples_per_second"] == pytest.approx(32 / found["seconds"])
    assert "  batch of 32 requests, 5,000 items\n" in done.stdout
    assert "requests a second\n" in done.stdout and "steps" not in done.stdout
    words = ["--config=configs/grounding.py:smoke", "--topology=v5e-4", "--items=5000"]
    done = run(*words, "--inference")
    assert "texts a second; the texts of all items: " in done.stdout, done.stderr
    folder = Path(__file__).parent / "golden" / "encoder_bert"
    words = ["--config=configs/grounding_head.py:smoke", "--topology=v5e-4", "--items=5000"]
    done = run(*words, f"--config.data.text_encoder={folder}", "--inference")
    assert "texts a second; the texts of all items: " in done.stdout, done.stderr
    refused = run(*words, "--inference", "--largest").stderr
    assert "error: --largest applies to training only; drop --largest or --inference." in refused
    texts = {"config": ("grounding", "x"), "topology": "v5e:2x2", "mesh": {"data": 4}}
    texts |= {"items": 72_000, "batch_size": 10, "unit": "texts"}
    shown = render(texts | program_metrics(FOUND, 10, CHIPS["v5e"]))
    assert "a batch: 500 ms estimated" in shown
    assert "20 texts a second; the texts of all items: 1.0 hours" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology=v5e-17"], "--topology=v5e-17 is unknown; did you mean v5e-16?"),
        (["--topology=v5e:3x5"], "--topology=v5e:3x5 does not exist; did you mean v5e:"),
        (["--config.mesh.fsdp=5"], "mesh={'data': -1, 'fsdp': 5, 'tensor': 1} does not fit 16"),
        (["--config.train.batch_size=12"], "batch_size=12 does not divide over 16 devices"),
    ],
)
def test_an_impossible_setting_is_one_line(words, message):
    done = run("--config=configs/sft.py:smoke", *words)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert message in line


def test_stages_without_preflight_are_named():
    done = run("--config=configs/teacher.py:smoke", "--topology=v5e-4")
    assert done.returncode == 1 and "stage 'teacher' is small" in done.stderr


def test_slices_have_the_size_in_their_name():
    """v5e and v6e count chips; v4 and v5p count cores, two per chip."""
    for name, full in SLICES.items():
        kind, count = name.split("-")
        sizes = [int(size) for size in full.partition(":")[2].split("x")]
        chips = sizes[0] * sizes[1] * (sizes[2] if len(sizes) > 2 else 1)
        assert int(count) == chips * (2 if kind in ("v4", "v5p") else 1)
    full, chip, devices = topology_of("v5e-8")
    assert full == "v5e:2x4" and chip is CHIPS["v5e"] and len(devices) == 8


def test_the_report_shows_the_metrics():
    found = training_metrics(FOUND, STAGE, 7200, CHIPS["v5e"])
    assert found["fits"] and found["hours"] == 1 and found["chip_hours"] == 4
    assert found["examples_per_second"] == 200 and found["tokens_per_second"] == 10_000
    head = {"config": ("sft", "x"), "topology": "v5e:2x2", "mesh": {"data": 4}}
    head |= {"items": 10, "batch_size": 8, "steps": 7200}
    shown = render(head | found)
    assert "step: 500 ms estimated, MFU 40 % (200 ms at the chip's peak)" in shown
    parts = "products 200, kernels 100, other operations 150, waiting for other chips 50"
    assert f"of it, ms: {parts}" in shown
    big = dataclasses.replace(FOUND, memory=17 * GIB, seconds=None, reason="no text")
    shown = render(head | training_metrics(big, STAGE, 7200, CHIPS["v5e"]))
    assert "17.00 of 16 GiB a chip at the peak: DOES NOT FIT" in shown
    assert "no estimate of the time: no text" in shown


@pytest.mark.parametrize(
    ("fixed", "of_row", "bends", "wanted"),
    [
        (1 * GIB, GIB // 512, 0, 7_680),  # 15 GiB at 2 MiB a row
        (1 * GIB, GIB // 512, 200, 7_072),  # memory grows faster where batches are large
        (17 * GIB, GIB // 512, 0, 0),
    ],
)
@pytest.mark.parametrize("batch", [8, 64, 10_240])
def test_the_largest_batch_that_fits(monkeypatch, fixed, of_row, bends, wanted, batch):
    measured = []

    def estimate_step(training, fields, mesh, chip):
        rows = fields.train.batch_size
        measured.append(rows)
        return dataclasses.replace(FOUND, memory=fixed + of_row * rows + bends * rows**2 / 8)

    monkeypatch.setattr("sigma_jax.preflight.estimate_step", estimate_step)
    fields = Fields(TrainConfig(10, 0.0, batch, 2, 1, 0, 1, 1, 0.0, 0, ""))
    training = Training(fields, None, accumulation_choices, group_rows=4)
    mesh = SimpleNamespace(shape={"data": 1, "fsdp": 4})
    first = estimate_step(training, fields, mesh, None)
    found = largest_batch(training, first, mesh, CHIPS["v5e"])
    assert found % 8 == 0 and len(measured) < 12
    if not bends or not wanted:
        assert found == wanted
    else:
        assert 0.85 * wanted < found <= wanted


@pytest.mark.slow
def test_a_program_that_does_not_fit_is_found_out():
    """The compiler refuses a product of 64 GiB on a chip of 16; the estimate says how much."""
    _, chip, devices = topology_of("v5e-4")
    mesh = make_mesh(MeshConfig(1, -1, 1), devices)
    whole = NamedSharding(mesh, PartitionSpec())
    vectors = jax.ShapeDtypeStruct((2**17, 8), jnp.float32, sharding=whole)

    def attend(vectors):
        return jax.nn.softmax(vectors @ vectors.T, axis=0) @ vectors

    program = SimpleNamespace(run=attend, arguments=(vectors,))
    found = estimate_program(lambda: compile_inference(program), 1.0, mesh, chip)
    assert found.seconds is None and 64 * GIB <= found.memory < 65 * GIB


def test_the_memory_of_a_program_that_does_not_fit_is_read_from_the_message():
    message = "RESOURCE_EXHAUSTED: Ran out of memory. Used 24.5G of 15.75G hbm."
    assert too_large(MemoryError(message), 8).memory == 24.5 * GIB
    assert too_large(MemoryError("RESOURCE_EXHAUSTED"), 8).memory == float("inf")


@pytest.mark.parametrize(
    ("shared", "own", "of_row", "wanted"),
    [
        (0, 0, 0.3, "--config.train.accumulate=2"),
        (0, 0, 1, "--config.train.accumulate=4"),
        (0, 0, 15, "--config.train.accumulate=64"),
        (80, 0, 0.1, "--topology=v5e-8"),  # weights, cut up over all chips
        (0, 17, 0.1, None),
    ],
)
@pytest.mark.parametrize("is_text", [False, True])
def test_the_nearest_setting_that_fits(monkeypatch, shared, own, of_row, wanted, is_text):
    """256 rows on 4 chips of 16 GiB.

    All chips share `shared` GiB, each holds `own` GiB, and each row takes `of_row` GiB.
    """

    def estimate_step(training, fields, mesh, chip):
        at_once = fields.train.batch_size / fields.train.accumulate
        at_once = fields.encode_rows / 2 if is_text and fields.encode_rows else at_once
        gib = shared / mesh.size + own + of_row * at_once / mesh.size
        return SimpleNamespace(memory=gib * GIB)

    monkeypatch.setattr("sigma_jax.preflight.estimate_step", estimate_step)
    train = TrainConfig(10, 0.0, 256, 1, 1, 0, 1, 1, 0.0, 0, "")
    fields = TextFields(train, 0) if is_text else Fields(train)
    mesh = make_mesh(MeshConfig(1, -1, 1), topology_of("v5e-4")[2])
    mesh_fields = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    if is_text and wanted and "accumulate" in wanted:
        wanted = f"--config.encode_rows={512 // int(wanted.rpartition('=')[2])}"
    smaller_parts = encode_choices if is_text else accumulation_choices
    training = Training(fields, None, smaller_parts, group_rows=1)
    assert nearest_fit(training, mesh_fields, mesh, "v5e:2x2") == wanted
