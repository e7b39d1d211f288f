"""This project's optimizers as the benchmarks run them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn import Parameter

from cwd.benchmarks.workload import LR
from cwd.optim import SGD, AdamW, CautiousWeightDecay, Lion, Muon

CLASSES: dict[str, Any] = {"adamw": AdamW, "lion": Lion, "sgd": SGD, "muon": Muon}  # by rule
WAYS: dict[str, dict[str, Any]] = {
    "compiled": {"compile": True},
    "eager": {"compile": False},
    "flat": {"compile": True, "flat": True},
}


def ways(rule: str) -> dict[str, dict[str, Any]]:
    """The ways to run a rule, with the arguments that ask for them; those that its class does not take are left out."""
    accepted = inspect.signature(CLASSES[rule]).parameters
    return {way: kwargs for way, kwargs in WAYS.items() if set(kwargs) <= set(accepted)}


def wrapped_adamw(params: list[Parameter], mode: str = "cautious") -> CautiousWeightDecay:
    """torch.optim.AdamW(fused=True), its decay by the wrapper."""
    return CautiousWeightDecay(torch.optim.AdamW(params, lr=LR, weight_decay=0, fused=True), 0.1, mode)
