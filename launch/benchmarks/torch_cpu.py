"""Training steps on a CPU against a plain PyTorch loop over transformers' Qwen3.

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    python -m launch.benchmarks.torch_cpu --workdir=runs/sft-local --output=torch_cpu.json

WORKDIR is a finished one of the preset named; its batches are what both train on. "next token": the
same model, weights, tokens and loss (cross-entropy of every next token over the whole vocabulary,
AdamW, float32, gradients clipped) in both; the first losses have to agree. "stage 3": this
package's own step on the same rows, with all its losses, against that loop, which knows one loss.
Steps are taken in turn and times are medians; a row is as many tokens in all three.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from flax import nnx

from configs.sft import get_config
from sigma_jax.models.backbone import make_backbone
from sigma_jax.models.hf import save_backbone
from sigma_jax.models.qwen3 import Qwen3, causal_mask
from sigma_jax.runtime.config import MeshConfig, OptimizerConfig, to_dataclass
from sigma_jax.runtime.mesh import make_mesh
from sigma_jax.runtime.sharding import place_batch, place_tables
from sigma_jax.runtime.state import init_state, make_step
from sigma_jax.sft.config import SftConfig
from sigma_jax.sft.task import SftTask
from sigma_jax.train import stage_fields

OPTIMIZER = OptimizerConfig(1e-4, 1e-4, 0.01, 0, "constant", 1.0, 0.9, 0.999)
UNTOLD = -100  # a label that counts for nothing, as transformers has it


def labels_of(batch: dict[str, np.ndarray]) -> np.ndarray:
    """[B, T]: each token where it follows another of its context, otherwise UNTOLD."""
    segment = batch["segment"]
    follows = np.zeros(segment.shape, bool)
    follows[:, 1:] = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
    return np.where(follows, batch["token"], UNTOLD)


def next_token_loss(model: Qwen3, tables, batch, key):
    """Mean cross-entropy of the next token, over the whole vocabulary."""
    hidden, _ = model(
        model.embed(batch["token"]), batch["place"], causal_mask(jnp.ones_like(batch["token"]))
    )
    logits = (hidden[:, :-1] @ model.embedding[...].T).astype(jnp.float32)
    labels = batch["label"][:, 1:]
    of_token = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    counts = labels != UNTOLD
    return jnp.sum(of_token * counts) / jnp.sum(counts), {}


def own_steps(model, loss, label, optimizer, tables, batches, mesh) -> Callable[[int], float]:
    """A function that takes step n of this package and returns its loss."""
    state, template, update = init_state(model, label, optimizer, 1_000, mesh)
    step = make_step(loss, template, update, optimizer, 1_000, 0, state)
    held = {"state": state}

    def take(number: int) -> float:
        batch = place_batch(batches[number % len(batches)], mesh)
        held["state"], metrics = step(held["state"], tables, batch)
        return float(metrics["loss"])

    return take


def torch_steps(folder: Path, batches: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """The same of the plain PyTorch loop, from the weights in `folder`."""
    model = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), OPTIMIZER.learning_rate, weight_decay=OPTIMIZER.weight_decay
    )

    def take(number: int) -> float:
        batch = batches[number % len(batches)]
        tokens, labels = (torch.from_numpy(batch[name]).long() for name in ("token", "label"))
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        return float(loss.detach())

    return take


def main() -> None:
    """Takes steps of all three in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/sft-local"))
    parser.add_argument("--preset", default="local")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    values, _ = stage_fields(get_config(arguments.preset), "sft")
    fields = to_dataclass(SftConfig, values)
    task = SftTask(fields, arguments.workdir, 0)
    model = task.model(nnx.Rngs(0))
    vocabulary = task.vocab_size + model.space.table_size
    batches = []
    for number in range(8):
        batch = dict(task.batches()[number])
        place = np.broadcast_to(
            np.arange(batch["token"].shape[1], dtype=np.int32), batch["token"].shape
        )
        batches.append({**batch, "label": labels_of(batch), "place": np.ascontiguousarray(place)})
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    trunk = make_backbone(fields.backbone, vocabulary, nnx.Rngs(0), task.data.text_tokenizer_folder)
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(trunk, folder)
        steps = {"PyTorch, next token": torch_steps(Path(folder), batches)}
    own = [{name: batch[name] for name in ("token", "label", "place")} for batch in batches]
    steps["ours, next token"] = own_steps(
        trunk, next_token_loss, lambda _: "base", OPTIMIZER, {}, own, mesh
    )
    tables = place_tables(task.tables(), mesh)
    whole = [{k: v for k, v in batch.items() if k not in ("label", "place")} for batch in batches]
    steps["ours, stage 3"] = own_steps(
        model, task.loss, task.label, fields.optimizer, tables, whole, mesh
    )
    first = {name: take(0) for name, take in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1, arguments.steps + 1):
        for name, take in steps.items():
            began = time.perf_counter()
            take(number)
            times[name].append(time.perf_counter() - began)
    tokens = batches[0]["token"].size
    report = {
        "rows": batches[0]["token"].shape[0],
        "row_tokens": batches[0]["token"].shape[1],
        "vocabulary": vocabulary,
        "parameters": sum(x.size for x in jax.tree.leaves(nnx.state(trunk, nnx.Param))),
        "first_losses": first,
        "tokens_per_second": {n: tokens / statistics.median(t) for n, t in times.items()},
    }
    rates = report["tokens_per_second"]
    plain = rates["PyTorch, next token"]
    report["ratios"] = {name: rate / plain for name, rate in rates.items()}
    print(f"{'':22}{'tokens/s':>10}{'ratio':>8}{'first loss':>12}")
    for name, rate in rates.items():
        print(f"{name:22}{rate:>10,.0f}{rate / plain:>8.2f}{first[name]:>12.4f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
