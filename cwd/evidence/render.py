"""A document as text: in the terminal, as Markdown, as LaTeX, as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich import box
from rich import table as rich_table
from rich.console import Console

from cwd.evidence.document import Document, Figure, Table, as_tables
from cwd.files import write_atomically

WIDE = 140  # columns of a terminal in which numbers need not be broken
LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
}


def terminal() -> Console:
    """The terminal as it is; 200 columns where there is none, so that a file or a pipe gets whole tables."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def to_terminal(document: Document, console: Console) -> None:
    """Prints it; a figure as tables of some of its points."""
    console.print(f"{document.name}: {document.title}", style="bold", markup=False, highlight=False)
    for mark in document.marks:
        console.print(mark, style="bold red", markup=False, highlight=False, soft_wrap=True)
    for table in _tables(document):
        console.print(f"\n{table.title}", markup=False, highlight=False, soft_wrap=True)
        shown = rich_table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(table.columns):
            text = i < table.text_columns
            wide = console.width >= WIDE and not text
            shown.add_column(name, justify="left" if text else "right", no_wrap=wide, overflow="fold")
        for row in table.rows:
            shown.add_row(*(cell.replace("[", "\\[") for cell in row))
        console.print(shown, highlight=False)
    for line in document.remarks:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def to_markdown(document: Document, image: str | None = None) -> str:
    """GitHub's Markdown; `image` is the path of the figure's image, if there is one."""
    lines = [f"# {document.name}: {document.title}", ""]
    for mark in document.marks:
        lines += [f"**{mark}**", ""]
    if image:
        lines += [f"![{document.title}]({image})", ""]
    for table in _tables(document):
        lines += [f"**{_markdown(table.title)}**", ""]
        ruler = [":--" if i < table.text_columns else "--:" for i in range(len(table.columns))]
        rows = [table.columns, ruler, *table.rows]
        lines += [f"| {' | '.join(map(_markdown, row))} |" for row in rows]
        lines.append("")
    lines += [f"- {_markdown(line)}" for line in document.remarks]
    return "\n".join(lines).rstrip() + "\n"


def to_latex(document: Document, image: str | None = None) -> str:
    """Tables in booktabs' style, to be put into a paper with \\input; needs the packages booktabs and graphicx."""
    lines = [f"% {document.name}: {document.title}", *(f"% {mark}" for mark in document.marks)]
    if image:
        lines += ["\\begin{figure}", "\\centering", f"\\includegraphics[width=\\linewidth]{{{image}}}"]
        lines += [f"\\caption{{{_caption(document, document.title)}}}", "\\end{figure}"]
    for table in _tables(document):
        columns = "".join("l" if i < table.text_columns else "r" for i in range(len(table.columns)))
        lines += ["\\begin{table}", "\\centering", f"\\caption{{{_caption(document, table.title)}}}"]
        lines += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", _latex_row(table.columns), "\\midrule"]
        lines += [*map(_latex_row, table.rows), "\\bottomrule", "\\end{tabular}", "\\end{table}"]
    lines += [f"% {line}" for line in document.remarks]
    return "\n".join(lines) + "\n"


def to_json(document: Document) -> str:
    """Everything, unrounded, with the keys of the runs; numbers that are not finite are null."""
    return json.dumps(finite(document.data), indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_all(document: Document, folder: Path) -> list[Path]:
    """Writes NAME.md, .tex and .json into `folder`, and NAME.png and .pdf of a figure; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {**images(document), **texts(document)}
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def images(document: Document) -> dict[str, bytes]:
    """File name -> content, of its figure's PNG and PDF; {} without a figure."""
    if not document.figures:
        return {}
    from cwd.evidence.plots import draw

    return {f"{document.name}.{kind}": draw(document, kind) for kind in ("png", "pdf")}


def texts(document: Document) -> dict[str, bytes]:
    """File name -> content, of its Markdown, LaTeX and JSON."""
    image = f"{document.name}." if document.figures else None
    markdown = to_markdown(document, image and image + "png")
    latex = to_latex(document, image and image + "pdf")
    forms = {"md": markdown, "tex": latex, "json": to_json(document)}
    return {f"{document.name}.{suffix}": text.encode() for suffix, text in forms.items()}


def _tables(document: Document) -> list[Table]:
    found = []
    for part in document.parts:
        found += as_tables(part) if isinstance(part, Figure) else [part]
    return found


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def _latex_row(cells: tuple[str, ...]) -> str:
    return " & ".join(map(latex_text, cells)) + " \\\\"


def latex_text(text: str) -> str:
    """Text with everything that LaTeX reads as more than text escaped."""
    return "".join(LATEX.get(character, character) for character in text)


def _caption(document: Document, text: str) -> str:
    return latex_text(" ".join((*(f"[{mark}]" for mark in document.marks), text)))


def finite(value: Any) -> Any:
    """Nested data with null for each number that is not finite, as JSON has none, and text for each key."""
    if isinstance(value, dict):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
