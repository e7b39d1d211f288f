"""Records of runs that nobody trained, in the real format, for the tests of evidence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cwd.config import identity_of
from cwd.evidence.artifacts import Point
from cwd.evidence.study import State, Study
from cwd.runs import MetricsLog, Record

Outcome = Callable[
    [Mapping[str, Any], int], dict[str, Any] | None
]  # (coordinates, seed) -> summary values; None: no run
Lines = Callable[[Mapping[str, Any], int], Iterable[tuple[str, int, dict[str, Any]]]]  # -> (kind, step, values)
PARAMETERS = {"111m": 40_000, "338m": 67_200, "986m": 140_000, "2b": 245_000}


def printed(show: Callable[[Console], None]) -> str:
    """What `show` prints on a wide terminal."""
    with open(os.devnull, "w") as nowhere:
        console = Console(width=250, record=True, file=nowhere)
        show(console)
        return console.export_text()


def words(line: str) -> str:
    return " ".join(line.split())


def write_state(study: Study, name: str, outcome: Outcome, lines: Lines | None = None) -> State:
    """Writes a record for each run that artifact `name` asks for, and returns its state with them."""
    for point in study.state(name).points:
        for seed in dict.fromkeys((*point.seeds, *point.tuning_seeds) if point.config else ()):
            write_record(study.folder.root, point, seed, outcome(point.coordinates, seed), lines)
    return Study(study.ladder.scale, study.folder.root, study.seeds).state(name)


def write_record(root: Path, point: Point, seed: int, values: dict[str, Any] | None, lines: Lines | None) -> None:
    """The record of one run: done with `values`, diverged if they say so, none at all if they are None."""
    if values is None:
        return
    config = point.on(seed)
    record = Record.create(root, identity_of(config), {"fingerprint": "a"}, config)
    if (record.folder / "status.json").exists():  # a run that several points share
        return
    if lines is not None:
        log = MetricsLog(record.metrics_file)
        for kind, step, content in lines(point.coordinates, seed):
            log.write(kind, step, **content)
        log.close()
    steps = config["training"]["steps"]
    if values.get("diverged"):
        record.set_status("diverged", steps // 2, message="the training loss is not finite")
        return
    about = {"steps": steps, "tokens": 1000 * steps, "seconds": 1.0, "accuracy": 0.25}
    pairing = {"weights": f"{point.coordinates['size']}-{seed}", "batches": f"{seed}"}
    summary = {"parameters": PARAMETERS.get(point.coordinates["size"], 67_200), "pairing": pairing, **about, **values}
    record.finish(summary, steps)


def noise(seed: int, *about: Any) -> float:
    """A standard normal number that belongs to a seed and whatever else is given, the same each time."""
    words = [seed, *(sum(map(ord, str(one))) for one in about)]
    return float(np.random.default_rng(words).standard_normal())


def paired_losses(effect: float, spread: float = 0.002, level: float = 3.0) -> Outcome:
    """Losses with seeds far apart (0.1) and pairs close: cautious lies `effect` from decoupled, by about `spread`."""

    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        shift = effect if where["arm"] == "cautious" else 0.0
        own = spread * noise(seed, where["optimizer"], where["arm"], where["size"], where["schedule"])
        return {"loss": level + 0.1 * noise(seed) + shift + own}

    return outcome
