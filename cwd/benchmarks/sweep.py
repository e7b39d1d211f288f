"""Wall time of a sweep against the same runs one after another: a `python train.py` process each, with two threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from cwd.benchmarks.report import Table, publish, read_options
from cwd.errors import UserError
from cwd.runs import Record, all_records
from cwd.sweeps import CONFIGS

TRAIN = CONFIGS.parent / "train.py"
ARMS = list(product(("adamw", "lion", "muon"), ("decoupled", "cautious")))
TARGET = 0.5
NOTE = (
    "Both start from nothing but prepared data. A run of two threads may differ from one of one thread in its last "
    "digits; the largest difference of a final loss is shown."
)


def main(arguments: Sequence[str]) -> None:
    """See scripts/benchmark.py; `arguments` are key=value."""
    options = read_options(arguments, {"seeds": 4, "threads": 2, "scale": "laptop", "data": "data", "markdown": ""})
    if options["scale"] not in ("smoke", "laptop"):
        raise UserError(f"scale={options['scale']}: allowed are smoke and laptop")
    common = [
        f"scale={options['scale']}",
        "tracker=none",
        "machine.progress=summary",
        f"machine.data={options['data']}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder, "sweep"), Path(folder, "single")
        _train([*common, "training.steps=1", f"machine.runs={folder}/data"], 1)  # prepares the data for both
        sweep = _sweep([*common, f"machine.runs={one}"], options["seeds"])
        single = _one_by_one([*common, f"machine.runs={other}"], options["seeds"], options["threads"])
        _report(options, arguments, sweep, single, _largest_difference(one, other))


def _sweep(words: Sequence[str], seeds: int) -> float:
    """Seconds of one multirun on the local launcher."""
    axes = [
        f"{name}={','.join(dict.fromkeys(values))}"
        for name, values in zip(("optimizer", "decay"), zip(*ARMS, strict=True), strict=True)
    ]
    seed = f"seed={','.join(map(str, range(seeds)))}"
    return _train(["-m", "hydra/launcher=local", *axes, seed, *words], 1)


def _one_by_one(words: Sequence[str], seeds: int, threads: int) -> float:
    """Seconds of the same runs, each a process of its own."""
    began = time.perf_counter()
    for seed, (optimizer, decay) in product(range(seeds), ARMS):
        _train(
            [f"optimizer={optimizer}", f"decay={decay}", f"seed={seed}", f"machine.threads={threads}", *words], threads
        )
    return time.perf_counter() - began


def _train(words: Sequence[str], threads: int) -> float:
    began = time.perf_counter()
    command = [sys.executable, str(TRAIN), *words]
    ended = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=subprocess.PIPE, text=True
    )
    if ended.returncode:
        raise UserError(f"train.py {' '.join(words)}: ended with status {ended.returncode}")
    print(ended.stdout, end="", flush=True)
    return time.perf_counter() - began


def _largest_difference(one: Path, other: Path) -> tuple[int, float]:
    """(how many runs both folders hold, the largest difference of their final losses).

    Raises:
        UserError: they do not hold the same runs, all done.
    """
    losses = [{record.key: _loss(record) for record in all_records(folder)} for folder in (one, other)]
    if losses[0].keys() != losses[1].keys():
        raise UserError(
            f"the sweep and the single runs differ: {json.dumps(sorted(losses[0].keys() ^ losses[1].keys()))}"
        )
    return len(losses[0]), max(abs(losses[0][key] - losses[1][key]) for key in losses[0])


def _loss(record: Record) -> float:
    if record.summary is None:
        raise UserError(f"run {record.key}: {record.status['state']}, not done")
    return float(record.summary["loss"])


def _report(options: dict, arguments: Sequence[str], sweep: float, single: float, found: tuple[int, float]) -> None:
    runs, difference = found
    table = Table(f"{runs} runs at {options['scale']} scale", ("", "seconds", "ratio", "target"), [NOTE])
    table.add(f"one after another, {options['threads']} threads each", f"{single:.0f}", "1", "-")
    table.add("one sweep, hydra/launcher=local", f"{sweep:.0f}", f"{sweep / single:.2f}", f"<= {TARGET}")
    table.add("largest difference of a final loss", f"{difference:.1g}", "-", "-")
    publish("sweep", "A sweep", arguments, [table], options["markdown"])
