"""Checkpoints that are whole or absent: a folder appears by one rename, after its content is on disk, and carries its
checksum.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cwd.files import read_json, sha256_of, sync, write_json

KEEP = 2  # the newest and, should it turn out damaged, the one before


def save_checkpoint(root: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes ``root/step-<step>/`` and removes all but the newest KEEP.

    Args:
        root: the run's checkpoints folder, made if absent.
        step: updates done.
        state: tensors, numbers, text and containers of them: what ``torch.load(weights_only=True)`` takes.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are intact.
    """
    root.mkdir(parents=True, exist_ok=True)
    work, final = root / f".{os.getpid()}.tmp", root / f"step-{step:08d}"
    _remove_unfinished(root)
    work.mkdir()
    torch.save(state, work / "state.pt")
    sync(work / "state.pt")
    write_json(work / "checksum.json", {"step": step, "sha256": sha256_of(work / "state.pt")})
    shutil.rmtree(final, ignore_errors=True)
    os.rename(work, final)
    sync(root)
    for old in _folders(root)[:-KEEP]:
        shutil.rmtree(old)
    return final


def load_checkpoint(root: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is whole, on the CPU; None if there is none. A damaged one is said and
    passed over.
    """
    for folder in reversed(_folders(root)):
        if _is_whole(folder):
            return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        say(f"checkpoint {folder}: damaged, trying the one before")
    return None


def remove_checkpoints(root: Path) -> None:
    """Removes them all, as a finished run needs none."""
    shutil.rmtree(root, ignore_errors=True)


def remove_damaged(root: Path) -> None:
    """Removes the checkpoints that cannot be read, which would otherwise count among the newest."""
    for folder in _folders(root):
        if not _is_whole(folder):
            shutil.rmtree(folder)


def _is_whole(folder: Path) -> bool:
    checksum = read_json(folder / "checksum.json")
    try:
        return isinstance(checksum, dict) and checksum.get("sha256") == sha256_of(folder / "state.pt")
    except OSError:
        return False


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def _remove_unfinished(root: Path) -> None:
    for left in root.glob(".*.tmp"):
        shutil.rmtree(left)
