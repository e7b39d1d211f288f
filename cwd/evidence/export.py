"""The records behind artifacts, small enough to be committed: what every table, figure and verdict is computed from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cwd.evidence.study import State
from cwd.files import write_atomically
from cwd.runs import Record, read_metrics
from cwd.runs.evaluations import FOLDER as EVALUATIONS

WHOLE = ("config.json", "summary.json", "environment.jsonl")


def export_records(states: Sequence[State], folder: Path) -> list[str]:
    """Copies the record of every finished run of the artifacts into `folder`, and returns their keys.

    Weights and checkpoints are left out, and of the metrics what no artifact reads: telemetry of single tensors, unless
    a metric of an artifact names tensors of that run. Another study over `folder` gives the same documents.
    """
    wanted: dict[str, tuple[Record, bool]] = {}
    for state in states:
        metrics = (*state.artifact.layout.metrics, *(claim.metric for claim in state.artifact.claims))
        tensors = any(":" in metric for metric in metrics)
        points = (*state.bases, *state.points, *state.tuning)  # a choice of lambda is made from the tuning's runs
        cells = [cell for point in points for cell in point.cells.values()]
        records = [cell.record for cell in cells if cell.record and cell.state in ("done", "diverged")]
        for record in (*records, *(check.record for check in state.checks if check.record)):
            before = wanted.get(record.key, (record, False))[1]
            wanted[record.key] = record, before or tensors
    for record, tensors in wanted.values():
        _copy(record, folder / record.key, tensors)
    return sorted(wanted)


def _copy(record: Record, target: Path, tensors: bool) -> None:
    target.mkdir(parents=True, exist_ok=True)
    names = WHOLE if record.summary else (*WHOLE, "status.json")  # a run that diverged has no more than its status
    for name in names:
        if (record.folder / name).exists():
            write_atomically(target / name, (record.folder / name).read_bytes())
    for path in (record.folder / EVALUATIONS).glob("*/*.json"):
        (target / EVALUATIONS / path.parent.name).mkdir(parents=True, exist_ok=True)
        write_atomically(target / EVALUATIONS / path.parent.name / path.name, path.read_bytes())
    lines = read_metrics(record.metrics_file)
    if not tensors:
        lines = [{name: value for name, value in line.items() if name != "tensors"} for line in lines]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(target / "metrics.jsonl", text.encode())
