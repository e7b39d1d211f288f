"""Lists, filters, shows and compares runs in the terminal, and syncs them.

python scripts/runs.py                                  all runs
python scripts/runs.py optimizer=lion decay=cautious state=done
python scripts/runs.py show KEY                         one run; the key's first digits are enough
python scripts/runs.py compare KEY KEY                  what differs, in the configurations and in the results
python scripts/runs.py sync [key=value ...]             send what wandb kept offline to its server
"""

import argparse
import sys
from pathlib import Path

from cwd.cli import door
from cwd.evidence.listing import find, print_difference, print_run, print_runs, select
from cwd.evidence.render import terminal
from cwd.runs.offline import sync


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder")
    parser.add_argument("words", nargs="*", metavar="key=value | show KEY | compare KEY KEY | sync")
    arguments = parser.parse_args()
    console, words = terminal(), arguments.words
    if words[:1] == ["show"] and len(words) == 2:
        print_run(find(arguments.runs, words[1]), console)
    elif words[:1] == ["compare"] and len(words) == 3:
        print_difference(find(arguments.runs, words[1]), find(arguments.runs, words[2]), console)
    elif words[:1] == ["sync"]:
        sys.exit(int(sync(select(arguments.runs, words[1:]), print) > 0))
    else:
        print_runs(select(arguments.runs, words), console)


if __name__ == "__main__":
    door(main)
