"""Composes configurations without running anything: the runs that an experiment or a list of overrides asks for."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from cwd.config import NOT_IDENTITY, Config, validate
from cwd.files import write_atomically
from cwd.schema import VARIANTS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHOWN = ("group", "label", "tags")  # of the tracker's settings, what belongs to the run; no part of the file's name
FROM_SCALE = (
    "threads",
    "micro_batch_size",
    "compile",
    "channels_last",
    "workers",
)  # of the machine's settings, what a scale or a size may choose


def compose_config(overrides: Sequence[str]) -> Config:
    """One run's validated configuration. Raises UserError or Hydra's errors; see :func:`cwd.cli.explain`."""
    return validate(_compose(overrides))


def compose_sweep(overrides: Sequence[str]) -> list[Config]:
    """A configuration for each run of a sweep: `overrides` as on the command line, and the sweep that an experiment
    brings along.
    """
    fixed = [text for text in overrides if not _is_sweep(text)]
    brought = dict(_compose(fixed, hydra=True).hydra.sweeper.params or {})
    given = [text for text in overrides if _is_sweep(text)]
    for text in overrides:
        brought.pop(text.split("=", 1)[0].lstrip("+"), None)
    axes = [_values(text) for text in [*(f"{key}={value}" for key, value in brought.items()), *given]]
    return [compose_config([*fixed, *choice]) for choice in itertools.product(*axes)]


def override_axes(overrides: Sequence[str]) -> dict[str, list[str]]:
    """The values that each override gives its key, one or, in a sweep, several; as text."""
    return {text.split("=", 1)[0]: [value.split("=", 1)[1] for value in _values(text)] for text in overrides}


def write_cells(configs: Iterable[dict[str, Any]], folder: Path) -> list[str]:
    """Writes each run (a whole configuration, as plain data) as an experiment file, and returns the names, so that any
    set of runs is one sweep: ``train.py --multirun --config-dir FOLDER experiment=NAME,NAME,...``.

    The files hold every value, so an edit of configs/ while a cluster keeps them waiting does not change the runs.
    """
    target = folder / "experiment"
    target.mkdir(parents=True, exist_ok=True)
    files = [cell_file(plain) for plain in configs]
    for name, content in files:
        write_atomically(target / f"{name}.yaml", content)
    return [name for name, _ in files]


def cell_file(plain: dict[str, Any]) -> tuple[str, bytes]:
    """The name of a run's experiment file, a hash of what makes the run, and the content."""
    # No model file: one of another family would leave its own keys beside those of the run.
    groups = [{"override /model": None}]
    groups += [{f"override /{group}": plain[group]["name"]} for group in (*VARIANTS, "tracker") if group != "model"]
    values = {name: value for name, value in plain.items() if name not in NOT_IDENTITY}
    values["machine"] = {name: plain["machine"][name] for name in FROM_SCALE}
    content = yaml.safe_dump({"defaults": [{"override /scale": plain["scale"]}, *groups], **values}, sort_keys=False)
    name = f"run_{hashlib.sha256(content.encode()).hexdigest()[:16]}"  # 12e4... alone would be read as a number
    shown = {key: plain["tracker"][key] for key in SHOWN}
    content += yaml.safe_dump({"tracker": shown}, sort_keys=False)
    return name, f"# @package _global_\n{content}".encode()


def _compose(overrides: Sequence[str], hydra: bool = False) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=hydra)


def _is_sweep(text: str) -> bool:
    return bool(_parse(text).is_sweep_override())


def _values(text: str) -> list[str]:
    override = _parse(text)
    if not override.is_sweep_override():
        return [text]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _parse(text: str) -> Any:
    return OverridesParser.create().parse_overrides([text])[0]
