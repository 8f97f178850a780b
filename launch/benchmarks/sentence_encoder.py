"""Our sentence encoder against sentence-transformers: largest difference, and texts a second.

    pip install sentence-transformers torch
    python -m launch.benchmarks.sentence_encoder --encoder=FOLDER --data=runs/sft-local/data

Both encode the distinct texts of a prepared catalogue, in turns: ours, theirs, ours, theirs. The
first turn of each encodes a few texts of every length and is not timed, since it compiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from launch.benchmarks.result import write_result
from sigma_jax.data.sentences import sentence
from sigma_jax.encoders.find import load_encoder
from sigma_jax.schema import Catalogue


def main() -> None:
    """Prints the largest difference, the texts a second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="folder of a sentence-transformers model")
    parser.add_argument("--data", type=Path, required=True, help="artifact `data` of a run")
    parser.add_argument("--texts", type=int, default=4_000)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    texts = distinct_texts(arguments.data, arguments.texts)
    ours, theirs = load_encoder(arguments.encoder), reference(arguments.encoder)
    vectors = [encode(texts) for encode in (ours.encode, theirs)]
    difference = float(np.abs(vectors[0] - vectors[1]).max())
    seconds = {"sigma_jax": [], "sentence_transformers": []}
    for _ in range(arguments.turns):
        for name, encode in zip(seconds, (ours.encode, theirs), strict=True):
            seconds[name].append(seconds_of(encode, texts))
    rates = {name: len(texts) / min(of_turns) for name, of_turns in seconds.items()}
    result = {
        "texts": len(texts),
        "largest_difference": difference,
        "texts_a_second": rates,
        "ratio": rates["sigma_jax"] / rates["sentence_transformers"],
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    if arguments.output:
        write_result(arguments.output, result)


def distinct_texts(folder: Path, count: int) -> list[str]:
    """At most `count` distinct item texts, drawn evenly over the catalogue."""
    catalogue = Catalogue.load(folder)
    texts = sorted(set(map(sentence, catalogue.texts(np.arange(len(catalogue))))))
    return texts[:: max(len(texts) // count, 1)][:count]


def reference(folder: str) -> Callable[[list[str]], np.ndarray]:
    """The encoder of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    return lambda texts: model.encode(texts, batch_size=64, show_progress_bar=False)


def seconds_of(encode: Callable[[list[str]], np.ndarray], texts: list[str]) -> float:
    """Seconds that `encode` takes."""
    start = time.perf_counter()
    encode(texts)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
