"""What a finished run's model scored on tasks: a file for each, ``runs/<key>/evaluations/<suite>/<task>.json``.

suite, task, num_fewshot          what was asked
harness, task_hashes, task_versions    by what: the version of lm-evaluation-harness, and its tasks behind this one
weights                           SHA-256 of the weights that were evaluated
metrics                           name -> {value, stderr}, as the harness gives them
items                             ids, and for each metric the score of every item, in one order
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cwd.files import read_json, write_json
from cwd.runs.record import Record, digest

FOLDER = "evaluations"


def evaluation_file(record: Record, suite: str, task: str) -> Path:
    """Where a task's result is."""
    return record.folder / FOLDER / suite / f"{task}.json"


def write_evaluation(record: Record, suite: str, task: str, content: dict[str, Any]) -> Path:
    """Writes a task's result, atomically, with a checksum. For the process that holds the run's lock."""
    path = evaluation_file(record, suite, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**content, "checksum": digest(content)})
    return path


def read_evaluation(record: Record, suite: str, task: str) -> dict[str, Any] | None:
    """A task's result; None if there is none, or it does not match its checksum."""
    found = read_json(evaluation_file(record, suite, task))
    if not isinstance(found, dict):
        return None
    checksum = found.pop("checksum", None)
    return found if checksum == digest(found) else None
