"""How far the runs of artifacts are, from their records, the queue and the sessions: what ``make status`` tells, and
the page of ``make report SERVE=1``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cwd.config import identity_of
from cwd.evidence.grid import Cell, RunsFolder, find_cells
from cwd.evidence.page.runs import starts
from cwd.evidence.study import State
from cwd.naming import row_name
from cwd.planning.forecast import Forecaster, ladder_seconds, past_runs
from cwd.runs import Record, read_metrics
from cwd.runs.attempts import early_failures
from cwd.runs.record import FINISHED
from cwd.sweeping.submissions import Submission, current_queue, jobs_of_cells, live_submissions
from cwd.sweeps import cell_file
from cwd.training.progress import duration

ORDER = ("done", "diverged", "running", "queued", "stopped", "failed", "to do")
ENDED = (*FINISHED, "failed")  # nothing works on them any more
TOLD = ("running", "stopped", "failed", "diverged")  # run by run
ON_CORES = ("smoke", "laptop")  # scales whose runs this machine's cores make


class Asked(NamedTuple):
    """A run that artifacts ask for: its whole configuration, and the size of the paper that it stands for."""

    config: dict[str, Any]
    cell: Cell
    size: str


@dataclass(frozen=True)
class Standing:
    """One run: its configuration, its state (of ORDER) and what a person wants to know of it."""

    asked: Asked
    state: str
    step: int = 0
    left: float | None = None  # seconds of one device, None where nothing says it
    note: str = ""
    source: str = ""  # of what is left
    devices: int = 1  # that it takes

    @property
    def config(self) -> dict[str, Any]:
        """The run's whole configuration."""
        return self.asked.config

    @property
    def record(self) -> Record | None:
        """Its record, if it has one."""
        return self.asked.cell.record

    @property
    def label(self) -> str:
        """Which run it is, in a few words."""
        optimizer, decay, model = (self.config[name] for name in ("optimizer", "decay", "model"))
        arm = row_name(optimizer["name"], decay["mode"], optimizer["lr"], decay["weight_decay"], self.config["seed"])
        shape = model.get("hidden_size") or model.get("name") or model.get("source", "")
        return f"{self.asked.size or ' '.join((model['family'], str(shape)))} {arm}"


def runs_of(states: Sequence[State]) -> list[Asked]:
    """Every run that the artifacts ask for so far, once each, seed by seed."""
    found: dict[str, Asked] = {}
    for state in states:
        for point in (*state.bases, *state.points, *state.tuning):
            for seed, cell in point.cells.items():
                config = point.on(seed)
                asked = Asked(config, cell, str(point.coordinates.get("size") or ""))
                found.setdefault(repr(identity_of(config)), asked)
    return sorted(found.values(), key=lambda asked: asked.config["seed"])


class Watch:
    """The runs that artifacts ask for, looked up again each time that it is asked.

    Args:
        states: the artifacts; which runs they ask for is taken from here and stays.
        runs: the runs folder.
    """

    def __init__(self, states: Sequence[State], runs: Path) -> None:
        self._runs = runs
        self._asked = runs_of(states)
        self._identities = [identity_of(asked.config) for asked in self._asked]
        device = "cpu" if all(state.scale in ON_CORES for state in states) else ""
        self._forecaster = Forecaster(past_runs(runs, device), ladder_seconds(states))
        self._finished: dict[str, Standing] = {}  # by key: these will not change any more

    def now(self) -> list[Standing]:
        """Every run of :func:`runs_of` as it stands now."""
        current_queue.cache_clear()
        jobs, early = jobs_of_cells(self._runs), early_failures(self._runs)
        waited = any(one.scheduler == "session" for one in live_submissions(self._runs))
        cells = find_cells(self._identities, RunsFolder(self._runs))
        found = []
        for old, cell in zip(self._asked, cells, strict=True):
            asked = old._replace(cell=cell)
            name = cell_file(asked.config)[0] if jobs or early else ""
            told = jobs.get(name), early.get(name)
            found.append(self._finished_before(cell) or self._standing(asked, *told, waited))
            if cell.record and found[-1].state in FINISHED:
                self._finished[cell.record.key] = found[-1]
        return found

    def _finished_before(self, cell: Cell) -> Standing | None:
        return self._finished.get(cell.record.key) if cell.record else None

    def _standing(
        self, asked: Asked, job: tuple[str, str] | None, early: tuple[str, Path] | None, waited: bool
    ) -> Standing:
        """One run. `job` is the last that was given it, with its log; `early`: how its last start failed, if it did
        before there was a record; `waited`: whether a session will come to it.
        """
        record, state = asked.cell.record, asked.cell.state
        if state in FINISHED:
            return Standing(asked, state, _step(record), note=_message(record))
        queue = current_queue()
        queued = (queue or {}).get(job[0]) if job else None
        if record and (state == "running" or (state == "new" and record.is_locked())):
            return self._running(asked, record, f"job {job[0]}" if job and queued else "")
        if job and queued:
            return self._waiting(asked, "queued", f"job {job[0]} {queued}")
        if early:
            return self._waiting(asked, "failed", f"{early[0]}  {early[1]}")
        if record and state == "failed":
            return self._waiting(asked, "failed", f"{_message(record)}  {record.folder}")
        if waited:
            return self._waiting(asked, "queued")
        if job and queue is None:
            return self._waiting(asked, "queued", f"job {job[0]}, unless it has ended: there is no squeue here")
        if job:
            return self._waiting(asked, "stopped", f"job {job[0]} has ended without it; log {job[1]}")
        return self._waiting(asked, "stopped" if record else "to do")

    def _waiting(self, asked: Asked, state: str, note: str = "") -> Standing:
        """A run that nothing works on, with what the forecast says of the rest of it."""
        step = _step(asked.cell.record)
        whole = self._forecaster.duration(asked.config)
        if whole is None:
            return Standing(asked, state, step, None, note)
        rest = whole.seconds * (1 - step / asked.config["training"]["steps"])
        return Standing(asked, state, step, rest + self._forecaster.between[0], note, whole.source)

    def _running(self, asked: Asked, record: Record, note: str) -> Standing:
        """By the run's own speed as soon as it has one."""
        files = (record.metrics_file, record.folder / "status.json", record.folder / "config.json")
        signs = [path.stat().st_mtime for path in files if path.exists()]
        ago = duration(max(time.time() - max(signs, default=time.time()), 0))
        note = f"last sign of life {ago} ago  {note}".rstrip()
        lines, steps = read_metrics(record.metrics_file, "train"), asked.config["training"]["steps"]
        step, past = (lines[-1]["step"], lines[-1].get("seconds")) if lines else (_step(record), None)
        begun = starts(record)
        devices = int(begun[-1].get("processes", 1)) if begun else 1
        if step and past:
            left, source = past / step * (steps - step) * devices, "its own speed"
        else:
            whole = self._forecaster.duration(asked.config)
            left, source = (whole.seconds * (1 - step / steps), whole.source) if whole else (None, "")
        return Standing(asked, "running", step, left, note, source, devices)


def _step(record: Record | None) -> int:
    return record.status["step"] if record else 0


def _message(record: Record | None) -> str:
    return str(record.status.get("message") or "") if record else ""


def lines_of(found: Sequence[Standing]) -> list[str]:
    """A count of each state, then a line for each run that is neither done nor merely waiting, and the time left."""
    lines = [counted(found)]
    for one in found:
        if one.state in TOLD:
            where = f"step {one.step} of {one.config['training']['steps']}"
            lines.append(f"  {one.state:<8}  {one.label}  {where}  {one.note}".rstrip())
    waiting = [one.note for one in found if one.state == "queued" and one.note]
    if waiting:
        lines.append(f"  queued    {', '.join(waiting)}")
    return [*lines, *time_left(found)]


def counted(found: Sequence[Standing]) -> str:
    """ "18 runs: 2 done, 1 running, 15 to do"."""
    counts = {state: sum(one.state == state for one in found) for state in ORDER}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"
    return f"{len(found)} runs: {shown}"


def waiting_lines(states: Sequence[State]) -> list[str]:
    """What else the artifacts lack: checks of the theory, evaluations, and runs that wait for others."""
    lines = []
    for state in states:
        checks = sum(not check.record for check in state.checks)
        if checks:
            lines.append(f"{state.artifact.name}: {checks} of {len(state.checks)} checks of the theory to do")
        if state.unevaluated:
            lines.append(f"{state.artifact.name}: {len(state.unevaluated)} runs to evaluate")
    needs = dict.fromkeys(need for state in states for need in state.needs)
    return [*lines, *(f"more runs need {need}" for need in needs)]


def time_left(found: Iterable[Standing], lately: int = 0) -> list[str]:
    """A line on how long what is open will take, divided by the devices at work now; none where nothing is open.

    Args:
        found: every run.
        lately: the most runs that went on at once in the last moments, as between two runs a worker has none.
    """
    open_ones = [one for one in found if one.state not in ENDED]
    if not open_ones:
        return []
    known = [one.left for one in open_ones if one.left is not None]
    if not known:
        return [f"time left: nothing says it yet, for {len(open_ones)} runs"]
    running = [one for one in open_ones if one.state == "running"]
    working = max(len(running), lately)
    at_once = working or min(os.cpu_count() or 1, len(open_ones))
    devices = max(sum(one.devices for one in running), at_once)
    about = duration(max(sum(known) / devices, max(known) / max((one.devices for one in running), default=1)))
    sources = ", ".join(dict.fromkeys(one.source for one in open_ones if one.source))
    unknown = f"; of {len(open_ones) - len(known)} runs nothing says it yet" if len(known) < len(open_ones) else ""
    now = "" if working else "; nothing runs now"
    workers = "one run at a time" if at_once == 1 else f"{at_once} runs at once"
    return [f"time left: about {about}, {workers}, from {sources}{unknown}{now}"]


def tell_submissions(live: Sequence[Submission]) -> list[str]:
    """A line for each session and each array of jobs that may still be at work."""
    lines = []
    for one in live:
        if one.scheduler == "session":
            lines.append(f"session: process {one.pid} on {one.host}, since {one.submitted}, log {one.log}")
        else:
            lines.append(f"slurm: job {next(iter(one.jobs)).split('_')[0]}, since {one.submitted}, logs {one.log}")
    return lines
