"""The public API: load a recommender, recommend, train and evaluate from Python.

    import sigma_jax

    recommender = sigma_jax.train_recommender("configs/sft.py:smoke", "runs/demo")
    print(recommender.recommend([{"user_id": "1", "instruction": "party snacks"}], count=5))
    print(sigma_jax.evaluate_recommender("configs/sft.py:smoke", "runs/demo")["methods"].keys())

`import sigma_jax` is fast: the functions import what they need when they are called.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sigma_jax.evaluation.run import evaluate
from sigma_jax.recommender.ranking import Recommendations
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.results import rows_of
from sigma_jax.recommender.workdir import OpenWorkdir, load_workdir
from sigma_jax.runtime import cli
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import Catalogue, RequestBatch
from sigma_jax.serving.bundle import MANIFEST, Bundle
from sigma_jax.serving.engine import CatalogueSnapshot
from sigma_jax.train import train

# transformers would say that PyTorch is missing. Nothing here needs it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


@dataclasses.dataclass(frozen=True)
class LoadedRecommender:
    """A recommender of a workdir or of an export, ready to answer."""

    opened: OpenWorkdir | CatalogueSnapshot

    @property
    def catalogue(self) -> Catalogue:
        """The items that it recommends."""
        if isinstance(self.opened, CatalogueSnapshot):
            return self.opened.version.catalogue
        return self.opened.data.catalogue

    def recommend(
        self, requests: Sequence[Mapping[str, Any]], **options: Any
    ) -> list[dict[str, Any]]:
        """One answer for each request: user_id, instruction, version, and the items, best first.

        Args:
          requests: rows as in a users' file: user_id, and optionally instruction, history (a list
            of item ids, oldest first), timestamp and profile columns. In a workdir, a known user
            without a history gets the stored history. An export stores no histories. Without an
            instruction the request says "recommend something for me".
          options: fields of RecommendOptions, such as count=5 or exclude_seen=True.

        Raises:
          ValueError: a row has no user_id, or its history holds an unknown item.
        """
        if not requests:
            return []
        batch = self.opened.parser.parse(requests)
        answer = self._answer(batch, RecommendOptions(**options))
        name = self.opened.name if isinstance(self.opened, CatalogueSnapshot) else ""
        return rows_of(batch, answer, self.catalogue, name)

    def _answer(self, batch: RequestBatch, options: RecommendOptions) -> Recommendations:
        if isinstance(self.opened, CatalogueSnapshot):
            return self.opened.recommend(batch, options)
        return self.opened.recommender.recommend(batch, options)


def load_recommender(path: str | Path) -> LoadedRecommender:
    """The recommender in a trained workdir or in an export.

    ValueError if `path` is neither, or a file of it is damaged.
    """
    path = Path(path)
    if (path / MANIFEST).exists():
        return LoadedRecommender(CatalogueSnapshot.load(Bundle.open(path)))
    if not (path / "sft").exists():
        raise ValueError(
            f"{path} is neither a trained workdir (no folder sft) nor an export (no {MANIFEST}); "
            "train with `python -m sigma_jax.train`, or export with `python -m sigma_jax.export`."
        )
    return LoadedRecommender(load_workdir(path))


def load_config(config: str | ConfigDict, fields: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of "FILE:PRESET", such as "configs/sft.py:smoke".

    ValueError for a file, a preset or a field that does not exist.

    Args:
      fields: values that replace those of the config, such as {"train.steps": 100}.
    """
    if isinstance(config, str):
        config = cli.load_config(config)
    for field, value in (fields or {}).items():
        cli.check_field(config, field)
        config.update_from_flattened_dict({field: value})
    return config


def train_recommender(
    config: str | ConfigDict, workdir: str | Path, fields: Mapping[str, Any] | None = None
) -> LoadedRecommender:
    """The recommender of `workdir`, trained as `python -m sigma_jax.train` does it.

    Finished stages are not trained again.

    Args:
      config, fields: as in `load_config`; a config of the stage sft.
    """
    config = load_config(config, fields)
    mesh = make_mesh(to_dataclass(MeshConfig, config.mesh, "mesh"))
    train(config, Path(workdir), mesh)
    return load_recommender(workdir)


def evaluate_recommender(
    config: str | ConfigDict, workdir: str | Path, fields: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Results of WORKDIR/evaluation, as `python -m sigma_jax.evaluate` makes them.

    `results["methods"][method][mode]["average"]["item.HR@10"]["mean"]` is one of the metrics.
    """
    return evaluate(load_config(config, fields), Path(workdir))
