"""Writes the text vectors of the Amazon data sets, NAME.text.npy beside NAME.item.json.

    python -m launch.benchmarks.text_vectors --data=FOLDER

FOLDER is as in configs/benchmark/amazon.py. A vector reads all values of an item once. The vectors
of `data.text_encoder` read title and category once more, for requests in words; a log without
instructions is predicted better by these (GR(ID) on Scientific, seed 0: NDCG@10 .1021 and .1010).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from sigma_jax.api import load_config
from sigma_jax.data.sentences import sentence
from sigma_jax.data.vectors import unit_rows
from sigma_jax.encoders.find import DEFAULT_ENCODER, load_encoder
from sigma_jax.prepare import prepare_workdir
from sigma_jax.schema import PreparedData


def main() -> None:
    """Writes the file of every data set under --data that has texts and no such file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT_ENCODER, help="a folder or a name on the hub")
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.model)
    for texts in sorted(arguments.data.glob("*/*.item.json")):
        target = texts.with_name(texts.name.replace(".item.json", ".text.npy"))
        if target.exists():
            continue
        vectors = unit_rows(encoder.encode(item_sentences(texts.parent)))
        np.save(target, vectors)
        print(f"{target}: {len(vectors)} vectors of {vectors.shape[1]} numbers", flush=True)


def item_sentences(folder: Path) -> list[str]:
    """All values of each item of a data set, in the order of the items' numbers."""
    config = load_config("configs/sft.py:amazon", {"data.path": str(folder)})
    with tempfile.TemporaryDirectory() as workdir:
        prepare_workdir(config, Path(workdir))
        table = PreparedData.load(Path(workdir) / "data").catalogue.table
        of_item = dict(zip(table["item_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    return [sentence(of_item[number]) for number in sorted(of_item, key=int)]


if __name__ == "__main__":
    main()
