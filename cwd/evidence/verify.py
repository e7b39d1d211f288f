"""Whether a bundle, or a folder of records, is what it says: every number is computed anew from the raw metrics.

Nothing of the bundle is executed: it is JSON, CSV and text. Its tables are recomputed by this installation's
definitions (configs/), from copies of its records in which every summary value that the metrics hold was taken from
them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.errors import UserError
from cwd.evidence.archive import MANIFEST, check_seal, unpack
from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.bundle import ABOUT, FORMAT, LEDGER, forms, versions
from cwd.evidence.comparison import differences
from cwd.evidence.document import Document
from cwd.evidence.raw import from_metrics, problems_of, seal_summary, unequal_parameters
from cwd.evidence.render import images
from cwd.evidence.report import document, ledger
from cwd.evidence.study import Study
from cwd.files import read_json, sha256_of
from cwd.runs import Record, all_records
from cwd.sweeps import CONFIGS

DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
SHOWN = 3  # differences of one part


@dataclass(frozen=True)
class Line:
    """What one artifact, or another part of the bundle, came to."""

    name: str
    agrees: bool
    text: str


def verify(path: Path) -> Iterator[Line]:
    """A line for each part of a bundle (a zip or a folder), or of a plain folder of records.

    Raises:
        UserError: it is neither, or cannot be unpacked safely.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir() and not (path / MANIFEST).exists():
        if not (records := all_records(path)):
            raise UserError(f"{path}: neither a bundle ({MANIFEST}) nor a folder of records (KEY/config.json)")
        yield _check_records(records)
        return
    with tempfile.TemporaryDirectory(prefix="verify-") as name:
        folder = Path(name) / "bundle"
        unpack(path, folder)
        if not (folder / MANIFEST).exists():
            raise UserError(f"{path}: it has no {MANIFEST}; it is no bundle")
        yield from _check_bundle(folder)


def _check_bundle(folder: Path) -> Iterator[Line]:
    broken = check_seal(folder)
    seal = f"every file is as listed; the SHA-256 of {MANIFEST} is {sha256_of(folder / MANIFEST)}"
    yield Line(MANIFEST, not broken, _told(broken) or seal)
    about = _about(folder)
    records = all_records(folder / "records")
    yield _check_records(records)
    for record in records:
        summary = from_metrics(record)
        if summary is not None:
            seal_summary(record.folder, summary)
    hint = _other_definitions(folder)
    study = Study(about["scale"], folder / "records", about["seeds"])
    for name in (*about["artifacts"], *([LEDGER] if about["ledger"] else [])):
        yield _recompute(name, study, folder, about, hint)
    yield from _rest(folder, about)


def _about(folder: Path) -> dict[str, Any]:
    """bundle.json. Raises UserError if it is not what :mod:`cwd.evidence.bundle` writes."""
    found = read_json(folder / ABOUT)
    kinds = {"format": int, "scale": str, "seeds": int | None, "artifacts": list, "ledger": bool, "versions": dict}
    if (
        not isinstance(found, dict)
        or not all(isinstance(found.get(name), kind) for name, kind in kinds.items())
        or not all(isinstance(name, str) for name in found["artifacts"])
    ):
        raise UserError(f"{ABOUT}: not what a bundle says of itself")
    if found["format"] != FORMAT:
        raise UserError(f"{ABOUT}: format {found['format']}; this version reads format {FORMAT}")
    return found


def _check_records(records: Sequence[Record]) -> Line:
    bad = []
    for record in records:
        try:
            bad += [f"{record.key}: {problem}" for problem in problems_of(record)]
        except DAMAGED as error:
            bad.append(f"{record.key}: it cannot be read ({type(error).__name__}: {error})")
    bad += unequal_parameters(records)
    done = sum(record.summary is not None for record in records)
    return Line(
        "records",
        not bad,
        _told(bad) or f"{done} of {len(records)} done; keys hash their configurations, summaries are what metrics say",
    )


def _recompute(name: str, study: Study, folder: Path, about: dict[str, Any], hint: str) -> Line:
    """Renders the document again, from the records as they are now, and compares."""
    try:
        anew = ledger(list(map(study.state, artifact_names()))) if name == LEDGER else document(study.state(name))
        found = list(differences(folder / "artifacts", name, forms(anew)))
    except (UserError, *DAMAGED) as error:
        return Line(name, False, f"cannot be recomputed ({error}){hint}")
    drawn = _images(anew, folder / "artifacts", about)
    if found or drawn:
        return Line(name, False, _told([*found, *drawn]) + hint)
    return Line(name, True, _counted(anew))


def _counted(anew: Document) -> str:
    """How much of a document was compared."""
    parts = anew.data.get("artifacts", [anew.data])
    values = sum(len(one) for part in parts for cell in part["cells"] for one in cell["values"].values())
    points = sum(len(line.x) for figure in anew.figures for panel in figure.panels for line in panel.series)
    counts = {"values": values, "points": points, "comparisons": sum(len(part["claims"]) for part in parts)}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _rest(folder: Path, about: dict[str, Any]) -> Iterator[Line]:
    """What is in the bundle and was not computed anew."""
    documents = {*about["artifacts"], *([LEDGER] if about["ledger"] else [])}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        first, *rest = path.relative_to(folder).parts
        known = first in (MANIFEST, ABOUT, "README.txt", "configs", "records")
        if not known and not (first == "artifacts" and rest[0].partition(".")[0] in documents):
            made = first == "report.html" and not rest
            yield Line("/".join([first, *rest]), made, "not recomputed" if made else "no part of a bundle")


def _images(anew: Document, folder: Path, about: dict[str, Any]) -> list[str]:
    """The images that are not as they are drawn here; only where the same version of matplotlib drew them."""
    here = versions()["matplotlib"]
    if about["versions"].get("matplotlib") != here:
        return []
    return [
        f"{name}: not what matplotlib {here} draws"
        for name, content in images(anew).items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != content
    ]


def _other_definitions(folder: Path) -> str:
    """ " (...)": the definitions in the bundle that are not those of this installation; "" if all are."""
    own = folder / "configs"
    names = sorted(path.relative_to(own).as_posix() for path in own.rglob("*.yaml"))
    other = [
        name
        for name in names
        if not (CONFIGS / name).is_file() or (CONFIGS / name).read_bytes() != (own / name).read_bytes()
    ]
    if not other:
        return ""
    return f" (the bundle was made with another configs/{', configs/'.join(other[:SHOWN])})"


def _told(problems: Sequence[str]) -> str:
    """The first few, and how many more there are; "" for none."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more
