"""What a sweep runs is a copy of the code, made at submission: an edit while jobs wait changes nothing.

``runs/.code/<digest>/`` is named by its content, so sweeps of the same code share it. The configurations need no more:
the files of cwd.sweeps.write_cells hold every value.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from cwd.commit import NOTE, commit_of
from cwd.sweeping.submissions import live_submissions

CODE = Path(__file__).resolve().parents[2]
FOLDER = ".code"
PARTS = ("cwd", "configs", "hydra_plugins", "scripts", "train.py")
UNUSED = 7 * 24 * 3600.0  # seconds after which a copy that no live submission names is removed


def freeze(runs: Path, root: Path = CODE) -> Path:
    """The folder of the frozen copy of the code under `root`, made if there is none; `root` if it is one itself.

    Args:
        runs: the runs folder, which every node sees.
        root: a checkout, or a frozen copy.

    Raises:
        OSError: the folder cannot be written.
    """
    if root.parent.name == FOLDER:
        return root
    content = {str(path.relative_to(root)): path.read_bytes() for path in _sources(root)}
    digest = hashlib.sha256()
    for name, text in content.items():
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    folder = runs.absolute() / FOLDER / digest.hexdigest()[:16]
    if not folder.is_dir():
        _remove_unused(runs)
        _write(folder, {**content, NOTE: (commit_of(root) or "").encode()})
    os.utime(folder)
    return folder


def environment(code: Path) -> dict[str, str]:
    """The variables with which a process imports this copy and no other, wherever it is started."""
    before = os.environ.get("PYTHONPATH")
    # Without PYTHONSAFEPATH, python -m looks into the working directory first, where the edited code is.
    return {"PYTHONPATH": f"{code}{os.pathsep}{before}" if before else str(code), "PYTHONSAFEPATH": "1"}


def _sources(root: Path) -> Iterator[Path]:
    for part in PARTS:
        found = sorted((root / part).rglob("*")) if (root / part).is_dir() else [root / part]
        yield from (path for path in found if path.is_file() and "__pycache__" not in path.parts)


def _write(folder: Path, content: dict[str, bytes]) -> None:
    """Whole or absent: written beside, then renamed."""
    work = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    for name, text in content.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(text)
    try:
        os.rename(work, folder)
    except OSError:  # another process has made it meanwhile
        shutil.rmtree(work)


def _remove_unused(runs: Path) -> None:
    """Removes copies that were not asked for lately, unless somebody may still start from them."""
    used = {one.code for one in live_submissions(runs)}
    for path in (runs / FOLDER).glob("*"):
        if str(path.absolute()) not in used and time.time() - path.stat().st_mtime > UNUSED:
            shutil.rmtree(path, ignore_errors=True)
