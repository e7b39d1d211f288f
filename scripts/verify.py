"""Says whether a bundle, or a folder of records, is what it says: recomputes every table from the raw metrics.

python scripts/verify.py results/laptop/bundle.zip    a line for each artifact: agrees, or differs, where and by what
python scripts/verify.py records/laptop               records alone: keys, and summaries against their metrics

Ends with 0 if everything agrees, with 1 if something differs.
"""

import argparse
import sys
from pathlib import Path

from cwd.cli import door
from cwd.evidence.verify import verify


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a bundle, as a zip or unpacked, or a folder of records")
    agrees = True
    for line in verify(parser.parse_args().path):
        print(f"{line.name:<12} {'agrees ' if line.agrees else 'DIFFERS'}  {line.text}", flush=True)
        agrees &= line.agrees
    print("everything agrees" if agrees else "NOT everything agrees")
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    door(main)
