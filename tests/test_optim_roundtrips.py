"""State goes through every format and comes back: runs of several groups, in mid-schedule, end with the same bits.

tests/test_optim_peers.py has the same for one group, in other dtypes, and for stock checkpoints.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.testing import assert_close

from cwd.optim import RuleOptimizer
from tests.optim_helpers import CLASSES, EXACT, HYPER, each_rule, normal
from tests.recipe_helpers import run_block, weights

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process, which is what is meant


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    layers = [torch.nn.Linear(6, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2)]
    model = torch.nn.Sequential(*layers).double()
    model[1].bias.requires_grad_(False)  # which never has a gradient, and no state
    return model


def make(rule: str, model: torch.nn.Module, lr: float = 0.05, weight_decay: float = 0.7) -> RuleOptimizer:
    """Matrices by `rule`, with masks that are drawn; the rest by AdamW, or by `rule` with another rate and mode."""
    matrices = {"params": [(n, p) for n, p in model.named_parameters() if p.ndim == 2]}
    others = {"params": [(n, p) for n, p in model.named_parameters() if p.ndim == 1]}
    others |= {"decay": "scaled", "lr": lr / 2, "weight_decay": weight_decay / 2}
    others |= {"rule": "adamw"} if rule == "muon" else {}
    options = {"lr": lr, "weight_decay": weight_decay, "decay": "random", "seed": 7, **HYPER[rule]}
    return CLASSES[rule]([matrices, others], **options)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Any, steps: range) -> None:
    for step in steps:
        for i, p in enumerate(model.parameters()):
            p.grad = normal(*p.shape, seed=100 * step + i) if p.requires_grad else None
        optimizer.step()
        schedule.step()


def through_file(optimizer: RuleOptimizer, again: RuleOptimizer, folder: Path) -> None:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))


def through_safetensors(optimizer: RuleOptimizer, again: RuleOptimizer, folder: Path) -> None:
    page = run_block("Checkpoints")
    page["save_state"](optimizer, folder / "state.safetensors")
    for mine, theirs in zip(again.param_groups, optimizer.param_groups, strict=True):  # tensors only: no groups
        mine.update({name: theirs[name] for name in ("lr", "weight_decay", "initial_lr")})
    page["load_state"](again, folder / "state.safetensors")


PASSAGES: dict[str, Callable[[RuleOptimizer, RuleOptimizer, Path], None]] = {
    "pickle": lambda optimizer, again, _: again.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict()))),
    "deepcopy": lambda optimizer, again, _: again.load_state_dict(copy.deepcopy(optimizer.state_dict())),
    "torch file": through_file,
    "safetensors": through_safetensors,
}


def runs(rule: str) -> tuple[Any, ...]:
    """A model, its optimizer and schedule after five steps; and those of a run that takes over, set up otherwise."""
    model, again = network(), network()
    optimizer, resumed = make(rule, model), make(rule, again, lr=9.0, weight_decay=9.0)
    schedule, other = (torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20) for o in (optimizer, resumed))
    train(model, optimizer, schedule, range(5))
    again.load_state_dict(model.state_dict())
    return model, optimizer, schedule, again, resumed, other


def assert_it_goes_on(model, optimizer, schedule, again, resumed, other) -> None:
    """Four more steps of both end with the same weights and state, and did something."""
    other.load_state_dict(schedule.state_dict())
    before = weights(model)
    train(model, optimizer, schedule, range(5, 9))
    train(again, resumed, other, range(5, 9))
    assert_close(weights(again), weights(model), **EXACT)
    assert any(not torch.equal(p, x) for p, x in zip(model.parameters(), before, strict=True))
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert_close(dict(resumed.state[q]), dict(optimizer.state[p]), **EXACT)


@pytest.mark.parametrize("passage", PASSAGES)
@each_rule
def test_a_resumed_run_of_several_groups_ends_bit_equal(rule, passage, tmp_path):
    run = runs(rule)
    PASSAGES[passage](run[1], run[4], tmp_path)
    assert_it_goes_on(*run)


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@each_rule
def test_a_run_resumed_from_a_distributed_checkpoint_ends_bit_equal(rule, flat, tmp_path):
    run = model, optimizer, _, again, resumed, _ = runs(rule)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    checkpoint = torch.distributed.checkpoint
    checkpoint.save({"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=tmp_path)
    loaded = {"optimizer": get_optimizer_state_dict(again, resumed, options=options)}
    assert_close(weights(again), weights(model), **EXACT)  # torch takes a step at rate 0 to see what state there is
    checkpoint.load(loaded, checkpoint_id=tmp_path)
    set_optimizer_state_dict(again, resumed, loaded["optimizer"], options=options)
    assert_it_goes_on(*run)
