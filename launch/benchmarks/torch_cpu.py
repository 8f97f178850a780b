"""Training steps on a CPU against a plain PyTorch loop over transformers' Qwen3.

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    python -m launch.benchmarks.torch_cpu --workdir=runs/sft-local --output=torch_cpu.json

WORKDIR is a finished one of the preset named; its rows are what both train on, in float32. "next
code": the same model, weights, tokens and loss in both, the cross-entropy of every semantic-ID
token over the whole vocabulary; transformers scores every token of a row for it and this package
those that count. The first losses have to agree. "stage 3": this package's own step on the same
rows, with all its losses and negatives, against that loop. Both clip gradients and use AdamW. Each
runs in a process of its own with all cores, as it would be run; they step in turn, and times are
medians.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

UNTOLD = -100  # a label that counts for nothing, as transformers has it
RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
Batch = dict[str, np.ndarray]


def labels_of(batch: Batch, first: int, codes: int) -> np.ndarray:
    """[B, T]: semantic-ID tokens, `codes` of them from id `first`, that follow another token of
    their context; otherwise UNTOLD."""
    token, segment = batch["token"], batch["segment"]
    counts = (token >= first) & (token < first + codes)
    counts[:, 1:] &= segment[:, 1:] == segment[:, :-1]
    counts[:, 0] = False
    return np.where(counts, token, UNTOLD)


def answer(steps: Callable[[int], float], place: Connection) -> None:
    """Takes the steps that are asked for; (seconds, loss) of each."""
    while (number := place.recv()) is not None:
        began = time.perf_counter()
        loss = steps(number)
        place.send((time.perf_counter() - began, loss))


def torch_loop(place: Connection, folder: str, batches: list[Batch]) -> None:
    """The plain PyTorch loop, from the weights in `folder`."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    model = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)

    def take(number: int) -> float:
        batch = batches[number % len(batches)]
        tokens, labels = (torch.from_numpy(batch[name]).long() for name in ("token", "label"))
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    answer(take, place)


def own_loop(place: Connection, which: str, workdir: str, preset: str) -> None:
    """This package's steps. Sends the folder of the weights and the rows first."""
    from sigma_jax.runtime.process import keep_freed_memory

    keep_freed_memory()  # as `sigma_jax.train` does
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from sigma_jax.configs.sft import get_config
    from sigma_jax.models.backbone import make_backbone
    from sigma_jax.models.hf import save_backbone
    from sigma_jax.models.qwen3 import causal_mask
    from sigma_jax.runtime.config import MeshConfig, OptimizerConfig, to_dataclass
    from sigma_jax.runtime.sharding import make_mesh, place_batch, place_tables
    from sigma_jax.runtime.state import init_state, make_step
    from sigma_jax.sft.config import SftConfig
    from sigma_jax.sft.task import SftTask
    from sigma_jax.stages import stage_fields

    values, _ = stage_fields(get_config(preset), "sft")
    fields = to_dataclass(SftConfig, values)
    task = SftTask(fields, Path(workdir), 0)
    model = task.model(nnx.Rngs(0))
    space = model.space
    vocabulary = space.vocab_size + space.table_size
    batches = [dict(task.batches()[number]) for number in range(8)]
    tables, loss, optimizer = task.tables(), task.loss, fields.optimizer
    param_group = task.param_group
    if which == "next code":
        param_group, tables = (lambda _: "base"), {}
        optimizer = OptimizerConfig(RATE, RATE, DECAY, 0, "constant", CLIP, 0.9, 0.999)
        model = make_backbone(fields.backbone, vocabulary, nnx.Rngs(0))
        codes = space.levels * space.codebook_size
        labels = [labels_of(batch, space.vocab_size, codes) for batch in batches]
        batches = [
            {"token": batch["token"], "label": label_}
            for batch, label_ in zip(batches, labels, strict=True)
        ]
        most = max(int((one != UNTOLD).sum(1).max()) for one in labels)

        def loss(model, tables, batch, key):
            token, labels = batch["token"], batch["label"]
            where = jnp.broadcast_to(jnp.arange(token.shape[1]), token.shape)
            hidden, _ = model(model.embed(token), where, causal_mask(jnp.ones_like(token)))
            order = jnp.argsort(labels == UNTOLD, axis=1, stable=True)[:, :most]
            wanted = jnp.take_along_axis(labels, order, 1)
            before = jnp.take_along_axis(hidden, (order - 1)[..., None], 1, mode="clip")
            of_token = optax.softmax_cross_entropy_with_integer_labels(
                model.logits(before), jnp.maximum(wanted, 0)
            )
            counts = wanted != UNTOLD
            return jnp.sum(of_token * counts) / jnp.sum(counts), {}

    mesh = make_mesh(MeshConfig(-1, 1, 1))
    with tempfile.TemporaryDirectory() as folder:
        if which == "next code":
            save_backbone(model, folder)
        place.send((folder, vocabulary, batches))
        place.recv()  # until the other has read them
    state, template, update = init_state(model, param_group, optimizer, 1_000, mesh)
    step = make_step(loss, template, update, optimizer, 1_000, 0, state)
    held, tables = {"state": state}, place_tables(tables, mesh)

    def take(number: int) -> float:
        batch = place_batch(batches[number % len(batches)], mesh)
        held["state"], metrics = step(held["state"], tables, batch)
        return float(jax.device_get(metrics["loss"]))

    answer(take, place)


def start(function: Callable, *arguments) -> Connection:
    """A process of its own, and the way to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=function, args=(there, *arguments), daemon=True).start()
    return here


def main() -> None:
    """Takes steps of all three in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/sft-local")
    parser.add_argument("--preset", default="local")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    own = {
        f"ours, {which}": start(own_loop, which, arguments.workdir, arguments.preset)
        for which in ("next code", "stage 3")
    }
    folder, vocabulary, batches = own["ours, next code"].recv()
    loops = {"PyTorch, next code": start(torch_loop, folder, batches), **own}
    loops["PyTorch, next code"].send(0)
    first = {"PyTorch, next code": loops["PyTorch, next code"].recv()[1]}
    own["ours, stage 3"].recv()
    for name, place in own.items():
        place.send(None)
        place.send(0)
        first[name] = place.recv()[1]
    times: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(1, arguments.steps + 1):
        for name, place in loops.items():
            place.send(number)
            times[name].append(place.recv()[0])
    for place in loops.values():
        place.send(None)
    tokens = batches[0]["token"].size
    rates = {name: tokens / statistics.median(found) for name, found in times.items()}
    plain = rates["PyTorch, next code"]
    report = {
        "rows": len(batches[0]["token"]),
        "row_tokens": batches[0]["token"].shape[1],
        "labels": int((batches[0]["label"] != UNTOLD).sum()),
        "vocabulary": vocabulary,
        "first_losses": first,
        "tokens_per_second": rates,
        "ratios": {name: rate / plain for name, rate in rates.items()},
    }
    print(f"{'':22}{'tokens/s':>10}{'ratio':>8}{'first loss':>12}")
    for name, rate in rates.items():
        print(f"{name:22}{rate:>10,.0f}{rate / plain:>8.2f}{first[name]:>12.4f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
