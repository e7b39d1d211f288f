"""A trace of some updates, to be opened in chrome://tracing or Perfetto."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

WAIT, WARMUP = 3, 1  # updates not traced: memory and caches settle, the profiler itself warms up


class Trace:
    """Traces `steps` updates of this start, from the fifth on, into ``folder``; none if `steps` is 0.

    Nothing that is computed changes; the traced updates take longer.

    Args:
        say: told where the trace is.
    """

    def __init__(self, steps: int, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say, self._profile = folder, say, None
        if steps:
            self._profile = profile(
                activities=supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA},
                schedule=schedule(wait=WAIT, warmup=WARMUP, active=steps, repeat=1),
                on_trace_ready=self._write,
            )
            self._profile.start()

    def step(self) -> None:
        """An update is done."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        """The run ends, perhaps before all was traced: what there is, is written."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, found: profile) -> None:
        path = self._folder / "trace.json"
        found.export_chrome_trace(str(path))
        self._say(f"trace  {path}: open it in chrome://tracing or ui.perfetto.dev")
