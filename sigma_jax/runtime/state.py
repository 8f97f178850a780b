"""The training state and the step: state in, state out, donated.

A model is taken apart into flat dicts of arrays by path ("layers/query"), which is what the
optimizer, the checkpoint and the sharding rules work on, and put together inside the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int32, PyTree

from sigma_jax.runtime import hosts, sharding
from sigma_jax.runtime.config import OptimizerConfig
from sigma_jax.runtime.optimizer import GROUPS, make_optimizer, schedule
from sigma_jax.runtime.sharding import local_mesh

Arrays = dict[str, Array]
ParamGroupFn = Callable[[tuple[str, ...]], str]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes."""

    step: Int32[Array, ""]  # steps done
    params: Arrays  # trained
    rest: Arrays  # frozen parameters and the model's other variables
    opt_state: PyTree
    average: Arrays  # of the parameters over past steps; empty where none is kept

    @property
    def kept_params(self) -> Arrays:
        """What is reported on and kept: the average where there is one."""
        return self.average or self.params


@dataclasses.dataclass(frozen=True)
class Template:
    """How to put a model together again from a state's `params` and `rest`."""

    graphdef: Any
    variables: dict[str, tuple[tuple, nnx.Variable]]  # path as text -> path, and its metadata
    param_groups: dict[str, str]  # of the trained parameters

    def merge(self, params: Arrays, rest: Arrays) -> nnx.Module:
        """The model with these values."""
        values = {**params, **rest}
        flat = [
            (path, variable.replace(values[name]))
            for name, (path, variable) in self.variables.items()
        ]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))

    def merge_locally(self, params: Arrays, rest: Arrays, mesh: Mesh) -> nnx.Module | None:
        """The model on `mesh`, which has devices of the first process alone, of values that lie on
        devices of all; None on the others. All processes have to ask."""
        where, local = shardings(self, mesh), {}
        for name, value in {**params, **rest}.items():
            whole = hosts.whole(value)
            if hosts.is_first():
                local[name] = _put(whole, where[name])
        return self.merge(local, {}) if hosts.is_first() else None

    def rest_of(self, model: nnx.Module) -> Arrays:
        """What is not trained, as the forward pass left it."""
        values = {_name(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
        return {
            name: values[name].get_value()
            for name in self.variables
            if name not in self.param_groups
        }


def take_apart(model: nnx.Module, param_group: ParamGroupFn) -> tuple[Template, Arrays, Arrays]:
    """A model's template, trained parameters and the rest; `param_group` gives each one's group."""
    graphdef, state = nnx.split(model)
    variables, param_groups, params, rest = {}, {}, {}, {}
    for path, variable in nnx.to_flat_state(state):
        name = _name(path)
        group = "frozen"
        if isinstance(variable, nnx.Param):
            group = param_group(tuple(str(part) for part in path))
            assert group in GROUPS, f"param_group of {name} is {group!r}, not one of {GROUPS}"
        value = variable.get_value()
        # The template keeps metadata only: no second copy of the weights.
        variables[name] = (path, variable.replace(jax.ShapeDtypeStruct(value.shape, value.dtype)))
        if group == "frozen":
            rest[name] = value
        else:
            param_groups[name], params[name] = group, value
    return Template(graphdef, variables, param_groups), params, rest


def _name(path: tuple) -> str:
    return "/".join(str(part) for part in path)


def shardings(template: Template, mesh: Mesh) -> dict[str, NamedSharding]:
    """Where each variable lies, from the logical axes the model declares."""
    return {
        name: NamedSharding(
            mesh,
            sharding.spec(variable.get_value().shape, variable.get_metadata().get("axes"), mesh),
        )
        for name, (_, variable) in template.variables.items()
    }


def abstract_state(
    model: nnx.Module,
    param_group: ParamGroupFn,
    config: OptimizerConfig,
    steps: int,
    mesh: Mesh,
    has_average: bool = False,
) -> tuple[TrainState, Template, optax.GradientTransformation]:
    """What `init_state` makes, as shapes that know where they will lie. `model` may be one of
    `nnx.eval_shape`, and the mesh one of devices that are not there.
    """
    template, params, rest = take_apart(model, param_group)
    where = shardings(template, mesh)
    whole = sharding.replicated(mesh)

    def shape_of(leaf: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    def placed(values: Arrays) -> Arrays:
        return {name: shape_of(value, where[name]) for name, value in values.items()}

    params, rest = placed(params), placed(rest)
    optimizer = make_optimizer(config, steps, template.param_groups)
    # Adam's moments lie where their parameters lie: their paths end in the parameter's name.
    opt_state = jax.tree_util.tree_map_with_path(
        lambda path, leaf: shape_of(leaf, where.get(getattr(path[-1], "key", None), whole)),
        jax.eval_shape(optimizer.init, params),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    average = params if has_average else {}
    return TrainState(step, params, rest, opt_state, average), template, optimizer


def init_state(
    model: nnx.Module,
    param_group: ParamGroupFn,
    config: OptimizerConfig,
    steps: int,
    mesh: Mesh,
    has_average: bool = False,
) -> tuple[TrainState, Template, optax.GradientTransformation]:
    """State before the first step, placed on the mesh."""
    shapes, template, optimizer = abstract_state(
        model, param_group, config, steps, mesh, has_average
    )
    _, params, rest = take_apart(model, param_group)

    def placed(values: Arrays, of: Arrays) -> Arrays:
        return {name: _put(values[name], shape.sharding) for name, shape in of.items()}

    params, rest = placed(params, shapes.params), placed(rest, shapes.rest)
    where = jax.tree.map(lambda shape: shape.sharding, shapes.opt_state)
    opt_state = jax.jit(optimizer.init, out_shardings=where)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), shapes.step.sharding)
    average = placed(params, shapes.average)
    return TrainState(step, params, rest, opt_state, average), template, optimizer


def _put(value: Array, where: NamedSharding) -> Array:
    # A copy always: the step donates its state, and `value` may be shared with the task. Its type
    # named, as it is in the state that comes back: a weak one would be compiled for again.
    if is_key(value):  # JAX puts no key on devices of other processes
        data = jax.device_put(jax.random.key_data(value), where)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    return jax.device_put(jnp.array(value, dtype=value.dtype), where)


def is_key(value: Array) -> bool:
    """Whether these are keys of random numbers."""
    return jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def reported_model(
    task: Any, state: TrainState, template: Template, tables: Mapping[str, Array], mesh: Mesh
) -> tuple[nnx.Module | None, Mapping[str, Array]]:
    """The model to report on and to keep, and the task's tables: as they lie where there is one
    process, else on the devices of the first, and the others have none."""
    if hosts.is_alone():
        return template.merge(state.kept_params, state.rest), tables
    place = local_mesh(mesh)
    model = template.merge_locally(state.kept_params, state.rest, place)
    return model, sharding.place_tables(task.tables(), place) if hosts.is_first() else {}


def make_step(
    loss: Callable,
    template: Template,
    optimizer: optax.GradientTransformation,
    config: OptimizerConfig,
    steps: int,
    seed: int,
    state: TrainState,
    average_over: float = 0.0,
    accumulate: int = 1,
) -> Callable[[TrainState, Mapping, Mapping], tuple[TrainState, Arrays]]:
    """The jitted step (state, tables, batch) -> (state, metrics).

    `loss(model, tables, batch, key)` gives a scalar and its named parts; `state` may be one of
    `abstract_state`. The key depends on the seed and the number of the step only. The state comes
    back where it lay. A state with an average keeps it of all steps so far, and from `average_over`
    * steps of them on of about that many of the last (a mean with exponential weights: Polyak and
    Juditsky 1992 where weights are equal). With `accumulate` the batch is worked off in so many
    parts of every n-th row, one after the other; loss, figures and gradients are their mean.
    """
    rate = schedule(config, config.learning_rate, steps)
    table_rate = schedule(config, config.table_learning_rate, steps)

    def gradients(params: Arrays, rest: Arrays, tables: Mapping, batch: Mapping, key: Array):
        """(loss, figures, gradients) and the variables as the forward pass left them."""

        def loss_of(params: Arrays):
            model = template.merge(params, rest)
            value, parts = loss(model, tables, batch, key)
            return value, (parts, template.rest_of(model))

        (value, (parts, left)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        return (value, parts, grads), left

    find = gradients if accumulate == 1 else _in_parts(gradients, accumulate)

    def take_step(state: TrainState, tables: Mapping, batch: Mapping):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (value, parts, grads), rest = find(state.params, state.rest, tables, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        window = jnp.clip(state.step + 1, 1, max(average_over * steps, 1))
        average = (
            optax.incremental_update(params, state.average, 1 / window) if state.average else {}
        )
        metrics = {
            "loss": value,
            **parts,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "learning_rate": jnp.asarray(rate(state.step)),
            "table_learning_rate": jnp.asarray(table_rate(state.step)),
        }
        return TrainState(state.step + 1, params, rest, opt_state, average), metrics

    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    mesh = where.step.mesh

    def step_fn(state: TrainState, tables: Mapping, batch: Mapping):
        with sharding.on_mesh(mesh):
            return take_step(state, tables, batch)

    return jax.jit(step_fn, donate_argnums=0, out_shardings=(where, None))


def _in_parts(gradients: Callable, count: int) -> Callable:
    """`gradients` of `make_step` over the batch in `count` parts, their mean."""

    def cut(rows: Array) -> Array:  # every device keeps its own
        parts = rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(parts, None, "rows", *[None] * (rows.ndim - 1))

    def accumulated(params: Arrays, rest: Arrays, tables: Mapping, batch: Mapping, key: Array):
        def add(carry, part):
            total, rest = carry
            number, rows = part
            found, rest = gradients(params, rest, tables, rows, jax.random.fold_in(key, number))
            return (jax.tree.map(jnp.add, total, found), rest), None

        parts = {name: cut(rows) for name, rows in batch.items()}
        first = {name: rows[0] for name, rows in parts.items()}
        shapes = jax.eval_shape(gradients, params, rest, tables, first, key)[0]
        zero = jax.tree.map(lambda shape: jnp.zeros(shape.shape, jnp.float32), shapes)
        (total, rest), _ = jax.lax.scan(add, (zero, rest), (jnp.arange(count), parts))
        return jax.tree.map(lambda value: value / count, total), rest

    return accumulated
