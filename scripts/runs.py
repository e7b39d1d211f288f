"""Lists, filters, shows and compares runs in the terminal.

python scripts/runs.py                                  all runs
python scripts/runs.py optimizer=lion decay=cautious state=done
python scripts/runs.py show KEY                         one run; the key's first digits are enough
python scripts/runs.py compare KEY KEY                  what differs, in the configurations and in the results
"""

import argparse
from pathlib import Path

from cwd.cli import door
from cwd.evidence.listing import find, print_difference, print_run, print_runs, select
from cwd.evidence.render import terminal


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder")
    parser.add_argument("words", nargs="*", metavar="key=value | show KEY | compare KEY KEY")
    arguments = parser.parse_args()
    console, words = terminal(), arguments.words
    if words[:1] == ["show"] and len(words) == 2:
        print_run(find(arguments.runs, words[1]), console)
    elif words[:1] == ["compare"] and len(words) == 3:
        print_difference(find(arguments.runs, words[1]), find(arguments.runs, words[2]), console)
    else:
        print_runs(select(arguments.runs, words), console)


if __name__ == "__main__":
    door(main)
