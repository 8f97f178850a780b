"""Serves recommendations: an HTTP API, a nearline worker and a page, on this machine.

    python -m sigma_jax.serve --export=exports/demo

Then open http://127.0.0.1:8000. Everything is kept in one SQLite file. On several machines, each
process has a role and all share a Redis or Valkey server:

    python -m sigma_jax.serve --export=exports/demo --role=api --store=redis://HOST:6379/0
    python -m sigma_jax.serve --export=exports/demo --role=worker --store=redis://HOST:6379/0

Other machines may call only with keys: --host=0.0.0.0 needs --keys=FILE. --new_key=NAME prints a
key and its line for that file. The environment variables SIGMA_KEYS (the file, or its lines) and
SIGMA_STORE (the address with its password) stand in for --keys and --store.

    python -m sigma_jax.serve --export=exports/demo --demo=runs/sft-local

replays the last days of the log that was trained on, a day in a minute: lists change meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from sigma_jax.runtime import cli

FLAGS = flags.FLAGS
ROLES = ("all", "api", "worker")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
TENANT = "default"  # of an export without a name
STORE, DEMO_STORE = "runs/service/store.db", "runs/service/demo.db"  # without --store
DEMO_PERIOD = 5.0  # seconds that a user waits at most, for the lists of a demo
PARENT = "SIGMA_SERVE_PARENT"  # variable of a worker: the process that it ends with
PACKAGES = ("fastapi", "fastapi_offline", "orjson", "prometheus_client", "uvicorn", "uvloop")
RESTART_SECONDS = 2.0  # before a worker that ended is started again
# A thread that computes lets others run after so long. With Python's 5 ms, reads of the index would
# wait for requests that are computed.
SWITCH_SECONDS = 0.0005


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_list("export", [], "Folder of an export; several as TENANT=FOLDER,TENANT=FOLDER.")
    flags.DEFINE_string(
        "store",
        None,
        "A SQLite file, or redis://HOST:PORT/N or valkey://. Without it: the environment variable "
        f"SIGMA_STORE; without it {STORE}, {DEMO_STORE} for a demo.",
    )
    flags.DEFINE_enum("role", "all", ROLES, "all: the API here, and a worker beside it.")
    flags.DEFINE_string("host", "127.0.0.1", "The address that the API listens to.")
    flags.DEFINE_integer("port", 8000, "The port that the API listens to.", 0, 65535)
    flags.DEFINE_string(
        "keys", None, "A file of keys. Without it: SIGMA_KEYS, or all calls of this machine."
    )
    flags.DEFINE_string("new_key", None, "Print a new key of this name, and nothing else.")
    flags.DEFINE_list("scopes", ["read", "write", "admin"], "Scopes of the new key.")
    flags.DEFINE_string("tenant", TENANT, "Tenant of the new key.")
    flags.DEFINE_string("lists", None, "A JSON file: names of lists and their instructions.")
    flags.DEFINE_float("period", 60.0, "Seconds that a user with new events waits at most.", 0.01)
    flags.DEFINE_float("lease", 60.0, "Seconds after which another worker takes a user.", 0.1)
    flags.DEFINE_integer("users_at_once", 64, "Number of waiting users that starts a batch.", 1)
    flags.DEFINE_integer("list_items", 100, "Items of a list.", 1)
    flags.DEFINE_bool("explain_lists", False, "Whether lists hold how each item came about.")
    flags.DEFINE_string("heartbeat", None, "File that a working worker touches, for probes.")
    flags.DEFINE_bool(
        "renew_versions",
        True,
        "Whether a new version of the catalogue renews all lists.",
    )
    flags.DEFINE_float("kept_gb", 1.0, "Memory for keys and values of users' histories.", 0.0)
    flags.DEFINE_string(
        "spill", None, "Folder for kept keys and values that do not fit into --kept_gb."
    )
    flags.DEFINE_float("spill_gb", 8.0, "Most gigabytes of the files in --spill, by version.")
    flags.DEFINE_integer("window_step", 16, "Rows by which a long history's window moves.", 1)
    flags.DEFINE_list(
        "fewer_beams",
        ["32:0.5", "128:0.25"],
        "WAITING:SHARE,...: from so many waiting requests on, a share of the beams. Empty: all.",
    )
    flags.DEFINE_float(
        "calls_a_second", 0.0, "Most calls a second of one caller; 0: no limit.", 0.0
    )
    flags.DEFINE_list("arm_exports", [], "NAME=FOLDER or TENANT/NAME=FOLDER: for experiments.")
    flags.DEFINE_string("demo", None, "A trained workdir whose log is replayed.")
    flags.DEFINE_float("demo_speed", 1440.0, "Seconds of the log in a second.", 0.0)
    flags.DEFINE_float("demo_days", 28.0, "The last days of the log are replayed.", 0.0)
    flags.DEFINE_integer("demo_users", 500, "Users of the replay, the most active ones.", 1)
    flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs for the next run.")


def main(argv: Sequence[str]) -> None:
    """Runs the roles of this process until it is stopped."""
    if len(argv) > 1:
        raise ValueError(f"{argv[1]!r} is no flag; flags begin with --.")
    if FLAGS.new_key:
        print_key()
        return
    check_packages()
    exports = exports_of(FLAGS.export)
    check_host(FLAGS.host, given_keys())
    settings = nearline_settings()  # a mistake is said before anything is loaded
    if FLAGS.demo and not Path(FLAGS.demo).is_dir():
        raise ValueError(f"--demo={FLAGS.demo} is no folder; give a trained workdir.")
    arms = arm_exports_of(FLAGS.arm_exports, list(exports))
    if FLAGS.role != "worker":
        keys = read_keys(list(exports))
        check_port(FLAGS.host, FLAGS.port)
    if FLAGS.compilation_cache:
        cli.use_compilation_cache()
    if FLAGS.role == "worker":
        run_workers(exports, arms, settings)
        return
    with worker_beside() if FLAGS.role == "all" else contextlib.nullcontext():
        run_api(exports, arms, keys)


def print_key() -> None:
    """Prints a new key, and its line for a file of keys."""
    from sigma_jax.serving.api.keys import SCOPES, new_key

    if unknown := set(FLAGS.scopes) - set(SCOPES):
        raise ValueError(f"--scopes names {sorted(unknown)}; use some of {', '.join(SCOPES)}.")
    key, line = new_key(FLAGS.tenant, FLAGS.new_key, FLAGS.scopes)
    print(f"key, shown only now: {key}\nline for the file of --keys: {line}")


def exports_of(given: Sequence[str]) -> dict[str, Path]:
    """Tenant -> folder of its export. ValueError if there is none, or a name comes twice."""
    found: dict[str, Path] = {}
    for one in given:
        name, has_name, folder = one.rpartition("=")
        name = name if has_name else TENANT
        if name in found:
            raise ValueError(f"--export names the tenant {name!r} twice; give each one folder.")
        found[name] = Path(folder)
    if not found:
        raise ValueError("--export is missing; write one with `python -m sigma_jax.export`.")
    for one, other in itertools.permutations(map(Path.absolute, found.values()), 2):
        if one.parent == other.parent and other.name.startswith(f"{one.name}-"):
            raise ValueError(
                f"--export: {other} is a model of {one} too, by its name, and would be shared by "
                "two tenants; rename it, or put it into another folder."
            )
    return found


def arm_exports_of(given: Sequence[str], tenants: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Tenant -> name -> folder of an export for arms of experiments.

    ValueError for a name without a folder, a name that comes twice, or an unknown tenant.
    """
    found: dict[str, dict[str, Path]] = {tenant: {} for tenant in tenants}
    for one in given:
        name, has_folder, folder = one.partition("=")
        tenant, has_tenant, short = name.rpartition("/")
        tenant = tenant if has_tenant or len(tenants) > 1 else tenants[0]
        if not has_folder or not short or tenant not in found:
            raise ValueError(f"--arm_exports={one}: give NAME=FOLDER, or TENANT/NAME=FOLDER.")
        if short in found[tenant]:
            raise ValueError(f"--arm_exports names {name!r} twice; give each one folder.")
        found[tenant][short] = Path(folder)
    return found


def store_url() -> str:
    """The store of --store or SIGMA_STORE; without both a demo has a file of its own."""
    from sigma_jax.serving.stores.base import ADDRESS

    given: str = FLAGS.store or os.environ.get(ADDRESS, "")
    return given or (DEMO_STORE if FLAGS.demo else STORE)


def given_keys() -> str:
    """The path of --keys, or what SIGMA_KEYS holds; "" for neither."""
    from sigma_jax.serving.api.keys import KEYS

    given: str = FLAGS.keys or os.environ.get(KEYS, "")
    return given


def read_keys(tenants: Sequence[str]) -> Any:
    """The keys of callers; without any, the first tenant is open. Says which tenants do not match.

    ValueError for a file that is wrong, or if no tenant has a key.
    """
    from sigma_jax.serving.api.keys import Keys

    given = given_keys()
    if not given:
        for tenant in tenants[1:]:
            logging.warning("keys: without --keys nobody can call the tenant %s", tenant)
        return Keys({}, tenants[0])
    keys = Keys.of(given)
    for sentence in keys.check_tenants(tenants):
        logging.warning("keys: %s", sentence)
    return keys


def check_host(host: str, keys: str) -> None:
    """ValueError if other machines could call without a key."""
    if host not in LOOPBACK and not keys:
        raise ValueError(
            f"--host={host} lets other machines call; give --keys=FILE or SIGMA_KEYS. "
            "--new_key=NAME makes a key."
        )


def check_packages() -> None:
    """ValueError if a package of the extra serve is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the package {missing[0]} is missing; install the extra serve: pip install "
            "'sigma_jax[serve]', or in a clone pip install -e '.[serve]'."
        )


def check_port(host: str, port: int) -> None:
    """ValueError if the API cannot listen there. It is said before anything is loaded."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except OSError as error:
        raise ValueError(
            f"--host={host} --port={port} cannot be listened to ({error.strerror}); choose another "
            "--port."
        ) from error


def nearline_settings() -> Any:
    """The settings of the worker, from the flags. ValueError for a file that is wrong."""
    from sigma_jax.serving.nearline import NearlineSettings

    fields: dict[str, Any] = {"lists": read_lists(Path(FLAGS.lists))} if FLAGS.lists else {}
    return NearlineSettings(
        count=FLAGS.list_items,
        explains=FLAGS.explain_lists,
        users_at_once=FLAGS.users_at_once,
        period=DEMO_PERIOD if FLAGS.demo and not FLAGS["period"].present else FLAGS.period,
        lease=FLAGS.lease,
        renews_versions=FLAGS.renew_versions,
        **fields,
    )


def snapshot_settings() -> Any:
    """How exports are opened, from the flags."""
    from sigma_jax.serving.engine import SnapshotSettings

    return SnapshotSettings(
        kept_bytes=int(FLAGS.kept_gb * 1e9),
        spill=Path(FLAGS.spill) if FLAGS.spill else None,
        spill_bytes=int(FLAGS.spill_gb * 1e9),
        window_step=FLAGS.window_step,
    )


def read_lists(path: Path) -> dict[str, str]:
    """The instruction of each list in a JSON file. ValueError for a file of another kind."""
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a JSON file.") from error
    if not isinstance(lists, dict) or not all(isinstance(text, str) for text in lists.values()):
        raise ValueError(f'{path} is no object such as {{"home": "recommend something for me"}}.')
    return lists


def run_workers(exports: dict[str, Path], arms: dict[str, dict[str, Path]], settings: Any) -> None:
    """Computes lists until the process is told to stop; a thread for each tenant."""
    from sigma_jax.serving.engine import RecommendationEngine
    from sigma_jax.serving.nearline import NearlineWorker
    from sigma_jax.serving.replay import wait_for_clock
    from sigma_jax.serving.rollout import open_active
    from sigma_jax.serving.stores.base import open_store

    store, stop = open_store(store_url()), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if parent := int(os.environ.get(PARENT, "0")):
        threading.Thread(target=end_with, args=(parent, stop), daemon=True).start()
    threads = []
    for tenant, folder in exports.items():
        rollout = open_active(folder, store.tenant(tenant), snapshot_settings())
        others = {
            name: RecommendationEngine(other, snapshot_settings())
            for name, other in arms[tenant].items()
        }
        clock = wait_for_clock(rollout.store, stop) if FLAGS.demo else time.time
        name = f"{socket.gethostname()}-{os.getpid()}"
        worker = NearlineWorker(
            rollout.engine, rollout.store, name, settings, clock, others, rollout
        )
        beat = Path(FLAGS.heartbeat) if FLAGS.heartbeat else None
        threads.append(threading.Thread(target=worker.run, args=(stop, beat), name=tenant))
    for thread in threads:
        thread.start()
    logging.info("worker: ready")
    for thread in threads:
        thread.join()
    store.close()


def end_with(parent: int, stop: threading.Event) -> None:
    """Sets `stop` when the process that started this one has ended, killed or not."""
    while os.getppid() == parent:
        time.sleep(1.0)
    stop.set()


@contextlib.contextmanager
def worker_beside() -> Iterator[None]:
    """A worker in a process of its own, which is started again whenever it ends."""
    # The last of two flags of one name counts.
    command = [sys.executable, "-m", "sigma_jax.serve", *sys.argv[1:], "--role=worker"]
    environment = os.environ | {PARENT: str(os.getpid())}
    stop = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def keep() -> None:
        while not stop.is_set():
            running[:] = [subprocess.Popen(command, env=environment)]
            code = running[0].wait()
            if not stop.is_set():
                logging.warning("worker: ended with status %d; it is started again", code)
                stop.wait(RESTART_SECONDS)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        for process in running:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def run_api(exports: dict[str, Path], arms: dict[str, dict[str, Path]], keys: Any) -> None:
    """Answers calls until the process is told to stop."""
    import uvicorn

    from sigma_jax.serving.api.app import create_app
    from sigma_jax.serving.api.wire import TimedProtocol
    from sigma_jax.serving.load import FewerBeams
    from sigma_jax.serving.stores.base import open_store

    began, rules = time.monotonic(), FewerBeams.read(FLAGS.fewer_beams)
    store, stop = open_store(store_url()), threading.Event()
    replay = open_replay(store.tenant(next(iter(exports)))) if FLAGS.demo else None
    clock = replay.clock if replay else time.time
    tenants = {
        name: open_tenant(name, exports[name], arms[name], store, clock, rules) for name in exports
    }
    app = create_app(tenants, store, keys, FLAGS.calls_a_second, FLAGS.host)
    # The garbage collector need not look through what is loaded: all calls would wait for it.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
    logging.info(
        "api: ready after %.0f s at http://%s:%d", time.monotonic() - began, FLAGS.host, FLAGS.port
    )
    if replay:
        threading.Thread(target=replay.run, args=(stop,), daemon=True).start()
    services = [one for tenant in tenants.values() for one in tenant.arms.services]
    with warmed_beside(services):
        uvicorn.run(
            app,
            host=FLAGS.host,
            port=FLAGS.port,
            http=TimedProtocol,
            log_level="warning",
            access_log=False,
        )
    stop.set()
    store.close()


def open_tenant(
    name: str,
    folder: Path,
    arms: dict[str, Path],
    store: Any,
    clock: Callable[[], float],
    rules: Sequence[Any],
) -> Any:
    """A tenant of the API, warmed up. `rules` are those of --fewer_beams."""
    from sigma_jax.serving.api.context import Tenant
    from sigma_jax.serving.api.service import TenantService
    from sigma_jax.serving.engine import RecommendationEngine
    from sigma_jax.serving.rollout import open_active

    rollout = open_active(folder, store.tenant(name), snapshot_settings())
    service = TenantService(rollout.engine, rollout.store, clock, rules)
    others = {}
    for arm, other in arms.items():
        engine = RecommendationEngine(other, snapshot_settings())
        others[arm] = TenantService(engine, rollout.store, clock, rules)
    tenant = Tenant.of(name, folder, service, others)
    tenant.arms.warm()
    return tenant


def open_replay(store: Any) -> Any:
    """The replay of --demo, whose histories are in the store."""
    from sigma_jax.serving.replay import LogReplay, read_log
    from sigma_jax.serving.stores.base import without_password

    data = read_log(Path(FLAGS.demo))
    replay = LogReplay(data, store, FLAGS.demo_speed, FLAGS.demo_days, FLAGS.demo_users)
    if replay.clock.is_over:
        logging.warning(
            "replay: the log is over in %s; delete it or give another --store to see it again",
            without_password(store_url()),
        )
    return replay


@contextlib.contextmanager
def warmed_beside(services: Sequence[Any]) -> Iterator[None]:
    """Loads the programs of all lengths and numbers of requests, while calls are answered."""
    from sigma_jax.serving.api.context import REQUESTS_AT_ONCE

    stop, began = threading.Event(), time.monotonic()
    sizes = [2**n for n in range(REQUESTS_AT_ONCE.bit_length())]

    def warm() -> None:
        for service in services:
            service.warm_rest(sizes, stop)
        if not stop.is_set():
            logging.info("api: all programs are loaded after %.0f s more", time.monotonic() - began)

    thread = threading.Thread(target=warm, daemon=True, name="warm")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
