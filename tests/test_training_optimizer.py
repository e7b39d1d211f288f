"""The optimizer that a configuration asks for: who decays, by which lambda, when."""

from __future__ import annotations

import pytest
import torch

from cwd.errors import UserError
from cwd.optim.decay import lambda_of
from cwd.sweeps import compose_config
from cwd.training.optimizer import build_optimizer


class Model(torch.nn.Module):
    """Three parameters with the names of the paper's model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.layers = torch.nn.ModuleList([torch.nn.Module()])
        self.layers[0].q_proj = torch.nn.Linear(4, 4, bias=False)
        self.layers[0].norm = torch.nn.Module()
        self.layers[0].norm.scale = torch.nn.Parameter(torch.ones(4))


def lambdas(*overrides: str, lr_factor: float = 1.0, step: int = 1) -> dict[str, float]:
    """lambda of each parameter in update number `step`, at a rate of `lr_factor` times the peak."""
    config = compose_config(["scale=smoke", "decay.weight_decay=0.4", "training.steps=20", *overrides])
    optimizer, _ = build_optimizer(config, Model())
    for group in optimizer.param_groups:
        group["lr"] *= lr_factor
    return {name: lambda_of(group, step) for group in optimizer.param_groups for name in group["param_names"]}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_corrected_decay_follows_the_rate_on_the_normalized_weights_only(optimizer):
    found = lambdas(f"optimizer={optimizer}", "decay.schedule=corrected", lr_factor=0.25)
    assert found == {"embed.weight": 0.4, "layers.0.q_proj.weight": 0.1, "layers.0.norm.scale": 0.4}


def test_a_linear_schedule_ends_with_the_run_and_a_constant_one_stays():
    assert set(lambdas("decay.schedule=linear", step=1).values()) == {0.4}
    assert set(lambdas("decay.schedule=linear", step=11).values()) == {0.2}
    assert set(lambdas("decay.schedule=linear", step=21).values()) == {0.0}
    assert set(lambdas(step=21, lr_factor=0.25).values()) == {0.4}


def test_corrected_decay_of_no_parameter_is_refused():
    with pytest.raises(UserError, match=r"decay.normalized=.'nothing'.: no parameter that decays"):
        lambdas("decay.schedule=corrected", "decay.normalized=[nothing]")
