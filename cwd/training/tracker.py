"""Trackers: a view of the metrics for people. Whatever happens to a tracker, the run goes on; its metrics file is the
record.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

from cwd import schema
from cwd.runs import Record

START_WAIT = 3.0  # seconds that a run waits for its tracker to open; after that it opens while the run trains
FINISH_WAIT = 15.0  # seconds that a run waits for what is left at its end
BACKLOG = 1000  # calls that may wait for a slow tracker


class Sink(Protocol):
    """An open tracker. Its calls may be slow and may fail."""

    def log(self, values: dict[str, Any], step: int) -> None:
        """Numbers of one step, by name."""

    def finish(self, summary: dict[str, Any]) -> None:
        """The end, and what came out; ``state`` is in it unless the run is done."""


class Tracker:
    """Hands metrics to a sink on a thread of its own, until its first failure, which is said once.

    A run is never longer than START_WAIT + FINISH_WAIT for it: a call between start and end only joins a queue, and a
    sink that is BACKLOG calls behind is left.

    Args:
        opener: opens the sink on the thread, given the step after which lines come (again); None: no tracker.
        say: shows a line.
    """

    def __init__(self, opener: Callable[[int], Sink] | None, say: Callable[[str], None]) -> None:
        self._opener, self._say = opener, say
        self._calls: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(BACKLOG)
        self._opened = threading.Event()
        self._lost = threading.Lock()  # held for good from the first failure on
        self._thread: threading.Thread | None = None

    def begin(self, after: int) -> None:
        """Opens the tracker. Lines of steps up to `after` are in it already, if any are; later ones come anew."""
        if self._opener is not None:
            self._thread = threading.Thread(target=self._work, args=(self._opener, after), name="tracker", daemon=True)
            self._thread.start()
            self._opened.wait(START_WAIT)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Numbers of one step, by name."""
        self._put(lambda sink: sink.log(values, step))

    def finish(self, summary: dict[str, Any]) -> None:
        """The result, or the state that the run is left in; closes the tracker."""
        if self._thread is None:
            return
        self._put(lambda sink: sink.finish(summary))
        self._put(None)
        if not self._lost.locked():
            self._thread.join(FINISH_WAIT)
            if self._thread.is_alive():
                self._leave(f"not done after {FINISH_WAIT:g} s")
        self._thread = None

    def _put(self, call: Callable[[Sink], None] | None) -> None:
        if self._thread is None or self._lost.locked():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._leave(f"{BACKLOG} calls behind")

    def _work(self, opener: Callable[[int], Sink], after: int) -> None:
        try:
            sink = opener(after)
            self._opened.set()
            while (call := self._calls.get()) is not None and not self._lost.locked():
                call(sink)
        except Exception as error:  # whatever it is, it is not the run's business
            self._leave(shown(error))
        finally:
            self._opened.set()

    def _leave(self, reason: str) -> None:
        if self._lost.acquire(blocking=False):
            self._say(f"tracker: {reason}; going on without it")


def open_tracker(choice: schema.Tracker, config: schema.Config, record: Record, say: Callable[[str], None]) -> Tracker:
    """The chosen tracker, attached to the record; :meth:`Tracker.begin` opens it. Never raises.

    Its library is imported here and not on the thread: a process that is forked in the middle of an import could not
    end it.
    """
    try:
        if choice.name == "wandb":
            from cwd.training.wandb_sink import wandb_opener

            return Tracker(wandb_opener(config, record, say), say)
        if choice.name == "tensorboard":
            from cwd.training.tensorboard_sink import tensorboard_opener

            return Tracker(tensorboard_opener(config, record), say)
    except Exception as error:
        say(f"tracker: {shown(error)}; going on without it")
    return Tracker(None, say)


def shown(error: Exception) -> str:
    """An error in a line, without the key that wandb was given."""
    reason = " ".join(str(error).split())
    if key := os.environ.get("WANDB_API_KEY"):
        reason = reason.replace(key, "***")
    return f"{type(error).__name__}: {reason[:200]}"
