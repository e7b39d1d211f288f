"""The baseline's tuning as files of configs/tuned/: the values that a search found, and where they come from."""

from __future__ import annotations

from cwd.evidence.artifact_files import Ladder
from cwd.evidence.search import IN_LADDER, NAMES, Searched
from cwd.evidence.trials import PATHS, shown


def tuned_name(search: Searched, ladder: Ladder) -> str:
    """The name of its file of configs/tuned/, without the ending."""
    last = search.stages[-1]
    return f"{ladder.sizes[last.size].tuned or ladder.scale}_{last.optimizer}"


def tuned_file(search: Searched) -> str:
    """The content of its file of configs/tuned/."""
    last = search.stages[-1]
    seeds = ", ".join(map(str, last.seeds))
    at_edge = ", ".join(NAMES.get(axis, axis) for axis in search.at_edge)
    edge = f"At the grid's edge: {at_edge}. " if at_edge else ""
    by_hand = [axis for axis in IN_LADDER if axis in search.values]
    lines = [
        "# @package _global_",
        f"# {last.size}: best of a search on {last.arm} decay, seeds {seeds}; written by scripts/tune.py.",
        *(f"# {_tried(best.tried)}." for best in search.stages),
        *(f"# Best {axis}: {shown(search.values[axis])}, to be set in configs/ladder/." for axis in by_hand),
        f"# Mean validation loss {last.loss:.4f}. {edge}Cautious decay reuses what is found, as in the paper.",
    ]
    sections: dict[str, list[str]] = {}
    for axis, value in search.own.items():
        section, key = PATHS[axis]
        text = f"[{', '.join(map(repr, value))}]" if isinstance(value, list | tuple) else repr(value)
        sections.setdefault(section, []).append(f"{key}: {text}")
    lines += [f"{section}: {{{', '.join(values)}}}" for section, values in sections.items()]
    return "\n".join(lines) + "\n"


def _tried(tried: dict[str, list[object]]) -> str:
    names = {"lr": "Rates", "weight_decay": "lambdas"}
    return "; ".join(f"{names.get(axis, axis)} {', '.join(map(shown, values))}" for axis, values in tried.items())
