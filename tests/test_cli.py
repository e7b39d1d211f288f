"""The commands as a person meets them: quick help, one-line errors, exit status 2, nothing written by mistake."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cwd.cli import GROUPS
from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "accelerate", "datasets", "numpy", "scipy", "wandb")


def command(
    script: str, *arguments: str, folder: Path, code: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script of the repository in `folder`; or `code`, with the script as its first argument."""
    start = ["-c", code] if code else []
    clean = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, *start, str(ROOT / script), *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


MISTAKES = {
    "a value that is not allowed": (["optimizer.lr=-1"], ["optimizer.lr=-1", "finite numbers above 0"]),
    "a key that is not there": (["optimizer.lrr=1"], ["optimizer.lrr", "nearest: 'lr'"]),
    "an option that is not there": (["optimizer=lio"], ["optimizer=lio", "nearest: 'lion'"]),
    "several values": (["seed=0,1"], ["seed=0,1", "add -m"]),
    "no key": (["=3"], ["the key is missing"]),
    "code to call": (["+x={a:{_target_:os.system}}"], ["_target_ is not allowed"]),
}


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_status_2_and_writes_nothing(
    tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    places = [f"machine.runs={tmp_path}/runs", f"machine.data={tmp_path}/data"]
    done = command("train.py", *places, *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("train.py: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr
    assert tree(tmp_path) == []


def test_the_full_error_is_there_for_who_asks(tmp_path: Path) -> None:
    done = command("train.py", "optimizer=lio", folder=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def processor_seconds() -> float:
    """Of the processes that have ended: what runs beside them does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]], ids=" ".join)
def test_help_and_the_configuration_come_within_a_second(tmp_path: Path, arguments: list[str]) -> None:
    seconds = []
    for _ in range(3):
        start = processor_seconds()
        assert command("train.py", *arguments, folder=tmp_path).returncode == 0
        seconds.append(processor_seconds() - start)
    assert min(seconds) < 1
    assert tree(tmp_path) == []


LOADED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("LOADED", *sys.modules)
"""


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("train.py", ["--help"]),
        ("train.py", ["--cfg", "job"]),
        ("scripts/runs.py", []),
        ("scripts/report.py", ["demo"]),
    ],
)
def test_what_only_looks_loads_nothing_heavy(tmp_path: Path, script: str, arguments: list[str]) -> None:
    done = command(script, *arguments, folder=tmp_path, code=LOADED)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.rsplit("LOADED ", 1)[1].split()
    assert "hydra" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_help_names_every_group_and_the_sections_of_the_configuration(tmp_path: Path) -> None:
    out = command("train.py", "--help", folder=tmp_path).stdout
    for name in set(GROUPS) - {"hydra/launcher"}:  # Hydra lists its own under --hydra-help
        assert f"\n{name}: " in out
    for option in ("adamw, lion, muon, sgd", "simply_338m", "optimizer:", "weight_decay:", "python train.py -m"):
        assert option in out


@pytest.mark.parametrize("script", ["scripts/runs.py", "scripts/report.py", "scripts/artifact.py", "scripts/tune.py"])
def test_scripts_have_help(tmp_path: Path, script: str) -> None:
    done = command(script, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert f"python {script}" in done.stdout


SCRIPT_MISTAKES = [
    ("scripts/runs.py", ["optimizer"], "optimizer: a filter is written key=value"),
    ("scripts/runs.py", ["show", "abc"], "abc: no run begins with it"),
    ("scripts/runs.py", ["compare", "abc", "abd"], "abc: no run begins with it"),
    ("scripts/report.py", ["dem"], "dem: no such artifact (nearest: 'demo')"),
    ("scripts/report.py", ["demo", "--scale", "lapto"], "SCALE=lapto: no such scale (nearest: 'laptop')"),
    ("scripts/report.py", ["demo", "--seeds", "0"], "--seeds 0: must be at least 1"),
    ("scripts/artifact.py", ["table11"], "table11: no such artifact (nearest: 'table1"),
    ("scripts/artifact.py", ["demo", "--scale", "huge"], "SCALE=huge: no such scale"),
    ("scripts/tune.py", ["--scale", "smoke"], "SCALE=smoke: is not tuned"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "arguments", "part"), SCRIPT_MISTAKES)
def test_a_mistake_in_a_script_is_one_line(tmp_path: Path, script: str, arguments: list[str], part: str) -> None:
    done = command(script, *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{Path(script).name}: ")
    assert done.stderr.count("\n") == 1
    assert part in done.stderr


def test_without_runs_the_listing_says_so(tmp_path: Path) -> None:
    done = command("scripts/runs.py", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "no runs\n")


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    code = "import sys, subprocess as s; p = s.Popen([sys.executable, *sys.argv[1:]], stdout=s.PIPE); "
    code += "p.stdout.close(); p.wait()"
    for arguments in (["train.py", "--help"], ["scripts/report.py", "demo"]):
        assert command(*arguments, folder=tmp_path, code=code).stderr == ""
