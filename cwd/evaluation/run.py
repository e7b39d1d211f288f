"""Evaluates finished runs on a suite and keeps the results in their folders; what is there already is not repeated."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cwd.data.export import as_hugging_face
from cwd.data.prepared import find_data
from cwd.data.tokens import TokenData
from cwd.errors import UserError
from cwd.evaluation.harness import Harness, harness_version
from cwd.evaluation.heldout import write_tasks
from cwd.files import sha256_of
from cwd.runs import Record
from cwd.runs.evaluations import read_evaluation, write_evaluation
from cwd.runs.record import digest, now
from cwd.suites import Entry, Suite

MAIN = int(os.environ.get("RANK", "0")) == 0
WAIT = 24 * 3600.0  # seconds, for another process that works on the run
Say = Callable[[str], None]


@dataclass
class Evaluator:
    """Evaluates runs on one suite, one after another; the harness, and a model, are loaded when something is missing.

    Args:
        suite: what is asked.
        data: the folder of prepared data, for the suite whose items come from held-out text.
        device: auto, cpu or cuda. batch_size: questions at once.
        say: called with a line for each result.
    """

    suite: Suite
    data: Path
    device: str = "auto"
    batch_size: int = 64
    say: Say = print

    def __post_init__(self) -> None:
        self.version = harness_version()
        self._harnesses: dict[str, Harness] = {}

    def run(self, record: Record) -> dict[str, dict[str, Any]]:
        """task -> result of every task of the suite, those that were there already among them.

        Raises:
            UserError: the run is not done, has no weights, or the suite does not fit it.
        """
        if not record.summary:
            raise UserError(f"run {record.key}: {record.status['state']}, only a finished run is evaluated")
        if not MAIN:
            return self._work(record)
        with record.lock(WAIT):
            return self._work(record)

    def _work(self, record: Record) -> dict[str, dict[str, Any]]:
        subject = Subject(record, self.suite, self.data)
        asked = {entry.task: subject.stamp(entry, self.version) for entry in self.suite.tasks}
        found = {task: read_evaluation(record, self.suite.name, task) for task in asked}
        kept = {task: one for task, one in found.items() if one and one["stamp"] == asked[task]}
        missing = [entry for entry in self.suite.tasks if entry.task not in kept]
        model = self._load(subject) if missing else None
        for entry in missing:
            started = time.monotonic()
            result = self._harness(subject).score(model, entry)
            if result is not None and MAIN:
                about = {"stamp": asked[entry.task], "weights": subject.weights, "metric": entry.metric, "made": now()}
                kept[entry.task] = {**result, **about, "seconds": round(time.monotonic() - started, 3)}
                write_evaluation(record, self.suite.name, entry.task, kept[entry.task])
                self.say(told(record, kept[entry.task]))
        if not missing and MAIN:
            for entry in self.suite.tasks:
                self.say(told(record, kept[entry.task], "found"))
        return kept

    def _load(self, subject: Subject) -> Any:
        return self._harness(subject).load(subject.folder, subject.tokenizer, self.device, self.batch_size)

    def _harness(self, subject: Subject) -> Harness:
        name = str(subject.tasks)
        if name not in self._harnesses:
            self._harnesses[name] = Harness(self.suite, subject.tasks)
        return self._harnesses[name]


class Subject:
    """A run as the harness needs it: the folder of its model, its tokenizer, and the files of the tasks.

    Raises:
        UserError: no weights, or the suite needs held-out text that is not there.
    """

    def __init__(self, record: Record, suite: Suite, data: Path) -> None:
        self.record, self.suite, self._root = record, suite, data
        self.folder = record.folder / "model"
        if not list(self.folder.glob("*.safetensors")):
            raise UserError(f"run {record.key}: {self.folder} holds no weights; a record without them is not evaluated")
        self.tasks = self._tasks()

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the weights."""
        files = sorted(self.folder.glob("*.safetensors"))
        return hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()

    @property
    def tokenizer(self) -> Any:
        """None where it lies beside the weights; else, as for runs from before it did, the data's."""
        return None if (self.folder / "tokenizer_config.json").exists() else as_hugging_face(self._data().tokenizer())

    def stamp(self, entry: Entry, version: str) -> str:
        """What a result is of: weights, task, its examples and files, and the harness."""
        shots = self.suite.shots(entry)
        return digest(
            {"weights": self.weights, "task": entry.task, "shots": shots, "by": version, "files": self._files}
        )

    @cached_property
    def _files(self) -> dict[str, str]:
        """name -> SHA-256 of the tasks' files; those made here name their own folder, which says nothing."""
        if self.tasks is None:
            return {}
        kinds = (".jsonl",) if self.suite.source == "heldout" else (".yaml", ".json", ".jsonl", ".csv", ".parquet")
        return {path.name: sha256_of(path) for path in sorted(self.tasks.iterdir()) if path.suffix in kinds}

    def _tasks(self) -> Path | None:
        if self.suite.source == "heldout":
            return write_tasks(self._data(), self._root)
        return Path(self.suite.folder) if self.suite.folder else None

    def _data(self) -> TokenData:
        about = self.record.description["data"]
        found = find_data(self._root, about.get("heldout") or about["fingerprint"])
        if found is None:
            raise UserError(
                f"run {self.record.key}: its text is not in {self._root}/; python train.py with the run's own dataset "
                "prepares it"
            )
        return found


def told(record: Record, result: dict[str, Any], how: str = "done ") -> str:
    """A result in a line."""
    metric = result["metrics"][result["metric"]]
    error = "" if metric["stderr"] is None else f" ± {metric['stderr']:.4f}"
    score = f"{result['metric']} {metric['value']:.4f}{error}"
    return f"{how}  {record.key[:8]}  {result['task']:<20} {score}  ({len(result['items']['ids'])} items)"


def evaluate_runs(records: Sequence[Record], evaluator: Evaluator) -> list[str]:
    """Evaluates the runs; what is wrong with one is told and does not stop the others. Returns those lines."""
    wrong = []
    for record in records:
        try:
            evaluator.run(record)
        except UserError as error:
            wrong.append(str(error))
            evaluator.say(f"left   {error}")
    return wrong
