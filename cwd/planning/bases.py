"""The models that fine-tunings go on from, as far as a plan needs them: without weights, and without the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from cwd.errors import UserError
from cwd.files import read_json
from cwd.planning.shapes import Items, items_of
from cwd.runs import all_records

Plain = Mapping[str, Any]
# What of a config.json decides sizes; the rest may be anything, and is not looked at.
FIELDS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A pretrained model: a ``config.json`` of the hub, or the configuration of the run that made it."""

    hub: Items | None = None
    run: Plain | None = None


class Bases:
    """The models that ``model.source`` may name.

    Args:
        runs: the runs folder.
        wanted: name -> configuration of runs that are to be made, and of those that were.
    """

    def __init__(self, runs: Path, wanted: Mapping[str, Plain]) -> None:
        self._runs, self._found = runs, {name: Base(run=config) for name, config in wanted.items()}

    def find(self, source: str) -> Base | None:
        """A run, a folder or a model of hub.yaml; None if it is none of them."""
        if source not in self._found:
            found = self._of_run(source) or _of_folder(source) or _of_hub(source)
            if found is None:
                return None
            self._found[source] = found
        return self._found[source]

    def _of_run(self, source: str) -> Base | None:
        matches = [record for record in all_records(self._runs) if record.key.startswith(source)]
        return Base(run=matches[0].config) if len(matches) == 1 and "model" in matches[0].config else None


def known_tasks() -> dict[str, int]:
    """Task -> the sequences that a model reads for it, about."""
    return {name: one["questions"] * one["answers"] for name, one in _hub()["tasks"].items()}


def _of_folder(source: str) -> Base | None:
    config = read_json(Path(source).expanduser() / "config.json")
    if not isinstance(config, dict):
        return None
    if "model_type" not in config or "vocab_size" not in config:
        raise UserError(f"model.source={source}: config.json has no model_type or no vocab_size")
    return Base(items_of({name: config[name] for name in FIELDS if name in config}))


def _of_hub(source: str) -> Base | None:
    about = _hub()["models"].get(source)
    return Base(items_of(about["config"])) if about else None


@cache
def _hub() -> dict[str, Any]:
    return yaml.safe_load((files("cwd.planning") / "hub.yaml").read_text())
