"""The same sweep on a local Ray, a worker of which is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

from cwd.faults.runs import look, middle, outcomes, start_sweep, until
from cwd.faults.told import Told, tell


def why_no_ray() -> str | None:
    """What keeps Ray from being used here; None if nothing does."""
    missing = [name for name in ("ray", "hydra_plugins.hydra_ray_launcher") if not importlib.util.find_spec(name)]
    return f"{', '.join(missing)} not installed: pip install -e '.[cluster]'" if missing else None


def ray_sweep(folder: Path, code: Path) -> Told:
    """Four runs, one of whose workers is killed with -9; beside them, the same left alone, one after another."""
    alone = start_sweep(code, folder / "alone", ["hydra/launcher=basic"], {})
    until(lambda: alone.poll() is not None, "the sweep left alone to end")
    place = folder / "ray"
    words = ["hydra/launcher=ray", "++hydra.launcher.ray.init.num_cpus=2"]
    driver = start_sweep(code, place, words, {"RAY_worker_niceness": "0"})  # Ray's own, 15, starves on a busy machine
    victim = until(lambda: middle(place / "runs") or driver.poll() is not None, "ray: a run in its middle")
    before = look(place / "runs")
    if victim is not True:
        os.kill(victim.status["pid"], signal.SIGKILL)
        until(lambda: not victim.is_locked(), "the worker to end")
    after = look(place / "runs")
    until(lambda: driver.poll() is not None, "ray: the driver to end")
    told = tell("Ray: kill -9 of a worker", place, before, after, outcomes(folder / "alone" / "runs"))
    told.notes.append(f"the driver ended with {driver.returncode}")
    return told
