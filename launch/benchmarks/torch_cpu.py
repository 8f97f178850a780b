"""Training steps on a CPU against a plain PyTorch loop with transformers' Qwen3.

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    python -m launch.benchmarks.torch_cpu --workdir=runs/sft-local --output=torch_cpu.json

WORKDIR is a finished run of the preset. Both sides train on its rows in float32, clip gradients and
use AdamW. Each side runs in its own process with all cores. They step in turn; times are medians.

"next code" has the same model, weights, tokens and loss on both sides. The loss is the
cross-entropy of each semantic-ID token over the whole vocabulary. transformers computes logits for
every token of a row, this package for the tokens with a loss. The first losses have to agree.

"stage 3" is the whole step of the stage `sft` with all losses and negatives, on the same rows. It
is compared with that loop.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from launch.benchmarks.result import write_result

IGNORED = -100  # a label without a loss, as in transformers
RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
Batch = dict[str, np.ndarray]


def labels_of(batch: Batch, first: int, codes: int) -> np.ndarray:
    """Labels [B, T]: the semantic-ID tokens that follow another token of their context.

    All other tokens are IGNORED.

    Args:
      first: the id of the first semantic-ID token.
      codes: the number of semantic-ID tokens.
    """
    token, segment = batch["token"], batch["segment"]
    has_loss = (token >= first) & (token < first + codes)
    has_loss[:, 1:] &= segment[:, 1:] == segment[:, :-1]
    has_loss[:, 0] = False
    return np.where(has_loss, token, IGNORED)


def serve(step: Callable[[int], float], connection: Connection) -> None:
    """Runs each step whose number comes in, and sends its (seconds, loss)."""
    while (number := connection.recv()) is not None:
        start = time.perf_counter()
        loss = step(number)
        connection.send((time.perf_counter() - start, loss))


def torch_loop(connection: Connection, folder: str, batches: list[Batch]) -> None:
    """The plain PyTorch loop, from the weights in `folder`."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    model = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)

    def take_step(number: int) -> float:
        batch = batches[number % len(batches)]
        tokens, labels = (torch.from_numpy(batch[name]).long() for name in ("token", "label"))
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    serve(take_step, connection)


def next_code_loss(width: int) -> Callable:
    """The loss of "next code": cross-entropy of at most `width` labels per row, over all tokens."""
    import jax.numpy as jnp
    import optax

    from sigma_jax.models.qwen3 import causal_mask

    def loss(model, tables, batch, key):
        token, labels = batch["token"], batch["label"]
        positions = jnp.broadcast_to(jnp.arange(token.shape[1]), token.shape)
        hidden, _ = model(model.embed(token), positions, causal_mask(jnp.ones_like(token)))
        order = jnp.argsort(labels == IGNORED, axis=1, stable=True)[:, :width]
        targets = jnp.take_along_axis(labels, order, 1)
        previous = jnp.take_along_axis(hidden, (order - 1)[..., None], 1, mode="clip")
        token_loss = optax.softmax_cross_entropy_with_integer_labels(
            model.logits(previous), jnp.maximum(targets, 0)
        )
        has_loss = targets != IGNORED
        return jnp.sum(token_loss * has_loss) / jnp.sum(has_loss), {}

    return loss


def sigma_loop(connection: Connection, which: str, workdir: str, preset: str) -> None:
    """This package's steps; first sends the folder of the weights and the rows."""
    from sigma_jax.runtime.process import keep_freed_memory

    keep_freed_memory()  # as `sigma_jax.train` does
    import jax
    from flax import nnx

    from sigma_jax.configs.sft import get_config
    from sigma_jax.models.backbone import make_backbone
    from sigma_jax.models.hf import save_backbone
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
            {"token": batch["token"], "label": rows}
            for batch, rows in zip(batches, labels, strict=True)
        ]
        width = max(int((rows != IGNORED).sum(1).max()) for rows in labels)
        loss = next_code_loss(width)
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    with tempfile.TemporaryDirectory() as folder:
        if which == "next code":
            save_backbone(model, folder)
        connection.send((folder, vocabulary, batches))
        connection.recv()  # waits until the other side has read them
    state, template, update = init_state(model, param_group, optimizer, 1_000, mesh)
    step = make_step(loss, template, update, optimizer, 1_000, 0, state)
    tables = place_tables(tables, mesh)

    def take_step(number: int) -> float:
        nonlocal state
        batch = place_batch(batches[number % len(batches)], mesh)
        state, metrics = step(state, tables, batch)
        return float(jax.device_get(metrics["loss"]))

    serve(take_step, connection)


def start(function: Callable, *arguments) -> Connection:
    """Runs `function` in a new process; returns the connection to it."""
    context = multiprocessing.get_context("spawn")
    connection, other_end = context.Pipe()
    context.Process(target=function, args=(other_end, *arguments), daemon=True).start()
    return connection


def main() -> None:
    """Runs steps of all three loops in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/sft-local")
    parser.add_argument("--preset", default="local")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    ours = {
        f"ours, {which}": start(sigma_loop, which, arguments.workdir, arguments.preset)
        for which in ("next code", "stage 3")
    }
    folder, vocabulary, batches = ours["ours, next code"].recv()
    loops = {"PyTorch, next code": start(torch_loop, folder, batches), **ours}
    loops["PyTorch, next code"].send(0)
    first = {"PyTorch, next code": loops["PyTorch, next code"].recv()[1]}
    ours["ours, stage 3"].recv()
    for name, connection in ours.items():
        connection.send(None)
        connection.send(0)
        first[name] = connection.recv()[1]
    times: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(1, arguments.steps + 1):
        for name, connection in loops.items():
            connection.send(number)
            times[name].append(connection.recv()[0])
    for connection in loops.values():
        connection.send(None)
    tokens = batches[0]["token"].size
    rates = {name: tokens / statistics.median(seconds) for name, seconds in times.items()}
    plain = rates["PyTorch, next code"]
    report = {
        "rows": len(batches[0]["token"]),
        "row_tokens": batches[0]["token"].shape[1],
        "labels": int((batches[0]["label"] != IGNORED).sum()),
        "vocabulary": vocabulary,
        "first_losses": first,
        "tokens_per_second": rates,
        "ratios": {name: rate / plain for name, rate in rates.items()},
    }
    print(f"{'':22}{'tokens/s':>10}{'ratio':>8}{'first loss':>12}")
    for name, rate in rates.items():
        print(f"{name:22}{rate:>10,.0f}{rate / plain:>8.2f}{first[name]:>12.4f}")
    if arguments.output:
        write_result(arguments.output, report)


if __name__ == "__main__":
    main()
