"""What the tests of the wrapper share."""

from __future__ import annotations

import io
import math
from functools import partial

import pytest
import torch

from cwd.optim import MODES
from cwd.optim.wrapper import CautiousWeightDecay

EXACT = {"rtol": 0, "atol": 0}
UNIT = 2.0**-24  # the unit roundoff of float32
# 20 steps of values of order 1, each rounded a few times here and there; then a margin for Adam's quotients
TOLERANCE = {torch.float64: {"rtol": 0, "atol": 1e-13}, torch.float32: {"rtol": 0, "atol": 20 * 8 * UNIT}}
SHAPES = ((6, 4), (7,), (), (3, 2, 5))
BETAS = (0.9, 0.95)
fused_adamw = partial(torch.optim.AdamW, betas=BETAS, weight_decay=0.0, fused=True)
plain_adamw = partial(torch.optim.AdamW, betas=BETAS, weight_decay=0.0, foreach=False)
plain_sgd = partial(torch.optim.SGD, momentum=0.9)
each_mode = pytest.mark.parametrize("mode", MODES)


def normal(*shape, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(dtype=torch.float64, shapes=SHAPES) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(0.3 * normal(*s, seed=1 + i, dtype=dtype)) for i, s in enumerate(shapes)]


def train(optimizer, params, steps) -> list[torch.Tensor]:
    """Steps with random gradients; those of the first elements are 0: there u is 0."""
    for step in steps:
        for i, p in enumerate(params):
            p.grad = normal(*p.shape, seed=1000 * step + i).to(p.dtype)
            if p.numel() > 1:
                p.grad.view(-1)[0] = 0.0
        optimizer.step()
    return values(params)


def values(params) -> list[torch.Tensor]:
    return [p.detach().clone() for p in params]


def wrapped(params, mode="cautious", inner=plain_adamw, *, lr=0.05, weight_decay=0.7, seed=0) -> CautiousWeightDecay:
    return CautiousWeightDecay(inner(params, lr=lr), weight_decay, mode, seed=seed)


def moved(u, x, mode="cautious", dtype=torch.float32, weight_decay=0.5) -> list[float]:
    """x after a wrapped step of SGD with lr 1/2 and gradient u."""
    p = torch.nn.Parameter(torch.tensor(x, dtype=dtype))
    p.grad = torch.tensor(u, dtype=dtype)
    CautiousWeightDecay(torch.optim.SGD([p], lr=0.5), weight_decay, mode).step()
    return p.tolist()


def loss_of(model, batch: int) -> torch.Tensor:
    return model(normal(8, 6, seed=batch, dtype=torch.float32)).square().mean()


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))


def through_torch_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Odd(torch.optim.Optimizer):
    """Signs of a list of past gradients; state that is no tensor, a group without defaults, gradients consumed."""

    def __init__(self, params, lr):
        self.steps_taken = 0
        super().__init__(params, {"lr": lr})

    def __getstate__(self):
        return {**super().__getstate__(), "steps_taken": self.steps_taken}

    def state_dict(self):
        return {**super().state_dict(), "steps_taken": self.steps_taken}

    def load_state_dict(self, state_dict):
        self.steps_taken = state_dict["steps_taken"]
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure=None, *, scale=1.0):
        self.steps_taken += 1
        for group in self.param_groups:
            for p in group["params"]:
                history = self.state[p].setdefault("history", [])
                if p.grad is not None:
                    history.append(p.grad.clone())
                    p.grad = None
                if history:
                    p.data = p - scale * group["lr"] * sum(history).sign()
        return self.steps_taken


def adamw(**kwargs) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], **{"weight_decay": 0.0, **kwargs})


def second_group(**kwargs) -> torch.optim.Optimizer:
    optimizer = adamw()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], **kwargs})
    return optimizer


def differently(key: str, value) -> torch.optim.Optimizer:
    optimizer = adamw()
    optimizer.param_groups[0][key] = value
    return optimizer


NAN, INF = math.nan, math.inf
# (what makes the arguments, what the message must hold)
REFUSED = [
    (lambda: (adamw(weight_decay=0.1),), ["AdamW, group 0", "weight_decay=0.1", "twice", "set weight_decay=0"]),
    (lambda: (second_group(weight_decay=0.3),), ["AdamW, group 1", "weight_decay=0.3", "twice"]),
    (lambda: (adamw(weight_decay=torch.tensor(0.5)),), ["weight_decay=0.5", "twice"]),
    (lambda: (torch.optim.ASGD([torch.nn.Parameter(torch.ones(3))]),), ["ASGD", "lambd=0.0001", "twice"]),
    *((lambda key=key: (differently(key, 0.1),), [f"{key}=0.1", "twice"]) for key in ("wd", "weight_decay_rate")),
    *((lambda v=v: (adamw(), v), ["weight_decay=", f"{v}", ">= 0"]) for v in (-0.1, NAN, INF)),
    (lambda: (adamw(), 0.1, "coutious"), ["mode='coutious'", *MODES]),
    (lambda: (second_group(cwd_mode="no"),), ["group 1", "mode='no'", *MODES]),
    (lambda: (second_group(cwd_weight_decay=-1.0),), ["group 1", "weight_decay=-1.0", ">= 0"]),
    (lambda: (differently("cwd_weight_decay", 0.0), NAN), ["weight_decay=nan"]),  # for groups to come
    *((lambda v=v: (differently("lr", v),), ["lr=", f"{v}", ">= 0"]) for v in (-0.1, NAN, INF)),
    (lambda: (differently("lr", None),), ["group 0", "no lr"]),
    (lambda: (adamw(differentiable=True),), ["differentiable=True", "not supported"]),
    (lambda: (CautiousWeightDecay(adamw()),), ["wrapped", "already"]),
    (lambda: (CautiousWeightDecay(adamw()).optimizer,), ["AdamW", "wrapped", "already"]),
]
