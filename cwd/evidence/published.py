"""The paper's numbers, as printed (published.yaml)."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def published() -> dict[str, Any]:
    """All of published.yaml: table or figure name -> its entry."""
    return yaml.safe_load((files("cwd.evidence") / "published.yaml").read_text())


def table10_difference(size: str, optimizer: str, metric: str = "loss") -> float | None:
    """Table 10's cautious minus decoupled, of "338m", "986m" or "2b"; None where the paper has no such cell.

    The loss is in nats per token (a negative difference favours cautious), the accuracy a fraction.
    """
    cell = published()["table10"]["rows"].get(size, {}).get(optimizer)
    return cell[metric]["cautious"] - cell[metric]["decoupled"] if cell else None
