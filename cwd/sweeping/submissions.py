"""Who was asked to work on runs: a file for each submission, ``runs/.sweeps/<name>.json``.

It lets a later command know that a run is queued, find its log, and not submit it twice. Nothing depends on it: a run
that two jobs work on waits for its lock, and is found done by the second.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cwd.files import read_json, write_json
from cwd.runs.attempts import cell_in
from cwd.runs.record import now
from cwd.sweeping.slurm import queue

FOLDER = ".sweeps"


@dataclass(frozen=True)
class Submission:
    """Jobs of a scheduler, or a session in the background of one machine.

    ``jobs`` maps a job to its run: the name of its file of cwd.sweeps.write_cells, else its overrides. A session has
    none: it works on all runs of its artifacts.
    """

    scheduler: str  # slurm, session
    code: str  # the frozen copy
    log: str  # a file, or with "%j" for the job
    jobs: dict[str, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    pid: int = 0
    host: str = field(default_factory=socket.gethostname)
    submitted: str = field(default_factory=now)

    def write(self, runs: Path) -> None:
        """Adds it to the folder's submissions."""
        folder = runs / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        who = next(iter(self.jobs), str(self.pid))
        write_json(folder / f"{self.scheduler}-{who}-{time.time_ns()}.json", dataclasses.asdict(self))

    def log_of(self, job: str) -> str:
        """Where a job's errors are."""
        return self.log.replace("%j", job)

    def is_alive(self) -> bool | None:
        """Whether some of its work may still go on; None where that cannot be known from here."""
        if self.scheduler == "slurm":
            states = current_queue()
            return None if states is None else any(job in states for job in self.jobs)
        return session_lives(self.pid) if self.host == socket.gethostname() else None


@cache
def current_queue() -> dict[str, str] | None:
    """:func:`cwd.sweeping.slurm.queue`, asked once; ``current_queue.cache_clear()`` asks again."""
    return queue()


def session_lives(pid: int) -> bool:
    """Whether the process is there, and is a sweep: numbers of processes are used again."""
    try:
        return b"artifact.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def read_submissions(runs: Path) -> list[Submission]:
    """All of a runs folder, the oldest first; files that are damaged are passed over."""
    found = [read_json(path) for path in (runs / FOLDER).glob("*.json")]
    names = {one.name for one in dataclasses.fields(Submission)}
    known = [Submission(**one) for one in found if isinstance(one, dict) and set(one) == names]
    return sorted(known, key=lambda one: one.submitted)


def live_submissions(runs: Path) -> list[Submission]:
    """Those whose work may still go on."""
    return [one for one in read_submissions(runs) if one.is_alive() is not False]


def jobs_of_cells(runs: Path) -> dict[str, tuple[str, str]]:
    """Name of a run's file -> (the job that was last given it, its log)."""
    return {name: (job, one.log_of(job)) for one in read_submissions(runs) for job, name in one.jobs.items()}


def cell_of(overrides: list[str]) -> str:
    """What the overrides of a job run: the name of its file, or the overrides as they are."""
    return cell_in(overrides) or " ".join(overrides)
