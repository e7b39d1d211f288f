"""Whether an optimizer's step is the one of the paper's algorithm, where implementations are known to deviate.

Against :mod:`cwd.benchmarks.reference` in float64, on the CPU. What decay did is read as the difference of a step with
and one without weight decay: an optimizer is judged by its mask even if its update follows another convention.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cwd.benchmarks import reference
from cwd.benchmarks.contenders import FLOAT32, Contender

AGREES, NOTHING = "agrees", "-"
QUARTER = {"lr": 0.5, "weight_decay": 0.5}  # a coordinate that decays loses a quarter: no rounding hides that
STEP = {"lr": 0.0517, "weight_decay": 0.713}  # not round: bfloat16 values would meet exact ties of the rounding
SHAPES = ((6, 4), (4, 6), (5, 5))
SIDE = 320  # of the bfloat16 parameter, a square matrix
Started = tuple[list[Parameter], torch.optim.Optimizer]


def check(contender: Contender) -> dict[str, str]:
    """The verdict of every check: :data:`AGREES`, :data:`NOTHING` where there is nothing to check, or what is wrong."""
    verdicts = {}
    for name, function in CHECKS.items():
        try:
            verdicts[name] = function(contender)
        except Exception as error:  # whatever somebody else's code raises is its verdict
            verdicts[name] = f"fails: {type(error).__name__}"
    return verdicts


def four_steps(contender: Contender) -> str:
    """Four steps on float32 parameters of order 1 end where the reference's end.

    Without decay if Newton-Schulz runs in bfloat16: there the sign of a u near 0 is chance.
    """
    hyper = {**STEP, "weight_decay": 0.0} if contender.tolerance > FLOAT32 else STEP
    params, optimizer = _start(contender, hyper)
    exact: list[tuple[Tensor, dict[str, Any]]] = [(p.detach().double(), {}) for p in params]
    for number in range(4):
        gradients = _set_gradients(params, number)
        exact = [
            (_exact_step(contender, x, g, state, hyper), state) for (x, state), g in zip(exact, gradients, strict=True)
        ]
        optimizer.step()
    return _verdict(params, [x for x, _ in exact], contender.tolerance)


def zeros(contender: Contender) -> str:
    """A coordinate decays where u is 0, whatever the sign of x; where x is 0 or -0, it stays a number."""
    g = torch.tensor([1.0, -1.0, 1.0, -1.0]).diag()
    g[0, 1] = g[1, 0] = g[2, 3] = g[3, 2] = -0.0
    x = torch.tensor([2.0, -2.0]).repeat(4, 2)
    x.diagonal().copy_(torch.tensor([2.0, 2.0, -2.0, -2.0]))
    x[0, 3], x[3, 0] = 0.0, -0.0
    return _mask_verdict(contender, x, g)


def underflow(contender: Contender) -> str:
    """A coordinate with u and x of opposite signs is left alone even if u * x is too small for float32.

    Lion's u is 0 or of size 1: nothing underflows there.
    """
    if contender.rule == "lion":
        return NOTHING
    g = torch.tensor([1.0, 1e-34, -1e-34, 1e-34]).diag()
    x = torch.tensor([1.0, -1e-20, 1e-20, 1e-20]).diag()
    return _mask_verdict(contender, x, g, **({"eps": 1.0} if contender.rule == "adamw" else {}))


def bfloat16(contender: Contender) -> str:
    """The percentage of bfloat16 coordinates that are not the correctly rounded exact step; one step, one rounding.

    Nothing to check where Newton-Schulz itself runs in bfloat16.
    """
    if contender.tolerance > FLOAT32:
        return NOTHING
    x, g = (tensor.bfloat16() for tensor in torch.randn(2, SIDE, SIDE, generator=_generator(0)))
    p = Parameter(x.clone())
    p.grad = g.clone()
    _build(contender, [p], STEP).step()
    right = round_to_bfloat16(_exact_step(contender, x.double(), g, {}, STEP))
    return f"{100 * (p.detach() != right).double().mean().item():.2f}%"


def load_state_dict(contender: Contender) -> str:
    """A new optimizer with the state dict of one that made three steps goes on as that one does."""
    params, optimizer = _three_steps(contender)
    others = [Parameter(p.detach().clone()) for p in params]
    loaded = _build(contender, others, STEP)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return _same_fourth_step((params, optimizer), (others, loaded))


def deepcopy(contender: Contender) -> str:
    """A deep copy of parameters and optimizer after three steps goes on as the original does."""
    original = _three_steps(contender)
    return _same_fourth_step(original, copy.deepcopy(original))


CHECKS: dict[str, Callable[[Contender], str]] = {
    "four steps": four_steps,
    "zeros": zeros,
    "underflow": underflow,
    "bfloat16, off": bfloat16,
    "load_state_dict": load_state_dict,
    "deepcopy": deepcopy,
}


def round_to_bfloat16(exact: Tensor) -> Tensor:
    """float64 to the nearest bfloat16. torch's own conversion goes by float32 and so rounds twice."""
    near = exact.bfloat16()
    neighbours = [torch.nextafter(near, torch.full_like(near, limit)) for limit in (-torch.inf, torch.inf)]
    for one in neighbours:
        near = torch.where((one.double() - exact).abs() < (near.double() - exact).abs(), one, near)
    return near


def _mask_verdict(contender: Contender, x: Tensor, g: Tensor, **hyper: Any) -> str:
    """Compares which coordinates of x decay with those that should."""
    if contender.mode != "cautious":
        return NOTHING
    after = []
    for weight_decay in (0.0, QUARTER["weight_decay"]):
        p = Parameter(x.clone())
        p.grad = g.clone()
        _build(contender, [p], {**QUARTER, **hyper, "weight_decay": weight_decay}).step()
        after.append(p.detach().double())
    hyper = {**reference.HYPER[contender.rule], **contender.hyper, **hyper}
    u = reference.DIRECTIONS[contender.rule](g.double(), {}, hyper)
    decayed = (after[0] - after[1]) / (QUARTER["lr"] * QUARTER["weight_decay"] * x) > 0.5
    wrong = (decayed != reference.decays(u, x)) & (x != 0)
    cases = {
        f"u {_sign(a)}, x {_sign(b)} {'decays' if c else 'does not decay'}"
        for a, b, c in zip(u[wrong].tolist(), x[wrong].tolist(), decayed[wrong].tolist(), strict=True)
    }
    if not torch.equal(after[0][x == 0], after[1][x == 0]):
        cases.add("x = 0 is moved by decay")
    return "; ".join(sorted(cases)) or AGREES


def _sign(value: float) -> str:
    return "= 0" if value == 0 else "> 0" if value > 0 else "< 0"


def _exact_step(contender: Contender, x: Tensor, g: Tensor, state: dict[str, Any], hyper: dict[str, float]) -> Tensor:
    full = {**reference.HYPER[contender.rule], **contender.hyper, **hyper}
    return reference.step(contender.rule, contender.mode, x, g.double(), state, full)


def _build(contender: Contender, params: list[Parameter], hyper: dict[str, Any]) -> torch.optim.Optimizer:
    return contender.build(params, **{**reference.HYPER[contender.rule], **contender.hyper, **hyper})


def _start(contender: Contender, hyper: dict[str, float]) -> Started:
    params = [Parameter(0.3 * torch.randn(shape, generator=_generator(i))) for i, shape in enumerate(SHAPES)]
    return params, _build(contender, params, hyper)


def _three_steps(contender: Contender) -> Started:
    params, optimizer = _start(contender, STEP)
    for number in range(3):
        _set_gradients(params, number)
        optimizer.step()
    return params, optimizer


def _same_fourth_step(original: Started, other: Started) -> str:
    for params, optimizer in (original, other):
        _set_gradients(params, 3)
        torch.manual_seed(0)  # for those that round stochastically
        optimizer.step()
    return _verdict(other[0], [p.detach().double() for p in original[0]], FLOAT32)


def _set_gradients(params: list[Parameter], number: int) -> list[Tensor]:
    """Gives every parameter its gradient of step `number`; returns copies."""
    gradients = [torch.randn(p.shape, generator=_generator(100 * number + i)) for i, p in enumerate(params)]
    for p, g in zip(params, gradients, strict=True):
        if p.grad is None:
            p.grad = g.clone()
        else:
            p.grad.copy_(g)
    return gradients


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _verdict(params: list[Parameter], expected: list[Tensor], tolerance: float) -> str:
    worst = max((p.detach().double() - x).abs().max().item() for p, x in zip(params, expected, strict=True))
    return AGREES if worst <= tolerance else f"differs by {worst:.0e}"
