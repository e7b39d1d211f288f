"""Numbers of a plan in words."""

from __future__ import annotations

from collections.abc import Iterable

UNITS = {"GB": 1e9, "MB": 1e6}
HOUR = 3600.0


def duration(seconds: float) -> str:
    """As people say it: "42 s", "12 min", "3.5 h", "8.1 days"."""
    for size, unit in ((86_400 * 2, "days"), (5400, "h"), (90, "min")):
        if seconds >= size:
            whole = {"days": 86_400, "h": 3600, "min": 60}[unit]
            return f"{seconds / whole:,.3g} {unit}" if seconds / whole < 1000 else f"{seconds / whole:,.0f} {unit}"
    return f"{seconds:.0f} s"


def hours_of(hours: float) -> str:
    """ "1,234", "0.12"."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def short(count: float) -> str:
    """ "338M", "2.32B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def byte_unit(sizes: Iterable[float]) -> str:
    """GB, or MB where nothing reaches one."""
    return "GB" if max(sizes, default=0) >= UNITS["GB"] else "MB"


def bytes_in(size: float, unit: str) -> str:
    """Bytes in GB or MB, without the unit."""
    value = size / UNITS[unit]
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"
