"""The start and the end of a command: flags, config file, log lines, errors of one line."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from logging import WARNING
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from sigma_jax import configs, provenance
from sigma_jax.runtime.config import did_you_mean
from sigma_jax.runtime.process import Stopped

PACKAGE = Path(__file__).parents[1]
TRACEBACK = "SIGMA_TRACEBACK"  # 1 prints the traceback of an error


def define_config(is_required: bool = True) -> flags.FlagHolder:
    """Defines the flag --config=FILE.py:PRESET, which --config.FIELD=VALUE overrides."""
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file and preset: configs/sft.py:local. --config.FIELD=VALUE changes a field.",
    )
    if is_required:
        flags.mark_flag_as_required(holder)
    # --help shows the flags of the command's own module, and so this one too.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])
    return holder


def run_command(main: Callable[[Sequence[str]], Any], default_config: str = "") -> None:
    """Parses the flags and runs `main(argv)`; prints a user's error on one line, with status 1.

    Args:
      default_config: the config file that is taken without --config; "": none.
    """
    # transformers would say that PyTorch is missing. Nothing here needs it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(_is_ours)
    try:
        app.run(main, flags_parser=functools.partial(_parse_flags, default_config=default_config))
    except Stopped as stopped:
        print(f"{stopped}; the same command continues.", file=sys.stderr)
        sys.exit(0)
    except KeyboardInterrupt:
        print("error: interrupted; the same command continues.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK) == "1":
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _is_ours(record: Any) -> bool:
    """Whether to show a log record: this package's, and warnings of libraries.

    Orbax alone logs 30 lines of progress for each save.
    """
    return record.levelno >= WARNING or Path(record.pathname).is_relative_to(PACKAGE)


def one_line(error: Exception) -> str:
    """The message of an error on one line; only messages of libraries have more lines."""
    if isinstance(error, OSError) and error.filename:
        reason = (error.strerror or type(error).__name__).lower()
        return f"{error.filename}: {reason}; check the path and who may write there."
    lines = [line for line in str(error).splitlines() if line.strip()]
    if len(lines) == 1:
        return lines[0]
    first = lines[0] if lines else type(error).__name__
    return f"{first} ({TRACEBACK}=1 shows more)"


def config_file() -> tuple[str, str]:
    """(stem of the --config file, preset): ("sft", "local") for `configs/sft.py`."""
    path, _, preset = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path(path).stem, preset or "local"


def default_workdir() -> Path:
    """The workdir without --workdir: runs/STAGE-PRESET."""
    return Path("runs") / "-".join(config_file())


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the same command starts sooner the next time.

    They go to JAX_COMPILATION_CACHE_DIR if it is set, else to the user's cache folder.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "sigma_jax" / "xla"))
    # JAX leaves out what compiles within a second. A start runs a hundred such programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def find_field(config: ConfigDict, name: str) -> Any:
    """The value of the outermost field `name` in `config`; None where there is none."""
    groups = [config]
    while groups:
        group = groups.pop(0)
        if name in group:
            return group[name]
        groups += [value for value in group.values() if isinstance(value, ConfigDict)]
    return None


def log_start(mesh: Any, dtype: str) -> None:
    """Logs devices, mesh, dtype and versions."""
    import jax  # here, so that a mistyped flag is reported before JAX is loaded

    device = jax.devices()[0]
    shape = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    logging.info(
        "devices: %d x %s (%s), process %d of %d",
        jax.device_count(),
        device.device_kind,
        device.platform,
        jax.process_index(),
        jax.process_count(),
    )
    logging.info("mesh: %s; dtype: %s", shape, dtype)
    versions = provenance.versions()
    logging.info("versions: %s", ", ".join(f"{name} {versions[name]}" for name in versions))


def _parse_flags(argv: Sequence[str], default_config: str = "") -> list[str]:
    is_given = any(word.lstrip("-").partition("=")[0] == "config" for word in argv[1:])
    default = [f"--config={default_config}"] if default_config and not is_given else []
    argv = [*argv[:1], *_with_packaged_config([*default, *argv[1:]])]
    _check_config_words(argv[1:])
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        message = str(error.args[0] if error.args else error).splitlines()[0]
        if "--config must have a value" in message:
            message = "--config is missing; give file and preset: --config=configs/sft.py:local."
        raise ValueError(message) from error


def _with_packaged_config(words: Sequence[str]) -> list[str]:
    """`words` with the packaged file in place of a --config file that is not on disk."""
    words = list(words)
    for index, word in enumerate(words):
        if word in ("-config", "--config") and index + 1 < len(words):
            index, prefix, argument = index + 1, "", words[index + 1]
        elif word.startswith(("-config=", "--config=")):
            prefix, _, argument = word.partition("=")
            prefix += "="
        else:
            continue
        path, colon, preset = argument.partition(":")
        words[index] = f"{prefix}{packaged_file(path)}{colon}{preset}"
    return words


def packaged_file(path: str) -> str:
    """`path`, or the config file of this package with that name if `path` is not on disk.

    `configs/sft.py` in a folder without configs -> `SITE_PACKAGES/sigma_jax/configs/sft.py`.
    """
    packaged = _packaged(path)
    return str(packaged) if packaged and packaged.is_file() and not Path(path).is_file() else path


def _packaged(path: str) -> Path | None:
    """The place that a path configs/... has in this package; None for any other path."""
    folder, *names = Path(path).parts or [""]
    return Path(configs.__path__[0], *names) if folder == "configs" else None


def _check_config_words(words: Sequence[str]) -> None:
    """ValueError for a --config file, preset or field that does not exist, with the nearest name.

    absl itself prints a traceback of twenty lines.
    """
    config = None
    for index, word in enumerate(words):
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if name == "config" and word.startswith("-"):
            rest = words[index + 1 : index + 2]
            config = load_config(value if equals else "".join(rest))
        elif name.startswith("config.") and word.startswith("-"):
            if config is None:
                raise ValueError(f"{word} stands before --config; put --config first.")
            check_field(config, name.removeprefix("config."))


def load_config(argument: str) -> ConfigDict:
    """The config of FILE:PRESET. ValueError if there is no such file or preset."""
    path, _, preset = argument.partition(":")
    get_config = load_function("config", path, "get_config", "(preset); name a stage's file.")
    return get_config(preset) if preset else get_config()


def load_function(flag: str, path: str, name: str, remedy: str) -> Callable:
    """The function `name` of the Python file that --FLAG=PATH names.

    ValueError if there is no such file or function; the nearest file is named.
    """
    path = packaged_file(path)
    if not Path(path).is_file():
        raise ValueError(
            f"--{flag}={path} does not exist; {did_you_mean(path, _config_files(path))}"
        )
    spec = importlib.util.spec_from_file_location(f"sigma_jax_{flag}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"--{flag}={path} has no {name}{remedy}")
    return getattr(module, name)


def _config_files(path: str) -> list[str]:
    """The Python files that `path` may mean: those of its folder, on disk and in this package."""
    folder, packaged = Path(path).parent, _packaged(path)
    found = {str(file) for file in folder.glob("*.py")}
    if packaged:
        found |= {str(folder / file.name) for file in packaged.parent.glob("*.py")}
    return sorted(file for file in found if "__" not in file)


def check_field(config: ConfigDict, field: str) -> None:
    """ValueError naming the nearest field if `config` has no field of this dotted name."""
    node, seen = config, "config"
    for name in field.split("."):
        name = name.partition("[")[0]
        known = list(node.keys()) if isinstance(node, ConfigDict) else []
        if name not in known:
            raise ValueError(f"--{seen}.{name} is unknown; {did_you_mean(name, known)}")
        node, seen = node[name], f"{seen}.{name}"
