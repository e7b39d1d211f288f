"""Where a run runs: versions, commit, machine. Facts only, no environment variables, so no secrets. Loads torch."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cwd.commit import commit_of

PACKAGES = ("torch", "numpy", "transformers", "accelerate", "tokenizers", "hydra-core", "omegaconf", "wandb")


def describe_environment(device: torch.device, processes: int, sharding: str = "none") -> dict[str, Any]:
    """A flat description of this process's surroundings."""
    return {
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in ("cautious-weight-decay", *PACKAGES)},
        "commit": commit_of(Path(__file__).resolve().parents[2]),
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": processes,
        "sharding": sharding,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
