"""A run on two processes of one SLURM job: one of them is killed; then the run goes on with one, and with two again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from cwd.errors import UserError
from cwd.faults.runs import MIDDLE, look, middle, name_of, see, start_sweep, until
from cwd.faults.slurm import LAUNCHER, Rig
from cwd.faults.told import Told
from cwd.runs import Record, all_records, read_metrics

CELL = ("optimizer=lion", "decay=cautious", "training.steps=1000", "training.precision=fp64")
TOLERANCE = 1e-8  # of losses in float64, which are added up in another order


def processes(rig: Rig) -> Told:
    """Two processes, one killed, requeued; one process; two again: the losses are those of two left alone."""
    alone, folder = rig.folder / "two", rig.folder / "processes"
    until_ended(start(rig, alone, 2), "the run on two processes left alone to end")
    notes = [refusal(rig)]

    driver = start(rig, folder, 2)
    run = until(lambda: middle(folder / "runs"), "processes: the run in its middle")
    before = look(folder / "runs")
    notes.append(kill_second(rig, run))
    dead = see(run)
    until(lambda: see(run).starts == 2 and begun(run, dead.step), "the run with a dead process to be queued again")
    stop(rig, run, driver)
    after = look(folder / "runs")
    driver = start(rig, folder, 1)
    until(lambda: see(run).starts == 3 and begun(run, after[name_of(run)].step), "the run to go on with one process")
    stop(rig, run, driver)
    until_ended(start(rig, folder, 2), "the run to end on two processes")

    counts = [json.loads(line)["processes"] for line in (run.folder / "environment.jsonl").read_text().splitlines()]
    [other] = all_records(alone / "runs")
    far = distance(losses(run), losses(other))
    title = "two processes, one of them killed with -9; then one; then two"
    told = Told(title, before, after, look(folder / "runs"), {name_of(run): far < TOLERANCE})
    told.how_same = f"losses of two left alone to {far:.0e}"
    told.notes = [*notes, f"processes of each start: {counts}"]
    told.missed = "" if counts == [2, 2, 1, 2] else "two processes, two, one, and two again"
    return told


def start(rig: Rig, folder: Path, count: int, *words: str) -> subprocess.Popen[bytes]:
    """The run, on so many processes."""
    tasks = f"hydra.launcher.tasks_per_node={count}"
    return start_sweep(rig.code, folder, [*LAUNCHER, tasks, *words], rig.cluster.variables, CELL)


def until_ended(driver: subprocess.Popen[bytes], what: str) -> None:
    """Waits for a driver. Raises UserError: it does not end, or not well."""
    until(lambda: driver.poll() is not None, what)
    if driver.returncode:
        raise UserError(f"waited for {what}: its driver ended with {driver.returncode}")


def refusal(rig: Rig) -> str:
    """Jobs that get one process of two: the launcher was asked for one, or SLURM gave one. The last lines."""
    launcher = refused(rig, "one_launcher", "the launcher started 1", 1, "machine.processes=2")
    slurm = refused(rig, "one_slurm", "SLURM started 1", 2, "+hydra.launcher.additional_parameters.ntasks=1")
    return f"asked for two and got one: {launcher}; {slurm}"


def refused(rig: Rig, name: str, says: str, count: int, word: str) -> str:
    """The line that a job ends with. Raises UserError: it was no error, or left a record."""
    folder = rig.folder / name
    driver = start(rig, folder, count, word)
    until(lambda: driver.poll() is not None, "the run that got one process of two to end")
    lines = [line for line in (folder / "driver.log").read_text().splitlines() if says in line]
    if not driver.returncode or not lines or all_records(folder / "runs"):
        raise UserError(f"a run that asked for two processes and got one was no error: {folder / 'driver.log'}")
    return lines[0].rpartition("UserError: ")[2].strip()


def kill_second(rig: Rig, run: Record) -> str:
    """kill -9 of the run's second process: what the run then says of itself."""
    tasks = rig.cluster.job_processes()
    [second] = [pid for pid, one in tasks.items() if one.get("SLURM_PROCID") == "1" and is_python(pid)]
    began = time.monotonic()
    os.kill(second, signal.SIGKILL)
    until(lambda: f"pid {second})" in run.status.get("message", ""), "the status to name the dead process")
    return f"killed process 1, pid {second}; {time.monotonic() - began:.0f} s later: {run.status['message']}"


def is_python(pid: int) -> bool:
    """Whether a process of a job is the run itself, and not what started it."""
    return b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes()


def begun(run: Record, step: int) -> bool:
    """Whether the run is some steps beyond this one, and under way."""
    seen = see(run)
    return seen.state == "running" and seen.step > step + MIDDLE


def stop(rig: Rig, run: Record, driver: subprocess.Popen[bytes]) -> None:
    """scancel of the run's job."""
    rig.client("scancel", rig.job_of(run))
    until(lambda: not run.is_locked(), "the cancelled run to save and end")
    until(lambda: driver.poll() is not None, "the driver to end")


def losses(run: Record) -> list[float]:
    """Of every step and evaluation; [] unless the run is done."""
    return [line["loss"] for line in read_metrics(run.metrics_file) if "loss" in line] if run.summary else []


def distance(some: list[float], others: list[float]) -> float:
    """The largest relative difference of two lists, infinite unless they are of one length, and not empty."""
    if not some or len(some) != len(others):
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in zip(some, others, strict=True))
