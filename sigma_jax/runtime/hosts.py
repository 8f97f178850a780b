"""One run on several processes: the hosts of a TPU slice, or processes of one machine.

All processes run the same command with one workdir that all of them see. They train together and
compute the item vectors of the stage `grounding` together. The first process prepares data,
reports, writes artifacts and evaluates, while the others wait.
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
COUNT, NUMBER = "SIGMA_PROCESSES", "SIGMA_PROCESS"  # number of processes, and of this one
TIMEOUT = 30 * 24 * 3600  # seconds of waiting for the first process; a dead one is noticed sooner
_barriers = itertools.count()


def start(is_slice: bool) -> None:
    """Connects the processes of this run; call it before any other use of JAX.

    With JAX_COORDINATOR_ADDRESS in the environment, SIGMA_PROCESSES and SIGMA_PROCESS have to be
    there too.

    Args:
      is_slice: JAX finds the other processes itself: on TPU slices, Slurm, Open MPI.

    Raises:
      ValueError: the environment is incomplete, another process does not start, or the command
        runs on one of several hosts without `is_slice`.
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
        logging.set_verbosity(logging.WARNING)  # the first process logs for all


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise ValueError(f"{ADDRESS} is set and {name}={value!r} is not a number; set both.")
    return int(value)


def _initialize(*place: Any) -> None:
    # process.StopSignal handles SIGTERM in a training; elsewhere SIGTERM ends the process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*place)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the processes of this run did not connect ({reason}); start the same command on all "
            f"hosts, with --distributed on a slice or {ADDRESS}, {COUNT} and {NUMBER} elsewhere."
        ) from error


def is_alone() -> bool:
    """Whether the run has one process only."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Whether this is the first process, which does the work that one process has to do."""
    return jax.process_index() == 0


def by_first(function: Callable[[], T]) -> T:
    """The result of `function` on all processes; only the first calls it, the others wait.

    The result has to be a value that JSON can hold. If `function` raises a ValueError or OSError,
    all processes raise: the first the same error, the others a ValueError with its text.
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
    """Returns when all processes have called it."""
    if not is_alone():
        everyone = set(range(jax.process_count()))
        name = f"sigma_jax/{next(_barriers)}"
        multihost.sync_global_processes(name, timeout=TIMEOUT, processes=everyone)


def all_true(is_true: bool) -> bool:
    """Whether `is_true` on all processes."""
    if is_alone():
        return is_true
    return bool(np.all(multihost_utils.process_allgather(np.array(is_true))))


def any_true(is_true: bool, after: jax.Array) -> jax.Array:
    """Whether `is_true` on any process: an array that the devices compute after `after`.

    Args:
      after: a number of 0 or more, replicated on the devices of all processes.
    """
    local = np.array([is_true])
    place = NamedSharding(after.sharding.mesh, PartitionSpec(after.sharding.mesh.axis_names))
    flags = jax.make_array_from_callback((place.mesh.size,), place, lambda _: local)
    return _any(flags, after)


@jax.jit
def _any(flags: jax.Array, after: jax.Array) -> jax.Array:
    return flags.any() & (after >= 0)


def gather(array: jax.Array) -> jax.Array | np.ndarray:
    """The full array that several processes hold in parts; all of them have to call it."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = gather(jax.random.key_data(array))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_shared(workdir: Path) -> None:
    """ValueError unless all processes see the same folder `workdir`."""
    if is_alone():
        return
    path = workdir / ".processes"
    token = by_first(lambda: _write_token(path))
    is_seen = path.exists() and path.read_text() == token
    if not all_true(is_seen):
        raise ValueError(
            f"--workdir={workdir} is not the same folder on all {jax.process_count()} processes; "
            "name a folder on storage that all hosts mount."
        )


def _write_token(path: Path) -> str:
    token = uuid.uuid4().hex
    path.write_text(token)
    files.sync(path)
    return token


def _shared(value: Any) -> Any:
    """The first process's `value`, on all processes."""
    data = np.frombuffer(json.dumps(files.plain(value)).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    padded[: min(len(data), size)] = data[:size]
    return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
