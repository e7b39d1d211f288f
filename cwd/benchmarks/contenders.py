"""Every optimizer of the comparison: ours, the two styles, torch's own, and what is installed of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module, metadata
from typing import Any

import torch
from torch.nn import Parameter

from cwd.benchmarks.ours import CLASSES, ways
from cwd.benchmarks.reference import HYPER
from cwd.benchmarks.styles import FusedThenUndo, Loop
from cwd.optim import CautiousWeightDecay, Muon

Build = Callable[..., torch.optim.Optimizer]
FLOAT32 = 1e-5  # values are of order 1: some tens of roundings
BFLOAT16_MUON = 3e-3  # Newton-Schulz in bfloat16, four steps at lr 0.05
SUM = {"dampening": 0.0}  # the momentum is a sum, not an average
ORIGINAL = {"adjust_lr_fn": "original"}
# What a library calls a hyperparameter; "" if it has none such.
HEAVY_SGD, HEAVY_MUON = {"momentum": "beta", "dampening": ""}, {"momentum": "betas", "adjust_lr_fn": ""}
ADV_MUON, PYTORCH_MUON = {"momentum": "beta1", "adjust_lr_fn": ""}, {"adjust_lr_fn": ""}


@dataclass(frozen=True)
class Contender:
    """An optimizer.

    Attributes:
        name: as in the table.
        rule: a name in cwd.benchmarks.reference.DIRECTIONS.
        build: ``build(params, lr=, weight_decay=, **hyper)``, with hyper from HYPER[rule] and `hyper`.
        package: the distribution it comes from; "" for what is here.
        mode: "cautious", or "decoupled" for an optimizer without cautious decay.
        tolerance: by how much values of order 1 may differ from the reference in float32 parameters.
        hyper: its own conventions, also for the reference.
    """

    name: str
    rule: str
    build: Build
    package: str = ""
    mode: str = "cautious"
    tolerance: float = FLOAT32
    hyper: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str | None:
        """The package's; "" for what is here, None for what is not installed."""
        if not self.package:
            return ""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None


def contenders() -> list[Contender]:
    """All of them, those that are not installed too."""
    return [*ours(), *styles(), *stock(), *cautious_packages(), *plain_packages()]


def ours() -> list[Contender]:
    """This project's rules, every way they run, and the wrapper."""
    found = [
        Contender(f"cwd.optim {CLASSES[rule].__name__}, {way}", rule, partial(CLASSES[rule], **kwargs))
        for rule in CLASSES
        for way, kwargs in ways(rule).items()
    ]
    bfloat16 = partial(Muon, ns_dtype=torch.bfloat16)
    found.append(Contender("cwd.optim Muon, bfloat16 iteration", "muon", bfloat16, tolerance=BFLOAT16_MUON))
    found.append(Contender("cwd.optim wrapper of torch AdamW fused", "adamw", _wrapper))
    return found


def styles() -> list[Contender]:
    """The two manners of :mod:`cwd.benchmarks.styles`."""
    loops = [Contender(f"Python loop, boolean indexing: {rule}", rule, partial(Loop, rule=rule)) for rule in HYPER]
    return [*loops, Contender("fused step, then undo: adamw", "adamw", FusedThenUndo)]


def stock() -> list[Contender]:
    """torch's own, which have plain decay."""
    adamw, muon = partial(torch.optim.AdamW, fused=True), torch.optim.Muon
    return [
        Contender("torch AdamW fused", "adamw", adamw, mode="decoupled"),
        Contender("torch Muon", "muon", muon, mode="decoupled", tolerance=BFLOAT16_MUON),
    ]


def cautious_packages() -> list[Contender]:
    """Other libraries that have cautious weight decay."""
    heavy, simply = {"cautious_weight_decay": True}, {"use_cautious_wd": True}
    adv = {"cautious_wd": True, "stochastic_rounding": False}
    lion = {"cautious_wd": True, "cautious_factor": 1.0}  # 1: no cautious updates, which are another method
    return [
        _of("HeavyBall", "heavyball", "AdamW", "adamw", heavy),
        _of("HeavyBall", "heavyball", "SGD", "sgd", heavy, HEAVY_SGD, SUM),
        _of("HeavyBall", "heavyball", "Muon", "muon", heavy, HEAVY_MUON, ORIGINAL),
        _of("adv-optm", "adv_optm", "AdamW_adv", "adamw", adv),
        _of("adv-optm", "adv_optm", "Lion_adv", "lion", adv),
        _of("adv-optm", "adv_optm", "Muon_adv", "muon", {**adv, "rms_rescaling": False}, ADV_MUON, ORIGINAL),
        _of("lion-pytorch", "lion_pytorch.cautious_lion", "Lion", "lion", lion),
        _of("simply-pytorch", "simply_pytorch", "Adam", "adamw", simply),
        _of("simply-pytorch", "simply_pytorch", "Lion", "lion", simply),
    ]


def plain_packages() -> list[Contender]:
    """Libraries that have the rules, with plain decay only: their "caution" is Cautious Optimizers, another method."""
    adjusted, original = {"use_adjusted_lr": True}, {"nesterov": True, "ns_coefficients": "original"}
    found = [
        _of("timm", "timm.optim", "AdamWLegacy", "adamw", {}),
        _of("timm", "timm.optim", "Lion", "lion", {}),
        _of("timm", "timm.optim", "SGDW", "sgd", {}, {}, SUM),
        _of("timm", "timm.optim", "Muon", "muon", original),
        _of("pytorch_optimizer", "pytorch_optimizer", "Lion", "lion", {}),
        _of("pytorch_optimizer", "pytorch_optimizer", "SGDW", "sgd", {}, {}, SUM),
        _of("pytorch_optimizer", "pytorch_optimizer", "Muon", "muon", adjusted, PYTORCH_MUON),
    ]
    return [replace(one, mode="decoupled") for one in found]


def _of(
    library: str,
    module: str,
    name: str,
    rule: str,
    kwargs: Mapping[str, Any],
    renamed: Mapping[str, str] = {},
    hyper: Mapping[str, Any] = {},
) -> Contender:
    build = partial(_build, module, name, kwargs, renamed)
    tolerance = BFLOAT16_MUON if rule == "muon" else FLOAT32
    return Contender(f"{library} {name}", rule, build, module.split(".")[0], tolerance=tolerance, hyper=hyper)


def _build(
    module: str, name: str, kwargs: Mapping[str, Any], renamed: Mapping[str, str], params: list[Parameter], **hyper: Any
) -> torch.optim.Optimizer:
    given = {renamed.get(key, key): value for key, value in hyper.items() if renamed.get(key, key)}
    if renamed.get("momentum") == "betas":
        given["betas"] = (given["betas"], 0.99)  # Muon uses the first alone
    groups = [{"params": params, "use_muon": True}] if module == "pytorch_optimizer" and name == "Muon" else params
    return getattr(import_module(module), name)(groups, **given, **kwargs)


def _wrapper(params: list[Parameter], weight_decay: float, **hyper: Any) -> torch.optim.Optimizer:
    return CautiousWeightDecay(torch.optim.AdamW(params, weight_decay=0, fused=True, **hyper), weight_decay)
