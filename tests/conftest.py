"""What several test files share."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from cwd.config import NOT_IDENTITY, Config
from cwd.runs import Record
from cwd.sweeps import compose_config
from tests.browser_helpers import launched
from tests.data_helpers import TEXTS
from tests.report_helpers import Report, make_report

ROOT = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How train.py ended: its exit status, what it printed, and the configurations that it would have trained."""

    status: int
    out: str
    err: str
    configs: list[Config]


@pytest.fixture
def train_py(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ended]:
    """train.py with arguments, in this process, in an empty folder; it notes the configurations it would train."""
    asked: list[Config] = []
    trainer = ModuleType("cwd.training.run")

    def run(config: Config, *unused: Any, **options: Any) -> SimpleNamespace:
        asked.append(config)
        return SimpleNamespace(summary={"loss": 1.0})

    trainer.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cwd.training.run", trainer)
    monkeypatch.setattr(logging.root, "handlers", [])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: str) -> Ended:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        asked.clear()
        capsys.readouterr()
        status: Any = 0
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code
        return Ended(status, *capsys.readouterr(), list(asked))

    return call


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not survive a power cut: hundreds of records are written in a moment."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser."""
    yield from launched()


@pytest.fixture(scope="module")
def report_file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report page as a file."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report.html)
    return path


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report page of some small runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        return make_report(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def laptop() -> dict[str, Any]:
    """A configuration at laptop scale as plain nested data, the same whatever the tuned values come to be."""
    size = ["training.steps=600", "training.batch_size=16", "training.seq_len=128", "model=simply_60k"]
    return dataclasses.asdict(compose_config(["tracker=none", "optimizer.lr=3e-3", "decay.weight_decay=0.5", *size]))


@pytest.fixture
def write_run(laptop: dict[str, Any], tmp_path: Path) -> Callable[..., Record]:
    """Writes the record of a run that nobody trained, under tmp_path/runs.

    Its arguments are values of the configuration ("decay.mode": "cautious"), the data's fingerprint, and the loss of a
    run that is done; without one it has not begun.
    """

    def write(values: dict[str, Any], loss: float | None = None, data: str = "a", pairing: str = "") -> Record:
        config = changed(laptop, values)
        record = Record.create(tmp_path / "runs", identity_of(config), {"fingerprint": data}, config)
        if loss is not None:
            summary = {"loss": loss, "accuracy": 0.25, "seconds": 1.0, "steps": 600}
            record.finish({**summary, "pairing": {"weights": f"{pairing}{config['seed']}", "batches": "b"}}, 600)
        return record

    return write


def changed(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested data with other values at dotted keys."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        *parents, name = key.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        section[name] = value
    return config


def identity_of(config: dict[str, Any]) -> dict[str, Any]:
    """What cwd.config.identity gives, of plain data."""
    return {name: value for name, value in config.items() if name not in NOT_IDENTITY}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one .jsonl file of 40 documents."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first: autograd refuses to run in a child of a process in which it has run."""
    items.sort(key=lambda item: item.path.name != "test_resume.py")
