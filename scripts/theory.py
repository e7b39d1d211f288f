"""Checks the paper's theory numerically; every check is a run, and what it found is in its summary.json.

python scripts/theory.py                          all checks, some minutes; those that are done are found
python scripts/theory.py figure2 theorem1         some
"""

import argparse
import os
import time
from pathlib import Path

from cwd.cli import door
from cwd.theory import CHECKS, run_check
from cwd.theory.checks import check_identity
from cwd.training.progress import duration


def main() -> None:
    """See the module's docstring."""
    width = max(map(len, CHECKS))
    listing = "\n".join(["checks:", *(f"  {name:<{width}}  {about}" for name, about in CHECKS.items())])
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=listing, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder")
    parser.add_argument("names", nargs="*", metavar="check", help="all of them if none is named")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # everything here is small: threads would only wait for each other
    for name in arguments.names:
        check_identity(name)  # a wrong name is refused before any check runs
    for name in arguments.names or CHECKS:
        print(f"{name}: {CHECKS[name]}", flush=True)
        began = time.perf_counter()
        record = run_check(name, arguments.runs, say=lambda text: print(f"  {text}", flush=True))
        assert record.summary is not None
        found = time.perf_counter() - began < record.summary["seconds"]  # what it took when it was computed
        print(f"{'found' if found else 'done '}  {name}  ({duration(record.summary['seconds'])})  {record.folder}\n")


if __name__ == "__main__":
    door(main)
