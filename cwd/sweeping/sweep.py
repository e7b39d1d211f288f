"""Runs what artifacts lack, on any launcher: each round's runs are one Hydra sweep, of frozen code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwd.errors import UserError
from cwd.evidence.study import State, all_missing
from cwd.planning.forecast import Forecaster, ladder_seconds, past_runs, total
from cwd.runs.attempts import early_failures
from cwd.sweeping.frozen import environment, freeze
from cwd.sweeping.slurm import queue
from cwd.sweeping.standing import runs_of
from cwd.sweeping.submissions import Submission, jobs_of_cells, live_submissions
from cwd.sweeps import cell_file, write_cells

HERE = ("local", "basic", "ray")  # launchers that use this machine, unless they are given an address
POLL = 5.0  # seconds


class Submitted(Exception):
    """The runs are with the scheduler, and nobody is to wait for them."""


@dataclass(frozen=True)
class Sweep:
    """Where and how runs are run; the fields are the options of scripts/artifact.py."""

    scale: str
    launcher: str
    runs: Path
    data: Path
    job: tuple[str, ...] = ()  # settings of the launcher: partition=long
    retry: bool = False  # whether runs that failed are run again
    detach: bool = False
    tracker: str = "none"

    def run_missing(self, states: Sequence[State], asked: set[str]) -> bool:
        """Trains the missing runs in one sweep and the missing checks one by one, then evaluates what is done; whether
        there was anything new to do.

        A run that was asked for already and has no result failed: it is not asked for again.

        Raises:
            Submitted: the runs are queued, and ``detach`` says not to wait.
        """
        names = [name for name in self.wanted(states) if name not in asked]
        if not self.detach:
            self._run_checks(states, asked)
        if names:
            if (
                self.scale == "paper"
                and self.launcher in HERE
                and not any("address=" in setting for setting in self.job)
            ):
                check_gpu()
            tell_plan(states, self.runs)
            skipped = len(all_missing(states)) - len(names)
            if skipped and not asked:
                print(f"  {skipped} of them failed before; make retry runs them again", flush=True)
            asked.update(names)
            (self._train_on_slurm if self.launcher == "slurm" else self._train)(names)
            return True
        return self._evaluate(states, asked)

    def wanted(self, states: Sequence[State]) -> list[str]:
        """The files of the runs to do. A run that failed is not one of them unless ``retry`` says so: what failed once
        fails again until somebody has done something about it.
        """
        names = write_cells([config for config, _ in all_missing(states)], self._cells)
        failed = {cell_file(config)[0] for config, cell, _ in runs_of(states) if cell.state == "failed"}
        failed.update(early_failures(self.runs))
        return [name for name in names if self.retry or name not in failed]

    @property
    def _cells(self) -> Path:
        return (self.runs / ".cells").absolute()

    def _run_checks(self, states: Sequence[State], asked: set[str]) -> None:
        checks = [check.name for state in states for check in state.checks if not check.record]
        names = list(dict.fromkeys(name for name in checks if name not in asked))
        if names:
            asked.update(names)
            self._script("theory.py", ["--runs", str(self.runs), *names])

    def _evaluate(self, states: Sequence[State], asked: set[str]) -> bool:
        """Evaluates the finished runs that lack it, suite by suite, in a process that loads the harness once for all;
        whether there were any new ones.
        """
        wanted: dict[str, dict[str, None]] = {}
        for state in states:
            for key in state.unevaluated:
                if state.suite and f"{state.suite.name} {key}" not in asked:
                    wanted.setdefault(state.suite.name, {})[key] = None
        for suite, keys in wanted.items():
            if self.scale == "paper":
                check_gpu()
            asked.update(f"{suite} {key}" for key in keys)
            print(f"{len(keys)} runs to evaluate on suite {suite}", flush=True)
            folders = [f"--runs={self.runs}", f"--data={self.data}"]
            self._script("evaluate.py", [*folders, f"run={','.join(keys)}", f"suite={suite}"])
        return bool(wanted)

    def _script(self, name: str, words: Sequence[str]) -> None:
        code = freeze(self.runs)
        command = [sys.executable, str(code / "scripts" / name), *words]
        subprocess.run(command, env={**os.environ, **environment(code)}, check=False)

    def _train(self, names: Sequence[str], *more: str) -> None:
        """One Hydra sweep over the runs: a worker of the launcher imports, and prepares data, once for all its runs."""
        words = [
            f"experiment={','.join(names)}",
            f"hydra/launcher={self.launcher}",
            f"tracker={self.tracker}",
            "machine.progress=summary",
            f"machine.runs={self.runs}",
            f"machine.data={self.data}",
            *(f"++hydra.launcher.{setting}" for setting in self.job),
            *more,
        ]
        code = freeze(self.runs)
        command = [sys.executable, str(code / "train.py"), "--multirun", "--config-dir", str(self._cells), *words]
        threads = {} if self.launcher == "slurm" else {"OMP_NUM_THREADS": "1"}  # there, as many as the job has
        child = subprocess.Popen(command, env={**threads, **os.environ, **environment(code)})
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        interrupted = False
        while child.poll() is None:
            try:
                child.wait()
            except KeyboardInterrupt:  # the sweep got it too, and saves
                interrupted = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if interrupted or child.returncode < 0 or child.returncode > 128:
            raise KeyboardInterrupt

    def _train_on_slurm(self, names: Sequence[str]) -> None:
        """Submits the runs that are not in the queue already, and unless told not to, waits for them all."""
        states = queue()
        if states is None:
            raise UserError("LAUNCHER=slurm: squeue gives no answer; this is no machine of a cluster, or it is down")
        waiting = self._queued(names, states)
        if waiting:
            print(f"{len(waiting)} of them are in the queue already", flush=True)
        rest = [name for name in names if name not in waiting]
        if rest:
            self._train(rest, "hydra.launcher.wait=false")
        if self.detach:
            raise Submitted
        self._wait(names)

    def _queued(self, names: Sequence[str], states: Mapping[str, str]) -> list[str]:
        """Those of the runs whose job has not ended."""
        jobs = jobs_of_cells(self.runs)
        return [name for name in names if name in jobs and jobs[name][0] in states]

    def _wait(self, names: Sequence[str]) -> None:
        """Until no job is left; by squeue, whose silence means nothing."""
        before, absent = -1, 0
        while absent < 2:  # a job that is requeued may be out of the listing for an instant
            states = queue()
            if states is not None:
                left = len(self._queued(names, states))
                if left != before:
                    print(f"{left} jobs in the queue", flush=True)
                before, absent = left, 0 if left else absent + 1
            time.sleep(POLL)


def start_session(words: Sequence[str], artifacts: Sequence[str], runs: Path) -> Submission:
    """Starts scripts/artifact.py with these words in the background, from frozen code, where no shell's end reaches it;
    one that works on the same artifacts already is returned instead.
    """
    for one in live_submissions(runs):
        if one.scheduler == "session" and one.artifacts == list(artifacts) and one.is_alive():
            return one
    code = freeze(runs)
    folder = (runs / ".sweeps").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{'-'.join(artifacts)[:60]}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", str(code / "scripts" / "artifact.py"), *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment(code)},
        )
    session = Submission("session", str(code), str(log), artifacts=list(artifacts), pid=process.pid)
    session.write(runs)
    return session


def tell_plan(states: Sequence[State], runs_folder: Path) -> None:
    """How many runs are missing, and about how long they take here: the forecast of scripts/plan.py."""
    runs = [config for config, _ in all_missing(states)]
    time = total(Forecaster(past_runs(runs_folder, "cpu"), ladder_seconds(states)), runs)
    cores = os.cpu_count() or 1
    about = f", about {time.seconds / cores / 60:.0f} minutes on {cores} cores ({time})" if time.sources else ""
    print(f"{len(runs)} runs to do{about}", flush=True)
    if time.unknown:
        print("  scripts/plan.py says how long they take on GPUs", flush=True)
    for state in states:
        count = len(state.unevaluated) + sum(one not in ("diverged", "not evaluated") for one in state.unfinished)
        if state.suite and count:
            print(f"  {state.artifact.name}: {count} runs to evaluate on suite {state.suite.name}", flush=True)
    waiting = dict.fromkeys(need for state in states for need in state.needs)
    for need in waiting:
        print(f"  more runs need {need}", flush=True)


def check_gpu() -> None:
    """Refuses runs of the paper's size on a machine that would take years."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "SCALE=paper: needs GPUs, and torch sees none here; LAUNCHER=slurm sends the runs to a cluster, "
            "--plan says what they are"
        )
