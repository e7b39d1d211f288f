"""Packs what claims rest on into one archive that anyone can open: ``make bundle ARTIFACT="table10 figure1"``.

python scripts/bundle.py                        every artifact with a finished run -> results/laptop/bundle.zip
python scripts/bundle.py table10 figure1        these
python scripts/bundle.py --runs records/laptop  from the records that came with the repository
"""

import argparse
from pathlib import Path

from cwd.cli import door
from cwd.evidence.bundle import make_bundle


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="*", help="files of configs/artifact/; none: all that have a finished run")
    parser.add_argument("--scale", default="laptop", help="smoke, laptop or paper")
    parser.add_argument("--seeds", type=int, help="report seeds; the ladder's number if not given")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder, or one of records")
    parser.add_argument("--out", type=Path, default=Path("results"), help="where SCALE/bundle.zip goes")
    arguments = parser.parse_args()
    target = arguments.out / arguments.scale / "bundle.zip"
    digest = make_bundle(arguments.artifact, arguments.scale, arguments.runs, target, arguments.seeds)
    print(f"{target}  {target.stat().st_size / 1e6:.1f} MB  SHA-256 of its MANIFEST {digest}")


if __name__ == "__main__":
    door(main)
