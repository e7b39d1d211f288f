"""The agreement checker passes a right optimizer and flags a wrong one where it is wrong."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch

from cwd.benchmarks import agreement, reference
from cwd.benchmarks.contenders import Contender
from tests import optim_reference

NUMPY_HYPER = {
    "adamw": {"betas": (0.9, 0.95), "eps": 1e-8},
    "lion": {"betas": (0.9, 0.99)},
    "sgd": {"momentum": 0.9},
    "muon": {"momentum": 0.95, "nesterov": True},
}


def rounded(exact: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    value = torch.from_numpy(exact)
    return agreement.round_to_bfloat16(value) if like.dtype == torch.bfloat16 else value.to(like.dtype)


class Exact(torch.optim.Optimizer):
    """The paper's step from the tests' reference in numpy, in float64, rounded once; its parts can be made wrong."""

    def __init__(self, params, rule, lr, weight_decay, **hyper):
        super().__init__(params, {"rule": rule, "lr": lr, "weight_decay": weight_decay, **hyper})

    def decays(self, u, x):
        return optim_reference.not_opposed(u, x)

    def after(self, p, u, lr, weight_decay):
        x = p.double().numpy()
        return rounded(x - lr * (u + weight_decay * self.decays(u, x) * x), p)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            names = [name for name in NUMPY_HYPER[group["rule"]] if name in group]
            for p in group["params"]:
                state = {k: v.numpy() if torch.is_tensor(v) else v for k, v in self.state[p].items()}
                hyper = {**NUMPY_HYPER[group["rule"]], **{name: group[name] for name in names}}
                u = optim_reference.RULES[group["rule"]](p.grad.double().numpy(), state, **hyper)
                p.copy_(self.after(p, u, group["lr"], group["weight_decay"]))
                self.state[p] = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}

    def load_state_dict(self, state_dict):  # torch's would cast to the parameters' dtype
        for p, state in zip(self.param_groups[0]["params"], state_dict["state"].values(), strict=True):
            self.state[p] = copy.deepcopy(state)


class Strict(Exact):
    def decays(self, u, x):
        return u * x > 0


class Product(Exact):
    def decays(self, u, x):
        return u.astype(np.float32) * x.astype(np.float32) >= 0


class SignBits(Exact):
    def decays(self, u, x):
        return np.signbit(u) == np.signbit(x)


class TwiceRounded(Exact):
    def after(self, p, u, lr, weight_decay):
        x = p.double().numpy()
        decayed = rounded(x * (1 - lr * weight_decay * self.decays(u, x)), p)
        return rounded(decayed.double().numpy() - lr * u, p)


class Forgets(Exact):
    def load_state_dict(self, state_dict):
        pass


class LosesAttributes(Exact):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = 1

    def step(self):
        assert self.extra == 1
        super().step()


class DecaysAfter(Exact):
    def after(self, p, u, lr, weight_decay):
        x = p.double().numpy() - lr * u
        return rounded(x - lr * weight_decay * self.decays(u, x) * x, p)


def verdicts(cls: type[Exact], rule: str = "sgd") -> dict[str, str]:
    return agreement.check(Contender(cls.__name__, rule, partial(cls, rule=rule)))


@pytest.mark.parametrize("rule", NUMPY_HYPER)
def test_a_right_optimizer_agrees_everywhere(rule):
    found = verdicts(Exact, rule)
    assert found.pop("underflow") == (agreement.NOTHING if rule == "lion" else agreement.AGREES)
    assert found.pop("bfloat16, off") == "0.00%"
    assert set(found.values()) == {agreement.AGREES}


WRONG = [
    (Strict, "zeros", "u = 0, x < 0 does not decay; u = 0, x > 0 does not decay"),
    (SignBits, "zeros", "u = 0, x < 0 does not decay"),
    (Product, "underflow", "u < 0, x > 0 decays; u > 0, x < 0 decays"),
    (Forgets, "load_state_dict", "differs by"),
    (LosesAttributes, "deepcopy", "fails: AttributeError"),
    (DecaysAfter, "four steps", "differs by"),
]


@pytest.mark.parametrize(("cls", "name", "verdict"), WRONG, ids=lambda v: v.__name__ if isinstance(v, type) else "")
def test_a_wrong_optimizer_is_flagged_where_it_is_wrong(cls, name, verdict):
    found = verdicts(cls)
    assert found[name].startswith(verdict)
    others = set(found) - {name, "bfloat16, off"}
    assert cls is DecaysAfter or {found[other] for other in others} == {agreement.AGREES}


def test_a_second_rounding_is_flagged():
    found = verdicts(TwiceRounded)
    assert float(found["bfloat16, off"].rstrip("%")) > 5
    assert found["zeros"] == found["underflow"] == agreement.AGREES


def test_plain_decay_has_no_mask_to_check():
    plain = Contender("torch", "adamw", torch.optim.AdamW, mode="decoupled")
    found = agreement.check(plain)
    assert found["four steps"] == agreement.AGREES
    assert found["zeros"] == found["underflow"] == agreement.NOTHING


def test_bfloat16_is_rounded_from_float64_at_once():
    tie, unit = 1 + 2.0**-8, 2.0**-40  # float32 would lose the unit, and then round to even
    exact = torch.tensor([tie + unit, tie - unit, tie, -tie - unit], dtype=torch.float64)
    assert agreement.round_to_bfloat16(exact).tolist() == [1 + 2.0**-7, 1.0, 1.0, -1 - 2.0**-7]
    assert exact[0].bfloat16().item() == 1.0


@pytest.mark.parametrize("rule", NUMPY_HYPER)
def test_the_two_references_agree(rule):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    ours, theirs, state, other = x, x.numpy(), {}, {}
    for _ in range(4):
        g = torch.randn(6, 4, generator=generator, dtype=torch.float64)
        hyper = {**reference.HYPER[rule], "lr": 0.05, "weight_decay": 0.7}
        ours = reference.step(rule, "cautious", ours, g, state, hyper)
        theirs, _, _ = optim_reference.step(
            rule, "cautious", theirs, g.numpy(), other, lr=0.05, weight_decay=0.7, hyper=NUMPY_HYPER[rule]
        )
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-12, atol=1e-12)
