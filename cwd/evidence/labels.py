"""How a tracker shows an artifact's runs: the artifact is their group, what differs within it is their name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cwd.evidence.artifacts import Point
from cwd.naming import words

SHOWN = ("size", "optimizer", "arm", "lr", "lambda", "schedule", "decay_schedule", "other")


def labelled(artifact: str, points: Sequence[Point]) -> list[Point]:
    """The points with the tracker's settings for their runs: ``group``, and ``label``, which is null where nothing
    differs. No run's key changes.
    """
    values: dict[str, set[Any]] = {name: {point.coordinates.get(name) for point in points} for name in SHOWN}
    differing = [name for name in SHOWN if len(values[name]) > 1]
    return [_labelled(artifact, point, differing) for point in points]


def _labelled(artifact: str, point: Point, differing: Sequence[str]) -> Point:
    if point.config is None:
        return point
    known = {name: point.coordinates.get(name) for name in differing}
    label = words({name: value for name, value in known.items() if value not in (None, "")})
    tracker = {**point.config["tracker"], "group": artifact, "label": label or None}
    return dataclasses.replace(point, config={**point.config, "tracker": tracker})
