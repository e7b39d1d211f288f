"""The devices that a run can be planned on (devices.yaml)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cwd.errors import UserError, nearest
from cwd.training.peaks import find_peak

USABLE = 0.9  # of the memory: the rest is for the context, the libraries' workspaces, and what an allocator cannot use


@dataclass(frozen=True)
class Device:
    """One device, and how many of them there are.

    Attributes:
        memory: bytes of one.
        flops: operations a second of one at its peak: dense bf16; float32 of a core.
        per_node: devices that share a fast link.
        match: a part of its name in the records of runs.
        source: where the numbers are from.
        count: how many there are.
    """

    name: str
    memory: float
    flops: float
    per_node: int
    match: str
    source: str
    count: int

    @property
    def is_cpu(self) -> bool:
        """Whether it is a core, which trains a run by itself; GPUs train each run together."""
        return self.name == "cpu"

    @property
    def together(self) -> int:
        """Devices that one run takes."""
        return 1 if self.is_cpu else self.count

    @property
    def usable(self) -> float:
        """Bytes that a run may take on one."""
        return USABLE * self.memory


def find_device(name: str, count: int | None) -> Device:
    """The device called `name`; `count` of them, or a node's (all cores), if none is given.

    Raises:
        UserError: no such device, or fewer than one of it.
    """
    known = _known()
    if name not in known:
        raise UserError(f"GPU={name}: no such device{nearest(name, known)}; allowed are {', '.join(known)}")
    if count is not None and count < 1:
        raise UserError(f"GPUS={count}: must be at least 1")
    about = dict(known[name])
    cores = os.cpu_count() or 1
    memory = about["memory"] * 1e9 if about["memory"] else _machine_memory() / cores
    number = count or (cores if name == "cpu" else about["per_node"])
    peak = find_peak(about["device"])
    tflops, source = (peak.bf16, peak.source) if peak else (about["tflops"], about["source"])
    return Device(name, memory, tflops * 1e12, about["per_node"], about["device"], source, number)


@cache
def _known() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((files("cwd.planning") / "devices.yaml").read_text())


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
