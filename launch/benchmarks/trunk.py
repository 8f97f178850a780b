"""The backbone's training step on TPUs against google/tunix's, by the TPU compiler's estimate.

    python -m launch.benchmarks.trunk --reference=FOLDER --output=trunk.json

FOLDER is a checkout of github.com/google/tunix; without it only this package is compiled. Both
sides have the same slice, sizes (Qwen3-0.6B), tokens a chip, optimizer (AdamW) and loss (the mean
square of the last hidden state). They compute in bfloat16; float32 weights are sharded over all
chips. The command needs `pip install "jax[tpu]"`, and no TPU.

- "ours" keeps the products and attention of each layer for the backward pass.
- "ours, layer" keeps each layer's input only, as the reference does.
- "theirs" is the reference with its flash attention and layers rematerialised as a whole.
- "ours, sft" is the whole step of the stage `sft`, with all losses and 100,000 negatives.

The time is the compiler's estimate of all operations (sigma_jax/runtime/preflight/hlo.py). A kernel
adds the time of its products or of its memory traffic, and of its vector work. The reference's
kernels declare no costs and count as 0. Collectives that overlap with nothing add their bytes at
the rate of the links.
"""

import argparse
import dataclasses
import importlib
import sys
import time
import types
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from launch.benchmarks.result import write_result
from sigma_jax.configs.sft import get_config
from sigma_jax.models.config import Qwen3Config
from sigma_jax.models.qwen3 import Qwen3, causal_mask
from sigma_jax.preflight import read_training, with_rows
from sigma_jax.runtime.config import MeshConfig, OptimizerConfig, TrainConfig
from sigma_jax.runtime.preflight.estimate import (
    AbstractStage,
    backbone_flops,
    compile_step,
    estimate,
)
from sigma_jax.runtime.preflight.topology import topology_of
from sigma_jax.runtime.sharding import make_mesh

CONFIG = Qwen3Config(
    vocab_size=151_936,
    width=1_024,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=3_072,
    rope_theta=1_000_000.0,
    norm_eps=1e-6,
    is_tied=True,
    has_qk_norm=True,
    dropout=0.0,
    dtype="bfloat16",
    param_dtype="float32",
    remat="light",
)
OPTIMIZER = OptimizerConfig(2e-5, 2e-5, 0.01, 2_000, "cosine", 1.0, 0.9, 0.999)
TRAIN = TrainConfig(20_000, 0.0, 1, 1, 1, 0, 1, 1, 0.0, 0, "")


def mean_square(hidden: jax.Array) -> jax.Array:
    """The loss of both sides."""
    return jnp.mean(hidden.astype(jnp.float32) ** 2)


def backbone_stage(config: Qwen3Config, rows: int, tokens: int) -> AbstractStage:
    """This package's backbone over `rows` rows of `tokens` tokens."""
    model = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))

    def loss(model, tables, batch, key):
        hidden, _ = model(
            model.embed(batch["tokens"]), batch["positions"], causal_mask(batch["segment"])
        )
        return mean_square(hidden), {}

    shape = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    batch = dict.fromkeys(("tokens", "positions", "segment"), shape)
    flops = backbone_flops(config, tokens)
    return AbstractStage(model, lambda _: "base", loss, {}, batch, rows, rows * tokens, flops)


def reference_module(folder: Path) -> types.ModuleType:
    """The reference's model module, without its package, whose imports need many more packages."""
    for name in ("tunix", "tunix.models", "tunix.models.qwen3", "tunix.generate", "tunix.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    return importlib.import_module("tunix.models.qwen3.model")


def compile_reference(folder: Path, rows: int, tokens: int, devices) -> tuple[object, float]:
    """(the reference's compiled step, seconds of the compilation)."""
    reference = reference_module(folder)
    config = dataclasses.replace(
        reference.ModelConfig.qwen3_0p6b(),
        dtype=jnp.bfloat16,
        param_dtype=jnp.float32,
        remat_config=reference.RematConfig.DECODER,
        use_flash_attention=True,
        flash_attention_block_size=min(tokens, 512),
    )
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((len(devices), 1), ("fsdp", "tp"), axis_types=kinds, devices=devices)
    model = nnx.eval_shape(lambda: reference.Qwen3(config, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model)

    def placed(shape, spec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, spec))

    def of_variable(variable):
        spec = spec_of(variable.get_metadata())
        return variable.replace(placed(variable.get_value(), spec))

    params = jax.tree.map(of_variable, params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-5, weight_decay=0.01))
    pure = nnx.to_pure_dict(params)
    by_shape = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(pure)}
    state = jax.tree.map(
        lambda leaf: placed(
            leaf, by_shape.get(leaf.shape, NamedSharding(mesh, PartitionSpec())).spec
        ),
        jax.eval_shape(optimizer.init, pure),
    )
    batch = placed(jax.ShapeDtypeStruct((rows, tokens), jnp.int32), PartitionSpec("fsdp"))

    def step(pure, state, tokens, positions):
        def loss(pure):
            copy = jax.tree.map(lambda x: x, params)
            nnx.replace_by_pure_dict(copy, pure)
            model = nnx.merge(graphdef, copy)
            hidden, _ = model(tokens, positions, None, None, skip_lm_head=True)
            return mean_square(hidden)

        value, grads = jax.value_and_grad(loss)(pure)
        updates, state = optimizer.update(grads, state, pure)
        return optax.apply_updates(pure, updates), state, value

    start = time.monotonic()
    # The reference shards activations only where the first device is not a CPU.
    with mesh, mock.patch.object(jax, "devices", lambda *_: list(devices)):
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(pure, state, batch, batch)
    return lowered.compile(), time.monotonic() - start


def spec_of(metadata: dict) -> PartitionSpec:
    """The sharding of a variable of the reference."""
    for name in ("sharding", "sharding_names", "out_sharding"):
        if metadata.get(name) is not None:
            return PartitionSpec(*metadata[name])
    return PartitionSpec()


def main() -> None:
    """Compiles both sides and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--rows", type=int, default=8, help="rows of a chip")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a row")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    _, chip, devices = topology_of(arguments.topology)
    rows = arguments.rows * len(devices)
    mesh: Mesh = make_mesh(MeshConfig(1, -1, 1), devices)
    trunk = backbone_stage(CONFIG, rows, arguments.tokens)
    compiled = {"ours": compile_step(trunk, OPTIMIZER, TRAIN, mesh)}
    layers = backbone_stage(dataclasses.replace(CONFIG, remat="layer"), rows, arguments.tokens)
    compiled["ours, layer"] = compile_step(layers, OPTIMIZER, TRAIN, mesh)
    training = read_training(get_config("qwen3_0p6b"), 1_000_000, CONFIG.vocab_size)
    loop = dataclasses.replace(training.fields.train, accumulate=1)  # all rows at once, as above
    fields = with_rows(dataclasses.replace(training.fields, train=loop), rows)
    sft = training.abstract_stage(fields)
    compiled["ours, sft"] = compile_step(sft, fields.optimizer, fields.train, mesh)
    if arguments.reference:
        compiled["theirs"] = compile_reference(arguments.reference, rows, arguments.tokens, devices)
    report = {}
    print(f"{'':10}{'ms':>9}{'kernels':>9}{'waiting':>9}{'GiB':>7}{'MFU':>7}{'compiled s':>12}")
    for name, (program, seconds) in compiled.items():
        result = estimate(program, seconds, trunk.flops, chip, len(devices))
        report[name] = dataclasses.asdict(result)
        del report[name]["operations"]
        print(
            f"{name:10}{1000 * result.seconds:>9.1f}{1000 * result.kernel_seconds:>9.1f}"
            f"{1000 * result.waiting_seconds:>9.1f}{result.memory / 2**30:>7.2f}"
            f"{result.mfu:>7.2f}{seconds:>12.0f}",
            flush=True,
        )
    report["sft_ratio"] = report["ours, sft"]["seconds"] / report["ours"]["seconds"]
    print(f"the whole step of the stage sft / the trunk: {report['sft_ratio']:.2f}")
    if "theirs" in report:
        for key in ("seconds", "memory", "compile_seconds"):
            report[f"{key}_ratio"] = report["ours"][key] / report["theirs"][key]
            print(f"{key} ratio {report[f'{key}_ratio']:.2f}")
    if arguments.output:
        write_result(arguments.output, report)


if __name__ == "__main__":
    main()
