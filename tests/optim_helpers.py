"""What the tests of the optimizers share."""

from __future__ import annotations

import math
from functools import partial

import lion_pytorch
import numpy as np
import pytest
import torch

from cwd.optim import MODES, RULES, SGD, AdamW, Lion, Muon, RuleOptimizer
from cwd.optim.decay import Context

CLASSES = {"adamw": AdamW, "lion": Lion, "muon": Muon, "sgd": SGD}
HYPER = {
    "adamw": {"betas": (0.9, 0.95), "eps": 1e-8},
    "lion": {"betas": (0.9, 0.99)},
    "muon": {"momentum": 0.95, "nesterov": True},
    "sgd": {"momentum": 0.9},
}
MATRICES = ((6, 4), (4, 6), (5, 5))
ANY_SHAPE = ((6, 4), (7,), ())
UNIT = 2.0**-24  # the unit roundoff of float32
EXACT = {"rtol": 0, "atol": 0}
DOUBLE = {"rtol": 1e-12, "atol": 1e-12}  # float64 over tens of steps; values are of order 1
PATHS = {
    "eager": {"compile": False},
    "flat": {"compile": False, "flat": True},
    "compiled": {"compile": True},
    "flat compiled": {"compile": True, "flat": True},
}
each_rule = pytest.mark.parametrize("rule", CLASSES)
each_elementwise_rule = pytest.mark.parametrize("rule", ["adamw", "lion", "sgd"])
each_mode = pytest.mark.parametrize("mode", MODES)


def normal(*shape, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(rule: str, dtype=torch.float64, seed: int = 1) -> list[torch.nn.Parameter]:
    shapes = MATRICES if rule == "muon" else ANY_SHAPE
    return [torch.nn.Parameter(0.3 * normal(*s, seed=seed + i, dtype=dtype)) for i, s in enumerate(shapes)]


def gradient_of(p: torch.Tensor, index: int, step: int) -> torch.Tensor:
    """Random, and the first element's is always 0: there u is 0 and x stays what it was, but for decay."""
    g = normal(*p.shape, seed=1000 * step + index).to(p.dtype)
    if p.numel() > 1:
        g.view(-1)[0] = 0.0
    return g


def set_gradients(params, step: int, sign: float = 1.0) -> None:
    for i, p in enumerate(params):
        p.grad = sign * gradient_of(p, i, step)


def train(optimizer, params, steps) -> list[torch.Tensor]:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()
    return values(params)


def values(params) -> list[torch.Tensor]:
    return [p.detach().clone() for p in params]


def make(rule: str, params, mode: str = "cautious", *, lr=0.05, weight_decay=0.7, **kwargs) -> RuleOptimizer:
    return CLASSES[rule](params, lr=lr, weight_decay=weight_decay, decay=mode, **{**HYPER[rule], **kwargs})


def one_step(u, x, mode: str = "cautious", dtype=torch.float32) -> torch.Tensor:
    """The parameter after a step whose update is exactly u: SGD without momentum, lr 1/2, lambda 1/2."""
    p = torch.nn.Parameter(torch.tensor(x, dtype=dtype))
    p.grad = torch.tensor(u, dtype=dtype)
    SGD([p], lr=0.5, weight_decay=0.5, momentum=0.0, decay=mode).step()
    return p.detach()


def factor_of(mode: str, x, u, g, words=(1, 0), lr: float = 1.0):
    """M of a whole tensor."""
    return MODES[mode](x, u, g, Context(lr, x.numel(), words))


def numpy64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def sgd_with_decoupled_decay(params, *, weight_decay, **kwargs):
    optimizer = torch.optim.SGD(params, weight_decay=0.0, **kwargs)

    def shrink(opt, *_):
        with torch.no_grad():
            for group in opt.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * weight_decay)

    optimizer.register_step_pre_hook(shrink)
    return optimizer


BFLOAT16_MUON = {"momentum": 0.9, "ns_dtype": torch.bfloat16}
# name: (rule, hyperparameters here, weight decay, the optimizer that does the same)
PEERS = {
    "adamw": ("adamw", {}, 0.7, partial(torch.optim.AdamW, betas=(0.9, 0.95), foreach=False)),
    "adamw foreach": ("adamw", {}, 0.7, partial(torch.optim.AdamW, betas=(0.9, 0.95), foreach=True)),
    "adamw eps": ("adamw", {"eps": 0.1}, 0.7, partial(torch.optim.AdamW, betas=(0.9, 0.95), eps=0.1)),
    "adam": ("adamw", {}, 0.0, partial(torch.optim.Adam, betas=(0.9, 0.95))),
    "sgd": ("sgd", {"momentum": 0.0}, 0.7, torch.optim.SGD),
    "sgd momentum": ("sgd", {"dampening": 0.0}, 0.0, partial(torch.optim.SGD, momentum=0.9)),
    "sgd nesterov": (
        "sgd",
        {"dampening": 0.0, "nesterov": True},
        0.0,
        partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    ),
    "sgd decoupled": ("sgd", {"dampening": 0.0}, 0.7, partial(sgd_with_decoupled_decay, momentum=0.9)),
    "muon": ("muon", BFLOAT16_MUON | {"adjust_lr_fn": "original"}, 0.7, partial(torch.optim.Muon, momentum=0.9)),
    "muon rms": (
        "muon",
        BFLOAT16_MUON | {"adjust_lr_fn": "match_rms_adamw"},
        0.7,
        partial(torch.optim.Muon, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
    ),
    "muon no nesterov": (
        "muon",
        BFLOAT16_MUON | {"adjust_lr_fn": "original", "nesterov": False, "ns_steps": 3},
        0.7,
        partial(torch.optim.Muon, momentum=0.9, nesterov=False, ns_steps=3),
    ),
    "lion": ("lion", {}, 0.7, partial(lion_pytorch.Lion, betas=(0.9, 0.99))),
}
STOCK = [name for name in PEERS if not name.startswith(("lion", "adam ")) and name not in ("adam", "sgd decoupled")]


def tensor(*shape, dtype=torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


NAN, INF, TWICE = math.nan, math.inf, tensor(2, 2)
# (class, arguments, what the message must hold: the name, the value, the range)
REFUSED = [
    *((cls, {"lr": v}, ["lr=", f"{v}", ">= 0"]) for cls in CLASSES.values() for v in (-1e-9, NAN, INF)),
    *(
        (cls, {"weight_decay": v}, ["weight_decay=", f"{v}", ">= 0"])
        for cls in CLASSES.values()
        for v in (-0.1, NAN, INF)
    ),
    *((cls, {"decay": "coutious"}, ["decay='coutious'", *MODES]) for cls in CLASSES.values()),
    *(
        (cls, {"betas": v}, ["betas=", str(v), "[0, 1)"])
        for cls in (AdamW, Lion)
        for v in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, NAN), (0.9,), (0.9, 0.9, 0.9))
    ),
    *((cls, {"eps": v}, ["eps=", f"{v}", ">= 0"]) for cls in (AdamW, Muon) for v in (-1e-9, NAN, INF)),
    *((cls, {"momentum": v}, ["momentum=", f"{v}", "[0, 1)"]) for cls in (Muon, SGD) for v in (-0.1, 1.0, NAN)),
    *((SGD, {"dampening": v}, ["dampening=", f"{v}", "[0, 1)"]) for v in (-0.1, 1.0, NAN)),
    (SGD, {"momentum": 0.0, "nesterov": True}, ["nesterov=True", "momentum above 0"]),
    *((Muon, {"ns_steps": v}, ["ns_steps=", f"{v}", "1 to 99"]) for v in (0, 100, -1, 2.5)),
    (Muon, {"ns_coefficients": (1.0, 2.0)}, ["ns_coefficients=(1.0, 2.0)", "three"]),
    (Muon, {"adjust_lr_fn": "rms"}, ["adjust_lr_fn='rms'", "match_rms_adamw", "original", "none"]),
    *((Muon, {"params": [tensor(*s)]}, ["rule=muon", "matrices", str(s)]) for s in ((), (3,), (2, 3, 2, 2, 2))),
    (Muon, {"params": [tensor(2, 2, dtype=torch.complex64)]}, ["rule=muon", "real", "complex64"]),
    *((cls, {"params": [tensor(2, 2, dtype=torch.int64)]}, ["int64", "floating"]) for cls in CLASSES.values()),
    (AdamW, {"params": [{"params": [tensor(3)], "rule": "adam"}]}, ["rule='adam'", *RULES]),
    *((cls, {"params": [TWICE, TWICE]}, ["params", "given twice"]) for cls in CLASSES.values()),
    (AdamW, {"params": [("a", TWICE), ("b", TWICE)]}, ["params", "given twice"]),
    (AdamW, {"params": [{"params": [tensor(3)], "rule": "muon"}]}, ["rule=muon", "(3,)"]),
]
