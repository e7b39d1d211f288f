"""Shows what the runs say: the ledger of all claims, or one table or figure.

python scripts/report.py                        every claim of the paper, and its verdict
python scripts/report.py table10                one artifact: its table or figure, its claims' comparisons
python scripts/report.py table10 --out results  and write it there: Markdown, LaTeX, JSON, PNG, PDF
python scripts/report.py --html                 everything in one HTML page that needs no network
python scripts/report.py --serve                the same page on this machine, with a sweep while it runs
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

from cwd.cli import door
from cwd.errors import UserError
from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.page.page import report_page
from cwd.evidence.page.serve import ADDRESS, make_server
from cwd.evidence.render import terminal, to_terminal, write_all
from cwd.evidence.report import document, ledger
from cwd.evidence.study import State, Study
from cwd.files import write_atomically
from cwd.sweeping.progress import Progress

PORT = 8000


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="*", help="a file of configs/artifact/; none: the ledger")
    parser.add_argument(
        "--scale", default="laptop", help="smoke, laptop or paper; of a page also several, as in laptop,smoke"
    )
    parser.add_argument("--seeds", type=int, help="report seeds; the ladder's number if not given")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder")
    parser.add_argument("--out", type=Path, help="a folder for the written forms, under the scale's name")
    parser.add_argument("--html", action="store_true", help="one page, --out (results)/SCALE/report.html")
    parser.add_argument("--serve", type=int, nargs="?", const=PORT, metavar="PORT", help=f"show it at a port ({PORT})")
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments)
        return
    if arguments.html:
        path = (arguments.out or Path("results")) / arguments.scale.replace(",", "-") / "report.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, report_page(states_of(arguments)).encode())
        print(path)
        return
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


def states_of(arguments: argparse.Namespace) -> list[State]:
    """The artifacts as they are now, at each of the scales; theory, which has none, once."""
    states: list[State] = []
    for scale in arguments.scale.split(","):
        study = Study(scale, arguments.runs, arguments.seeds)
        found = [study.state(name) for name in arguments.artifact or artifact_names()]
        states += [state for state in found if not states or state.artifact.kind != "theory"]
    return states


def serve(arguments: argparse.Namespace) -> None:
    """The page, made anew when runs have ended since; until Ctrl-C."""
    if not 0 <= arguments.serve < 2**16:
        raise UserError(f"--serve {arguments.serve}: no such port; allowed are 0 (any that is free) to 65535")
    made: dict[str, Any] = {}

    def page() -> str:
        if not made or made["progress"].snapshot()["changed"]:
            states = states_of(arguments)
            made.update(progress=Progress(states, arguments.runs), page=report_page(states))
            made["progress"].snapshot()
        return made["page"]

    print("reading the runs", flush=True)
    page()
    server = make_server(page, lambda: made["progress"].snapshot(), arguments.serve)
    print(f"http://{ADDRESS}:{server.server_port}/ shows the page; Ctrl-C ends it", flush=True)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    door(main)
