"""An export: one folder that recommends and whose catalogue can change.

manifest.json            format and fingerprints of the training
model/                   manifest.json and the files that no item changes:
  recommender.json       the spec (recommender/spec.py)
  weights.safetensors    the network without its backbone and without rows of items
  backbone/              a Hugging Face folder
  orbax/                 all parameters by dotted name, those of items too
  text_tokenizer/        the tokenizer of prompts
  reranker/              weights and tables of the reranker (reranking/reranker.py)
  tokenizer/             codebooks and encoder: vectors to SIDs
  encoder/               texts to vectors, from the stage grounding
  sentence_encoder/      a copy of the model of data.text_encoder
  grounding_head/        the head that was trained beside it
  knowledge.arrow, knowledge_vectors.npy    what people say, where the data has it
  items.json             how columns of an item become its text, the mean text vector, and the
                         slot values that instructions may ask for
models/NUMBER/           the model of version NUMBER, as model/, where a refresh made one
catalogue/NUMBER/        a version of the catalogue (serving/catalogue_version.py)
catalogue/active.json    the active version, and the versions that were active before it
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from orbax.checkpoint import v1 as ocp

from sigma_jax.data.config import TextConfig
from sigma_jax.data.vectors import item_vectors
from sigma_jax.encoders.find import find_encoder
from sigma_jax.encoders.grounding_head import GroundedVectors
from sigma_jax.encoders.instructions import ENCODER, HEAD, encoder_in
from sigma_jax.generation.generator import all_item_vectors, prefix_depth
from sigma_jax.index.host_index import HostIndex
from sigma_jax.index.scann_searcher import HAS_SCANN
from sigma_jax.index.trie_build import build_trie, capacity_for, with_spare_capacity
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
from sigma_jax.schema import Catalogue, Histories, Knowledge, PreparedData
from sigma_jax.serving.catalogue_version import Version
from sigma_jax.serving.files import read_folder, write_folder
from sigma_jax.shapes import power_of_two

MANIFEST = "manifest.json"
MODEL, MODELS = "model", "models"  # folder of the first model, and of those of refreshes
VERSION = "version.json"
ACTIVE = "active.json"
FIRST = "0001"


def export(workdir: Path, target: Path, retrieval: str = "exact") -> dict[str, Any]:
    """Writes the export of a trained workdir to `target`.

    Returns the manifest of its first version.

    Args:
      retrieval: as in GenerationConfig. "scann" writes an index of ScaNN into the export.

    Raises:
      ValueError: the workdir is not trained, or `target` exists.
    """
    check_inputs(workdir, "sft")
    data = PreparedData.load(workdir / "data")
    parts = RecommenderParts.of_workdir(workdir, data)

    def write(folder: Path) -> dict[str, Any]:
        write_folder(
            folder / MODEL, MANIFEST, lambda into: _write_model(workdir, data, parts, into)
        )
        (folder / "catalogue").mkdir()
        version = first_version(workdir, data, parts, retrieval)
        write_version(folder, FIRST, version, "exported", MODEL)
        write_json(folder / "catalogue" / ACTIVE, {"active": FIRST, "before": []})
        return {"items": len(version), "fingerprints": fingerprints_of(workdir)}

    write_folder(target, MANIFEST, write, (MODEL, MODELS, "catalogue"))
    return read_json(target / "catalogue" / FIRST / VERSION)


def fingerprints_of(workdir: Path) -> dict[str, str]:
    """The fingerprints of the stages of a workdir that identify its recommender."""
    stages = ("data", "tokenizer", "sft")
    return {name: read_manifest(workdir, name).fingerprint for name in stages}


def add_model(bundle: Bundle, workdir: Path, comment: str) -> str:
    """Adds the recommender of `workdir` to an export, as a new version with a model of its own.

    Removed items stay removed. The version is not active yet.
    Where an earlier call was killed, this one finishes its work.

    Args:
      bundle: its active version says which items are removed and how prefixes are searched.

    Returns:
      the name of the version.

    Raises:
      ValueError: the workdir is not trained.
    """
    check_inputs(workdir, "sft")
    fingerprints = fingerprints_of(workdir)
    for name in bundle.names():
        if bundle.at(name).fingerprints == fingerprints:
            return name
    data = PreparedData.load(workdir / "data")
    parts = RecommenderParts.of_workdir(workdir, data)
    before = bundle.version()
    version = first_version(workdir, data, parts, "exact" if before.index is None else "scann")
    removed = before.catalogue.table["item_id"].filter(pa.array(~before.is_active))
    is_removed = pc.is_in(version.catalogue.table["item_id"], value_set=removed.combine_chunks())
    is_active = ~is_removed.to_numpy(zero_copy_only=False)
    version = dataclasses.replace(version, is_active=is_active).indexed()
    name = bundle.next_name
    folder = bundle.folder / MODELS / name
    shutil.rmtree(folder, ignore_errors=True)  # no version has it: a killed call left it

    def write(into: Path) -> dict[str, Any]:
        return _write_model(workdir, data, parts, into) | {"fingerprints": fingerprints}

    write_folder(folder, MANIFEST, write)
    write_version(bundle.folder, name, version, comment, f"{MODELS}/{name}")
    return name


def _write_model(
    workdir: Path, data: PreparedData, parts: RecommenderParts, folder: Path
) -> dict[str, Any]:
    """Writes the files of EXPORT/model into `folder`; returns no field for its manifest."""
    parts.spec.save(folder)
    shutil.copytree(workdir / "sft" / "backbone", folder / "backbone")
    save_weights(parts.network, folder / WEIGHTS, ("backbone", ITEM_ROWS))
    _write_orbax(parts, workdir / "sft" / "backbone", folder / "orbax")
    shutil.copytree(workdir / "data" / "text_tokenizer", folder / "text_tokenizer")
    if parts.reranker is not None:
        (folder / "reranker").mkdir()
        parts.reranker.save(folder / "reranker")
    (folder / "tokenizer").mkdir()
    for name in ("codebooks.npy", "weights.safetensors", "tokenizer.json"):
        shutil.copy(workdir / "tokenizer" / name, folder / "tokenizer")
    sentence_encoder = read_manifest(workdir, "data").metrics["sentence_encoder"]
    if (workdir / "grounding").exists():
        (folder / "encoder").mkdir()
        for name in ("encoder.json", "weights.safetensors"):
            shutil.copy(workdir / "grounding" / name, folder / "encoder")
        shutil.copytree(workdir / "grounding" / "backbone", folder / "encoder" / "backbone")
    if sentence_encoder:
        shutil.copytree(find_encoder(sentence_encoder), folder / ENCODER)
    if head := GroundedVectors.load(workdir / HEAD):
        (folder / HEAD).mkdir()
        head.save(folder / HEAD)
    if data.knowledge is not None:
        data.knowledge.save(folder)
    items = _items_json(workdir, data, parts)
    (folder / "items.json").write_text(json.dumps(items, ensure_ascii=False))
    return {}


def _write_orbax(parts: RecommenderParts, backbone_folder: Path, folder: Path) -> None:
    """Writes all parameters as an Orbax checkpoint, the backbone in the types of its training."""
    # `parts` may hold the backbone in fewer bits, as it answers.
    types = {name: getattr(parts.spec.backbone, name) for name in ("dtype", "param_dtype")}
    backbone = load_backbone(backbone_folder, **types)
    parameters = {
        **named_parameters(parts.network, ("backbone",)),
        **{f"backbone.{name}": value for name, value in named_parameters(backbone).items()},
    }
    ocp.save(folder.absolute(), {name: value[...] for name, value in parameters.items()})


def _items_json(workdir: Path, data: PreparedData, parts: RecommenderParts) -> dict[str, Any]:
    """The content of items.json."""
    prepared = read_manifest(workdir, "data")
    settings = prepared.config["data"]
    has_sessions = prepared.metrics["sessions_hold_several_items"]
    vectors = item_vectors(workdir)
    columns = text_columns(data.catalogue)
    return {
        "text": settings["text"] | {"columns": list(columns)},
        "are_numbers": columns,
        "has_sessions": has_sessions,
        "session_gap": settings["split"]["session_gap_seconds"] if has_sessions else 0,
        "event_kinds": list(settings["events"]),
        "text_mean": vectors["text"].mean(axis=0).tolist() if "text" in vectors else None,
        "tokenizer_inputs": read_manifest(workdir, "tokenizer").config["inputs"],
        "slot_value_texts": instruction_texts(data) if parts.lexical is not None else [],
    }


def text_columns(catalogue: Catalogue, max_items: int = 10_000) -> dict[str, bool]:
    """The columns in the texts of the first items, and whether each holds only numbers."""
    are_numbers: dict[str, bool] = {}
    for text in catalogue.texts(np.arange(min(len(catalogue), max_items))):
        for name, value in json.loads(text).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            are_numbers[name] = are_numbers.get(name, True) and is_number
    return are_numbers


def first_version(
    workdir: Path, data: PreparedData, parts: RecommenderParts, retrieval: str
) -> Version:
    """The catalogue of a workdir as the first version of an export.

    ValueError if `retrieval` is "scann" and ScaNN is not installed.
    """
    network, items = parts.network, len(data.catalogue)
    rows = {name: np.asarray(table[...]) for name, table in network.item_encoder.trained.items()}
    depth = prefix_depth(network, parts.spec.depth, parts.spec.generation)
    trie = build_trie(parts.semantic_ids.codes, depth, parts.semantic_ids.codebook_size)
    trie = with_spare_capacity(trie)
    neighbours = None
    if parts.reranker is not None:
        neighbours = parts.reranker.tables.relations.embedding_neighbours
    version = Version(
        catalogue=data.catalogue,
        semantic_ids=parts.semantic_ids,
        vectors=item_vectors(workdir, items),
        rows=rows,
        fused=all_item_vectors(network, parts.tables, items),
        is_active=np.ones(items, bool),
        trie=trie,
        lexical=lexical_with_capacity(parts.lexical, len(trie.sorted_items)),
        embedding_neighbours=neighbours,
    )
    if retrieval == "exact":
        return version
    if not HAS_SCANN:
        raise ValueError("--retrieval=scann needs the package scann, which is missing; install it.")
    config = parts.spec.generation
    # Without codes there is one prefix, which returns the items of all beams.
    count = config.num_retrieved * (1 if depth else config.num_beams)
    index = HostIndex(version.leaves, np.asarray(version.fused), count)
    return dataclasses.replace(version, index=index)


def lexical_with_capacity(
    lexical: LexicalTable | None, capacity: int, before: LexicalTable | None = None
) -> LexicalTable | None:
    """`lexical` in larger arrays, with capacity for `capacity` items and for more words.

    Args:
      before: the table of the version before; its array sizes are kept where they suffice.
    """
    if lexical is None:
        return None
    known, width = (0, 0) if before is None else (len(before.weights), len(before.of_items))
    width = max(power_of_two(len(lexical.of_items)), width)
    return lexical.with_capacity(capacity, capacity_for(len(lexical.weights), known), width)


def write_version(folder: Path, name: str, version: Version, comment: str, model: str) -> None:
    """Writes FOLDER/catalogue/NAME; its manifest holds sizes, `comment` and recall of ScaNN.

    Args:
      model: folder of the model that answers with this version, in FOLDER.
    """

    def write(into: Path) -> dict[str, Any]:
        version.save(into)
        manifest = {
            "items": len(version),
            "active_items": int(version.is_active.sum()),
            "largest_prefix": version.trie.largest_leaf,
            "comment": comment,
            "model": model,
        }
        if version.index is not None:
            # For each prefix that ScaNN searches; other prefixes are searched exactly.
            manifest["recall"] = list(version.index.recall.values())
        return manifest

    write_folder(folder / "catalogue" / name, VERSION, write)


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An open export: its versions, and the model of one of them.

    Only versions of the same model can be changed into each other; `at` opens another model.
    """

    folder: Path
    items: dict[str, Any]  # items.json of the model
    model: str  # folder of the model, in `folder`

    @classmethod
    def open(cls, folder: Path, name: str = "") -> Bundle:
        """The export in `folder`, with the model of the version `name`, or of the active one.

        ValueError if it is damaged or no export, or has no such version.
        """
        if not (folder / MANIFEST).exists():
            raise ValueError(
                f"{folder} is no export: {MANIFEST} is missing; write one with "
                "`python -m sigma_jax.export`."
            )
        read_folder(folder, MANIFEST)
        found = cls(folder, {}, MODEL)
        model = found.describe(name or found.state()["active"]).get("model", MODEL)
        read_folder(folder / model, MANIFEST)
        return cls(folder, read_json(folder / model / "items.json"), model)

    def at(self, name: str) -> Bundle:
        """The export with the model of the version `name`. ValueError as in `open`."""
        if self.describe(name).get("model", MODEL) == self.model:
            return self
        return Bundle.open(self.folder, name)

    @property
    def model_folder(self) -> Path:
        """The folder of the model."""
        return self.folder / self.model

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the training of the model, by stage (`fingerprints_of`)."""
        folder = self.folder if self.model == MODEL else self.model_folder
        return read_json(folder / MANIFEST)["fingerprints"]

    @property
    def next_name(self) -> str:
        """The name that the next version gets."""
        return f"{int(self.names()[-1]) + 1:04d}"

    @property
    def text(self) -> TextConfig:
        """The settings that turn columns of an item into its text."""
        return to_dataclass(TextConfig, self.items["text"], "text")

    def state(self) -> dict[str, Any]:
        """{"active": the active version, "before": versions that were active, oldest first}."""
        return read_state(self.folder)

    def names(self) -> list[str]:
        """The names of all versions, oldest first."""
        paths = (self.folder / "catalogue").glob(f"*/{VERSION}")
        return sorted((p.parent.name for p in paths if p.parent.name.isdigit()), key=int)

    def describe(self, name: str) -> dict[str, Any]:
        """The manifest of a version. ValueError if there is no such version."""
        path = self.folder / "catalogue" / name / VERSION
        if not path.exists():
            raise ValueError(
                f"{self.folder} has no version {name!r}; it has {', '.join(self.names())}."
            )
        return read_json(path)

    def check(self, name: str) -> Path:
        """The folder of a version. ValueError if it is damaged or missing."""
        self.describe(name)
        folder = self.folder / "catalogue" / name
        read_folder(folder, VERSION)
        return folder

    def version(self, name: str = "", with_index: bool = True) -> Version:
        """The version `name`, or the active one.

        Args:
          with_index: load its index of ScaNN, where it has one.

        Raises:
          ValueError: the version is missing or damaged, or its index needs ScaNN.
        """
        name = name or self.state()["active"]
        return Version.load(self.check(name), with_index)

    def activate(self, name: str) -> None:
        """Makes a version the active one. ValueError if it is missing or damaged.

        Running engines load it at their next refresh.
        """
        self.check(name)
        state = self.state()
        if name != state["active"]:
            before = [*state["before"], state["active"]]
            write_json(self.folder / "catalogue" / ACTIVE, {"active": name, "before": before})

    def rollback(self) -> str:
        """Activates the version that was active before, and returns its name.

        ValueError if there was none, or it is damaged.
        """
        state = self.state()
        if not state["before"]:
            raise ValueError(f"{self.folder}: no version was active before {state['active']}.")
        *before, name = state["before"]
        self.check(name)
        write_json(self.folder / "catalogue" / ACTIVE, {"active": name, "before": before})
        return name

    def add_version(self, version: Version, comment: str) -> str:
        """Writes `version` as a new version of this model, not yet active; returns its name."""
        name = self.next_name
        write_version(self.folder, name, version.indexed(), comment, self.model)
        return name

    def parts(self, version: Version) -> RecommenderParts:
        """The model over the items of `version`, in arrays with capacity for more items."""
        folder = self.model_folder
        spec = RecommenderSpec.load(folder, "export again")
        capacity = version.capacity
        vectors = {name: padded_rows(table, capacity) for name, table in version.vectors.items()}
        rows = {name: padded_rows(table, capacity) for name, table in version.rows.items()}
        reranker = None
        if (folder / "reranker").exists():
            reranker = Reranker.load(folder / "reranker")
            tables = reranker.tables.over(capacity, version.embedding_neighbours)
            reranker = dataclasses.replace(reranker, tables=tables)
        shapes: dict[str, Any] = {name: table.shape for name, table in rows.items()}
        parts = RecommenderParts.load(
            folder,
            spec,
            self.data(version),
            version.semantic_ids,
            vectors | shapes,
            reranker,
            version.lexical,
            encoder_in(folder) if spec.has_instructions else None,
            rows,
        )
        # Beam search reads the trie instead of the codes of items.
        tables = {k: v for k, v in parts.tables.items() if k not in ("codes", "prefix")}
        group = np.pad(parts.group, (0, capacity - len(parts.group)), constant_values=-1)
        return dataclasses.replace(parts, tables=tables, group=group)

    def data(self, version: Version) -> PreparedData:
        """The catalogue of `version` as prepared data without users."""
        return PreparedData(
            self.model_folder,
            version.catalogue,
            Histories.empty(),
            users_of([], []),
            queries=None,
            themes=None,
            pairs={},
            id_vectors=None,
            visual_vectors=None,
            text_vectors=None,
            knowledge=Knowledge.load(self.model_folder),
        )


def read_state(folder: Path) -> dict[str, Any]:
    """The content of active.json, as `Bundle.state`. ValueError if it is damaged."""
    path = folder / "catalogue" / ACTIVE
    try:
        state = json.loads(path.read_text())
        return {"active": str(state["active"]), "before": list(map(str, state["before"]))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is damaged ({error}); write {{"active": "NUMBER", "before": []}} into it, '
            "where NUMBER is the folder of the version to use."
        ) from error


def padded_rows(table: np.ndarray, rows: int) -> np.ndarray:
    """`table` with rows of zeros behind its own, `rows` rows in all."""
    return np.pad(table, ((0, rows - len(table)), (0, 0)))
