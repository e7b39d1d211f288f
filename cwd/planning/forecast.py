"""How long runs take: from runs that are done here, else from the ladder's measured seconds, else from the device.

Nothing heavy is imported: scripts/artifact.py says with it how long its runs will take.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from cwd.evidence.study import State
from cwd.runs import Record, all_records
from cwd.schema import SELECTORS, VARIANTS, Config

Plain = Mapping[str, Any]
PAUSE = 30.0  # seconds between two runs of a worker beyond which it was not the sweep that took them
BETWEEN = 1.5  # seconds around a run (building, the last evaluation, saving), where no runs say it
UTILISATION = {"tokens": 0.3, "images": 0.15}
REASON = {
    "tokens": (
        "Llama 3 reports 0.38 to 0.43 on H100 (arXiv 2407.21783, table 4) for code tuned at length; soft-capped "
        "attention that is written to memory and kernels that are not fused cost a part of it"
    ),
    "images": (
        "NVIDIA reports 2,470 images a second for ResNet-50 on one A100 and 16,621 on eight (DeepLearningExamples, "
        "ConvNets), which is 0.19 and 0.16; reading and augmenting is taken to keep up (machine.workers)"
    ),
}


@dataclass(frozen=True)
class Past:
    """A run that is done: its configuration, and how long it took on what. ``worker`` is a host and a process, 0 if the
    record does not say which; then ``ended`` leaves out what comes after the last step.
    """

    config: dict[str, Any]
    seconds: float
    device: str
    processes: int
    worker: tuple[str, int]
    started: float
    ended: float
    ids: int | None  # of its tokenizer
    key: str = ""


@dataclass(frozen=True)
class Duration:
    """Seconds of one run, times the devices that it takes, and where they come from."""

    seconds: float
    source: str


class Forecaster:
    """Seconds of runs, from what is known.

    Args:
        past: runs that are done, on the device that is planned for.
        ladder: (configuration, the ladder's seconds) of runs for which it has some.
        flops: operations of a run; None: not known, then speed is not carried from one model to another.
        peak: operations a second of one device.
        utilisation: the part of the peak that is reached, if the user says it.
    """

    def __init__(
        self,
        past: Sequence[Past],
        ladder: Iterable[tuple[Plain, float]] = (),
        flops: Callable[[Plain], float | None] | None = None,
        peak: float | None = None,
        utilisation: float | None = None,
    ) -> None:
        self.past, self.flops, self.peak, self._given = past, flops, peak, utilisation
        self._ladder = {_work(config): seconds for config, seconds in ladder}
        self._alike: dict[str, list[Past]] = {}
        for one in past:
            for key in _keys(one.config):
                self._alike.setdefault(key, []).append(one)

    def duration(self, config: Plain) -> Duration | None:
        """Device seconds of a run; None if nothing says them.

        In this order: runs of the same work, those of the same optimizer and mode before others; the ladder's seconds
        times what runs of its other sizes took of theirs; operations by the measured, given or assumed speed.
        """
        if self._given is None:
            for key in _keys(config):
                if key in self._alike:
                    seconds = median(one.seconds * one.processes for one in self._alike[key])
                    return Duration(seconds, "runs like them")
            if (own := self._ladder.get(_work(config))) is not None:
                factor = self._factor
                source = "the ladder's seconds" + (
                    "" if factor is None else f" x {factor:.2f}, measured on other sizes"
                )
                return Duration(own * (1.0 if factor is None else factor), source)
        operations = self.flops(config) if self.flops else None
        if operations is None or self.peak is None:
            return None
        part, source = self.utilisation(unit_of(config))
        return Duration(operations / (self.peak * part), source)

    def utilisation(self, unit: str) -> tuple[float, str]:
        """The part of the device's peak that is reached in runs on tokens or on images, and who says so."""
        if self._given is not None:
            return self._given, f"MFU {self._given:g}, given"
        if parts := self._parts.get(unit):
            return median(parts), f"MFU {median(parts):.2g}, of {len(parts)} runs here"
        return UTILISATION[unit], f"MFU {UTILISATION[unit]:g} of {unit}, assumed"

    @cached_property
    def _parts(self) -> dict[str, list[float]]:
        """unit -> the part of the peak that each run here reached."""
        found: dict[str, list[float]] = {}
        for one in self.past if self.flops and self.peak else ():
            operations = self.flops(one.config) if self.flops else None
            if operations and self.peak:
                part = operations / (one.seconds * one.processes * self.peak)
                found.setdefault(unit_of(one.config), []).append(part)
        return found

    @cached_property
    def _factor(self) -> float | None:
        """How many times the ladder's seconds runs took here."""
        ratios = [
            one.seconds / self._ladder[_work(one.config)] for one in self.past if _work(one.config) in self._ladder
        ]
        return median(ratios) if ratios else None

    @cached_property
    def between(self) -> tuple[float, str]:
        """Seconds from the end of a run to the beginning of the next on the same worker, and who says so."""
        workers: dict[tuple[str, int], list[Past]] = {}
        for one in sorted(self.past, key=lambda one: one.started):
            workers.setdefault(one.worker, []).append(one)
        gaps = [
            later.started - earlier.started - earlier.seconds
            for (_, process), runs in workers.items()
            if process
            for earlier, later in pairwise(runs)
            if 0 <= later.started - earlier.ended < PAUSE
        ]
        return (fmean(gaps), f"of {len(gaps)} runs here") if gaps else (BETWEEN, "assumed")


@dataclass(frozen=True)
class Total:
    """Device seconds of several runs, those between runs included, and their sources with counts."""

    seconds: float
    sources: dict[str, int]
    unknown: int  # runs of which nothing says how long they take

    def __str__(self) -> str:
        return ", ".join(f"{source} ({count})" for source, count in self.sources.items())


def total(forecaster: Forecaster, configs: Iterable[Plain], devices: int = 1) -> Total:
    """The sum over runs, one after another, each on so many devices."""
    seconds, unknown, sources = 0.0, 0, dict[str, int]()
    for config in configs:
        found = forecaster.duration(config)
        if found is None:
            unknown += 1
        else:
            seconds += found.seconds + forecaster.between[0] * devices
            sources[found.source] = sources.get(found.source, 0) + 1
    return Total(seconds, sources, unknown)


def past_runs(root: Path, device: str, *, anywhere: bool = False) -> list[Past]:
    """The runs under `root` that were done in one go on a device whose name holds `device`; of cores, on this machine,
    as all are called "cpu", unless `anywhere`.
    """
    found = [one for record in all_records(root) if (one := _past(record)) and device in one.device]
    return [one for one in found if anywhere or device != "cpu" or one.worker[0] == socket.gethostname()]


def _past(record: Record) -> Past | None:
    summary, status = record.summary, record.status
    starts = _lines(record.folder / "environment.jsonl")
    if not summary or len(starts) != 1 or "seconds" not in summary or "model" not in record.config:
        return None
    where, seconds = starts[0], max(float(summary["seconds"]), 1e-3)
    started = _time(where["started"])
    return Past(
        _completed(record.config),
        seconds,
        str(where.get("device")),
        int(where.get("processes", 1)),
        (str(status.get("host") or where.get("host")), int(status.get("pid", 0))),
        started,
        _time(status["updated"]) if "updated" in status else started + seconds,
        (record.description.get("data") or {}).get("vocab_size"),
        record.key,
    )


def _completed(config: Plain) -> dict[str, Any]:
    """A record's configuration with the fields that came after it was made, at their defaults."""
    found = dict(config)
    for item in fields(Config):
        variants, section = VARIANTS.get(item.name), config.get(item.name) or {}
        known = variants.get(section.get(SELECTORS[item.name], "")) if variants else item.default_factory
        if isinstance(known, type) and is_dataclass(known):
            found[item.name] = {**asdict(known()), **section}
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return []


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def ladder_seconds(states: Sequence[State]) -> list[tuple[Plain, float]]:
    """(configuration, seconds) of the points for which the ladder has measured seconds."""
    points = (point for state in states for point in (*state.points, *state.tuning))
    configs = ((point.config or point.like, point.core_seconds) for point in points)
    return [(config, seconds) for config, seconds in configs if config and seconds]


def unit_of(config: Plain) -> str:
    """What a run counts: images have no length."""
    return "images" if config["training"].get("seq_len", 0) is None else "tokens"


def _work(config: Plain) -> str:
    """What a run's time depends on most, as text."""
    names: tuple[str, ...] = ("model", "training", "evaluation", "telemetry")
    dataset = {name: config["dataset"].get(name) for name in ("tokenizer", "vocab_size")}
    if unit_of(config) == "images":  # where they are from, and what is done to them, takes its time
        names, dataset = (*names, "recipe"), {"name": config["dataset"]["name"]}
    return json.dumps([*(config.get(name) for name in names), dataset], sort_keys=True)


def _keys(config: Plain) -> tuple[str, str, str]:
    """The work with optimizer and mode, with the optimizer, and alone: the closest runs first."""
    work, optimizer = _work(config), config["optimizer"]["name"]
    return f"{work} {optimizer} {config['decay']['mode']}", f"{work} {optimizer}", work
