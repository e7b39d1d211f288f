"""Sweeps of an artifact's runs at smoke scale, by scripts/artifact.py in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

WAIT = 600  # seconds: the machine may be busy


def command_of(name: str, folder: Path, *words: str) -> list[str]:
    """The command on an artifact, one seed, with everything below a folder."""
    places = [f"--{place}={folder / place}" for place in ("runs", "data", "out")]
    return [sys.executable, str(ROOT / "scripts" / "artifact.py"), name, "--scale=smoke", "--seeds=1", *places, *words]


def environment(**variables: str) -> dict[str, str]:
    """Of a process that imports this project."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def artifact(name: str, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    command = command_of(name, folder, *words)
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=WAIT)


def starts(folder: Path) -> dict[str, int]:
    """How often each run was started."""
    files = (folder / "runs").glob("*/environment.jsonl")
    return {path.parent.name: len(path.read_text().splitlines()) for path in files}
