"""Where a written document and the same one computed anew differ: which cell, and both values."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cwd.evidence.raw import same

TOLERANCE = 1e-9  # relative, of a number in JSON or CSV; Markdown and LaTeX must be the same text
ORDER = (".json", ".csv", ".md", ".tex")  # the most telling first
NAMES = ("coordinates", "where", "claim", "artifact")  # what an element of a list is called by


def differences(folder: Path, name: str, anew: dict[str, bytes]) -> Iterator[str]:
    """Each place where the files of document `name` in `folder` are not `anew` (file name -> content), in words."""
    images = {path.name for path in folder.glob(f"{name}.*") if path.suffix in (".png", ".pdf")}
    written = {path.name for path in folder.glob(f"{name}.*")} - images
    for file in sorted(written - anew.keys()):
        yield f"{file}: nothing that is computed from the records"
    for file, content in sorted(anew.items(), key=lambda one: ORDER.index(Path(one[0]).suffix)):
        if file not in written:
            yield f"{file}: not in the bundle"
            continue
        old, new = (folder / file).read_text(), content.decode()
        if old == new:
            continue
        compare = {".json": _json, ".csv": _csv}.get(Path(file).suffix, _text)
        yield from (f"{file}: {place}: {a} in the bundle, {b} recomputed" for place, a, b in compare(old, new))


def _json(old: str, new: str) -> Iterator[tuple[str, str, str]]:
    yield from _walk(json.loads(old), json.loads(new), "")


def _walk(old: Any, new: Any, place: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *(key for key in new if key not in old)):
            yield from _walk(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _walk(a, b, f"{place}[{_called(b, i)}]")
    elif not same(old, new, TOLERANCE):
        yield place, _short(old), _short(new)


def _called(element: Any, index: int) -> str:
    """An element of a list by its coordinates, or by its number."""
    found = [element[name] for name in NAMES if isinstance(element, dict) and name in element]
    texts = [
        " ".join(str(value) for value in one.values()) if isinstance(one, dict) else str(one)
        for one in found
        if one != {}
    ]
    return ", ".join(texts) or str(index)


def _csv(old: str, new: str) -> Iterator[tuple[str, str, str]]:
    before, after = (list(csv.reader(text.splitlines())) for text in (old, new))
    names = after[0]
    nothing: list[str] = []
    for number, (a, b) in enumerate(zip_longest(before, after, fillvalue=nothing), 1):
        if len(a) != len(b):
            yield f"line {number}", _short(",".join(a)), _short(",".join(b))
            continue
        for name, x, y in zip(names, a, b, strict=False):
            if x != y and not same(_number(x), _number(y), TOLERANCE):
                yield f"line {number}, {name}", x, y


def _text(old: str, new: str) -> Iterator[tuple[str, str, str]]:
    for number, (a, b) in enumerate(zip_longest(old.splitlines(), new.splitlines(), fillvalue=""), 1):
        if a != b:
            start = max(0, next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0) - 20)
            yield f"line {number}", _short(a[start:]), _short(b[start:])


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _short(value: Any) -> str:
    """A value in at most 60 printable characters."""
    text = "".join(one if one.isprintable() else "?" for one in str(value))
    return text if len(text) <= 60 else text[:57] + "..."
