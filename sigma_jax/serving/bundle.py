"""An export: one folder with all it takes to recommend, and to change the catalogue.

manifest.json            format, where it came from
model/                   manifest.json and what items have no part in:
  recommender.json weights.safetensors backbone/   the network; backbone is a Hugging Face folder
  orbax/                 all parameters, those of items too, by dotted name
  text_tokenizer/        of prompts
  reranker/              weights and tables of the reranker (reranking/reranker.py)
  tokenizer/             codebooks and encoder: vectors to SIDs
  encoder/               stage 1's: texts to vectors; or sentence_encoder/, as it was given
  items.json             how columns of an item become its text, the mean of text vectors,
                         what people ask for
catalogue/NUMBER/        a version of the catalogue (serving/catalogue_version.py)
catalogue/active.json    which one is in use, and which were before it
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from sigma_jax.data.config import TextConfig
from sigma_jax.data.vectors import item_vectors
from sigma_jax.generation.generator import all_item_vectors, prefix_depth
from sigma_jax.index.host_index import HostIndex
from sigma_jax.index.scann_searcher import HAS_SCANN
from sigma_jax.index.trie_build import build_trie, room_for, with_room
from sigma_jax.models.hf import load_backbone
from sigma_jax.models.weights import named_parameters, save_weights
from sigma_jax.recommender.parts import ITEM_ROWS, WEIGHTS, RecommenderParts, instruction_texts
from sigma_jax.recommender.requests import users_of
from sigma_jax.recommender.spec import RecommenderSpec
from sigma_jax.reranking.lexical import LexicalTable
from sigma_jax.reranking.reranker import Reranker
from sigma_jax.runtime.artifacts import check_inputs, read_manifest
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.files import read_json, write_json
from sigma_jax.schema import Catalogue, Histories, PreparedData
from sigma_jax.serving.catalogue_version import Version
from sigma_jax.serving.files import read_folder, write_folder
from sigma_jax.shapes import power_of_two

MANIFEST = "manifest.json"
VERSION = "version.json"
ACTIVE = "active.json"
FIRST = "0001"


def export(workdir: Path, target: Path, retrieval: str = "exact") -> dict[str, Any]:
    """Writes the export of a trained workdir to `target`; what the manifest of its first version
    says.

    `retrieval`: as in GenerationConfig, of who asks the export; with "scann" the index is part of
    it. ValueError if the workdir is not trained, or `target` is there already.
    """
    check_inputs(workdir, "sft")
    data = PreparedData.load(workdir / "data")
    parts = RecommenderParts.of_workdir(workdir, data)

    def write(folder: Path) -> dict[str, Any]:
        write_folder(
            folder / "model", MANIFEST, lambda into: _write_model(workdir, data, parts, into)
        )
        (folder / "catalogue").mkdir()
        version = first_version(workdir, data, parts, retrieval)
        write_version(folder, FIRST, version, "exported")
        write_json(folder / "catalogue" / ACTIVE, {"active": FIRST, "before": []})
        stages = {name: read_manifest(workdir, name) for name in ("data", "tokenizer", "sft")}
        return {
            "items": len(version),
            "fingerprints": {name: found.fingerprint for name, found in stages.items()},
        }

    write_folder(target, MANIFEST, write, ("model", "catalogue"))
    return read_json(target / "catalogue" / FIRST / VERSION)


def _write_model(
    workdir: Path, data: PreparedData, parts: RecommenderParts, folder: Path
) -> dict[str, Any]:
    source = workdir / "sft"
    parts.spec.save(folder)
    shutil.copytree(source / "backbone", folder / "backbone")
    save_weights(parts.network, folder / WEIGHTS, ("backbone", ITEM_ROWS))
    # As it was trained: `parts` has it as it answers, in fewer bits where products take them.
    how = {name: getattr(parts.spec.backbone, name) for name in ("dtype", "param_dtype")}
    whole = load_backbone(source / "backbone", **how)
    parameters = {
        **named_parameters(parts.network, ("backbone",)),
        **{f"backbone.{name}": value for name, value in named_parameters(whole).items()},
    }
    parameters = {name: value[...] for name, value in parameters.items()}
    ocp.save((folder / "orbax").absolute(), parameters)
    shutil.copytree(workdir / "data" / "text_tokenizer", folder / "text_tokenizer")
    if parts.reranker is not None:
        (folder / "reranker").mkdir()
        parts.reranker.save(folder / "reranker")
    (folder / "tokenizer").mkdir()
    for name in ("codebooks.npy", "weights.safetensors", "tokenizer.json"):
        shutil.copy(workdir / "tokenizer" / name, folder / "tokenizer")
    settings = read_manifest(workdir, "data").config["data"]
    if (workdir / "grounding").exists():
        (folder / "encoder").mkdir()
        for name in ("encoder.json", "weights.safetensors"):
            shutil.copy(workdir / "grounding" / name, folder / "encoder")
        shutil.copytree(workdir / "grounding" / "backbone", folder / "encoder" / "backbone")
    elif settings["text_encoder"] and Path(settings["text_encoder"]).is_dir():
        shutil.copytree(settings["text_encoder"], folder / "sentence_encoder")
    vectors = item_vectors(workdir)
    columns = text_columns(data.catalogue)
    has_sessions = read_manifest(workdir, "data").metrics["sessions_hold_several_items"]
    items = {
        "text": settings["text"] | {"columns": list(columns)},
        "are_numbers": columns,
        "text_encoder": settings["text_encoder"],  # of the hub, where it is no folder
        "has_sessions": has_sessions,
        "session_gap": settings["split"]["session_gap_seconds"] if has_sessions else 0,
        "text_mean": vectors["text"].mean(axis=0).tolist() if "text" in vectors else None,
        "tokenizer_inputs": read_manifest(workdir, "tokenizer").config["inputs"],
        "asked": instruction_texts(data) if parts.lexical is not None else [],
    }
    (folder / "items.json").write_text(json.dumps(items, ensure_ascii=False))
    return {}


def text_columns(catalogue: Catalogue, most: int = 10_000) -> dict[str, bool]:
    """The columns that texts of the first items are made of, in their order, and whether each holds
    numbers alone."""
    order: dict[str, bool] = {}
    for text in catalogue.texts(np.arange(min(len(catalogue), most))):
        for name, value in json.loads(text).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            order[name] = order.get(name, True) and is_number
    return order


def first_version(
    workdir: Path, data: PreparedData, parts: RecommenderParts, retrieval: str
) -> Version:
    """The items of a workdir."""
    network, items = parts.network, len(data.catalogue)
    rows = {name: np.asarray(table[...]) for name, table in network.item_encoder.trained.items()}
    depth = prefix_depth(network, parts.spec.depth, parts.spec.generation)
    trie = build_trie(parts.semantic_ids.codes, depth, parts.semantic_ids.codebook_size)
    trie = with_room(trie)
    reranker = parts.reranker
    near = None
    if reranker is not None:
        near = reranker.tables.relations.embedding_neighbours
    version = Version(
        catalogue=data.catalogue,
        semantic_ids=parts.semantic_ids,
        vectors=item_vectors(workdir, items),
        rows=rows,
        fused=all_item_vectors(network, parts.tables, items),
        is_active=np.ones(items, bool),
        trie=trie,
        lexical=roomy_words(parts.lexical, len(trie.sorted_items)),
        embedding_neighbours=near,
    )
    if retrieval == "exact":
        return version
    if not HAS_SCANN:
        raise ValueError("--retrieval=scann needs scann, which is not installed here; install it.")
    config = parts.spec.generation
    # Without codes the one prefix serves all beams.
    usual = config.num_retrieved * (1 if depth else config.num_beams)
    index = HostIndex(version.leaves, np.asarray(version.fused), usual)
    return dataclasses.replace(version, index=index)


def roomy_words(
    words: LexicalTable | None, room: int, before: LexicalTable | None = None
) -> LexicalTable | None:
    """The word table of a version: room for `room` items, and for more words; arrays as large as
    those of the version `before` where they suffice."""
    if words is None:
        return None
    known, width = (0, 0) if before is None else (len(before.weights), len(before.of_items))
    width = max(power_of_two(len(words.of_items)), width)
    return words.with_room(room, room_for(len(words.weights), known), width)


def write_version(folder: Path, name: str, version: Version, comment: str) -> None:
    """Writes FOLDER/catalogue/NAME."""

    def write(into: Path) -> dict[str, Any]:
        version.save(into)
        found = {
            "items": len(version),
            "active_items": int(version.is_active.sum()),
            "largest_prefix": version.trie.largest_leaf,
            "comment": comment,
        }
        if version.index is not None:
            # Of each prefix that ScaNN searches; the others are compared whole.
            found["recall"] = list(version.index.recall.values())
        return found

    write_folder(folder / "catalogue" / name, VERSION, write)


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An export, opened."""

    folder: Path
    items: dict[str, Any]  # items.json

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Checks and opens the export in `folder`. ValueError where it is damaged, or none."""
        if not (folder / MANIFEST).exists():
            raise ValueError(
                f"{folder} is no export: {MANIFEST} is missing; make one with "
                "`python -m sigma_jax.export`."
            )
        read_folder(folder, MANIFEST)
        read_folder(folder / "model", MANIFEST)
        return cls(folder, read_json(folder / "model" / "items.json"))

    @property
    def text(self) -> TextConfig:
        """How columns of an item become its text."""
        return to_dataclass(TextConfig, self.items["text"], "text")

    def state(self) -> dict[str, Any]:
        """The name of the active version, and those of the versions before it, the last last."""
        return read_state(self.folder)

    def names(self) -> list[str]:
        """The versions there are, oldest first."""
        paths = (self.folder / "catalogue").glob(f"*/{VERSION}")
        return sorted((p.parent.name for p in paths if p.parent.name.isdigit()), key=int)

    def describe(self, name: str) -> dict[str, Any]:
        """What the manifest of a version says. ValueError if there is no such version."""
        path = self.folder / "catalogue" / name / VERSION
        if not path.exists():
            raise ValueError(
                f"{self.folder} has no version {name!r}; it has {', '.join(self.names())}."
            )
        return read_json(path)

    def check(self, name: str) -> Path:
        """The folder of a version. ValueError where it is damaged, or none."""
        self.describe(name)
        folder = self.folder / "catalogue" / name
        read_folder(folder, VERSION)
        return folder

    def version(self, name: str = "", with_index: bool = True) -> Version:
        """A version, the active one if not named, `with_index` where it has one.

        ValueError where it is damaged, none, or needs what is not installed.
        """
        return Version.load(self.check(name or self.state()["active"]), with_index)

    def activate(self, name: str) -> None:
        """Makes a version the active one, at once and for whoever opens the export from now on.

        ValueError if there is no such version, or it is damaged.
        """
        self.check(name)
        state = self.state()
        if name != state["active"]:
            before = [*state["before"], state["active"]]
            write_json(self.folder / "catalogue" / ACTIVE, {"active": name, "before": before})

    def rollback(self) -> str:
        """Makes the version active that was before; its name. ValueError where none was, or it is
        damaged."""
        state = self.state()
        if not state["before"]:
            raise ValueError(f"{self.folder}: no version was active before {state['active']}.")
        *before, name = state["before"]
        self.check(name)
        write_json(self.folder / "catalogue" / ACTIVE, {"active": name, "before": before})
        return name

    def add_version(self, version: Version, comment: str) -> str:
        """Writes another version, which is not active yet; its name."""
        name = f"{int(self.names()[-1]) + 1:04d}"
        write_version(self.folder, name, version.indexed(), comment)
        return name

    def parts(self, version: Version) -> RecommenderParts:
        """The model over the items of `version`, in arrays with room for more."""
        folder = self.folder / "model"
        spec = RecommenderSpec.load(folder, "export again")
        room = version.room
        vectors = {name: roomy(table, room) for name, table in version.vectors.items()}
        rows = {name: roomy(table, room) for name, table in version.rows.items()}
        reranker = None
        if (folder / "reranker").exists():
            reranker = Reranker.load(folder / "reranker")
            tables = reranker.tables.over(room, version.embedding_neighbours)
            reranker = dataclasses.replace(reranker, tables=tables)
        shapes = {name: table.shape for name, table in rows.items()}
        parts = RecommenderParts.load(
            folder,
            spec,
            self.data(version),
            version.semantic_ids,
            vectors | shapes,
            reranker,
            version.lexical,
            rows,
        )
        # A search over a trie does not read the codes of items.
        tables = {k: v for k, v in parts.tables.items() if k not in ("codes", "prefix")}
        return dataclasses.replace(parts, tables=tables)

    def data(self, version: Version) -> PreparedData:
        """The data of an export, which has no users."""
        users, no_rows = users_of([], []), Histories.empty()
        return PreparedData(
            self.folder / "model",
            version.catalogue,
            no_rows,
            users,
            None,
            None,
            {},
            None,
            None,
            None,
        )


def read_state(folder: Path) -> dict[str, Any]:
    """active.json of an export, without a look at anything else."""
    path = folder / "catalogue" / ACTIVE
    try:
        found = json.loads(path.read_text())
        return {"active": str(found["active"]), "before": list(map(str, found["before"]))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is damaged ({error}); write {{"active": "NUMBER", "before": []}} into it, '
            "with the number of the folder beside it that is to be used."
        ) from error


def roomy(table: np.ndarray, room: int) -> np.ndarray:
    """`table` with rows of 0 up to `room`."""
    return np.pad(table, ((0, room - len(table)), (0, 0)))
