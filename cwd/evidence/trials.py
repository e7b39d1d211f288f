"""The trials of a search's stage, and a configuration with the values of one."""

from __future__ import annotations

import itertools
import random

from cwd.errors import UserError
from cwd.evidence.artifact_files import Plain, Stage, text_of

PATHS = {  # axis of a stage -> where a configuration has it
    "lr": ("optimizer", "lr"),
    "weight_decay": ("decay", "weight_decay"),
    "warmup": ("schedule", "warmup"),
    "betas": ("optimizer", "betas"),
    "momentum": ("optimizer", "momentum"),
    "batch_size": ("training", "batch_size"),
}


def trials(stage: Stage, name: str) -> list[Plain]:
    """The stage's trials, axis by axis: its whole grid or, where it says how many, that many drawn from the grid by
    chance. The draw depends on `name` alone, so both arms have the same trials.
    """
    axes = stage.axes
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if stage.trials is None or stage.trials >= len(grid):
        return grid
    chosen = random.Random(name).sample(range(len(grid)), stage.trials)
    return [grid[i] for i in sorted(chosen)]


def with_values(plain: Plain, values: Plain) -> Plain:
    """The configuration with these values, by axis; ``multiple`` is one of the tuned lambda. Another batch size has
    other steps, for as many tokens.

    Raises:
        UserError: the optimizer has no such hyperparameter.
    """
    if "multiple" in values:
        return at_multiple(plain, values["multiple"])
    changed = {section: dict(plain[section]) for section, _ in PATHS.values()}
    for axis, value in values.items():
        section, key = PATHS[axis]
        if key not in changed[section]:
            raise UserError(f"search: {plain['optimizer']['name']} has no {axis}")
        changed[section][key] = list(value) if isinstance(value, tuple) else value
    before, after = plain["training"]["batch_size"], changed["training"]["batch_size"]
    changed["training"]["steps"] = max(1, round(plain["training"]["steps"] * before / after))
    return {**plain, **changed}


def rest_of(trial: Plain) -> str:
    """What of a trial is neither rate nor lambda, as text: "warmup 0.1"."""
    rest = {axis: value for axis, value in trial.items() if axis not in ("lr", "weight_decay")}
    return ", ".join(f"{axis} {shown(value)}" for axis, value in rest.items())


def at_multiple(plain: Plain, multiple: float) -> Plain:
    """The configuration with lambda times `multiple`, to four digits. At 0 the mode is none, which all arms share."""
    if multiple == 1:
        return plain
    decay = dict(plain["decay"])
    decay["weight_decay"] = float(f"{decay['weight_decay'] * multiple:.4g}")
    if multiple == 0:
        decay["mode"] = "none"
    return {**plain, "decay": decay}


def shown(value: object) -> str:
    """A value of an axis as text."""
    return " ".join(map(text_of, value)) if isinstance(value, list | tuple) else text_of(value)
