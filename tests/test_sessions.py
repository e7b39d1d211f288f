"""A sweep that is left to itself on this machine, and runs that fail before they have a record, with real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.sweep_helpers import WAIT, artifact, command_of, environment, starts

TWO = "figure7"  # an artifact of two runs
pytestmark = pytest.mark.timeout(2 * WAIT)


def test_a_sweep_outlives_the_shell_that_started_it_and_any_other_can_ask(tmp_path):
    line = subprocess.list2cmdline(command_of(TWO, tmp_path, "--detach"))
    shell = subprocess.Popen(
        ["bash", "-c", f"{line}; sleep 1000"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert shell.stdout is not None
    first = shell.stdout.readline()
    session = int(re.findall(r"process (\d+) works on it", first)[0])
    os.killpg(shell.pid, signal.SIGHUP)  # the terminal is closed, and what hangs on it dies
    os.killpg(shell.pid, signal.SIGKILL)
    shell.communicate()
    try:
        assert f"process {session}" in artifact(TWO, tmp_path, "--detach").stdout  # no second one
        text = until_no_session(tmp_path)
    finally:
        end(session)
    assert text.startswith("2 runs: 2 done")
    assert list((tmp_path / "out" / "smoke").iterdir())  # it renders too
    assert list(starts(tmp_path).values()) == [1, 1]


def until_no_session(folder: Path) -> str:
    """What status says when nobody works on the runs any more."""
    late = time.monotonic() + WAIT
    while "session: process" in (text := artifact(TWO, folder, "--status").stdout):
        assert time.monotonic() < late, text
    return text


def end(session: int) -> None:
    cmdline = Path(f"/proc/{session}/cmdline")
    if cmdline.exists() and b"artifact.py" in cmdline.read_bytes():
        os.kill(session, signal.SIGTERM)


def test_runs_whose_data_is_missing_are_failed_and_done_once_it_is_there_and_retry_is_asked(tmp_path):
    (tmp_path / "data").symlink_to(tmp_path / "disk")  # which is not mounted
    broken = artifact(TWO, tmp_path, "--launcher=basic")
    assert broken.returncode == 1
    assert broken.stderr.count("failed: ") == 2
    assert "make retry ARTIFACT=figure7 runs again what failed" in broken.stderr
    text = artifact(TWO, tmp_path, "--status").stdout
    assert text.startswith("2 runs: 2 failed")
    where = rf"failed .* the data folder {tmp_path}/data cannot be made: .*  ({tmp_path}/runs/\.failed/run_\w+\.json)"
    [first, second] = re.findall(where, text)
    assert first != second
    about = json.loads(Path(first).read_text())
    assert "Traceback" in about["traceback"]
    assert "prepare.py" in about["traceback"]
    again = artifact(TWO, tmp_path, "--launcher=basic")  # passes them over
    assert again.returncode == 1
    assert json.loads(Path(first).read_text()) == about
    (tmp_path / "disk").mkdir()
    assert artifact(TWO, tmp_path, "--launcher=basic", "--retry").returncode == 0
    assert artifact(TWO, tmp_path, "--status").stdout.startswith("2 runs: 2 done")
    assert not list((tmp_path / "runs" / ".failed").iterdir())
