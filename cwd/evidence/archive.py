"""A folder as one file that is the same each time, and back again without trusting it.

The archive is a zip, so that anyone can open it. MANIFEST in it has a line "SHA-256  name" for each of its files, as
``sha256sum --check MANIFEST`` reads it.
"""

from __future__ import annotations

import io
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from cwd.errors import UserError
from cwd.files import sha256_of, write_atomically

MANIFEST = "MANIFEST"
LARGEST = 4 * 2**30  # bytes of all members together, unpacked
MOST = 500_000  # members
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=, -]*")
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
PIECE = 2**20


def seal(folder: Path) -> str:
    """Writes MANIFEST over all other files of `folder`; returns its own SHA-256, which stands for all of them."""
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in _names(folder) if name != MANIFEST]
    write_atomically(folder / MANIFEST, "".join(lines).encode())
    return sha256_of(folder / MANIFEST)


def check_seal(folder: Path) -> list[str]:
    """What of `folder` is not as its MANIFEST says, in words; [] if all is."""
    told = {}
    for line in (folder / MANIFEST).read_text(errors="replace").splitlines():
        if not (match := LINE.fullmatch(line)):
            return [f"{MANIFEST}: a line is not 'SHA-256  name'"]
        told[match[2]] = match[1]
    there = set(_names(folder)) - {MANIFEST}
    return [
        *(f"{name}: not in the bundle" for name in sorted(told.keys() - there)),
        *(f"{name}: not in {MANIFEST}" for name in sorted(there - told.keys())),
        *(f"{name}: its content was changed" for name in sorted(there & told.keys()) if not _is(folder, name, told)),
    ]


def pack(folder: Path, target: Path) -> None:
    """Writes every file of `folder` into the zip `target`: in order of name, with one date, so that the same files give
    the same bytes.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in _names(folder):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, (folder / name).read_bytes(), compresslevel=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, buffer.getvalue())


def unpack(source: Path, folder: Path) -> None:
    """The files of a zip, or of a folder, into the new folder `folder`.

    Raises:
        UserError: `source` is neither, holds a link, a name that leads elsewhere or twice the same name, or is larger
            than anything that :func:`pack` makes.
    """
    folder.mkdir(parents=True)
    if source.is_dir():
        for name in _names(source):
            _refuse(source, name, 0, (source / name).is_symlink())
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
        return
    try:
        with zipfile.ZipFile(source) as archive:
            _extract(source, archive, folder)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # as zipfile raises
        raise UserError(f"{source}: cannot be read as a zip ({error})") from error


def _extract(source: Path, archive: zipfile.ZipFile, folder: Path) -> None:
    members = [one for one in archive.infolist() if not one.is_dir()]
    if len(members) > MOST or len({one.filename for one in members}) < len(members):
        raise UserError(f"{source}: it has more than {MOST:,} files, or a name twice; nothing was unpacked")
    for one in members:
        _refuse(source, one.filename, one.file_size, stat.S_ISLNK(one.external_attr >> 16))
    left = LARGEST
    for one in members:
        path = folder / one.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(one) as inside, open(path, "wb") as outside:
            while piece := inside.read(PIECE):  # counted as it comes: a header may lie about the size
                left -= len(piece)
                if left < 0:
                    raise UserError(f"{source}: more than {LARGEST:,} bytes come out of it; it is no bundle")
                outside.write(piece)


def _refuse(source: Path, name: str, size: int, link: bool) -> None:
    if link:
        raise UserError(f"{source}: {name!r} is a link; a bundle has plain files only")
    if not all(PART.fullmatch(part) for part in name.split("/")):
        raise UserError(f"{source}: {name!r}: no name that a bundle may have; nothing was unpacked")
    if size > LARGEST:
        raise UserError(f"{source}: {name!r} says that it has {size:,} bytes; at most {LARGEST:,} are allowed")


def _names(folder: Path) -> Iterator[str]:
    """Its files, links among them, by their path in it, sorted."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    yield from sorted(path.relative_to(folder).as_posix() for path in paths)


def _is(folder: Path, name: str, told: dict[str, str]) -> bool:
    return sha256_of(folder / name) == told[name]
