"""The page: documents and run records, put into template.html with the plotting library, everything in one file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from cwd.evidence.artifact_files import text_of
from cwd.evidence.colours import PAPER_COLOUR
from cwd.evidence.document import Document, Figure, Table, as_tables
from cwd.evidence.page.charts import colours, differences, figure_data
from cwd.evidence.page.ledger import SIGNS, Entry, entries
from cwd.evidence.page.runs import Runs
from cwd.evidence.render import finite
from cwd.evidence.report import METHOD, SMOKE, document
from cwd.evidence.study import State
from cwd.evidence.tables import name_of
from cwd.runs.record import now

TEMPLATES = ("template.html", "macros.html", "ledger.html", "artifact.html")
SCRIPTS = ("charts.js", "tables.js", "runs.js", "live.js", "start.js")
GROUPS = {"table": "Tables", "figure": "Figures", "theorem": "Theory", "appendix_c": "Theory"}  # in the navigation
OTHER = "Beside the paper"


@dataclass(frozen=True)
class Part:
    """A table of a document, or a figure with the same as tables; `chart` is its name in the page's data."""

    table: Table | None = None
    figure: Figure | None = None
    chart: str = ""

    @property
    def tables(self) -> list[Table]:
        """What is shown without a chart."""
        return as_tables(self.figure) if self.figure else [self.table] if self.table else []


@dataclass(frozen=True)
class Section:
    """One artifact on the page."""

    anchor: str
    heading: str
    state: State
    document: Document
    parts: list[Part]
    entries: list[Entry]
    cells: list[dict[str, Any]]
    runs: list[str]
    differences: str  # the name of the chart of its differences, if it has one

    @property
    def group(self) -> str:
        """Where the navigation has it."""
        return GROUPS.get(self.document.name.rstrip("0123456789"), OTHER)

    @property
    def progress(self) -> str:
        """ "63 of 150 runs": those that are ready to be read, and all that it asks for."""
        total = sum(len(point.cells) for point in self.state.points) + len(self.state.checks)
        open_ones = sum(one != "diverged" for one in self.state.unfinished)
        return f"{total - open_ones} of {total} runs" if total else "no runs yet"


def report_page(states: Sequence[State], title: str = "Cautious weight decay: the evidence") -> str:
    """The whole page, as HTML without any reference to a network.

    Args:
        states: the artifacts, of one scale or of several.

    Every text from outside the project (names, messages, tracebacks) is escaped, and the browser is told to run nothing
    but the page's own scripts, by their hashes.
    """
    runs, charts = Runs(), dict[str, Any]()
    sections = [_section(state, runs, charts) for state in states]
    ledger = [one for section in sections if section.state.artifact.ledger for one in section.entries]
    data = {"charts": charts, "colours": colours(), **runs.island()}
    script = "\n".join(_text(name) for name in SCRIPTS)
    return _template().render(
        title=title,
        made=now(),
        scales=list(dict.fromkeys(state.scale for state in states)),
        smoke=SMOKE if any(state.scale == "smoke" for state in states) else "",
        sections=sections,
        groups=_groups(sections),
        ledger=ledger,
        counts=_counts([one.verdict for one in ledger]),
        runs=runs.rows(),
        choices=_choices(ledger),
        method=METHOD,
        signs=SIGNS,
        paper_colour=PAPER_COLOUR,
        style=Markup(_text("style.css")),
        data=Markup(embedded(data)),
        plotly=Markup(plotly()),
        script=Markup(script),
        hashes=" ".join(f"'sha256-{_hash(text)}'" for text in (script, plotly())),
    )


def _section(state: State, runs: Runs, charts: dict[str, Any]) -> Section:
    anchor = f"{state.scale}-{state.artifact.name}"
    shown = document(state)
    parts = []
    for number, part in enumerate(shown.parts):
        if isinstance(part, Figure):
            chart = f"{anchor}-figure{number}" if any(panel.series for panel in part.panels) else ""
            if chart:
                charts[chart] = {"kind": "figure", **figure_data(part)}
            parts.append(Part(figure=part, chart=chart))
        else:
            parts.append(Part(table=part))
    measured = differences(state.findings)
    if measured:
        charts[f"{anchor}-differences"] = {"kind": "differences", "claims": measured}
    name = f"{anchor}-differences" if measured else ""
    cells = [_cell(cell) for cell in shown.data["cells"] if cell["runs"]]
    return Section(
        anchor,
        _heading(state.artifact.name),
        state,
        shown,
        parts,
        list(entries(state, anchor)),
        cells,
        runs.add(state, anchor),
        name,
    )


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    """One configuration of the grid with its runs, from the document's data."""
    named = {name: value for name, value in cell["coordinates"].items() if value not in (None, "")}
    where = ", ".join(f"{name} {name_of(value)}" for name, value in named.items())
    return {"where": where, "runs": cell["runs"], "values": cell["values"]}


def _heading(name: str) -> str:
    """ "Table 10" for table10; other names as they are."""
    kind = name.rstrip("0123456789")
    number = name[len(kind) :]
    return f"{kind.capitalize()} {number}" if number and kind in ("table", "figure", "theorem") else name


def _groups(sections: Sequence[Section]) -> dict[str, list[Section]]:
    names = [*dict.fromkeys(GROUPS.values()), OTHER]
    found = {name: [section for section in sections if section.group == name] for name in names}
    return {name: members for name, members in found.items() if members}


def _counts(verdicts: Sequence[str]) -> dict[str, int]:
    return {name: verdicts.count(name) for name in SIGNS if name in verdicts}


def _choices(ledger: Sequence[Entry]) -> dict[str, list[str]]:
    """What the ledger can be filtered by."""
    rows = [row for one in ledger for row in one.comparisons]
    return {
        "scale": _distinct(one.scale for one in ledger),
        "optimizer": _distinct(name for row in rows for name in row.optimizers),
        "size": _distinct(name for row in rows for name in row.sizes),
        "verdict": _distinct(one.verdict for one in ledger),
        "artifact": _distinct(one.artifact for one in ledger),
    }


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(values))


def _number(value: Any) -> str:
    """A result as it is; a float to six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def embedded(data: Any) -> str:
    """Plain data as JSON that no HTML parser mistakes for anything else: every < is escaped."""
    text = json.dumps(finite(data), separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c")


@cache
def plotly() -> str:
    """The library that draws the charts, as its package ships it."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_text()


@cache
def _text(name: str) -> str:
    return (files("cwd.evidence.page") / name).read_text()


@cache
def _template() -> Any:
    environment = Environment(
        loader=DictLoader({name: _text(name) for name in TEMPLATES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(name_of=name_of, text_of=text_of, number=_number)
    return environment.get_template("template.html")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
