"""Runs what a table or figure lacks, then renders it: ``make table10``, ``make figure1 SCALE=smoke SEEDS=3``.

python scripts/artifact.py table10                    run what is missing at laptop scale, then show and write it
python scripts/artifact.py table10 figure1 --plan     how many runs that would be, and how long; run nothing
python scripts/artifact.py all --scale paper --launcher slurm --job partition=long timeout_min=600
python scripts/artifact.py table10 --detach           start it, and leave; docs/cluster.md
python scripts/artifact.py table10 --status           what is done, running, queued, failed and why, and the time left
python scripts/artifact.py table10 --retry            runs that failed are run again too
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cwd.cli import door
from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.export import export_records
from cwd.evidence.render import terminal, to_terminal, write_all
from cwd.evidence.report import document, ledger
from cwd.evidence.study import State, Study
from cwd.sweeping.standing import Watch, lines_of, tell_submissions, waiting_lines
from cwd.sweeping.submissions import live_submissions
from cwd.sweeping.sweep import Submitted, Sweep, start_session, tell_plan


def main() -> None:
    """See the module's docstring."""
    arguments = parse()
    everything = arguments.artifact == ["all"]
    names = artifact_names() if everything else arguments.artifact
    if arguments.plan:
        tell_plan(states_of(names, arguments), arguments.runs)
        return
    if arguments.status:
        tell_status(names, arguments)
        return
    detached = arguments.detach and arguments.launcher == "slurm"
    if arguments.detach and not detached:
        leave_session(arguments)
        return
    try:
        run(names, arguments, detached)
    except Submitted:
        print(f"not waiting; {how_to_ask(arguments)}; the same command without --detach, once they are done, renders")
        return
    states = states_of(names, arguments)
    documents = [document(state) for state in states] + ([ledger(states)] if everything else [])
    for one in documents:
        if not everything or one.name == "ledger":
            to_terminal(one, terminal())
        for path in write_all(one, arguments.out / arguments.scale):
            print(path)
    if arguments.export:
        print(f"{len(export_records(states, arguments.export))} records in {arguments.export}")
    sys.exit(tell_failed(states, arguments))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="+", help="files of configs/artifact/, or all")
    parser.add_argument("--scale", default="laptop", help="smoke, laptop or paper")
    parser.add_argument("--seeds", type=int, help="report seeds; the ladder's number if not given")
    parser.add_argument("--launcher", default="local", help="of configs/hydra/launcher/: local, slurm, ray; or basic")
    parser.add_argument(
        "--job",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of the launcher: partition, timeout_min, ...",
    )
    parser.add_argument("--tracker", default="none", help="of configs/tracker/: wandb, tensorboard; docs/tracking.md")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of prepared data")
    parser.add_argument("--out", type=Path, default=Path("results"), help="where the written forms go")
    parser.add_argument("--export", type=Path, help="copy the records, without weights, into this folder")
    parser.add_argument("--plan", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--detach", action="store_true", help="start it and return at once")
    parser.add_argument("--status", action="store_true", help="say how far the runs are, and run nothing")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    return parser.parse_args()


def states_of(names: Sequence[str], arguments: argparse.Namespace) -> list[State]:
    """The artifacts as they are now, with those whose tuning they need."""
    study = Study(arguments.scale, arguments.runs, arguments.seeds)
    return [study.state(name) for name in names]


def run(names: Sequence[str], arguments: argparse.Namespace, detached: bool) -> None:
    """Everything that is missing, round by round: what has run may settle a best lambda, and so ask for more."""
    place = arguments.runs, arguments.data, tuple(arguments.job)
    how = arguments.retry, detached, arguments.tracker
    sweep = Sweep(arguments.scale, arguments.launcher, *place, *how)
    asked: set[str] = set()
    while sweep.run_missing(states_of(names, arguments), asked):
        pass


def tell_status(names: Sequence[str], arguments: argparse.Namespace) -> None:
    """How far the artifacts are."""
    states = states_of(names, arguments)
    lines = [*lines_of(Watch(states, arguments.runs).now()), *waiting_lines(states)]
    print("\n".join([*lines, *tell_submissions(live_submissions(arguments.runs))]))


def leave_session(arguments: argparse.Namespace) -> None:
    """The same command in the background."""
    words = [word for word in sys.argv[1:] if word != "--detach"]
    session = start_session(words, arguments.artifact, arguments.runs)
    print(f"process {session.pid} works on it, log {session.log}")
    print(f"{how_to_ask(arguments)}; kill {session.pid} stops it, what is running is saved")


def how_to_ask(arguments: argparse.Namespace) -> str:
    """The command that says how far it is."""
    scale = "" if arguments.scale == "laptop" else f" SCALE={arguments.scale}"
    return f"make status ARTIFACT={' '.join(arguments.artifact)}{scale} says how far it is"


def tell_failed(states: Sequence[State], arguments: argparse.Namespace) -> int:
    """A line on stderr for each run that failed or was stopped; the exit status."""
    found = [one for one in Watch(states, arguments.runs).now() if one.state in ("failed", "stopped", "to do")]
    for one in found:
        print(f"{one.state}: {one.label}  step {one.step}  {one.note}".rstrip(), file=sys.stderr)
    if any(one.state == "failed" for one in found):
        target = " ".join(arguments.artifact)
        print(f"make retry ARTIFACT={target} runs again what failed, from the last checkpoints", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    door(main)
