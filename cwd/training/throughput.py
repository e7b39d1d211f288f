"""How fast a run trains, and where its time goes: the "speed" lines of the metrics."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from cwd.training.parallel import largest
from cwd.training.peaks import peak_of

Events = tuple[torch.cuda.Event, torch.cuda.Event]


class Speedometer:
    """Times the updates of one process, and nothing between them: not evaluations, not checkpoints.

    On a GPU, which works while the host goes on, the optimizer's time is taken between events on its stream, and the
    host waits for it only where a line is written or the clock is stopped.

    Args:
        unit: what is counted, "tokens" or "images".
        flops: operations for one of them; None if they are not known.
    """

    def __init__(self, accelerator: Accelerator, precision: str, unit: str, flops: float | None) -> None:
        self._accelerator, self._device, self._unit, self._flops = accelerator, accelerator.device, unit, flops
        self._on_gpu = self._device.type == "cuda"
        self._peak = peak_of(self._device, precision)
        self._since: float | None = None
        self._checkpoint_bytes = 0
        self._reset()

    def go(self) -> None:
        """The clock runs."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """The clock stands still, after all that was asked of the device is done."""
        if self._since is not None:
            if self._on_gpu:
                torch.cuda.synchronize(self._device)
            self._seconds += time.perf_counter() - self._since
            self._since = None

    @contextmanager
    def data(self) -> Iterator[None]:
        """Around what makes a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def optimizer(self) -> Iterator[None]:
        """Around the optimizer's step."""
        if self._on_gpu:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self._events.append(events)
        else:
            start = time.perf_counter()
            yield
            self._stepped += time.perf_counter() - start

    def count(self, units: int) -> None:
        """An update is done; `units` over all processes."""
        self._units += units
        self._updates += 1

    def saved(self, seconds: float, behind: float, size: int) -> None:
        """A checkpoint of `size` bytes: training waited so many seconds, a thread worked so many while it went on."""
        self._checkpoints += 1
        self._saving += seconds
        self._behind += behind
        self._checkpoint_bytes = size

    def take(self) -> dict[str, Any] | None:
        """What was measured since the last time; None if nothing was. All processes ask.

        ``<unit>_per_second`` over all processes, ``step_seconds``; ``tflops``: TFLOP/s of each device, and ``mfu``,
        its fraction of the device's peak, null where one is not known; ``data_share`` and ``optimizer_share`` of the
        time, the largest of any process, and ``peak_memory``, in bytes: on a GPU what tensors held, on a CPU what the
        process held, at most, since it began. ``checkpoints``, how many were written, the ``checkpoint_seconds`` that
        training waited for it, which none of the above counts, the ``checkpoint_background_seconds`` that a thread
        wrote meanwhile, and the ``checkpoint_bytes`` of the last one.
        """
        self.stop()
        if not self._updates:
            return None
        stepped = self._stepped + sum(start.elapsed_time(end) for start, end in self._events) / 1e3
        waited, stepped, memory = largest(self._accelerator, self._waited, stepped, self._memory())
        rate, processes = self._units / self._seconds, self._accelerator.num_processes
        speed = None if self._flops is None else rate * self._flops / processes
        found = {
            f"{self._unit}_per_second": rate,
            "step_seconds": self._seconds / self._updates,
            "tflops": None if speed is None else speed / 1e12,
            "mfu": None if speed is None or self._peak is None else speed / self._peak,
            "data_share": waited / self._seconds,
            "optimizer_share": stepped / self._seconds,
            "peak_memory": int(memory),
            "processes": processes,
            "checkpoints": self._checkpoints,
            "checkpoint_seconds": self._saving,
            "checkpoint_background_seconds": self._behind,
            "checkpoint_bytes": self._checkpoint_bytes,
        }
        self._reset()
        return found

    def _memory(self) -> int:
        if self._on_gpu:
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _reset(self) -> None:
        self._seconds = self._waited = self._stepped = 0.0
        self._saving = self._behind = 0.0
        self._units = self._updates = self._checkpoints = 0
        self._events: list[Events] = []
