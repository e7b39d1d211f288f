"""This project's optimizers as the benchmarks run them."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from cwd.benchmarks.workload import LR
from cwd.optim import RULES, SGD, AdamW, CautiousWeightDecay, Lion, Muon

CLASSES: dict[str, Any] = {"adamw": AdamW, "lion": Lion, "sgd": SGD, "muon": Muon}  # by rule
WAYS: dict[str, dict[str, Any]] = {
    "compiled": {"compile": True},
    "eager": {"compile": False},
    "flat": {"compile": True, "flat": True},
}


def ways(rule: str) -> dict[str, dict[str, Any]]:
    """The ways to run a rule, with the arguments that ask for them. A rule for matrices has the eager one only."""
    return {"eager": WAYS["eager"]} if RULES[rule].matrices_only else WAYS


def wrapped_adamw(params: list[Parameter], mode: str = "cautious") -> CautiousWeightDecay:
    """torch.optim.AdamW(fused=True), its decay by the wrapper."""
    return CautiousWeightDecay(torch.optim.AdamW(params, lr=LR, weight_decay=0, fused=True), 0.1, mode)
