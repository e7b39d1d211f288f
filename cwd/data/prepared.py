"""Prepared data by what it is: a finished run knows its text by a fingerprint, not by a place."""

from __future__ import annotations

from pathlib import Path

from cwd.data.tokens import TokenData
from cwd.files import read_json


def find_data(root: Path, fingerprint: str) -> TokenData | None:
    """The prepared data with this fingerprint under `root`; None if it is not there."""
    for path in sorted(root.glob("*/manifest.json")):
        data = TokenData(path.parent, read_json(path))
        try:
            if data.fingerprint == fingerprint:
                return data
        except (LookupError, TypeError):  # another kind of folder, or a damaged one
            continue
    return None
