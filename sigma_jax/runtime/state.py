"""The training state and the step: state in, state out, donated.

The optimizer, the checkpoints and the sharding rules work on flat dicts of arrays by path
("layers/query"). A model is split into such dicts, and merged again inside the step.
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
from sigma_jax.runtime.task import Task

Arrays = dict[str, Array]
ParamGroupFn = Callable[[tuple[str, ...]], str]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes."""

    step: Int32[Array, ""]  # number of steps done
    params: Arrays  # trained parameters
    rest: Arrays  # frozen parameters and the model's other variables
    opt_state: PyTree
    average: Arrays  # of the parameters over past steps; empty where `average_over` is 0

    @property
    def eval_params(self) -> Arrays:
        """The parameters for reports and for the artifact: the average where there is one."""
        return self.average or self.params


@dataclasses.dataclass(frozen=True)
class Template:
    """A model without its values, to merge it again from a state's `params` and `rest`."""

    graphdef: Any
    variables: dict[str, tuple[tuple, nnx.Variable]]  # path as text -> path, and its metadata
    param_groups: dict[str, str]  # path of a trained parameter -> "base" or "table"

    def merge(self, params: Arrays, rest: Arrays) -> nnx.Module:
        """The model with these values."""
        values = {**params, **rest}
        flat = [
            (path, variable.replace(values[name]))
            for name, (path, variable) in self.variables.items()
        ]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))

    def merge_locally(self, params: Arrays, rest: Arrays, mesh: Mesh) -> nnx.Module | None:
        """The model on `mesh`, from values that are sharded over all processes.

        All processes have to call it. The result is None on all but the first.

        Args:
          mesh: devices of the first process.
        """
        places, local = shardings(self, mesh), {}
        for name, value in {**params, **rest}.items():
            gathered = hosts.gather(value)
            if hosts.is_first():
                local[name] = _copy_to(gathered, places[name])
        return self.merge(local, {}) if hosts.is_first() else None

    def rest_of(self, model: nnx.Module) -> Arrays:
        """The variables that are not trained, as the forward pass left them in `model`."""
        values = {_name(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
        return {
            name: values[name].get_value()
            for name in self.variables
            if name not in self.param_groups
        }


def split_model(model: nnx.Module, param_group: ParamGroupFn) -> tuple[Template, Arrays, Arrays]:
    """(template, trained parameters, all other variables) of a model.

    Args:
      param_group: path of a parameter -> one of optimizer.GROUPS.
    """
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
    """The sharding of each variable, from the logical axes that the model declares."""
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
    """The result of `init_state` as shapes with their shardings.

    Args:
      model: may be one of `nnx.eval_shape`.
      mesh: may have described devices that do not exist.
    """
    template, params, rest = split_model(model, param_group)
    places = shardings(template, mesh)
    replicated = sharding.replicated(mesh)

    def shape_of(leaf: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    def shapes_of(values: Arrays) -> Arrays:
        return {name: shape_of(value, places[name]) for name, value in values.items()}

    params, rest = shapes_of(params), shapes_of(rest)
    optimizer = make_optimizer(config, steps, template.param_groups)
    # Adam's moments are sharded as their parameters: their paths end in the parameter's name.
    opt_state = jax.tree_util.tree_map_with_path(
        lambda path, leaf: shape_of(leaf, places.get(getattr(path[-1], "key", None), replicated)),
        jax.eval_shape(optimizer.init, params),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
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
    """(state before the first step on the mesh, template of the model, optimizer).

    Args:
      param_group: path of a parameter -> one of optimizer.GROUPS.
      steps: length of the learning rate's schedule.
      has_average: the state keeps an average of the parameters.
    """
    shapes, template, optimizer = abstract_state(
        model, param_group, config, steps, mesh, has_average
    )
    _, params, rest = split_model(model, param_group)

    def placed(values: Arrays, shapes: Arrays) -> Arrays:
        return {name: _copy_to(values[name], shape.sharding) for name, shape in shapes.items()}

    params, rest = placed(params, shapes.params), placed(rest, shapes.rest)
    places = jax.tree.map(lambda shape: shape.sharding, shapes.opt_state)
    opt_state = jax.jit(optimizer.init, out_shardings=places)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), shapes.step.sharding)
    average = placed(params, shapes.average)
    return TrainState(step, params, rest, opt_state, average), template, optimizer


def _copy_to(value: Array, place: NamedSharding) -> Array:
    # Always a copy: the step donates its state, and `value` may be shared with the task. The dtype
    # is explicit, as in the state that the step returns; a weak type would cost a compilation.
    if is_key(value):  # JAX does not place keys on devices of other processes
        data = jax.device_put(jax.random.key_data(value), place)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    return jax.device_put(jnp.array(value, dtype=value.dtype), place)


def is_key(value: Array) -> bool:
    """Whether `value` is an array of random keys."""
    return jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def reported_model(
    task: Task, state: TrainState, template: Template, tables: Mapping[str, Array], mesh: Mesh
) -> tuple[nnx.Module | None, Mapping[str, Array]]:
    """(model, tables) for a report or an artifact.

    With one process they are those of the training. With several, the first process gets copies on
    its own devices, and the others get None and {}.
    """
    if hosts.is_alone():
        return template.merge(state.eval_params, state.rest), tables
    local = local_mesh(mesh)
    model = template.merge_locally(state.eval_params, state.rest, local)
    return model, sharding.place_tables(task.tables(), local) if hosts.is_first() else {}


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
    """The jitted step (state, tables, batch) -> (state, metrics); it donates the state.

    The random key of a step depends on the seed and the step only. The new state is sharded as the
    old one.

    Args:
      loss: `loss(model, tables, batch, key)` returns a scalar and named scalars.
      steps: length of the learning rate's schedule.
      state: gives the shardings; may be one of `abstract_state`.
      average_over: share of `steps` that the average of the parameters is over; see `_average`.
      accumulate: number of parts that the batch is split into. Each part has every n-th row. The
        parts run one after the other; loss, metrics and gradients are their mean.
    """
    rate = schedule(config, config.learning_rate, steps)
    table_rate = schedule(config, config.table_learning_rate, steps)
    gradients = _gradients(loss, template)
    if accumulate > 1:
        gradients = _in_parts(gradients, accumulate)

    def take_step(state: TrainState, tables: Mapping, batch: Mapping):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (value, parts, grads), rest = gradients(state.params, state.rest, tables, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = _average(state, params, average_over * steps)
        metrics = {
            "loss": value,
            **parts,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "learning_rate": jnp.asarray(rate(state.step)),
            "table_learning_rate": jnp.asarray(table_rate(state.step)),
        }
        return TrainState(state.step + 1, params, rest, opt_state, average), metrics

    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    mesh = places.step.mesh

    def step_fn(state: TrainState, tables: Mapping, batch: Mapping):
        with sharding.on_mesh(mesh):
            return take_step(state, tables, batch)

    return jax.jit(step_fn, donate_argnums=0, out_shardings=(places, None))


def _average(state: TrainState, params: Arrays, window: float) -> Arrays:
    """The average of the parameters after a step; {} where the state has none.

    It is the mean of all steps up to `window` of them (Polyak and Juditsky 1992). From then on it
    is a mean with exponential weights over about `window` steps.
    """
    if not state.average:
        return {}
    steps = jnp.clip(state.step + 1, 1, max(window, 1))
    return optax.incremental_update(params, state.average, 1 / steps)


def _gradients(loss: Callable, template: Template) -> Callable:
    """A function (params, rest, tables, batch, key) -> ((loss, metrics, gradients), rest).

    The new `rest` has the variables as the forward pass left them.
    """

    def gradients(params: Arrays, rest: Arrays, tables: Mapping, batch: Mapping, key: Array):
        def loss_of(params: Arrays):
            model = template.merge(params, rest)
            value, parts = loss(model, tables, batch, key)
            return value, (parts, template.rest_of(model))

        (value, (parts, new_rest)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        return (value, parts, grads), new_rest

    return gradients


def _in_parts(gradients: Callable, count: int) -> Callable:
    """`gradients` as the mean over `count` parts of the batch."""

    def split(rows: Array) -> Array:
        # Part n has every n-th row, so that no row moves to another device.
        parts = rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(parts, None, "rows", *[None] * (rows.ndim - 1))

    def accumulated(params: Arrays, rest: Arrays, tables: Mapping, batch: Mapping, key: Array):
        def add(carry, part):
            total, rest = carry
            number, rows = part
            result, rest = gradients(params, rest, tables, rows, jax.random.fold_in(key, number))
            return (jax.tree.map(jnp.add, total, result), rest), None

        parts = {name: split(rows) for name, rows in batch.items()}
        first = {name: rows[0] for name, rows in parts.items()}
        shapes = jax.eval_shape(gradients, params, rest, tables, first, key)[0]
        zero = jax.tree.map(lambda shape: jnp.zeros(shape.shape, jnp.float32), shapes)
        (total, rest), _ = jax.lax.scan(add, (zero, rest), (jnp.arange(count), parts))
        return jax.tree.map(lambda value: value / count, total), rest

    return accumulated
