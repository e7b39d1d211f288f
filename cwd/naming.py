"""What people see of a run: one way to say which one it is, for result lines and trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cwd.schema import Config


def run_name(config: Config) -> str:
    """ "adamw cautious lr 0.08 lambda 0.15 seed 3"."""
    return f"{words(arm_of(config))} seed {config.seed}"


def row_name(optimizer: str, mode: str, lr: float, weight_decay: float, seed: int) -> str:
    """The same in columns, for lists of runs: "adamw cautious  lr 0.08 lambda 0.15 seed 3"."""
    return f"{optimizer:<5} {mode:<9} lr {lr:g} lambda {weight_decay:g} seed {seed}"


def arm_of(config: Config) -> dict[str, Any]:
    """A run's optimizer, decay mode, rate and lambda, by name."""
    return {
        "optimizer": config.optimizer.name,
        "arm": config.decay.mode,
        "lr": config.optimizer.lr,
        "lambda": config.decay.weight_decay,
    }


def words(values: Mapping[str, Any]) -> str:
    """Values in a row: text speaks for itself, a number comes after its name."""
    return " ".join(value if isinstance(value, str) else f"{name} {value:g}" for name, value in values.items())
