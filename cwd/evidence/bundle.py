"""One archive with everything that a claim rests on: records, definitions, tables and figures, and how to read them."""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cwd import __version__
from cwd.errors import UserError
from cwd.evidence.archive import pack, seal
from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.document import Document
from cwd.evidence.export import export_records
from cwd.evidence.render import images, texts
from cwd.evidence.report import document, ledger
from cwd.evidence.spreadsheet import cells_csv, lines_csv
from cwd.evidence.study import State, Study
from cwd.files import write_json
from cwd.sweeps import CONFIGS

FORMAT = 1  # raised when the layout changes
ABOUT = "bundle.json"
LIBRARIES = ("matplotlib", "numpy", "scipy")
LEDGER = "ledger"
README = """\
Records and results of "Cautious Weight Decay" (arXiv 2510.12402), checked by runs of its own: {scale} scale.

Everything here is text, PNG or PDF. No program of ours is needed to read it.

artifacts/   one table or figure of the paper each:
{artifacts}
  NAME.md          the table, its claims and their verdicts, as Markdown; NAME.tex: the same as LaTeX
  NAME.json        the same, unrounded, with the keys of the runs behind each number
  NAME.cells.csv   a line for each value: where it stands in the table, seed, value, the key of its run
  NAME.lines.csv   a line for each point of a figure's lines; low, high: its band
  NAME.png, .pdf   the figure
records/     one folder for each run, named by its key: 16 digits of the SHA-256 of its configuration and its data
  config.json          key, data, and every value of the configuration
  environment.jsonl    a line for each start: versions, commit, machine
  metrics.jsonl        a JSON object a line, by "kind": eval (on held-out data), train (means since the line before),
                       telemetry (mask ratio, RMS of parameters, updates and gradients); "step" counts updates;
                       losses are nats per token
  summary.json         the result; only a finished run has one
  status.json          only of a run that diverged
  evaluations/         scores on tasks, with those of every item
configs/     what was asked for: artifact/NAME.yaml says which runs a table is made of, and what each claim compares;
             ladder/{scale}.yaml what stands for the paper's sizes
bundle.json  scale, artifacts, and the versions of what drew and computed
MANIFEST     the SHA-256 of every other file: sha256sum --check MANIFEST
{report}
Weights are not here. To have every number computed anew from metrics.jsonl, in a copy of the repository:

    python scripts/verify.py BUNDLE
"""
REPORT = "report.html  the same as a page; open it in a browser\n"


def make_bundle(names: Sequence[str], scale: str, runs: Path, target: Path, seeds: int | None = None) -> str:
    """Writes the bundle of the artifacts, as far as their runs are done, to the zip `target`.

    The same records give the same bytes, by the same versions of the libraries.

    Args:
        names: files of configs/artifact/; [] for all that have a finished run, and the ledger.
        scale: smoke, laptop or paper.
        runs: the runs folder, or a folder of records.
        target: the zip; a report.html beside it is taken in.
        seeds: report seeds, instead of the ladder's number.

    Returns:
        The SHA-256 of the bundle's MANIFEST.

    Raises:
        UserError: no such artifact, or none of them has a finished run.
    """
    study = Study(scale, runs, seeds)
    states = [study.state(name) for name in names or artifact_names()]
    with tempfile.TemporaryDirectory(prefix="bundle-") as name:
        folder = Path(name)
        if not export_records(states, folder / "records"):
            raise UserError(f"{runs}: no finished run of {', '.join(names) or 'any artifact'} at {scale} scale")
        _render(names, Study(scale, folder / "records", seeds), folder, target)
        digest = seal(folder)
        pack(folder, target)
    return digest


def _render(names: Sequence[str], study: Study, folder: Path, target: Path) -> None:
    """Everything but the records, from the bundle's own records alone."""
    states = [study.state(name) for name in names or artifact_names()]
    shown = [state for state in states if names or _has_result(state)]
    documents = [*map(document, shown), *([] if names else [ledger(states)])]
    for one in documents:
        for name, content in {**images(one), **forms(one)}.items():
            _write(folder / "artifacts" / name, content)
    scale = study.ladder.scale
    for name in (*(f"artifact/{one}.yaml" for one in _defined(shown)), f"ladder/{scale}.yaml", f"scale/{scale}.yaml"):
        _write(folder / "configs" / name, (CONFIGS / name).read_bytes())
    report = target.parent / "report.html"
    if report.is_file():
        _write(folder / "report.html", report.read_bytes())
    listing = "\n".join(f"  {one.name:<16} {one.title}" for one in documents)
    about = README.format(scale=scale, artifacts=listing, report=REPORT if report.is_file() else "")
    _write(folder / "README.txt", about.encode())
    write_json(
        folder / ABOUT,
        {
            "format": FORMAT,
            "scale": scale,
            "seeds": study.seeds,
            "artifacts": [state.artifact.name for state in shown],
            "ledger": not names,
            "versions": versions(),
        },
    )


def forms(document: Document) -> dict[str, bytes]:
    """File name -> content, of a document's texts and spreadsheets."""
    sheets = {"cells": cells_csv(document), "lines": lines_csv(document)}
    named = {f"{document.name}.{name}.csv": text.encode() for name, text in sheets.items() if text}
    return {**texts(document), **named}


def versions() -> dict[str, str]:
    """Of what computes and draws here."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"cautious-weight-decay": __version__, "python": platform.python_version(), **libraries}


def _has_result(state: State) -> bool:
    cells = (cell for point in state.points for cell in point.cells.values())
    return any(check.record for check in state.checks) or any(cell.summary for cell in cells)


def _defined(states: Sequence[State]) -> list[str]:
    """The artifacts, and those on whose tuning seeds they choose."""
    own = {block.own for state in states for block in state.artifact.blocks if block.own}
    return sorted({*own, *(state.artifact.name for state in states)})


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
