"""One run on several processes: the hosts of a TPU slice, or processes of one machine.

All of them run the same command with one workdir that all can see. They train together, and make
stage 1's vectors together; the rest (preparing data, reports, artifacts, the evaluation) the first
process does while the others wait.
"""

from __future__ import annotations

import itertools
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from sigma_jax.runtime import files

T = TypeVar("T")
ADDRESS = "JAX_COORDINATOR_ADDRESS"  # HOST:PORT of the first process
COUNT, NUMBER = "SIGMA_PROCESSES", "SIGMA_PROCESS"  # how many, and which of them this one is
LONGEST = 30 * 24 * 3600  # seconds the others wait for the first; a dead one is noticed sooner
_turns = itertools.count()


def start(is_slice: bool) -> None:
    """Joins the processes of this run; before anything else is done with JAX.

    Where the environment has JAX_COORDINATOR_ADDRESS, it also says SIGMA_PROCESSES and
    SIGMA_PROCESS. With `is_slice` JAX finds the others itself: on TPU slices, Slurm, Open MPI.

    Raises:
      ValueError: the environment is incomplete, the others do not come, or this is a slice of
        several hosts and nobody said so.
    """
    if os.environ.get(ADDRESS):
        count, number = (_number(name) for name in (COUNT, NUMBER))
        if not 0 <= number < count:
            raise ValueError(f"{NUMBER}={number} of {COUNT}={count}; count from 0.")
        _initialize(os.environ[ADDRESS], count, number)
    elif is_slice:
        _initialize()
    elif jax.process_count() > 1:
        raise ValueError(
            f"this is one of {jax.process_count()} hosts; run the command with --distributed on "
            "all of them (launch/tpu_vm.sh does)."
        )
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)  # one tells what all do


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise ValueError(f"{ADDRESS} is set and {name}={value!r} is not a number; set both.")
    return int(value)


def _initialize(*where: Any) -> None:
    # process.StopSignal handles SIGTERM in a training; elsewhere SIGTERM ends the process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*where)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the processes of this run did not meet ({reason}); start the same command on all, "
            f"with --distributed on a slice or {ADDRESS}, {COUNT} and {NUMBER} elsewhere."
        ) from error


def is_alone() -> bool:
    """Whether there is one process."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Whether this process does what one alone has to do."""
    return jax.process_index() == 0


def by_first(function: Callable[[], T]) -> T:
    """What `function` gives when the first process calls it, on all; the others wait.

    What it gives has to be what JSON holds. A ValueError or OSError of it is one on all.
    """
    if is_alone():
        return function()
    outcome, failure = None, None
    if is_first():
        try:
            outcome = {"value": function()}
        except (ValueError, OSError) as error:
            outcome, failure = {"error": str(error)}, error
    wait()
    outcome = _shared(outcome)
    if failure is not None:
        raise failure
    if "error" in outcome:
        raise ValueError(outcome["error"])
    return outcome["value"]


def wait() -> None:
    """Returns when all processes have come to the same call."""
    if not is_alone():
        everyone = set(range(jax.process_count()))
        name = f"sigma_jax/{next(_turns)}"
        multihost.sync_global_processes(name, timeout=LONGEST, processes=everyone)


def all_true(is_true: bool) -> bool:
    """Whether `is_true` on all processes."""
    if is_alone():
        return is_true
    return bool(np.all(multihost_utils.process_allgather(np.array(is_true))))


def any_true(is_true: bool, after: jax.Array) -> jax.Array:
    """Whether `is_true` on any process, on its way: it comes after `after`, which lies whole on the
    devices of all."""
    own = np.array([is_true])
    where = NamedSharding(after.sharding.mesh, PartitionSpec(after.sharding.mesh.axis_names))
    flags = jax.make_array_from_callback((where.mesh.size,), where, lambda _: own)
    return _any(flags, after)


@jax.jit
def _any(flags: jax.Array, after: jax.Array) -> jax.Array:
    return flags.any() & (after >= 0)


def whole(array: jax.Array) -> jax.Array | np.ndarray:
    """All of an array that several processes hold in parts; every one of them has to ask."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = whole(jax.random.key_data(array))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_shared(workdir: Path) -> None:
    """ValueError if the processes do not see one and the same `workdir`."""
    if is_alone():
        return
    path = workdir / ".processes"
    token = by_first(lambda: _leave(path))
    is_seen = path.exists() and path.read_text() == token
    if not all_true(is_seen):
        raise ValueError(
            f"--workdir={workdir} is not one folder for all {jax.process_count()} processes; name "
            "a folder on storage that all hosts mount."
        )


def _leave(path: Path) -> str:
    token = uuid.uuid4().hex
    path.write_text(token)
    files.sync(path)
    return token


def _shared(value: Any) -> Any:
    """`value` of the first process on all."""
    data = np.frombuffer(json.dumps(files.plain(value)).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    padded[: min(len(data), size)] = data[:size]
    return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
