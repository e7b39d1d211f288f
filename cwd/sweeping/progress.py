"""A sweep as the report's page shows it while it runs: the lines of ``make status``, and curves of what is going on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwd.evidence.page.runs import curves_of
from cwd.evidence.study import State
from cwd.runs.record import FINISHED
from cwd.sweeping.standing import TOLD, Standing, Watch, counted, tell_submissions, time_left, waiting_lines
from cwd.sweeping.submissions import live_submissions

MOST = 60  # runs that are listed
LATELY = 8  # snapshots


class Progress:
    """The runs that artifacts ask for, looked up again each time that it is asked.

    Args:
        states: the artifacts; which runs they ask for is taken from here and stays.
        runs: the runs folder.
    """

    def __init__(self, states: Sequence[State], runs: Path) -> None:
        self._runs, self._watch = runs, Watch(states, runs)
        self._waiting = waiting_lines(states)
        self._at_first: int | None = None
        self._running: deque[int] = deque(maxlen=LATELY)

    def snapshot(self) -> dict[str, Any]:
        """Plain data: counts, what else there is to say line by line, and the runs that are open, with curves.

        ``worked`` is how much of the runs is behind them, in runs; ``changed``: whether more have ended since the first
        snapshot.
        """
        found = self._watch.now()
        finished = sum(one.state in FINISHED for one in found)
        self._at_first = finished if self._at_first is None else self._at_first
        self._running.append(sum(one.state == "running" for one in found))
        listed = sorted((one for one in found if one.state in TOLD), key=lambda one: TOLD.index(one.state))
        return {
            "wanted": len(found),
            "finished": finished,
            "worked": finished + sum(_part(one) for one in found if one.state not in FINISHED),
            "changed": finished != self._at_first,
            "counts": counted(found),
            "notes": [
                *time_left(found, max(self._running)),
                *self._waiting,
                *tell_submissions(live_submissions(self._runs)),
            ],
            "runs": [_row(one) for one in listed[:MOST]],
            "unlisted": max(len(listed) - MOST, 0),
        }


def _part(one: Standing) -> float:
    """How much of a run is done."""
    return one.step / one.config["training"]["steps"]


def _row(one: Standing) -> dict[str, Any]:
    curves = curves_of(one.asked.cell)
    losses = curves.get("train_loss") or curves.get("eval_loss")
    return {
        "key": one.record.key if one.record else None,
        "label": one.label,
        "arm": one.config["decay"]["mode"],
        "optimizer": one.config["optimizer"]["name"],
        "state": one.state,
        "step": one.step,
        "steps": one.config["training"]["steps"],
        "loss": losses[1][-1] if losses else None,
        "note": one.note,
        "traceback": one.record.status.get("traceback") if one.record else None,
        "curves": curves if one.state == "running" else {},
    }
