"""Forecasts beside what happened: made from what was there before, never from the runs that are forecast."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cwd.errors import UserError
from cwd.evidence.render import to_markdown
from cwd.evidence.study import Study
from cwd.planning.against import Outcome, against_page, outcomes
from cwd.runs import Record
from tests.evidence_helpers import write_record

GAP = 2.0  # seconds between two runs of the worker


def worked(root: Path, seconds: float, records: list[Record], begin: float) -> float:
    """Has one worker have done these runs, one after another, and returns when it was done."""
    for record in records:
        started = {"started": _text(begin), "host": "there", "device": "cpu", "processes": 1}
        (record.folder / "environment.jsonl").write_text(json.dumps(started) + "\n")
        status = {"state": "done", "step": 330, "host": "there", "pid": 7, "updated": _text(begin + seconds + 1)}
        (record.folder / "status.json").write_text(json.dumps(status))
        begin += seconds + GAP
    return begin


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def sweep(root: Path, own_seconds: float) -> list[Outcome]:
    """Ten runs of other seeds, ten seconds each; an hour later, table7's."""
    points = Study("laptop", root).state("table7").points
    for seed in range(500, 505):
        for point in points:
            write_record(root, point, seed, {"loss": 1.0, "seconds": 10.0}, None)
    before = [record for record in records_of(root) if record.config["seed"] >= 500]
    end = worked(root, 10.0, before, 1.7e9)
    for seed in range(5):
        for point in points:
            write_record(root, point, seed, {"loss": 1.0, "seconds": own_seconds}, None)
    own = [record for record in records_of(root) if record.config["seed"] < 500]
    worked(root, own_seconds, own, end + 3600)
    return outcomes(["table7"], "laptop", root)


def records_of(root: Path) -> list[Record]:
    return [Record(folder) for folder in sorted(root.iterdir()) if (folder / "config.json").exists()]


def test_the_forecast_is_that_of_before_and_the_runs_themselves_take_no_part(tmp_path: Path) -> None:
    (one,) = sweep(tmp_path / "a", 11.0)
    (other,) = sweep(tmp_path / "b", 23.0)
    assert (one.artifact, one.size, one.runs, one.before) == ("table7", "338m", 20, 20)
    for found, seconds in ((one, 11.0), (other, 23.0)):
        assert found.forecast.seconds == pytest.approx(20 * (10 + GAP))
        assert found.took == pytest.approx(20 * (seconds + GAP))
        assert found.ratio == pytest.approx((10 + GAP) / (seconds + GAP))
        assert found.wall is not None
        assert found.wall == pytest.approx((20 * (10 + GAP), 19 * (seconds + GAP) + seconds + 1))
    text = to_markdown(against_page(["table7"], "laptop", tmp_path / "a"))
    assert "runs like them (20)" in text
    assert "| 0.92 |" in text


def test_records_without_a_status_count_too(tmp_path: Path) -> None:
    sweep(tmp_path, 11.0)
    for record in records_of(tmp_path):
        (record.folder / "status.json").unlink()
    (found,) = outcomes(["table7"], "laptop", tmp_path)
    assert found.forecast.seconds == pytest.approx(20 * (10 + 1.5))  # 1.5 s between two runs, assumed
    assert found.took == pytest.approx(20 * (11 + 1.5))


def test_without_runs_it_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"table7: no run of it under .* was done in one go on a core"):
        outcomes(["table7"], "laptop", tmp_path)
