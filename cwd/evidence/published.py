"""The paper's numbers, as printed (published.yaml)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

FIELD = re.compile(r"\{([a-z_-]+)\}")


@cache
def published() -> dict[str, Any]:
    """All of published.yaml: table or figure name -> its entry."""
    return yaml.safe_load((files("cwd.evidence") / "published.yaml").read_text())


def look_up(template: str, coordinates: Mapping[str, Any], aliases: Mapping[str, str]) -> Any:
    """The published value at a path such as ``table10.rows.{size}.{optimizer}.loss.{arm}``; None where the paper has
    none.

    A field stands for a coordinate, or for several joined by "-"; `aliases` say how the paper calls it.
    """

    def word(match: re.Match[str]) -> str:
        text = "-".join(str(coordinates.get(name, "?")) for name in match[1].split("-"))
        return aliases.get(text, text)

    value: Any = published()
    for part in FIELD.sub(word, template).split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value[0] if isinstance(value, list) else value  # [mean, what stands behind its +-]
