"""How long the first step takes, in a process of its own; and how often a schedule makes the step compile again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import cwd
from cwd.benchmarks.ours import CLASSES
from cwd.benchmarks.workload import LR, MANY, SHAPES, Make, Shapes, Workload
from cwd.optim import compiled

SCHEDULE = 1000  # steps


def first_step_seconds(rule: str, kwargs: Mapping[str, Any], threads: int) -> tuple[float, float]:
    """Seconds of the first step of a rule's class over 300 tensors: with a cold, then a warm compile cache.

    Each in a fresh process; the cache is a temporary folder.
    """
    with tempfile.TemporaryDirectory() as cache:
        root = Path(cwd.__file__).parents[1]
        paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "PYTHONPATH": paths}
        command = [sys.executable, "-m", __name__, rule, json.dumps(kwargs), str(threads)]
        cold, warm = (
            float(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout) for _ in range(2)
        )
    return cold, warm


def new_graphs(make: Make, shapes: Shapes) -> int:
    """Graphs that are compiled in the 1,000 steps of a cosine schedule, after the two steps that may."""
    load = Workload(make, shapes)
    scheduler = CosineAnnealingLR(load.optimizer, SCHEDULE)
    before = 0
    for step in range(SCHEDULE):
        if step == 2:
            before = compiled.compilations
        load.prepare()
        load.step()
        scheduler.step()
    return compiled.compilations - before


def _main(rule: str, kwargs: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    load = Workload(partial(CLASSES[rule], lr=LR, **json.loads(kwargs)), SHAPES[MANY])
    start = time.perf_counter()
    load.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(time.perf_counter() - start)


if __name__ == "__main__":
    _main(*sys.argv[1:])
