"""The one kind of error a user is meant to read: a single line that says what, where, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong. The message is one line; entry points print it without a traceback, exit status
    2.
    """


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`" (nearest: 'lion')"` for the allowed name most like `word`, or `""` when none is close."""
    matches = difflib.get_close_matches(str(word), [str(name) for name in allowed], n=1, cutoff=0.5)
    return f" (nearest: {matches[0]!r})" if matches else ""
