"""Runs what a table or figure lacks, then renders it: ``make table10``, ``make figure1 SCALE=smoke SEEDS=3``.

python scripts/artifact.py table10                    run what is missing at laptop scale, then show and write it
python scripts/artifact.py table10 figure1 --plan     how many runs that would be, and how long; run nothing
python scripts/artifact.py all --scale paper --launcher slurm
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cwd.cli import door
from cwd.errors import UserError
from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.export import export_records
from cwd.evidence.render import terminal, to_terminal, write_all
from cwd.evidence.report import document, ledger
from cwd.evidence.study import State, Study, all_missing
from cwd.planning.forecast import Forecaster, ladder_seconds, past_runs, total
from cwd.sweeps import write_cells

ROOT = Path(__file__).resolve().parents[1]
HERE = ("local", "basic")  # launchers that use this machine


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="+", help="files of configs/artifact/, or all")
    parser.add_argument("--scale", default="laptop", help="smoke, laptop or paper")
    parser.add_argument("--seeds", type=int, help="report seeds; the ladder's number if not given")
    parser.add_argument("--launcher", default="local", help="of configs/hydra/launcher/: local, slurm; or basic")
    parser.add_argument("--tracker", default="none", help="of configs/tracker/: wandb, tensorboard; docs/tracking.md")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of prepared data")
    parser.add_argument("--out", type=Path, default=Path("results"), help="where the written forms go")
    parser.add_argument("--export", type=Path, help="copy the records, without weights, into this folder")
    parser.add_argument("--plan", action="store_true", help="say what would be run, and run nothing")
    arguments = parser.parse_args()
    everything = arguments.artifact == ["all"]
    names = artifact_names() if everything else arguments.artifact
    if arguments.plan:
        tell_plan(states_of(names, arguments), arguments.runs)
        return
    done: set[str] = set()
    while run_missing(states_of(names, arguments), arguments, done):
        pass  # what has run may settle a best lambda, and so ask for more
    states = states_of(names, arguments)
    documents = [document(state) for state in states] + ([ledger(states)] if everything else [])
    for one in documents:
        if not everything or one.name == "ledger":
            to_terminal(one, terminal())
        for path in write_all(one, arguments.out / arguments.scale):
            print(path)
    if arguments.export:
        print(f"{len(export_records(states, arguments.export))} records in {arguments.export}")


def states_of(names: Sequence[str], arguments: argparse.Namespace) -> list[State]:
    """The artifacts as they are now, with those whose tuning they need."""
    study = Study(arguments.scale, arguments.runs, arguments.seeds)
    return [study.state(name) for name in names]


def run_missing(states: Sequence[State], arguments: argparse.Namespace, asked: set[str]) -> bool:
    """Trains the missing runs in one sweep and the missing checks one by one, then evaluates what is done; whether
    there was anything new to do.

    A run that was asked for already and has no result failed: it is not asked for again.
    """
    checks = [check.name for state in states for check in state.checks if not check.record and check.name not in asked]
    if checks:
        asked.update(checks)
        script = str(ROOT / "scripts" / "theory.py")
        subprocess.run([sys.executable, script, "--runs", str(arguments.runs), *dict.fromkeys(checks)], check=False)
    runs = [config for config, _ in all_missing(states)]
    folder = (arguments.runs / ".cells").absolute()
    names = [name for name in write_cells(runs, folder) if name not in asked]
    if names:
        if arguments.scale == "paper" and arguments.launcher in HERE:
            check_gpu()
        tell_plan(states, arguments.runs)
        asked.update(names)
        train(names, folder, arguments)
        return True
    return evaluate(states, arguments, asked)


def evaluate(states: Sequence[State], arguments: argparse.Namespace, asked: set[str]) -> bool:
    """Evaluates the finished runs that lack it, suite by suite, in a process that loads the harness once for all;
    whether there were any new ones.
    """
    wanted: dict[str, dict[str, None]] = {}
    for state in states:
        for key in state.unevaluated:
            if state.suite and f"{state.suite.name} {key}" not in asked:
                wanted.setdefault(state.suite.name, {})[key] = None
    for suite, keys in wanted.items():
        if arguments.scale == "paper":
            check_gpu()
        asked.update(f"{suite} {key}" for key in keys)
        print(f"{len(keys)} runs to evaluate on suite {suite}", flush=True)
        folders = [f"--runs={arguments.runs}", f"--data={arguments.data}"]
        words = [f"run={','.join(keys)}", f"suite={suite}"]
        subprocess.run([sys.executable, str(ROOT / "scripts" / "evaluate.py"), *folders, *words], check=False)
    return bool(wanted)


def train(names: Sequence[str], folder: Path, arguments: argparse.Namespace) -> None:
    """One Hydra sweep over the runs: a worker of the launcher imports, and prepares data, once for all its runs."""
    words = [
        f"experiment={','.join(names)}",
        f"hydra/launcher={arguments.launcher}",
        f"tracker={arguments.tracker}",
        "machine.progress=summary",
        f"machine.runs={arguments.runs}",
        f"machine.data={arguments.data}",
    ]
    command = [sys.executable, str(ROOT / "train.py"), "--multirun", "--config-dir", str(folder), *words]
    child = subprocess.Popen(command, env={"OMP_NUM_THREADS": "1", **os.environ})
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


if __name__ == "__main__":
    door(main)
