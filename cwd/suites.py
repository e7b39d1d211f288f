"""What a model is evaluated on: a suite of tasks for lm-evaluation-harness, as a file of configs/suite/ or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cwd.errors import UserError, nearest
from cwd.reading import build, read_yaml

SUITES = Path(__file__).resolve().parents[1] / "configs" / "suite"
METRICS = ("acc", "acc_norm")
SOURCES = ("harness", "heldout", "folder")


@dataclass(frozen=True)
class Entry:
    """A task or a group of tasks of the harness, the metric that stands for it, and how many examples come first."""

    task: str
    metric: str = field(default="acc", metadata={"of": METRICS})
    num_fewshot: int | None = None  # none: the suite's


@dataclass(frozen=True)
class Suite:
    """Some tasks. `source` says where they are from: the harness itself, the text that a run held out, or a folder of
    the harness's YAML files.
    """

    name: str
    tasks: tuple[Entry, ...]
    about: str = ""
    num_fewshot: int = 0
    source: str = field(default="harness", metadata={"of": SOURCES})
    folder: str | None = None

    def shots(self, entry: Entry) -> int:
        """How many examples come before each question."""
        return self.num_fewshot if entry.num_fewshot is None else entry.num_fewshot


def suite_names() -> list[str]:
    """Every file of configs/suite/."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load_suite(word: str) -> Suite:
    """The suite of configs/suite/`word`.yaml, or of the folder `word` with task files of the user's own.

    Raises:
        UserError: no such suite, or what is wrong with a file.
    """
    path = SUITES / f"{word}.yaml"
    if path.is_file():
        return read_yaml(path, Suite, name=word)
    folder = Path(word).expanduser()
    if folder.is_dir():
        return _from_folder(folder.resolve())
    allowed = f"allowed are {', '.join(suite_names())}, or a folder of task files"
    raise UserError(f"suite={word}: no such suite{nearest(word, suite_names())}; {allowed}")


def _from_folder(folder: Path) -> Suite:
    """Every task that a file of the folder names, with its first metric that is an accuracy."""
    entries = []
    for path in sorted(folder.glob("*.yaml")):
        content = _read_task(path)
        for name in METRICS:
            if any(one.get("metric") == name for one in content.get("metric_list", [{"metric": "acc"}])):
                entries.append({"task": content.get("task"), "metric": name})
                break
        else:
            raise UserError(f"{path}: metric_list: one of {', '.join(METRICS)} is needed")
    if not entries:
        raise UserError(f"suite={folder}: holds no .yaml file of the harness's tasks")
    data = {"name": folder.name, "source": "folder", "folder": str(folder), "tasks": entries}
    return build(Suite, data, str(folder))


def _read_task(path: Path) -> dict[str, Any]:
    """A task's file. What would run code (the harness's !function, a class, a template that reaches into objects) is
    refused: nothing that is loaded may.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        reason = "!function would run code" if "!function" in str(error) else " ".join(str(error).split())
        raise UserError(f"{path}: cannot be used ({reason})") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("task"), str):
        raise UserError(f"{path}: task: a name is needed; each file of the folder holds one task")
    for name in ("include", "class", "custom_dataset"):
        if name in content:
            raise UserError(f"{path}: {name}: not allowed, it would load another file or code; write the task out")
    if "__" in path.read_text():
        raise UserError(f"{path}: __ is not allowed, a template could reach code through it")
    return dict(content)
