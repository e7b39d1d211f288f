"""The checks as runs: identity, record, what is returned and what starts again, the command, the summary's layout."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cwd import theory
from cwd.errors import UserError
from cwd.evidence.grid import find_cells
from cwd.evidence.listing import print_run, print_runs
from cwd.lock import Busy
from cwd.runs import Record, all_records, read_metrics, record, run_key
from cwd.theory import CHECKS, checks, run_check
from cwd.theory.checks import NO_DATA, check_identity
from tests.conftest import ROOT

ROW = {"objectives": ["circle"], "starts": 1, "end": 1.0, "points": 21}
TOY = {"steps": 20, "kept": 5}
SMALL: dict[str, dict[str, Any]] = {
    **{name: ROW for name in CHECKS if name.startswith("table1")},
    "figure2": TOY,
    "figure3": TOY,
    "theorem1": {"sweeps": [{"eps": 0.1, "horizons": [5, 10]}], "seeds": 2, "lemma_steps": 5},
    "appendix_c": {"objectives": ["logistic"], "steps": [10]},
}


@pytest.fixture
def figure(tmp_path: Path) -> Callable[..., Record]:
    """Runs a small figure2 under tmp_path/runs."""
    return lambda **changes: run_check("figure2", tmp_path / "runs", settings={**TOY, **changes})


# Identity


def test_every_check_has_its_own_identity_apart_from_trainings() -> None:
    identities = {name: check_identity(name) for name in CHECKS}
    assert len({run_key(identity, NO_DATA["fingerprint"]) for identity in identities.values()}) == len(CHECKS)
    for name, identity in identities.items():
        assert list(identity) == ["theory"]
        assert identity["theory"]["check"] == name
        assert json.loads(json.dumps(identity)) == identity


def test_any_setting_and_the_format_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[dict[str, Any]] = [{}, {"steps": 1}, {"weight_decay": 0.4}, {"betas": [0.9, 0.95]}]
    keys = {run_key(check_identity("figure2", change), "none") for change in changes}
    monkeypatch.setattr(checks, "FORMAT", checks.FORMAT + 1)
    keys.add(run_key(check_identity("figure2"), "none"))
    assert len(keys) == len(changes) + 1


def test_an_unknown_name_or_setting_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^table1_adm: no such check \(nearest: 'table1_adam'\); allowed are table1_sgd"
    ):
        run_check("table1_adm", tmp_path)
    with pytest.raises(UserError, match=r"^figure2: no such setting step \(nearest: 'steps'\); allowed are toy"):
        run_check("figure2", tmp_path, settings={"step": 3})
    assert list(tmp_path.iterdir()) == []


# Records


def test_a_check_leaves_a_whole_record(figure: Callable[..., Record]) -> None:
    done = figure()
    assert done.status["state"] == "done"
    assert done.summary is not None
    assert done.summary["check"] == "figure2"
    assert done.summary["seconds"] > 0
    assert done.config == check_identity("figure2", TOY)
    assert done.key == run_key(check_identity("figure2", TOY), NO_DATA["fingerprint"])
    assert len(read_metrics(done.metrics_file, "trajectory")) == 5 * 5
    environment = json.loads((done.folder / "environment.jsonl").read_text())
    assert {"python", "packages", "commit", "cpu"} <= set(environment)


def test_a_done_check_is_returned_and_not_computed_again(
    figure: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = figure()
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    monkeypatch.setattr(checks.Check, "perform", lambda *unused: pytest.fail("computed again"))
    again = figure()
    assert (again.key, again.summary) == (first.key, first.summary)
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


def test_the_same_settings_give_the_same_numbers(tmp_path: Path) -> None:
    one, other = (run_check("table1_sgdm", tmp_path / name, settings=ROW) for name in ("a", "b"))
    assert one.metrics_file.read_text() == other.metrics_file.read_text()
    summaries = [{**(one.summary or {}), "seconds": 0}, {**(other.summary or {}), "seconds": 0}]
    assert summaries[0] == summaries[1]


def test_a_failure_is_kept_with_its_reason_and_can_be_tried_again(
    figure: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*unused: Any) -> dict[str, Any]:
        raise ArithmeticError("the integrator gave up")

    with monkeypatch.context() as patched:
        patched.setattr(checks.Check, "perform", fail)
        with pytest.raises(ArithmeticError):
            figure()
    (failed,) = all_records(tmp_path / "runs")
    assert failed.status["state"] == "failed"
    assert "the integrator gave up" in failed.status["message"]
    assert figure().status["state"] == "done"


def test_a_number_that_is_not_finite_is_a_failure(
    figure: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks.Check, "perform", lambda *unused: {"slope": float("nan")})
    with pytest.raises(ValueError):
        figure()
    (failed,) = all_records(tmp_path / "runs")
    assert failed.status["state"] == "failed"
    assert failed.summary is None


def test_two_processes_do_not_work_on_one_check(
    figure: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = check_identity("figure2", TOY)
    busy = Record.create(tmp_path / "runs", identity, NO_DATA, identity)
    monkeypatch.setattr(record, "PATIENCE", 0.05)
    with busy.lock(), pytest.raises(Busy):
        figure()


def test_a_killed_check_starts_again_and_ends_as_one_left_alone(tmp_path: Path) -> None:
    changes = {"steps": 2000, "kept": 401, "runs": [["cautious", 0.01]]}
    code = f"from cwd.theory import run_check; run_check('figure2', {str(tmp_path / 'a')!r}, settings={changes!r})"
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(lambda: len(list((tmp_path / "a").glob("*/metrics.jsonl"))) == 1, child)
    (killed,) = all_records(tmp_path / "a")
    wait_for(lambda: len(read_metrics(killed.metrics_file)) > 5, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert killed.status["state"] == "interrupted"
    assert killed.summary is None
    again = run_check("figure2", tmp_path / "a", settings=changes)
    alone = run_check("figure2", tmp_path / "b", settings=changes)
    assert again.key == killed.key == alone.key
    assert again.summary is not None
    assert alone.summary is not None
    assert {**again.summary, "seconds": 0} == {**alone.summary, "seconds": 0}
    assert again.metrics_file.read_text() == alone.metrics_file.read_text()
    assert len((again.folder / "environment.jsonl").read_text().splitlines()) == 2


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)


def test_records_of_checks_do_not_disturb_tables_and_listings(figure: Callable[..., Record], tmp_path: Path) -> None:
    done = figure()
    (cell,) = find_cells([{"seed": 0}], tmp_path / "runs")
    assert cell.state == "missing"
    console = Console(record=True, width=200)
    print_runs([done], console)
    print_run(done, console)
    assert done.key in console.export_text()


# The summary


@pytest.mark.parametrize("name", list(CHECKS))
def test_every_name_in_a_summary_is_in_its_documentation(name: str, tmp_path: Path) -> None:
    done = run_check(name, tmp_path, settings=SMALL[name])
    assert done.summary is not None
    words = set(re.findall(r"\w+", checks.__doc__ or ""))
    names = {"circle", "parabola", "logistic", "sgd", "lion", "adamw", "muon", "muon_default"}
    assert set(keys(done.summary)) - words - names == set()
    assert not [value for value in leaves(done.summary) if isinstance(value, bool)]  # numbers, and no verdicts
    kinds = {line["kind"] for line in read_metrics(done.metrics_file)}
    assert kinds
    assert all(f'"{kind}"' in (checks.__doc__ or "") for kind in kinds)


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from keys(one)


def leaves(value: Any) -> Iterator[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inside is None:
        yield value
    else:
        for one in inside:
            yield from leaves(one)


# The command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """scripts/theory.py with arguments, in this process, with the small sizes: (exit status, stdout, stderr)."""

    def small(name: str, root: Path, say: Callable[[str], None]) -> Record:
        return run_check(name, root, say, SMALL[name])

    monkeypatch.setattr(theory, "run_check", small)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["theory.py", *arguments])
        status: Any = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / "theory.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        out = capsys.readouterr()
        return status, out.out, out.err

    return call


def test_the_command_runs_what_is_named_and_then_finds_it(command: Callable[..., Any], tmp_path: Path) -> None:
    status, out, _ = command("--runs", str(tmp_path), "figure3", "appendix_c")
    assert status == 0
    assert {one.config["theory"]["check"] for one in all_records(tmp_path)} == {"figure3", "appendix_c"}
    assert re.search(r"^  AdamW +lr 0.01 +to_corner", out, re.M)  # progress
    assert len(re.findall(r"^done   ", out, re.M)) == 2
    assert all(str(one.folder) in out for one in all_records(tmp_path))
    assert len(re.findall(r"^found  ", command("--runs", str(tmp_path), "figure3")[1], re.M)) == 1


def test_the_command_refuses_an_unknown_name_before_it_runs_any(command: Callable[..., Any], tmp_path: Path) -> None:
    status, out, err = command("--runs", str(tmp_path), "figure2", "theorem2")
    assert (status, out) == (2, "")
    assert re.match(r"theory.py: theorem2: no such check \(nearest: 'theorem1'\); allowed are .*\n$", err)
    assert list(tmp_path.iterdir()) == []


def test_the_commands_help_lists_every_check(command: Callable[..., Any]) -> None:
    status, out, _ = command("--help")
    assert status == 0
    assert all(re.search(rf"^  {name} +{re.escape(about)}$", out, re.M) for name, about in CHECKS.items())


def test_importing_the_theory_imports_nothing_heavy() -> None:
    code = "import sys, cwd.theory; print(sorted({'numpy', 'scipy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
