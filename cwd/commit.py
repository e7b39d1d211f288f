"""Which commit a copy of the project is."""

from __future__ import annotations

import subprocess
from pathlib import Path

NOTE = "COMMIT"  # in a copy that is no checkout: the commit of the one that it was copied from


def commit_of(root: Path) -> str | None:
    """The checkout's commit, with "+changes" if files differ from it; None outside a checkout."""
    if not (root / ".git").exists():
        return (root / NOTE).read_text().strip() or None if (root / NOTE).is_file() else None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
