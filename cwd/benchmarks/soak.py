"""A soak: a sweep whose processes are killed at random until every run is done, against one that is left alone.

Two or more submissions of the same runs work at once, each a ``train.py --multirun`` with workers of its own. SIGKILL
and SIGTERM come to drivers and workers at random moments; a submission that has ended is started again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import psutil

from cwd.files import sha256_of
from cwd.runs import Record, all_records, read_metrics
from cwd.sweeps import CONFIGS, compose_config, write_cells

TRAIN = CONFIGS.parent / "train.py"
ARMS = list(product(("adamw", "lion", "muon", "sgd"), ("cautious", "decoupled", "random")))
SIZE = ["scale=smoke", "tracker=none", "training.steps=80", "evaluation.every=40"]
POLL = 0.1  # seconds
KILLED = 0.6  # of the signals that are SIGKILL; the others are SIGTERM
DRIVERS = 0.2  # of the signals that go to a driver; the others go to a worker
STUCK = 900.0  # seconds without any progress after which the runs that are not done count as lost


@dataclass
class Options:
    """What is run where. ``every``: the mean of the seconds between progress and the next signal."""

    runs: int = 200
    workers: int = 2
    submissions: int = 2
    every: float = 4.0
    seed: int = 0
    folder: Path = Path("soak")


@dataclass
class Findings:
    """What came of it; ``wrong`` counts what must not happen."""

    runs: int
    signals: Counter[str] = field(default_factory=Counter)  # delivered, by name and kind of process
    starts: int = 0  # of runs, over all submissions
    resumes: int = 0  # of them from a checkpoint
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        """The figures as a JSON object."""
        return json.dumps(vars(self), indent=1) + "\n"

    @property
    def wrong(self) -> int:
        """How many runs are not as they must be."""
        return len({*self.lost, *self.twice, *self.differ})


def soak(options: Options, say: Callable[[str], None]) -> Findings:
    """Runs both sweeps under ``options.folder``, which should be empty, and compares them."""
    folder = options.folder.absolute()
    overrides = [
        [*SIZE, f"optimizer={rule}", f"decay={mode}", f"seed={number // len(ARMS)}"]
        for number in range(options.runs)
        for rule, mode in [ARMS[number % len(ARMS)]]
    ]
    names = write_cells([asdict(compose_config(words)) for words in overrides], folder / "cells")
    findings, began = Findings(len(names)), time.monotonic()
    storm = Storm(options, folder, names, findings, say)
    try:
        storm.rage()
    finally:
        storm.end()
    findings.seconds = time.monotonic() - began
    disturbed = all_records(folder / "killed")
    findings.lost = [record.key for record in disturbed if not record.summary]
    findings.lost += ["never begun"] * (len(names) - len(disturbed))
    findings.twice = sorted({*storm.rewritten, *(record.key for record in disturbed if was_trained_twice(record))})
    for record in disturbed:
        starts = resumes_of(record)
        findings.starts += len(starts) + 1
        findings.resumes += sum(step > 0 for step in starts)
    say("the same runs, left alone")
    alone = subprocess.Popen(command(folder, names, "alone", options.workers), stdout=subprocess.DEVNULL)
    alone.wait()
    findings.differ = compare(disturbed, {record.key: record for record in all_records(folder / "alone")})
    return findings


class Storm:
    """The submissions, and what befalls them."""

    def __init__(
        self, options: Options, folder: Path, names: Sequence[str], findings: Findings, say: Callable[[str], None]
    ) -> None:
        self.options, self.folder, self.findings, self.say = options, folder, findings, say
        self.root = folder / "killed"
        self._orders = [list(names), list(reversed(names))]
        self._random = random.Random(options.seed)
        self._drivers: dict[int, subprocess.Popen[bytes]] = {}  # by the number of the submission
        self._sessions: set[int] = set()
        self._known: dict[str, tuple[int, int]] = {}  # summary.json of each run, as it was seen first
        self.rewritten: set[str] = set()
        self._grown = 0  # bytes of all metrics

    def rage(self) -> None:
        """Until every run is done, or nothing has moved for STUCK."""
        due, moved = None, time.monotonic()
        while len(self._known) < self.findings.runs:
            self._start()
            time.sleep(POLL)
            if self._look():
                moved = time.monotonic()
                due = due or moved + self._random.expovariate(1 / self.options.every)
            if due and time.monotonic() > due:
                self._strike()
                due = None
            if time.monotonic() - moved > STUCK:
                self.say(f"nothing has moved for {STUCK:.0f} s")
                return

    def _start(self) -> None:
        for number in range(self.options.submissions):
            driver = self._drivers.get(number)
            if driver is None or driver.poll() is not None:
                words = command(self.folder, self._orders[number % 2], "killed", self.options.workers)
                log = open(self.folder / f"submission{number}.log", "ab")  # noqa: SIM115 (the child's)
                driver = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
                log.close()
                self._drivers[number] = driver
                self._sessions.add(driver.pid)

    def _look(self) -> bool:
        """Notes which runs are done; whether anything was written since the last look."""
        for path in self.root.glob("*/summary.json"):
            with suppress(FileNotFoundError):
                about, key = path.stat(), path.parent.name
                seen = about.st_ino, about.st_mtime_ns
                if self._known.setdefault(key, seen) != seen:
                    self.rewritten.add(key)
        before, self._grown = self._grown, sum(path.stat().st_size for path in self.root.glob("*/metrics.jsonl"))
        return self._grown > before

    def _strike(self) -> None:
        drivers = [process for process in self._processes() if process.pid in self._sessions]
        workers = [process for process in self._processes() if process.pid not in self._sessions]
        kind = "driver" if not workers or (drivers and self._random.random() < DRIVERS) else "worker"
        victims = drivers if kind == "driver" else workers
        if not victims:
            return
        victim = self._random.choice(victims)
        number = signal.SIGKILL if self._random.random() < KILLED else signal.SIGTERM
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
            self.findings.signals[f"{number.name} to a {kind}"] += 1
            done, count = len(self._known), self.findings.signals.total()
            self.say(f"{number.name} to a {kind}; {count} signals, {done} of {self.findings.runs} runs done")

    def _processes(self) -> list[psutil.Process]:
        """Of all submissions, those that compute: not the helper that looks after shared memory."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                computes = "resource_tracker" not in " ".join(process.cmdline())
                if os.getsid(process.pid) in self._sessions and computes and process.status() != "zombie":
                    found.append(process)
        return found

    def end(self) -> None:
        """Ends what is left: whoever waits for runs that are done finds them so, and others have nothing to do."""
        for process in self._processes():
            with suppress(psutil.Error):
                process.kill()
        for driver in self._drivers.values():
            driver.wait()


def command(folder: Path, names: Sequence[str], place: str, workers: int) -> list[str]:
    """One submission of the runs `names`, into ``folder/place``."""
    machine = [
        f"machine.runs={folder / place}",
        f"machine.data={folder / 'data'}",
        "machine.progress=summary",
        "machine.checkpoint_seconds=0.3",
    ]
    launcher = ["hydra/launcher=local", f"hydra.launcher.n_jobs={workers}"]
    words = ["--multirun", "--config-dir", str(folder / "cells"), f"experiment={','.join(names)}"]
    return [sys.executable, str(TRAIN), *words, *launcher, *machine]


def resumes_of(record: Record) -> list[int]:
    """The step from which each later start went on, -1 from nothing."""
    return [line["step"] for line in _raw(record) if line["kind"] == "resume"]


def was_trained_twice(record: Record) -> bool:
    """Whether somebody trained the run after it was done, or two did at once: their steps would not rise."""
    if not record.summary:
        return False
    done = (record.folder / "summary.json").stat().st_mtime_ns
    later = [(record.folder / name).stat().st_mtime_ns > done for name in ("metrics.jsonl", "environment.jsonl")]
    last: dict[str, int] = {}
    for line in _raw(record):
        if line["kind"] == "resume":
            last = {}
        elif line["step"] <= last.get(line["kind"], -1):
            return True
        else:
            last[line["kind"]] = line["step"]
    return any(later)


def _raw(record: Record) -> Iterator[dict[str, Any]]:
    """Every whole line of the metrics, those that were undone too."""
    for text in record.metrics_file.read_bytes().splitlines():
        with suppress(ValueError):
            yield json.loads(text)


def compare(disturbed: Sequence[Record], alone: dict[str, Record]) -> list[str]:
    """The runs that are done in both and are not the same, to the bit, and those that only one has."""
    differ = [r.key for r in disturbed if r.summary and (r.key not in alone or outcome(r) != outcome(alone[r.key]))]
    return differ + sorted(alone.keys() - {record.key for record in disturbed})


def outcome(record: Record) -> dict[str, Any]:
    """All of a run that must not depend on how it came to its end: summary, metrics, the files of its model."""
    lines = [line for line in read_metrics(record.metrics_file) if line["kind"] != "speed"]
    plain = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
    summary = {name: value for name, value in (record.summary or {}).items() if name != "seconds"}
    files = {path.name: sha256_of(path) for path in sorted((record.folder / "model").glob("*"))}
    return {"summary": summary, "metrics": plain, "files": files}
