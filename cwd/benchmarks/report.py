"""What the benchmarks share around the measuring: options, tables, and a Markdown file that they write into."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cwd.benchmarks.workload import device
from cwd.errors import UserError, nearest
from cwd.files import write_atomically
from cwd.runs.environment import describe_environment

FIRST = 44  # width of a table's first column in the terminal
HEAD = """# Benchmarks

Measured, not claimed. Each section is written by the command that it names, and replaced when that command runs again
with `markdown=FILE`.
"""


def read_options(arguments: Sequence[str], defaults: Mapping[str, int | str]) -> dict[str, Any]:
    """`defaults`, changed by ``key=value`` arguments; a value is of its default's type, a number at least 1.

    Raises:
        UserError: what is not key=value, an unknown key, a value that is no such number.
    """
    options: dict[str, Any] = dict(defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument}: an option is written key=value; allowed are {', '.join(defaults)}")
        if key not in defaults:
            raise UserError(f"{key}: no such option{nearest(key, defaults)}; allowed are {', '.join(defaults)}")
        if isinstance(defaults[key], int) and not (value.isdecimal() and int(value) > 0):
            raise UserError(f"{argument}: a whole number above 0 is needed")
        options[key] = int(value) if isinstance(defaults[key], int) else value
    markdown = options.get("markdown")
    if markdown and not Path(markdown).parent.is_dir():  # said now, not after the measuring
        raise UserError(f"markdown={markdown}: its folder is not there")
    return options


def read_names(options: Mapping[str, Any], key: str, allowed: Iterable[str]) -> list[str]:
    """The names in a comma-separated option; all that are allowed if it is empty. Raises UserError for any other."""
    names = list(allowed)
    chosen = [name for name in options[key].split(",") if name]
    for name in chosen:
        if name not in names:
            raise UserError(f"{key}={options[key]}: no {name!r}{nearest(name, names)}; allowed are {', '.join(names)}")
    return chosen or names


class Table:
    """A table that is printed row by row as it is measured, and can be had as Markdown afterwards."""

    def __init__(self, title: str, columns: Sequence[str], notes: Sequence[str] = ()) -> None:
        self.title, self.columns, self.notes = title, list(columns), notes
        self.rows: list[list[str]] = []
        print(f"\n{title}", flush=True)
        self._print(self.columns)

    def add(self, *cells: str) -> None:
        """Adds a row and prints it."""
        self.rows.append(list(cells))
        self._print(cells)

    def markdown(self) -> str:
        """The table with its title above."""
        rule = ["---", *["--:"] * (len(self.columns) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines])

    def _print(self, cells: Sequence[str]) -> None:
        widths = [FIRST, *(max(len(name), 10) for name in self.columns[1:])]
        cells = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
        print("  " + "  ".join(cells).rstrip(), flush=True)


def publish(name: str, title: str, arguments: Sequence[str], tables: Sequence[Table], file: str) -> None:
    """Prints the tables' notes; writes the section `title` of the Markdown `file`, unless that is empty.

    Other sections stay as they are.

    Args:
        name, arguments: the benchmark and its command line.
    """
    notes = list(dict.fromkeys(note for table in tables for note in table.notes))
    for note in notes:
        print(f"\n{note}")
    if not file:
        return
    path = Path(file)
    text = path.read_text() if path.exists() else HEAD
    said = [argument for argument in arguments if not argument.startswith("markdown=")]
    command = " ".join(["python scripts/benchmark.py", name, *said])
    begin, end = f"<!-- {title}: begin -->", f"<!-- {title}: end -->"
    parts = [begin, f"## {title}", _origin(command), *(table.markdown() for table in tables), *notes, end]
    section = "\n\n".join(parts)
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    text, replaced = found.subn(lambda _: section, text)
    if not replaced:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_atomically(path, text.encode())


def _origin(command: str) -> str:
    """Command, date, versions, machine and how busy it was, in two lines."""
    where = describe_environment(device(), 1)
    commit = str(where["commit"] or "unknown")
    commit = commit[:12] + ("+changes" if commit.endswith("+changes") else "")
    machine = where["cpu"] if where["device"] == "cpu" else f"{where['device']} beside {where['cpu']}"
    threads = f"{where['threads']} thread{'s' * (where['threads'] != 1)}"
    busy = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"`{command}`, {datetime.date.today()}, commit {commit}.\n"
        f"{machine}, {where['cores']} cores, {threads}, {busy}; torch {torch.__version__}, Python {where['python']}."
    )
