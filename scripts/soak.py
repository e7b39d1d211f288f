"""A sweep under random kills, and whether anything was lost: ``python scripts/soak.py --runs 200``.

Small runs are submitted twice at once; drivers and workers get SIGKILL and SIGTERM at random moments, and are started
again, until every run is done. Then the same runs are left alone, elsewhere. At the end every run must be done, once,
with the same weights and metrics to the bit; otherwise the exit status is 1.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from cwd.benchmarks.soak import Findings, Options, soak
from cwd.cli import door
from cwd.training.progress import duration


def main() -> None:
    """See the module's docstring."""
    usual = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=usual.runs, help="how many")
    parser.add_argument("--workers", type=int, default=usual.workers, help="of each submission")
    parser.add_argument("--submissions", type=int, default=usual.submissions, help="of the same runs, at once")
    parser.add_argument("--every", type=float, default=usual.every, help="seconds of progress between two signals")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the moments and victims")
    parser.add_argument("--folder", type=Path, help="an empty folder to keep the runs in; a temporary one if not given")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = vars(parser.parse_args())
    out, folder = arguments.pop("out"), arguments.pop("folder")
    with tempfile.TemporaryDirectory() as temporary:
        findings = soak(Options(**arguments, folder=folder or Path(temporary)), lambda line: print(line, flush=True))
    tell(findings)
    if out:
        out.write_text(findings.as_json())
    sys.exit(bool(findings.wrong))


def tell(findings: Findings) -> None:
    """The figures, a line each."""
    by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(findings.signals.items()))
    rows = {
        "runs": findings.runs,
        "kills survived": f"{findings.signals.total()} ({by_kind})",
        "starts of runs": f"{findings.starts}, {findings.resumes} of them from a checkpoint",
        "runs lost": len(findings.lost),
        "runs done twice": len(findings.twice),
        "results that differ": len(findings.differ),
        "time under kills": duration(findings.seconds),
    }
    for name, value in rows.items():
        print(f"{name:<20} {value}")
    for name, keys in (("lost", findings.lost), ("done twice", findings.twice), ("different", findings.differ)):
        for key in keys:
            print(f"{name}: {key}")


if __name__ == "__main__":
    door(main)
