"""Whether torch.compile pays for itself in a run."""

from __future__ import annotations

import shutil

import torch

from cwd import schema

# Arithmetic of a run above which it is compiled, by the kind of device: where what compiling takes (half a minute to a
# minute on two CPU cores, minutes for a deep model on a GPU) is a small part of what the run takes.
WORTH = {"cpu": 3e13, "cuda": 1e17}


def to_compile(config: schema.Config, flops_per_token: int | None, device: torch.device) -> bool:
    """``machine.compile``; where it is not set, whether the whole run does more arithmetic than WORTH.

    It does not depend on how far the run is, so a run that goes on from a checkpoint computes as before.

    Args:
        flops_per_token: to train on one; None if it is not known, and then the answer is no.
    """
    if config.machine.compile is not None:
        return config.machine.compile
    training = config.training
    if flops_per_token is None or device.type not in WORTH or not _has_compiler(device):
        return False
    tokens = training.steps * training.batch_size * (training.seq_len or 1)
    return flops_per_token * tokens > WORTH[device.type]


def _has_compiler(device: torch.device) -> bool:
    """A C++ compiler for the CPU, where inductor writes C++; Triton brings its own."""
    return device.type != "cpu" or shutil.which("g++") is not None or shutil.which("clang++") is not None
