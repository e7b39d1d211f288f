"""A few runs under random kills; ``python scripts/soak.py --runs 200`` is the whole of it. What checkpoints cost."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from cwd.benchmarks.soak import Findings, Options, compare, resumes_of, soak, was_trained_twice
from cwd.runs import read_metrics
from cwd.runs.costs import checkpoint_costs
from cwd.training import saving, trainer
from tests.training_helpers import train


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_under_random_kills_are_done_once_with_the_same_bits(tmp_path):
    findings = soak(Options(runs=6, every=3.0, folder=tmp_path), print)
    assert findings.signals.total() > 0
    assert findings.runs == 6
    assert findings.starts >= 6
    assert (findings.lost, findings.twice, findings.differ) == ([], [], [])


def test_the_soak_sees_what_it_looks_for(tmp_path):
    """A run that is trained again after its result, one that two trained at once, and one with other weights."""
    record = train(tmp_path).record
    assert not was_trained_twice(record)
    assert resumes_of(record) == []
    copies = {}
    for name in ("same", "again", "both", "other"):
        shutil.copytree(record.folder, tmp_path / name / record.key)
        copies[name] = type(record)(tmp_path / name / record.key)
    assert compare([record], {record.key: copies["same"]}) == []
    assert compare([record], {}) == [record.key]
    assert compare([], {record.key: record}) == [record.key]
    copies["again"].add_environment({})
    assert was_trained_twice(copies["again"])
    lines = record.metrics_file.read_text().splitlines()
    copies["both"].metrics_file.write_text("\n".join([*lines[:-2], *lines]) + "\n")
    assert was_trained_twice(copies["both"])
    weights = copies["other"].folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert compare([record], {record.key: copies["other"]}) == [record.key]


def test_the_figures_are_written_as_they_were_counted():
    findings = Findings(3)
    findings.signals["SIGKILL to a worker"] += 2
    assert json.loads(findings.as_json())["signals"] == {"SIGKILL to a worker": 2}


def test_what_checkpoints_cost_is_in_the_metrics(tmp_path, monkeypatch):
    sizes = []
    real = saving.write_checkpoint

    def save(root: Path, *rest):
        found = real(root, *rest)
        newest = max(root.glob("step-*"))
        sizes.append(sum(path.stat().st_size for path in newest.iterdir()))
        time.sleep(0.02)
        return found

    monkeypatch.setattr(saving, "write_checkpoint", save)
    record = train(tmp_path, "machine.checkpoint_seconds=0").record
    costs = checkpoint_costs(record)
    assert costs.written == len(sizes) == record.summary["steps"] - 1
    assert costs.size == sizes[-1]
    assert 0.02 * costs.written < costs.waited < record.summary["seconds"]
    assert costs.behind == 0
    assert "checkpoint" not in json.dumps(record.summary)  # which must not depend on how the run came to its end


def test_checkpoints_that_take_long_come_less_often(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        saving, "write_checkpoint", lambda root, step, *rest: time.sleep(0.2) or saved.append(step) or 7
    )
    record = train(tmp_path, "machine.checkpoint_seconds=0.001", "training.steps=40").record
    assert 1 <= len(saved) <= 1 + record.summary["seconds"] / (0.2 / trainer.SAVING)
    assert [line["checkpoint_bytes"] for line in read_metrics(record.metrics_file, "speed")][-1] == 7
