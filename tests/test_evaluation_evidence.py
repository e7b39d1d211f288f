"""Evaluations as evidence: Table 4 from records alone, what it still asks for, and what it refuses to compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cwd.config import identity_of
from cwd.errors import UserError
from cwd.evidence.export import export_records
from cwd.evidence.grid import Cell
from cwd.evidence.render import to_markdown
from cwd.evidence.report import document
from cwd.evidence.study import State, Study
from cwd.runs import Record
from cwd.runs.evaluations import evaluation_file, write_evaluation
from tests.evidence_helpers import noise, paired_losses, write_record, write_state

TASKS = ("local_continuation", "local_identifier", "local_order")

pytestmark = pytest.mark.usefixtures("fast_disk")


def result(task: str, score: float, **more: Any) -> dict[str, Any]:
    """A task's result of 1,000 items, the first of which are right."""
    right = round(1000 * score)
    items = {"ids": [f"{task}/{i}" for i in range(1000)], "acc": [1.0] * right + [0.0] * (1000 - right)}
    about = {"task_hashes": {task: "h"}, "task_versions": {task: 1.0}, "harness": "0.4.13", "num_fewshot": 0}
    return {
        "metric": "acc",
        "metrics": {"acc": {"value": right / 1000, "stderr": 0.01}},
        "items": items,
        **about,
        **more,
    }


def score(where: Mapping[str, Any], seed: int, task: str, effect: float) -> float:
    shift = effect if where["arm"] == "cautious" else 0.0
    return 0.5 + 0.05 * noise(seed, task) + shift + 0.004 * noise(seed, task, where["arm"], where["optimizer"])


def evaluated(study: Study, effect: float) -> State:
    """Table 4 with records, each of them evaluated."""
    for point in write_state(study, "table4", paired_losses(0.0)).points:
        for seed, cell in point.cells.items():
            for task in TASKS:
                assert cell.record is not None
                write_evaluation(cell.record, "local", task, result(task, score(point.coordinates, seed, task, effect)))
    return Study("laptop", study.folder.root, study.seeds).state("table4")


def mean_of_items(cell: Cell) -> float:
    """The mean over the tasks, from the files."""
    assert cell.record is not None
    files = [cell.record.folder / "evaluations" / "local" / f"{task}.json" for task in TASKS]
    return float(np.mean([np.mean(json.loads(file.read_text())["items"]["acc"]) for file in files]))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("laptop", tmp_path / "runs", 5)


def test_without_runs_it_asks_for_runs_and_with_runs_for_their_evaluation(study: Study) -> None:
    state = study.state("table4")
    assert (len(state.missing), state.unevaluated, state.needs) == (20, [], [])
    state = write_state(study, "table4", paired_losses(0.0))
    assert state.missing == []
    assert sorted(state.unevaluated) == sorted(
        cell.record.key for p in state.points for cell in p.cells.values() if cell.record
    )
    assert {one.verdict for one in state.findings} == {"incomplete"}
    assert any("20 not evaluated" in mark for mark in document(state).marks)
    state = evaluated(study, 0.0)
    assert (state.missing, state.unevaluated, document(state).marks) == ([], [], ())
    cell = state.points[0].cells[3]
    assert cell.record is not None
    evaluation_file(cell.record, "local", "local_order").unlink()
    assert Study("laptop", study.folder.root, 5).state("table4").unevaluated == [cell.record.key]


def test_the_paired_difference_of_the_mean_accuracy_is_scipys(study: Study) -> None:
    state = evaluated(study, 0.03)
    for finding in state.findings:
        optimizer = finding.coordinates["optimizer"]
        arms = [point for point in state.points if point.coordinates["optimizer"] == optimizer]
        means = {point.coordinates["arm"]: [mean_of_items(cell) for cell in point.cells.values()] for point in arms}
        test = stats.ttest_rel(means["cautious"], means["decoupled"])
        interval = test.confidence_interval()
        assert finding.estimate is not None
        assert [finding.estimate.mean, finding.estimate.low, finding.estimate.high] == pytest.approx(
            [np.mean(means["cautious"]) - np.mean(means["decoupled"]), interval.low, interval.high]
        )
        assert finding.verdict == "supported"
        assert finding.published == pytest.approx({"adamw": 13, "muon": 12}[optimizer] / 600)


def test_the_other_way_round_the_claim_is_contradicted_and_the_table_shows_both_kinds_of_pairs(study: Study) -> None:
    state = evaluated(study, -0.03)
    assert {one.verdict for one in state.findings} == {"contradicted"}
    text = to_markdown(document(state))
    for words in ("local_continuation", "Two models on the same items", "Suite local", "only a right"):
        assert words in text
    rows = [line for line in text.splitlines() if line.startswith("| downstream_accuracy") and "3,000" in line]
    assert len(rows) == 10


@pytest.mark.parametrize("name", ["task_hashes", "harness", "num_fewshot"])
def test_evaluations_of_other_questions_are_no_pair(study: Study, name: str) -> None:
    state = evaluated(study, 0.0)
    record = state.points[0].cells[0].record
    assert record is not None
    write_evaluation(record, "local", "local_order", result("local_order", 0.5, **{name: "other"}))
    with pytest.raises(UserError, match=f"local:local_order: not a pair, their {name} differ"):
        Study("laptop", study.folder.root, 5).state("table4")


def test_exported_records_give_the_same_table(study: Study, tmp_path: Path) -> None:
    state = evaluated(study, 0.01)
    export_records([state], tmp_path / "export")
    again = Study("laptop", tmp_path / "export", 5).state("table4")
    assert document(again) == document(state)


def test_at_the_papers_scale_it_is_the_papers_suite_with_its_numbers(tmp_path: Path) -> None:
    state = Study("paper", tmp_path, 1).state("table4")
    assert state.suite is not None
    assert state.artifact.layout.metrics[0] == "table4:hellaswag"
    assert "0.67" in to_markdown(document(state))


def test_table_5_goes_on_from_runs_of_its_own(study: Study) -> None:
    state = study.state("table5")
    assert [(config["model"]["family"], config["seed"]) for config, _ in state.missing] == [("simply", 0)] * 2
    assert state.needs == ["the run that they go on from"]
    for point in state.bases:
        write_record(study.folder.root, point, 0, {"loss": 2.0}, None)
    state = Study("laptop", study.folder.root, 5).state("table5")
    assert (len(state.missing), state.needs) == (40, [])
    sources = {(config["model"]["family"], config["model"]["source"]) for config, _ in state.missing}
    assert sources == {("pretrained", cell.record.key) for p in state.bases for cell in p.cells.values() if cell.record}
    weights = {(config["decay"]["mode"], config["decay"]["weight_decay"]) for config, _ in state.missing}
    assert weights == {("none", 0), ("spd", 1), ("inner_product", 0.15), ("cautious", 0.15)}


def test_fine_tunings_from_two_models_do_not_leave_each_other_out(study: Study) -> None:
    """Their data differs, as the model is a part of it."""
    for point in study.state("table5").bases:
        write_record(study.folder.root, point, 0, {"loss": 2.0}, None)
    for point in Study("laptop", study.folder.root, 5).state("table5").points:
        for seed in point.seeds:
            config = point.on(seed)
            data = {"fingerprint": point.coordinates["size"]}
            record = Record.create(study.folder.root, identity_of(config), data, config)
            pairing = {"weights": point.coordinates["size"], "batches": f"{seed}"}
            record.finish({"loss": 1.0, "pairing": pairing, "steps": 1, "seconds": 1.0, "parameters": 10}, 1)
            for task in TASKS:
                gain = 0.05 * (point.coordinates["arm"] == "cautious")
                write_evaluation(record, "local", task, result(task, 0.5 + gain + 0.002 * noise(seed, task)))
    state = Study("laptop", study.folder.root, 5).state("table5")
    assert (state.missing, state.unevaluated, state.unfinished) == ([], [], [])
    assert all(len(one.values) == 5 and one.estimate is not None for one in state.findings)
    assert all(abs(one.estimate.mean - 5) < 1e-6 for one in state.findings if one.estimate)  # in percent
