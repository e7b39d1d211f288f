"""Faults on SLURM: a preemption, a requeue, a scancel; a driver, a job, a node killed with -9; SIGUSR1, a time limit;
an edit.
"""

from __future__ import annotations

import getpass
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwd.errors import UserError
from cwd.faults.cluster import Cluster, ask
from cwd.faults.runs import CELLS, FOUR, LONG, Seen, look, middle, name_of, outcomes, start_sweep, until
from cwd.faults.told import Told, tell
from cwd.runs import Record
from cwd.sweeping.submissions import read_submissions

LAUNCHER = (
    "hydra/launcher=slurm",
    "hydra.launcher.partition=main",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.timeout_min=60",
)
URGENT = ("sbatch", "--partition=urgent", "--ntasks=1", "--cpus-per-task=2", "--output=/dev/null", "--wrap")
WARNING = 20  # seconds before the limit
BRANCH = "        self.step += 1\n"  # what the edit changes, in cwd/training/trainer.py


class Rig:
    """A cluster, a copy of the code, and a folder for each fault.

    Args:
        folder: for data, runs and logs.
        code: the code that is run; one fault edits it.
    """

    def __init__(self, folder: Path, code: Path, cluster: Cluster) -> None:
        self.folder, self.code, self.cluster = folder, code, cluster
        self.expected: dict[str, dict[str, Any]] = {}

    def undisturbed(self) -> Told:
        """The sweep left alone, which all others must equal."""
        folder = self.folder / "undisturbed"
        driver = self.start("undisturbed")
        until(lambda: driver.poll() is not None, "the undisturbed sweep to end")
        self.expected = outcomes(folder / "runs")
        if tuple(sorted(self.expected)) != CELLS:
            raise UserError(
                f"the sweep left alone did not end well: {folder / 'driver.log'}, {folder / 'runs' / '.jobs'}"
            )
        return self.tell("nothing: the sweep left alone, which the others must equal", folder, {}, {})

    def start(self, name: str, words: Sequence[str] = (), cells: Sequence[str] = FOUR) -> subprocess.Popen[bytes]:
        """The sweep of a fault."""
        return start_sweep(self.code, self.folder / name, [*LAUNCHER, *words], self.cluster.variables, cells)

    def disturb(
        self,
        name: str,
        title: str,
        strike: Callable[[Record, subprocess.Popen[bytes]], None],
        *,
        starts: int = 2,
        words: Sequence[str] = (),
        cells: Sequence[str] = FOUR,
        expected: dict[str, dict[str, Any]] | None = None,
    ) -> Told:
        """Strikes when the first run is in its middle, and tells what came of it.

        Args:
            strike: gets that run and the driver; returns when the fault has shown.
            starts: how often that run must then have been started.
            words, cells: of the sweep. expected: the outcomes of its runs left alone; of the four, if not given.
        """
        folder = self.folder / name
        driver = self.start(name, words, cells)
        victim = until(lambda: middle(folder / "runs"), f"{name}: a run in its middle")
        before = look(folder / "runs")
        strike(victim, driver)
        after = look(folder / "runs")
        until(lambda: not self.busy(), f"{name}: an empty queue")
        until(lambda: driver.poll() is not None, f"{name}: the driver to end")
        told = tell(title, folder, before, after, self.expected if expected is None else expected)
        told.notes.append(f"struck: {name_of(victim)}; the driver ended with {driver.returncode}")
        if (found := told.end[name_of(victim)].starts) != starts:
            told.missed = f"{name_of(victim)} was to be started {starts} times, and was {found} times"
        return told

    def tell(self, title: str, folder: Path, before: dict[str, Seen], after: dict[str, Seen]) -> Told:
        """What has become of the runs in a folder, beside the undisturbed ones."""
        return tell(title, folder, before, after, self.expected)

    def busy(self, *options: str) -> str:
        """The queue, or what options of squeue choose of it; "" if there is none."""
        return ask(["squeue", "--noheader", *options], self.cluster.variables)

    def clear(self) -> None:
        """Ends all jobs."""
        self.client("scancel", "--user", getpass.getuser())
        until(lambda: not self.busy(), "an empty queue")

    def seconds_of(self, job: str) -> int:
        """How long a job has been running."""
        seconds = 0
        for part in self.busy(f"--jobs={job}", "--format=%M").split(":"):  # minutes:seconds
            seconds = 60 * seconds + int(part)
        return seconds

    def job_of(self, record: Record) -> str:
        """The SLURM job of a run, by the overrides that it was submitted with."""
        words = {f"optimizer={record.config['optimizer']['name']}", f"decay={record.config['decay']['mode']}"}
        submission = read_submissions(record.folder.parent)[-1]
        return next(job for job, overrides in submission.jobs.items() if words <= set(overrides.split()))

    def client(self, *words: str) -> None:
        """A command of SLURM's."""
        subprocess.run(words, env={**os.environ, **self.cluster.variables}, check=True, capture_output=True)


def preemption(rig: Rig) -> Told:
    """Jobs of a partition of higher priority take both processors."""

    def strike(victim: Record, driver: subprocess.Popen[bytes]) -> None:
        rig.client(*URGENT, "sleep 3")
        until(lambda: not victim.is_locked(), "the preempted run to save and end")

    return rig.disturb("preemption", "preemption: a job of a higher tier takes both processors", strike)


def requeue(rig: Rig) -> Told:
    """An administrator's scontrol requeue."""

    def strike(victim: Record, driver: subprocess.Popen[bytes]) -> None:
        rig.client("scontrol", "requeue", rig.job_of(victim))
        until(lambda: not victim.is_locked(), "the requeued run to save and end")

    return rig.disturb("requeue", "scontrol requeue of a job", strike)


def limit(rig: Rig) -> Told:
    """The time limit, set to the next full minute when a run is in its middle, and taken back when it has struck."""
    alone = rig.folder / "long"
    driver = start_sweep(rig.code, alone, LAUNCHER, rig.cluster.variables, LONG)
    until(lambda: driver.poll() is not None, "the long run left alone to end")

    def strike(victim: Record, driver: subprocess.Popen[bytes]) -> None:
        job = rig.job_of(victim)
        minutes = math.ceil((rig.seconds_of(job) + WARNING + 5) / 60)
        rig.client("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        until(lambda: not victim.is_locked(), "the run to meet its limit, save and end")
        until(lambda: job in rig.busy("--states=PENDING", "--array", "--format=%i"), "the job to be queued again")
        rig.client("scontrol", "update", f"JobId={job}", "TimeLimit=60")

    words = f"hydra.launcher.signal_delay_s={WARNING}"
    title = "the time limit of a job, set when its run is in its middle"
    return rig.disturb("limit", title, strike, words=[words], cells=LONG, expected=outcomes(alone / "runs"))


def job_killed(rig: Rig) -> Told:
    """kill -9 of a run's process, as the kernel does when memory is short."""
    return rig.disturb("job", "kill -9 of a job's process", rig_kill(signal.SIGKILL))


def user_signal(rig: Rig) -> Told:
    """SIGUSR1, which many clusters send before a limit."""
    return rig.disturb("usr1", "SIGUSR1 to a job's process", rig_kill(signal.SIGUSR1))


def rig_kill(number: signal.Signals) -> Callable[[Record, subprocess.Popen[bytes]], None]:
    """A strike that signals the run's process."""

    def strike(victim: Record, driver: subprocess.Popen[bytes]) -> None:
        os.kill(victim.status["pid"], number)
        until(lambda: not victim.is_locked(), "the run to end")

    return strike


def driver_killed(rig: Rig) -> Told:
    """kill -9 of the submitting process: the jobs live on."""

    def strike(victim: Record, driver: subprocess.Popen[bytes]) -> None:
        driver.kill()
        driver.wait()

    return rig.disturb("driver", "kill -9 of the submitting process", strike, starts=1)


def node_lost(rig: Rig) -> Told:
    """The node is gone with all that ran there, and comes back."""

    def strike(victim: Record, driver: subprocess.Popen[bytes]) -> None:
        rig.cluster.lose_node()
        until(lambda: not victim.is_locked() and not rig.busy("--states=RUNNING"), "the lost jobs to be queued again")
        rig.cluster.start_node()

    return rig.disturb("node", "the node is lost: kill -9 of slurmd and of all that it has started, State=DOWN", strike)


def cancelled(rig: Rig) -> Told:
    """scancel: the run saves and stays stopped, until the same command is given again."""

    def strike(victim: Record, driver: subprocess.Popen[bytes]) -> None:
        rig.client("scancel", rig.job_of(victim))
        until(lambda: not victim.is_locked(), "the cancelled run to save and end")

    told = rig.disturb("scancel", "scancel of a job", strike, starts=1)
    stopped = [name for name, seen in told.end.items() if seen.state == "interrupted"]
    driver = rig.start("scancel")
    until(lambda: driver.poll() is not None, "the sweep to end the second time")
    again = rig.tell(told.title, rig.folder / "scancel", told.before, told.after)
    was = ", ".join(f"{name} ({told.end[name]})" for name in stopped) or "NONE"
    again.notes = [*told.notes, f"stopped after it, not requeued: {was}; the same command again finished it"]
    again.missed = told.missed or ("" if len(stopped) == 1 else "one run was to stay stopped")
    return again


def edited(rig: Rig) -> Told:
    """The code and the configurations are edited while the jobs wait."""
    folder = rig.folder / "edited"
    rig.client(*URGENT, "sleep 1000")
    until(lambda: rig.busy("--states=RUNNING", "--partition=urgent"), "the urgent job to start")
    driver = rig.start("edited")
    until(lambda: read_submissions(folder / "runs"), "the jobs to be submitted")
    trainer, scale = rig.code / "cwd" / "training" / "trainer.py", rig.code / "configs" / "scale" / "smoke.yaml"
    kept = [(path, path.read_text()) for path in (trainer, scale)]
    assert BRANCH in kept[0][1]
    trainer.write_text(kept[0][1].replace(BRANCH, '        raise RuntimeError("edited")\n'))
    scale.write_text(kept[1][1].replace("batch_size: 4", "batch_size: 8"))
    try:
        rig.client("scancel", "--partition=urgent")
        until(lambda: not rig.busy(), "an empty queue")
        until(lambda: driver.poll() is not None, "the driver to end")
    finally:
        for path, text in kept:
            path.write_text(text)
    return rig.tell("an edit of trainer.py and smoke.yaml while the jobs wait", folder, {}, {})


FAULTS = {
    "preemption": preemption,
    "requeue": requeue,
    "scancel": cancelled,
    "driver": driver_killed,
    "job": job_killed,
    "node": node_lost,
    "usr1": user_signal,
    "edit": edited,
    "limit": limit,
}


def copy_code(code: Path, folder: Path) -> Path:
    """A copy of the project that may be edited."""
    from cwd.sweeping.frozen import PARTS

    for part in PARTS:
        if (code / part).is_dir():
            shutil.copytree(code / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(code / part, folder / part)
    return folder
