"""How far the runs of artifacts are, from their records, the queue and the sessions: what ``make status`` prints."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.config import identity_of
from cwd.evidence.grid import Cell
from cwd.evidence.study import State
from cwd.naming import row_name
from cwd.planning.forecast import Forecaster, ladder_seconds, past_runs
from cwd.runs import Record, read_metrics
from cwd.runs.attempts import early_failures
from cwd.sweeping.submissions import Submission, current_queue, jobs_of_cells, live_submissions
from cwd.sweeps import cell_file
from cwd.training.progress import duration

ORDER = ("done", "diverged", "running", "queued", "stopped", "failed", "to do")


@dataclass(frozen=True)
class Standing:
    """One run: its configuration, its state (of ORDER) and what a person wants to know of it."""

    config: dict[str, Any]
    state: str
    record: Record | None
    step: int = 0
    left: float | None = None  # seconds of work, None where nothing says it
    note: str = ""

    @property
    def label(self) -> str:
        """Which run it is, in a few words."""
        optimizer, decay, model = (self.config[name] for name in ("optimizer", "decay", "model"))
        arm = row_name(optimizer["name"], decay["mode"], optimizer["lr"], decay["weight_decay"], self.config["seed"])
        shape = model.get("hidden_size") or model.get("name") or model.get("source", "")
        return f"{model['family']} {shape} {arm}"


def runs_of(states: Sequence[State]) -> list[tuple[dict[str, Any], Cell]]:
    """(whole configuration, cell) of every run that the artifacts ask for so far, once each, seed by seed."""
    found: dict[str, tuple[dict[str, Any], Cell]] = {}
    for state in states:
        for point in (*state.bases, *state.points, *state.tuning):
            for seed, cell in point.cells.items():
                config = point.on(seed)
                found.setdefault(repr(identity_of(config)), (config, cell))
    return sorted(found.values(), key=lambda pair: pair[0]["seed"])


def standings(states: Sequence[State], runs: Path) -> list[Standing]:
    """Every run of :func:`runs_of` as it stands now."""
    jobs, early = jobs_of_cells(runs), early_failures(runs)
    waited = any(one.scheduler == "session" for one in live_submissions(runs))
    forecaster = Forecaster(past_runs(runs, ""), ladder_seconds(states))
    found = []
    for config, cell in runs_of(states):
        name = cell_file(config)[0] if jobs or early else ""
        found.append(_standing(config, cell, jobs.get(name), early.get(name), waited, forecaster))
    return found


def _standing(
    config: dict[str, Any],
    cell: Cell,
    job: tuple[str, str] | None,
    early: tuple[str, Path] | None,
    waited: bool,
    forecaster: Forecaster,
) -> Standing:
    """One run. `job` is the last that was given it, with its log; `early`: how its last start failed, if it did before
    there was a record; `waited`: whether a session will come to it.
    """
    record, state = cell.record, cell.state
    if state in ("done", "diverged"):
        return Standing(config, state, record, note=str(record.status.get("message", "")) if record else "")
    whole = forecaster.duration(config)
    seconds = whole.seconds if whole else None
    queue = current_queue()
    queued = (queue or {}).get(job[0]) if job else None
    if record and state == "running":
        return _running(config, record, seconds, f"job {job[0]}" if job and queued else "")
    step = record.status["step"] if record else 0
    left = seconds * (1 - step / config["training"]["steps"]) if seconds is not None else None

    def stands(what: str, note: str = "") -> Standing:
        return Standing(config, what, record, step, left, note)

    if job and queued:
        return stands("queued", f"job {job[0]} {queued}")
    if early:
        return stands("failed", f"{early[0]}  {early[1]}")
    if record and state == "failed":
        return stands("failed", f"{record.status.get('message', '')}  {record.folder}")
    if waited:
        return stands("queued")
    if job and queue is None:
        return stands("queued", f"job {job[0]}, unless it has ended: there is no squeue here")
    if job:
        return stands("stopped", f"job {job[0]} has ended without it; log {job[1]}")
    return stands("stopped" if record else "to do")


def _running(config: dict[str, Any], record: Record, seconds: float | None, note: str) -> Standing:
    """By the run's own speed as soon as it has one."""
    lines = read_metrics(record.metrics_file, "train")
    steps = config["training"]["steps"]
    step, past = (lines[-1]["step"], lines[-1].get("seconds")) if lines else (record.status["step"], None)
    if step and past:
        seconds = past / step * steps
    left = seconds * (1 - step / steps) if seconds is not None else None
    signs = [path.stat().st_mtime for path in (record.metrics_file, record.folder / "status.json") if path.exists()]
    ago = duration(max(time.time() - max(signs, default=time.time()), 0))
    return Standing(config, "running", record, step, left, f"last sign of life {ago} ago  {note}".rstrip())


def lines_of(found: Sequence[Standing]) -> list[str]:
    """A count of each state, then a line for each run that is neither done nor merely waiting."""
    counts = {state: sum(one.state == state for one in found) for state in ORDER}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"
    lines = [f"{len(found)} runs: {shown}"]
    for one in found:
        if one.state in ("running", "stopped", "failed", "diverged"):
            where = f"step {one.step} of {one.config['training']['steps']}"
            lines.append(f"  {one.state:<8}  {one.label}  {where}  {one.note}".rstrip())
    waiting = [one.note for one in found if one.state == "queued" and one.note]
    if waiting:
        lines.append(f"  queued    {', '.join(waiting)}")
    return [*lines, *_time_left(found)]


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


def _time_left(found: Iterable[Standing]) -> list[str]:
    open_ones = [one for one in found if one.state not in ("done", "diverged", "failed")]
    if not open_ones:
        return []
    known = [one.left for one in open_ones if one.left is not None]
    unknown = f"; of {len(open_ones) - len(known)} runs nothing says it yet" if len(known) < len(open_ones) else ""
    if not known:
        return [f"time left: nothing says it yet, for {len(open_ones)} runs"]
    running = sum(one.state == "running" for one in open_ones)
    workers = running or min(os.cpu_count() or 1, len(open_ones))
    longest = max(known)
    about = duration(max(sum(known) / workers, longest))
    return [f"time left: about {about}, {workers} runs at once{unknown}"]


def tell_submissions(live: Sequence[Submission]) -> list[str]:
    """A line for each session and each array of jobs that may still be at work."""
    lines = []
    for one in live:
        if one.scheduler == "session":
            lines.append(f"session: process {one.pid} on {one.host}, since {one.submitted}, log {one.log}")
        else:
            lines.append(f"slurm: job {next(iter(one.jobs)).split('_')[0]}, since {one.submitted}, logs {one.log}")
    return lines
