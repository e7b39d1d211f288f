"""Prints an experiment's table from the runs that are there: ``python scripts/report.py demo [key=value ...]``."""

import sys
from pathlib import Path

from cwd.cli import door
from cwd.config import identity
from cwd.errors import UserError
from cwd.evidence.grid import find_cells
from cwd.evidence.tables import print_comparison
from cwd.sweeps import compose_sweep


def main() -> None:
    """The first argument names a file of configs/experiment/; the rest are overrides as for train.py."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return
    experiment, *overrides = sys.argv[1:]
    configs = compose_sweep([f"experiment={experiment}", *overrides])
    modes = {config.decay.mode for config in configs}
    if modes != {"decoupled", "cautious"}:
        raise UserError(
            f"experiment={experiment}: compares {', '.join(sorted(modes))}; this table needs decoupled and cautious"
        )
    print_comparison(find_cells(map(identity, configs), Path(configs[0].machine.runs)), "decoupled", "cautious")


if __name__ == "__main__":
    door(main)
