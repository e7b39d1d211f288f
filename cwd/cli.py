"""How entry points meet Hydra: whatever the user got wrong becomes one line and exit status 2."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError, safe_load

from cwd.config import allowed_keys, unknown_key
from cwd.errors import UserError, nearest
from cwd.files import DISK

GRACE = 3.0  # seconds that a sweep's workers have to save
HYDRA_KEYS = ("hydra.launcher.", "hydra.sweep.", "hydra.sweeper.params", "hydra.mode", "hydra.verbose")
GROUPS = (
    "model",
    "dataset",
    "optimizer",
    "decay",
    "schedule",
    "tracker",
    "scale",
    "recipe",
    "tuned",
    "task",
    "groups",
    "experiment",
    "hydra/launcher",
)


def guarded(main: Callable[[], Any]) -> None:
    """Runs a ``hydra.main`` function as :func:`door` runs any: Hydra is made to raise its errors instead of printing
    them.

    With HYDRA_FULL_ERROR=1 in the environment, tracebacks are shown as Hydra shows them.
    """
    if os.environ.get("HYDRA_FULL_ERROR"):
        main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _wait_for_workers)
    argparse.ArgumentParser.error = _flag_error  # type: ignore[assignment, method-assign]
    try:
        _check_arguments(sys.argv[1:])
    except (UserError, HydraException, YAMLError) as error:
        fail(error)
    door(main)


def _flag_error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """In the place of argparse's, which prints the whole usage first."""
    fail(UserError(f"{message}; --help shows what there is"))


def door(main: Callable[[], Any]) -> None:
    """Runs an entry point; a user's mistake ends the process with one line on stderr and status 2."""
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException, YAMLError) as error:
        fail(error)
    except BrokenPipeError:  # the reader of a listing has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in DISK:
            raise
        name = error.filename or "a file"
        fail(UserError(f"{name}: cannot be written ({error.strerror}); what was saved before is intact"))
    except ValueError as error:  # how Hydra refuses some arguments
        if "hydra" not in traceback.extract_tb(error.__traceback__)[-1].filename.split(os.sep):
            raise
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what was saved", file=sys.stderr)
        sys.exit(130)


def job(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """For the function below ``hydra.main``: a single run ends on a user's mistake before Hydra adds words of its own.

    In a sweep Hydra's words (which overrides failed) are wanted, and the other runs go on.
    """

    @functools.wraps(function)
    def _wrapped(config: Any) -> Any:
        if _stopped:
            return None
        try:
            return function(config)
        except UserError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            fail(error)
        except SystemExit:  # a signal came, and the run is saved
            parent = multiprocessing.parent_process()
            if parent is None:
                raise
            if parent.pid != os.getppid():  # the sweep is gone; a worker left alone would wait for minutes
                sys.stdout.flush()
                os._exit(1)
            # A worker that ends makes the pool kill the others before they have saved. It goes on, and trains no more.
            _stopped.append(True)
            return None

    return _wrapped


_stopped: list[bool] = []  # in a sweep's worker, after a signal


def _wait_for_workers(number: int, frame: Any) -> NoReturn:
    """On Ctrl-C: the workers of a local sweep got it too, and save; then it ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "joblib" in sys.modules:
        print("interrupted; the runs are saving", file=sys.stderr)
        time.sleep(GRACE)
    raise KeyboardInterrupt


def fail(error: Exception) -> NoReturn:
    """Ends the process with the error's one line and status 2."""
    print(f"{os.path.basename(sys.argv[0])}: {explain(error)}", file=sys.stderr)
    sys.exit(2)


def explain(error: Exception) -> str:
    """One line for a mistake: ours as it is, Hydra's in our words."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing(error)
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value ({text.splitlines()[0]})"
    found = re.match(r"Error merging override (.*)", text)
    if isinstance(error, ConfigCompositionException) and found:
        return f"{found.group(1)}: does not fit the value that it replaces ({' '.join(str(error.__cause__).split())})"
    found = re.match(r"Could not override '([^']+)'", text)
    if isinstance(error, ConfigCompositionException) and found:
        return unknown_key_or_group(found.group(1))
    if text.startswith(("Ambiguous value", "Sweep parameters")):
        argument = re.search(r"'([^']*)'", text)
        return f"{argument.group(1) if argument else text}: several values; add -m to run them all, or quote the value"
    return " ".join(text.split())


def unknown_key_or_group(name: str) -> str:
    """The message for a key or a group that does not exist."""
    if name.startswith("hydra."):
        return f"{name}: no such setting; a new one is added with +{name}=..."
    if "." in name or "/" in name:
        return unknown_key(name)
    names = [*allowed_keys(""), *GROUPS]
    return f"{name}: no such key or group{nearest(name, names)}; allowed are {', '.join(dict.fromkeys(names))}"


def _missing(error: MissingConfigException) -> str:
    group, _, chosen = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or [])
    if not options:
        return " ".join(str(error).split())
    return f"{group}={chosen}: no such {group}{nearest(chosen, options)}; allowed are {', '.join(options)}"


def _check_arguments(arguments: list[str]) -> None:
    """What Hydra would answer with a traceback, or with more power than a value should have.

    No value may name code to import: what Hydra imports is set by the files under configs/ alone.
    """
    for folder in _config_folders(arguments):
        _refuse_targets(folder)
    parser = OverridesParser.create()
    for argument in arguments:
        if argument.startswith("--experimental-rerun"):
            raise UserError(
                "--experimental-rerun: reads a pickle, which could run code; a run's own command does the same"
            )
        if argument.startswith("="):
            raise UserError(f"{argument}: cannot be read as key=value (the key is missing)")
        if argument.startswith("-") or ("=" not in argument and not argument.startswith("~")):
            continue  # a flag, or what belongs to one
        override = parser.parse_overrides([argument])[0]
        name = override.key_or_group
        value = override._value  # as parsed: value() would turn a sweep's list into text
        if any("_target_" in str(name) for name in (override.key_or_group, *_names(value))):
            raise UserError(f"{argument}: a value cannot name code to import; _target_ is not allowed")
        if name.startswith("hydra.") and not name.startswith(HYDRA_KEYS):
            raise UserError(f"{argument}: not to be set; of hydra's keys, allowed are {', '.join(HYDRA_KEYS)}")
        if name in GROUPS and name != "experiment" and (value is None or isinstance(value, bool | int | float)):
            raise UserError(f"{argument}: a choice is needed; --help lists them")


def _config_folders(arguments: list[str]) -> list[Path]:
    """The folders of configuration files that are not the project's own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=True, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-path", "-cp")
    known, _ = parser.parse_known_args(arguments)
    return [Path(folder) for folder in (known.config_dir, known.config_path) if folder]


def _refuse_targets(folder: Path) -> None:
    """Hydra imports and calls what a file names as _target_, before anything of ours has seen it."""
    for path in sorted(folder.rglob("*.y*ml")):
        text = path.read_text(errors="replace")
        if "_target_" not in text and "\\" not in text:  # which could spell it otherwise
            continue
        if any("_target_" in str(name) for name in _names(safe_load(text))):
            raise UserError(f"{path}: a file cannot name code to import; _target_ is not allowed")


def _names(value: Any) -> Iterator[str]:
    """Every name inside nested values."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield str(name)
            yield from _names(one)
    elif isinstance(value, list):
        for one in value:
            yield from _names(one)
    elif hasattr(value, "list"):  # a sweep
        yield from _names(value.list)
