"""Shows what the runs say: the ledger of all claims, or one table or figure.

python scripts/report.py                        every claim of the paper, and its verdict
python scripts/report.py table10                one artifact: its table or figure, its claims' comparisons
python scripts/report.py table10 --out results  and write it there: Markdown, LaTeX, JSON, PNG, PDF
"""

import argparse
from pathlib import Path

from cwd.cli import door
from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.render import terminal, to_terminal, write_all
from cwd.evidence.report import document, ledger
from cwd.evidence.study import Study


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="*", help="a file of configs/artifact/; none: the ledger")
    parser.add_argument("--scale", default="laptop", help="smoke, laptop or paper")
    parser.add_argument("--seeds", type=int, help="report seeds; the ladder's number if not given")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder")
    parser.add_argument("--out", type=Path, help="a folder for the written forms, under the scale's name")
    arguments = parser.parse_args()
    study = Study(arguments.scale, arguments.runs, arguments.seeds)
    if arguments.artifact:
        documents = [document(study.state(name)) for name in arguments.artifact]
    else:
        documents = [ledger([study.state(name) for name in artifact_names()])]
    for one in documents:
        to_terminal(one, terminal())
        if arguments.out:
            for path in write_all(one, arguments.out / arguments.scale):
                print(path)


if __name__ == "__main__":
    door(main)
