"""Theory's checks as evidence: what a claim reads from a summary, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cwd.evidence import study as study_module
from cwd.evidence.artifact_files import Artifact, load_artifact
from cwd.evidence.render import to_markdown
from cwd.evidence.report import document
from cwd.evidence.study import Study
from cwd.evidence.theory import select
from cwd.reading import build
from cwd.runs import MetricsLog, Record

SUMMARY = {
    "worst": {"rise": 1e-9},
    "flag": True,
    "runs": [
        {"decay": "none", "lr": 0.01, "worst": {"far": 0.5}, "ends": [1.0, 2.0]},
        {"decay": "cautious", "lr": 0.01, "worst": {"far": 0.25}},
        {"decay": "cautious", "lr": 0.003, "worst": {"far": 0.125}},
    ],
    "sweeps": [
        {"slopes": [{"batch": 0, "high": -0.6}, {"batch": 1, "high": 0.3}]},
        {"slopes": [{"batch": 0, "high": -0.5}]},
    ],
}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("worst.rise", [1e-9]),
        ("flag", [1.0]),
        ("runs[decay=cautious].worst.far", [0.25, 0.125]),
        ("runs[lr=0.003].worst.far", [0.125]),
        ("runs.*.worst.far", [0.5, 0.25, 0.125]),
        ("runs[decay=none].ends", [1.0, 2.0]),
        ("sweeps.*.slopes[batch=0].high", [-0.6, -0.5]),
        ("absent.rise", []),
        ("worst", []),
        ("worst|flag|absent.rise", [1e-9]),
        ("runs[decay=lion].worst.far", []),
    ],
)
def test_a_path_finds_every_number_that_it_names(path: str, values: list[float]) -> None:
    assert list(select(SUMMARY, path)) == values


def write(root: Path, name: str, summary: dict[str, Any], settings: int = 0) -> Record:
    identity = {"theory": {"format": 1, "check": name, "settings": {"steps": settings}}}
    record = Record.create(root, identity, {"fingerprint": "none"}, identity)
    record.finish({"check": name, **summary}, 0)
    return record


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The finding of one claim on the check "falls", and its document."""

    def judge(**claim: Any) -> Any:
        full = {"id": "c", "says": "it falls", "means": "m", "test": "check", "check": "falls", **claim}
        data = {"name": "t", "kind": "theory", "checks": ["falls"], "claims": [full]}
        artifact = build(Artifact, data, "t")
        monkeypatch.setattr(study_module, "load_artifact", lambda name: artifact)
        state = Study("laptop", tmp_path).state("t")
        return state.findings[0], to_markdown(document(state))

    return judge


@pytest.mark.parametrize(
    ("claim", "measured", "verdict"),
    [
        ({"field": "worst.rise", "expect": "below", "bound": [1e-8]}, 1e-9, "supported"),
        ({"field": "worst.rise", "expect": "below", "bound": [1e-10]}, 1e-9, "contradicted"),
        ({"field": "worst.rise", "expect": "above", "bound": [1e-10]}, 1e-9, "supported"),
        ({"field": "runs.*.worst.far", "expect": "below", "bound": [0.4]}, 0.5, "contradicted"),
        ({"field": "runs.*.worst.far", "expect": "above", "bound": [0.1]}, 0.125, "supported"),
        ({"field": "runs.*.worst.far", "expect": "within", "bound": [0.2, 0.6]}, 0.125, "contradicted"),
        ({"field": "runs[decay=cautious].worst.far", "expect": "within", "bound": [0.1, 0.3]}, 0.125, "supported"),
    ],
)
def test_the_least_favourable_value_decides(
    judged: Any, tmp_path: Path, claim: dict[str, Any], measured: float, verdict: str
) -> None:
    record = write(tmp_path, "falls", SUMMARY)
    finding, text = judged(**claim)
    assert (finding.measured, finding.verdict, finding.runs) == (measured, verdict, {0: (record.key,)})
    assert f"| c | falls | {measured:.4g} | {claim['expect']} " in text
    assert verdict in text
    assert "INCOMPLETE" not in text


def test_without_a_record_or_the_field_there_is_no_verdict(judged: Any, tmp_path: Path) -> None:
    finding, text = judged(field="worst.rise", expect="below")
    assert (finding.verdict, finding.measured) == ("incomplete", None)
    assert "INCOMPLETE: of 1 runs, 1 missing" in text
    write(tmp_path, "falls", SUMMARY)
    finding, text = judged(field="worst.fall", expect="below")
    assert finding.verdict == "incomplete"
    assert "the record of falls has no worst.fall" in text


def test_of_two_records_the_newer_counts(judged: Any, tmp_path: Path) -> None:
    import os

    old = write(tmp_path, "falls", {"worst": {"rise": 9.0}}, settings=1)
    os.utime(old.folder / "summary.json", (1, 1))
    write(tmp_path, "falls", {"worst": {"rise": 0.0}}, settings=2)
    assert judged(field="worst.rise", expect="below", bound=[1])[0].measured == 0.0


def test_a_claim_about_several_checks_has_a_finding_for_each(tmp_path: Path) -> None:
    checks = load_artifact("table1").checks
    for i, name in enumerate(checks):
        worst = {"rise_over_tolerance": 0.1 * i, "tolerance_over_drop": 1e-6, "least_control_rise_over_tolerance": 50.0}
        write(tmp_path, name, {"worst": worst, "mask_reads_direction": {"quadratic": [{"layer": 0.001, "rise": 0.0}]}})
    state = Study("laptop", tmp_path).state("table1")
    monotone = [one for one in state.findings if one.claim.id == "lyapunov_monotone"]
    assert [one.coordinates["check"] for one in monotone] == list(checks)
    assert {one.verdict for one in state.findings} == {"supported"}
    assert state.unfinished == []


def test_the_figure_of_a_toy_has_a_panel_for_each_decay_and_a_line_for_each_start(tmp_path: Path) -> None:
    record = write(tmp_path, "figure3", {"runs": []})
    log = MetricsLog(record.metrics_file)
    for step in range(4):
        log.write("trajectory", step, decay="none", lr=0.01, points=[[5.0, 6.0 - step], [1.0, 1.0 + step]])
        log.write("trajectory", step, decay="cautious", lr=0.01, points=[[5.0 - step, 6.0], [1.0, 1.0]])
    log.close()
    one = document(Study("laptop", tmp_path).state("figure3"))
    (figure,) = one.figures
    assert [panel.title for panel in figure.panels] == ["Adam, rate 0.01", "Adam + CWD, rate 0.01"]
    first, second = figure.panels[0].series
    assert (first.label, first.x, first.y) == ("from (5, 6)", (5, 5, 5, 5), (6, 5, 4, 3))
    assert (second.label, second.y) == ("from (1, 1)", (1, 2, 3, 4))
    assert "| from (5, 6) | 2.0000 | 6.0000 |" in to_markdown(one)


def test_smoke_is_no_matter_to_theory(tmp_path: Path) -> None:
    write(tmp_path, "theorem1", {"largest_over_bound": 0.5})
    state = Study("smoke", tmp_path).state("theorem1")
    assert state.findings[0].verdict == "supported"
    assert "| largest_over_bound | 0.5 |" in to_markdown(document(state))
    assert document(state).data["evidence"] is True
