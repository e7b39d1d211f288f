"""Thousands of recorded runs are read and tabulated in seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cwd.evidence.report import document
from cwd.evidence.study import Study
from tests.evidence_helpers import paired_losses, write_state

SECONDS = 3.0
MACHINE = 3.0  # how much slower a busy machine may be


@pytest.mark.slow
@pytest.mark.usefixtures("fast_disk")
def test_ten_thousand_runs_are_tabulated_in_three_seconds(tmp_path: Path) -> None:
    """Of processor time, so that what else runs on the machine does not count."""
    study = Study("laptop", tmp_path / "runs", 1667)
    write_state(study, "demo", paired_losses(-0.002))
    start, wall = time.process_time(), time.monotonic()
    state = Study("laptop", tmp_path / "runs", 1667).state("demo")
    text = document(state)
    used, waited = time.process_time() - start, time.monotonic() - wall
    print(f"{used:.2f} s of processor time, {waited:.2f} s")
    assert sum(len(cells.cells) for cells in state.points) == 10_002
    assert text.marks == ()
    assert {one.verdict for one in state.findings} == {"supported"}
    assert used < SECONDS
    assert waited < SECONDS * MACHINE
