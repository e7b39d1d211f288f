"""Composes configurations without running anything: the runs that an experiment or a list of overrides asks for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from cwd.config import Config, validate

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


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
