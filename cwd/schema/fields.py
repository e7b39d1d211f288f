"""How a setting says what it may be, and whether it takes part in a run's identity."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any


def number(
    default: Any = "???", *, low: float = -math.inf, high: float = math.inf, above: bool = False, below: bool = False
) -> Any:
    """A numeric field in [low, high]; `above`/`below` leave the bound itself out. A list has two."""
    return _field(default, {"low": low, "high": high, "above": above, "below": below})


def choice(default: Any = "???", *, of: tuple[str, ...]) -> Any:
    """A text field with a fixed set of values."""
    return _field(default, {"of": of})


def later(default: Any, spec: Any = None) -> Any:
    """A field that came after runs had been recorded: at its default, under which a run is what it was before, it takes
    no part in the run's identity, so that those runs keep their keys. `spec` is a number() or choice().
    """
    return _field(default, {**(spec.metadata if spec is not None else {}), "later": True})


def apart(default: Any) -> Any:
    """A field that never takes part in a run's identity."""
    return _field(default, {"apart": True})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
