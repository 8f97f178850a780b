"""Shared fixtures: the tables of a tiny shop, its prepared data, a training and an export."""

import csv
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# Compiled programs are kept between runs. JAX reads these variables when it is imported.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "sigma_jax_tests_xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Most time of these tests goes into compiling small programs that run once. These settings
# make that three times faster. .ci/run trains, evaluates and recommends without them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from sigma_jax.configs.data import data_fields
from sigma_jax.data.config import DataConfig
from sigma_jax.prepare import prepare
from sigma_jax.reranking import interactions
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.process import count_maps, let_programs_go
from sigma_jax.schema import DAY, PreparedData

pytest_plugins = ["shop_fixtures"]

# Most tests need a network of interactions, not a good one. Its fit takes seconds.
interactions.STEPS = 100

CATEGORIES = ("Tea", "Coffee", "Soap", "Candles", "Garden", "Toys")
WORDS = ("red", "small", "old", "fine", "warm", "round", "green", "soft", "tall", "plain")
NUM_ITEMS, NUM_USERS, NUM_SESSIONS = 60, 40, 15
START = 1_672_531_200  # 2023-01-01
MAX_MAPS = 35_000


def tiny_tables(seed: int = 0) -> dict[str, list[dict]]:
    """The tables of a shop whose users like two categories each.

    Candles sell in December and garden items in spring.
    """
    rng = np.random.default_rng(seed)
    items = [
        {
            "item_id": f"i{row:03d}",
            "title": f"{WORDS[row // 6]} {CATEGORIES[row % 6].lower()} no {row}",
            "brand": f"brand {row % 7}",
            "category": f"Home > {CATEGORIES[row % 6]}",
            "price": round(1 + row * 0.25, 2),
        }
        for row in range(NUM_ITEMS)
    ]
    interactions = []
    for user in range(NUM_USERS):
        liked = rng.choice(4, 2, replace=False)
        for session in range(NUM_SESSIONS):
            time = START + int((session + rng.random()) * 365 / NUM_SESSIONS * DAY)
            month = int((time - START) // (30.5 * DAY))
            for _ in range(rng.integers(1, 5)):
                category = rng.choice(liked)
                if month == 11 and rng.random() < 0.6:
                    category = 3
                if month in (2, 3, 4) and rng.random() < 0.6:
                    category = 4
                rank = min(int(rng.geometric(0.25)) - 1, 9)
                interactions.append(
                    {
                        "user_id": f"u{user:02d}",
                        "item_id": f"i{rank * 6 + category:03d}",
                        "timestamp": time,
                        "session_id": f"s{user:02d}-{session:02d}",
                    }
                )
    users = [
        {"user_id": f"u{user:02d}", "age": f"{20 + user}-{29 + user}", "town": WORDS[user % 10]}
        for user in range(NUM_USERS)
    ]
    users.append({"user_id": "newcomer", "age": "30-39", "town": "warm"})
    searches = [
        {
            "query": query,
            "item_id": f"i{row:03d}",
            "clicks": NUM_ITEMS - row,
        }
        for row in range(NUM_ITEMS)
        for query in (CATEGORIES[row % 6].lower(), f"{WORDS[row // 6]} things")
    ]
    return {
        "items": items,
        "interactions": interactions,
        "users": users,
        "searches": searches,
        "themes": _themes(),
        "knowledge": [
            {"text": f"i want to use the {name.lower()}", "category": f"home > {name}"}
            for name in CATEGORIES
        ]
        + [{"text": "the first one", "item_id": "i000", "weight": 2}],
    }


def _themes() -> list[dict]:
    row = {"theme": "", "kind": "", "item_id": None, "start": None, "end": None}
    themes = [
        row | {"theme": "Christmas", "kind": "holiday", "item_id": f"i{item:03d}"}
        for item in range(3, NUM_ITEMS, 6)
    ]
    themes += [
        row | {"theme": "bath week", "kind": "trend", "item_id": f"i{item:03d}"}
        for item in range(2, 30, 6)
    ]
    themes.append(
        row | {"theme": "bath week", "kind": "trend", "start": "2023-03-01", "end": "2023-03-08"}
    )
    return themes


def write_tables(folder: Path, tables: dict[str, list[dict]]) -> Path:
    """Writes `tables` and vectors into `folder`, and returns it.

    Items are CSV; searches, themes and knowledge JSON lines; other tables Parquet; vectors .npy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "items.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, tables["items"][0])
        writer.writeheader()
        writer.writerows(tables["items"])
    for name in ("interactions", "users"):
        pq.write_table(pa.Table.from_pylist(tables[name]), folder / f"{name}.parquet")
    for name in ("searches", "themes", "knowledge"):
        text = "".join(json.dumps(row) + "\n" for row in tables[name])
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(6, 8))
    rows = centres[np.arange(len(tables["items"])) % 6]
    for name in ("id_vectors", "visual_vectors"):
        noise = rng.normal(size=rows.shape)
        np.save(folder / f"{name}.npy", (rows + 0.5 * noise).astype(np.float32))
    return folder


def tiny_config(folder: Path, /, **changes) -> DataConfig:
    """Settings that prepare the tables in `folder`; keys of `changes` are dotted paths."""
    fields = data_fields("qwen3_0p6b")
    settings = {
        "path": str(folder),
        "memory_limit": "500MB",
        "threads": 1,
        "text_tokenizer.vocab_size": 400,
        "pairs.min_count": 2,
        "pairs.heldout_share": 0.1,
    }
    for name, value in (settings | changes).items():
        *parents, last = name.split(".")
        node = fields
        for parent in parents:
            node = node[parent]
        node[last] = value
    return to_dataclass(DataConfig, fields)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders files so that no worker waits.

    The first file makes the training that tests share. Those that need no training follow, then the
    others. Among both, files with slow tests come first, so that none is left alone at the end.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    sharing = {item.path for item in items if "trained" in getattr(item, "fixturenames", ())}
    first = next((item.path for item in items if item.path in sharing), None)
    items.sort(key=lambda item: (item.path != first, item.path in sharing, -slow[item.path]))


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Clears compiled programs if the process has many.

    Programs are mapped into memory. With more maps than Linux allows (65,530 by default) the
    compiler crashes.
    """
    yield
    if count_maps() > MAX_MAPS:
        let_programs_go()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """The function `made_once(name, make)`: a folder that `make` fills, shared by all workers.

    The first worker that asks fills it while the others wait. The folder is read only.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def made_once(name: str, make: Callable[[Path], None]) -> Path:
        folder, is_filled = root / name, root / f"{name}.filled"
        with FileLock(root / f"{name}.lock"):
            if not is_filled.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                is_filled.touch()
        return folder

    return made_once


@pytest.fixture(scope="session")
def tables_folder(made_once) -> Path:
    """A folder with every table of the shop; read only."""
    return made_once("tables", lambda folder: write_tables(folder, tiny_tables()))


@pytest.fixture(scope="session")
def data_config(tables_folder) -> DataConfig:
    """The settings that prepare `tables_folder`."""
    return tiny_config(tables_folder)


@pytest.fixture(scope="session")
def prepared(data_config, made_once) -> PreparedData:
    """The prepared shop, in a folder `data` as in a workdir; read only."""

    def make(folder: Path) -> None:
        (folder / "data").mkdir(parents=True)
        prepare(data_config, 0, folder / "data")

    return PreparedData.load(made_once("prepared", make) / "data")


@pytest.fixture(scope="session", name="tiny_config")
def tiny_config_fixture():
    """The function `tiny_config(folder, **changes)`."""
    return tiny_config


@pytest.fixture(scope="session")
def trained(tables_folder, made_once):
    """(config, workdir) of a run of all stages for a few steps on the shop; read only."""
    from tiny_run import tiny_run

    from sigma_jax import train
    from sigma_jax.runtime.config import MeshConfig
    from sigma_jax.runtime.sharding import make_mesh

    config, mesh = tiny_run(tables_folder), make_mesh(MeshConfig(-1, 1, 1))
    return config, made_once("trained", lambda folder: train.train(config, folder, mesh))


@pytest.fixture(scope="session")
def exported(trained, made_once) -> Path:
    """The export of `trained`; read only."""
    from sigma_jax.serving.bundle import export

    return made_once("export-small", lambda folder: export(trained[1], folder))
