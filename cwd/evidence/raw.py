"""What a record's raw lines prove of its summary: the file metrics.jsonl is read anew, and what it says counts.

Proved: that the key is the hash of the configuration and the data, the final loss and every other value of the last
evaluation, the number of steps, of tokens or images, the seconds, and the scores of evaluations, from their items. Of
the toys of theory, where each path ends. Not in the metrics, and so taken from the summary: the number of parameters
(the same for all runs of one model), the hashes that pair two runs, and what the other checks of theory found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cwd.files import read_json
from cwd.runs import Record, read_metrics
from cwd.runs.evaluations import FOLDER as EVALUATIONS
from cwd.runs.evaluations import read_evaluation
from cwd.runs.record import digest

EXACT = 1e-9  # relative: decimals of one number, written and read again


def problems_of(record: Record) -> list[str]:
    """What does not hold of a record, in words; [] if all does."""
    about = record.description
    if not about:
        return ["config.json is not what the key is the hash of"]
    if about["key"] != record.key or not _within(about["identity"], about["config"]):
        return ["config.json: its key or its config is not what its identity says"]
    found = read_json(record.folder / "summary.json")
    if found is None and not (record.folder / "summary.json").exists():
        return list(_evaluations(record))
    summary, lines = record.summary, _lines(record)
    if summary is None:
        checksum = found.pop("checksum", None) if isinstance(found, dict) else None
        words = "is not a JSON object" if checksum is None else "does not match its checksum"
        return [f"summary.json {words}", *(_differences(record, found, lines) if isinstance(found, dict) else [])]
    if "theory" in about["identity"]:
        return list(_ends(summary, lines))
    return [*_differences(record, summary, lines), *_evaluations(record)]


def from_metrics(record: Record) -> dict[str, Any] | None:
    """The summary with every value that the metrics hold taken from them; None without a summary or an evaluation."""
    found = read_json(record.folder / "summary.json")
    if not isinstance(found, dict):
        return None
    summary = {name: value for name, value in found.items() if name != "checksum"}
    if "theory" in record.description.get("identity", {}):
        return summary
    evaluation = _last(_lines(record), "eval")
    return {**summary, **_values(evaluation), "steps": evaluation["step"]} if evaluation else None


def unequal_parameters(records: Sequence[Record]) -> list[str]:
    """The runs of one model and one data whose numbers of parameters differ, in words."""
    counts: dict[str, dict[int, str]] = {}
    for record in records:
        about, summary = record.description, record.summary
        if about and summary and "parameters" in summary:
            model = digest({"model": about["identity"]["model"], "data": about["data"]["fingerprint"]})
            counts.setdefault(model, {}).setdefault(summary["parameters"], record.key)
    return [
        "one model has several numbers of parameters: " + ", ".join(f"{n} in {key}" for n, key in found.items())
        for found in counts.values()
        if len(found) > 1
    ]


def seal_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes a summary with its checksum into a record's folder that is a copy of ours: quickly, not durably."""
    (folder / "summary.json").write_text(json.dumps({**summary, "checksum": digest(summary)}))


def _differences(record: Record, summary: dict[str, Any], lines: list[dict[str, Any]]) -> Iterator[str]:
    """Where the summary of a training run and its lines disagree."""
    evaluation, trained = _last(lines, "eval"), _last(lines, "train")
    if evaluation is None:
        yield "metrics.jsonl has no evaluation"
        return
    identity = record.description["identity"]
    expected: dict[str, Any] = {**_values(evaluation), "steps": evaluation["step"]}
    if trained is not None:
        expected["seconds"] = trained["seconds"]
    training = identity["training"]
    if "tokens" in summary and "seq_len" in training:
        expected["tokens"] = training["batch_size"] * training["seq_len"] * evaluation["step"]
    if "images" in summary:
        expected["images"] = training["batch_size"] * evaluation["step"]
    for name, value in expected.items():
        if not same(summary.get(name), value):
            yield f"summary.json: {name} is {summary.get(name)}, its metrics say {value}"
    if evaluation["step"] != training["steps"]:
        yield f"metrics.jsonl: the last evaluation is at step {evaluation['step']} of {training['steps']}"


def _evaluations(record: Record) -> Iterator[str]:
    """Where a score is not the mean over its items; of a group of tasks the harness may weigh them otherwise."""
    for path in sorted((record.folder / EVALUATIONS).glob("*/*.json")):
        name = f"{EVALUATIONS}/{path.parent.name}/{path.name}"
        found = read_evaluation(record, path.parent.name, path.stem)
        if found is None:
            yield f"{name} does not match its checksum"
            continue
        for metric, told in found["metrics"].items():
            items = found["items"].get(metric)
            if items and len(found["task_hashes"]) == 1 and not same(told["value"], fmean(items)):
                yield f"{name}: {metric} is {told['value']}, its items' mean is {fmean(items)}"


def _within(part: Any, whole: Any) -> bool:
    """Whether `whole` has every key of `part`, however nested, with the same value."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and _within(value, whole[name]) for name, value in part.items())
    return bool(part == whole)


def _ends(summary: dict[str, Any], lines: list[dict[str, Any]]) -> Iterator[str]:
    """Where a path of a toy does not end as the summary says."""
    last = {(one["decay"], one["lr"]): one["points"] for one in lines if one["kind"] == "trajectory"}
    for run in summary.get("runs", []) if last else []:
        where = run["decay"], run["lr"]
        if not same(run["ends"], last.get(where)):
            yield f"summary.json: the ends of {where[0]} at rate {where[1]:g} are not those of its metrics"


def same(one: Any, two: Any, tolerance: float = EXACT) -> bool:
    """Whether two plain values are equal, numbers to a relative `tolerance`."""
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(same(a, b, tolerance) for a, b in zip(one, two, strict=True))
    if isinstance(one, int | float) and isinstance(two, int | float) and not isinstance(one, bool):
        return math.isclose(one, two, rel_tol=tolerance, abs_tol=1e-12)
    return one == two


def _lines(record: Record) -> list[dict[str, Any]]:
    return read_metrics(record.metrics_file)


def _last(lines: Sequence[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((line for line in reversed(lines) if line["kind"] == kind), None)


def _values(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ("kind", "step")}
