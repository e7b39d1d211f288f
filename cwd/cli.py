"""How entry points meet Hydra: whatever the user got wrong becomes one line and exit status 2."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cwd.config import allowed_keys, unknown_key
from cwd.errors import UserError, nearest

GROUPS = (
    "model",
    "dataset",
    "optimizer",
    "decay",
    "schedule",
    "tracker",
    "scale",
    "tuned",
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
    argparse.ArgumentParser.error = _flag_error  # type: ignore[assignment, method-assign]
    try:
        _check_arguments(sys.argv[1:])
    except (UserError, HydraException) as error:
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
    except ValueError as error:  # how Hydra refuses some arguments
        if "hydra" not in traceback.extract_tb(error.__traceback__)[-1].filename.split(os.sep):
            raise
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoints", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a listing has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def job(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """For the function below ``hydra.main``: a single run ends on a user's mistake before Hydra adds words of its own.

    In a sweep Hydra's words (which overrides failed) are wanted, and the other runs go on.
    """

    @functools.wraps(function)
    def wrapped(config: Any) -> Any:
        try:
            return function(config)
        except UserError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            fail(error)

    return wrapped


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
        value = override._value  # as parsed: value() would turn a sweep's list into text
        if any("_target_" in str(name) for name in (override.key_or_group, *_names(value))):
            raise UserError(f"{argument}: a value cannot name code to import; _target_ is not allowed")
        if override.key_or_group in GROUPS and (value is None or isinstance(value, bool | int | float)):
            raise UserError(f"{argument}: a choice is needed; --help lists them")


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
