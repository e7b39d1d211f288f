"""Breaks sweeps on purpose, and prints what happened to each run.

python scripts/faults.py                        a one-node SLURM is started, then every fault; then a local Ray
python scripts/faults.py preemption job         some of them

Each fault has a sweep of its own, of four runs or one, and every run must end as it does left alone, to the bit where
the number of processes stays. A fault that does not strike counts as failed. What is started is ended. Ten to twenty
minutes on two idle cores.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from cwd.cli import door
from cwd.errors import UserError
from cwd.faults.cluster import one_node, why_not
from cwd.faults.processes import processes
from cwd.faults.ray import ray_sweep, why_no_ray
from cwd.faults.runs import end_sweeps
from cwd.faults.slurm import FAULTS, Rig, copy_code
from cwd.faults.told import Told
from cwd.sweeping.frozen import CODE

ON_SLURM = {**FAULTS, "processes": processes}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="fault", help=f"of {', '.join(ON_SLURM)}, ray; all if none is named"
    )
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    arguments = parser.parse_args()
    names = arguments.names or [*ON_SLURM, "ray"]
    if unknown := [name for name in names if name not in (*ON_SLURM, "ray")]:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(ON_SLURM)}, ray")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    folder = (arguments.keep or Path(tempfile.mkdtemp(prefix="faults-"))).absolute()
    try:
        told = strike(names, folder)
    finally:
        end_sweeps()
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    bad = [one.title for one in told if not one.is_well]
    print(f"{len(told)} sweeps, {len(told) - len(bad)} as they must be" + "".join(f"\nNOT WELL: {one}" for one in bad))
    sys.exit(1 if bad else 0)


def strike(names: list[str], folder: Path) -> list[Told]:
    """The faults in turn, each told as soon as it is over."""
    told: list[Told] = []
    code = copy_code(CODE, folder / "code")
    if reason := why_not():
        print(f"SLURM is skipped: {reason}")
    elif set(names) - {"ray"}:
        with one_node() as cluster:
            rig = Rig(folder, code, cluster)
            told.append(show(rig.undisturbed()))
            told += [show(attempt(name, rig)) for name in names if name != "ray"]
    if "ray" in names:
        if reason := why_no_ray():
            print(f"Ray is skipped: {reason}")
        else:
            told.append(show(ray_sweep(folder, code)))
    return told


def attempt(name: str, rig: Rig) -> Told:
    """A fault; one that does not get to its end is told of too, and what it has left is cleared away."""
    try:
        return ON_SLURM[name](rig)
    except UserError as error:
        end_sweeps()
        rig.clear()
        return Told(name, {}, {}, {}, {}, missed=str(error))


def show(told: Told) -> Told:
    """Prints it."""
    print(f"{time.strftime('%H:%M:%S')} {told}\n", flush=True)
    return told


if __name__ == "__main__":
    door(main)
