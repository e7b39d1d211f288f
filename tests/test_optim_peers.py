"""The optimizers against torch's and lion-pytorch's own, and their state dicts."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import RULES, AdamW
from tests.optim_helpers import (
    DOUBLE,
    EXACT,
    PEERS,
    STOCK,
    UNIT,
    each_rule,
    make,
    parameters,
    train,
    values,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PEERS)
def test_decoupled_decay_is_what_the_stock_optimizer_does(name, dtype):
    rule, hyper, weight_decay, peer = PEERS[name]
    ours, theirs = parameters(rule, dtype), parameters(rule, dtype)
    ours_after = train(make(rule, ours, "decoupled", weight_decay=weight_decay, **hyper), ours, range(1, 31))
    theirs_after = train(peer(theirs, lr=0.05, weight_decay=weight_decay), theirs, range(1, 31))
    # float32: each of 30 steps rounds values below 4 once here and twice there; the states agree to the last bits, and
    # their difference enters times lr = 0.05
    tolerance = DOUBLE if dtype == torch.float64 else {"rtol": 0, "atol": 30 * 3 * 4 * UNIT}
    assert_close(ours_after, theirs_after, **tolerance)


def loads(rule: str, hyper: dict, weight_decay: float, peer, continue_from: int = 6):
    """Parameters of a stock run, and of one whose second half is ours, from the stock state dict."""
    theirs = parameters(rule)
    stock = peer(theirs, lr=0.05, weight_decay=weight_decay)
    train(stock, theirs, range(1, continue_from))
    ours = [torch.nn.Parameter(v) for v in values(theirs)]
    # lr, weight_decay and the betas come from the checkpoint: the constructor's are wrong on purpose
    optimizer = make(rule, ours, "decoupled", lr=9.0, weight_decay=9.0, **hyper)
    optimizer.load_state_dict(copy.deepcopy(stock.state_dict()))
    steps = range(continue_from, continue_from + 10)
    return train(optimizer, ours, steps), train(stock, theirs, steps)


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_checkpoint_goes_on_as_the_stock_optimizer_would(name):
    continued, expected = loads(*PEERS[name])
    assert_close(continued, expected, **DOUBLE)


def test_a_stock_checkpoint_brings_its_betas():
    peer = partial(torch.optim.AdamW, betas=(0.5, 0.6), eps=1e-3)
    continued, expected = loads("adamw", {}, 0.7, peer)
    assert_close(continued, expected, **DOUBLE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_step_of_a_fused_stock_checkpoint_is_counted_on_the_cpu():
    """On the device, each step would wait for it."""
    p = torch.nn.Parameter(torch.ones(3, device="cuda"))
    p.grad = torch.ones_like(p)
    stock = torch.optim.AdamW([p], fused=True)
    stock.step()
    assert stock.state[p]["step"].is_cuda
    optimizer = make("adamw", [p], "cautious")
    optimizer.load_state_dict(stock.state_dict())
    optimizer.step()
    assert (optimizer.state[p]["step"].device.type, optimizer.state[p]["step"].item()) == ("cpu", 2)


def test_a_stock_checkpoint_leaves_the_decay_mode_to_the_constructor():
    params = parameters("adamw")
    stock = torch.optim.AdamW(parameters("adamw"))
    optimizer = make("adamw", params, "cautious")
    optimizer.load_state_dict(stock.state_dict())
    assert optimizer.param_groups[0]["decay"] == "cautious"
    assert optimizer.param_groups[0]["rule"] == "adamw"


@pytest.mark.parametrize(
    ("rule", "peer", "named"),
    [
        ("adamw", partial(torch.optim.AdamW, amsgrad=True), "amsgrad"),
        ("muon", partial(torch.optim.Muon, adjust_lr_fn="spectral_unclamped"), "adjust_lr_fn"),
    ],
)
def test_a_stock_checkpoint_that_no_rule_can_continue_is_refused(rule, peer, named):
    stock = peer(parameters(rule))
    optimizer = make(rule, parameters(rule))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=named):
        optimizer.load_state_dict(stock.state_dict())
    assert optimizer.state_dict() == before


def through_torch_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


PASSAGES = {
    "memory": lambda state: state,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "torch file": through_torch_file,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("passage", PASSAGES)
@each_rule
def test_a_run_continued_from_its_state_dict_ends_bit_equal(rule, passage, dtype):
    params = parameters(rule, dtype)
    optimizer = make(rule, params, "random", seed=7)
    resumed = [torch.nn.Parameter(v) for v in train(optimizer, params, range(1, 6))]
    again = make(rule, resumed, "random", seed=7, lr=9.0, weight_decay=9.0)
    again.load_state_dict(PASSAGES[passage](copy.deepcopy(optimizer.state_dict())))
    expected = train(optimizer, params, range(6, 12))
    assert_close(train(again, resumed, range(6, 12)), expected, **EXACT)
    for p, q in zip(params, resumed, strict=True):
        assert_close(dict(again.state[q]), dict(optimizer.state[p]), **EXACT)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
@each_rule
def test_a_copied_optimizer_goes_on_alone_and_bit_equal(rule, duplicate):
    params = parameters(rule)
    optimizer = make(rule, params, "random", seed=7)
    optimizer.observer = lambda observation: None  # which cannot be pickled, and watches the original only
    train(optimizer, params, range(1, 6))
    twin = duplicate(optimizer)
    assert twin.observer is None
    expected = train(optimizer, params, range(6, 12))
    assert_close(train(twin, twin.param_groups[0]["params"], range(6, 12)), expected, **EXACT)


def test_two_optimizers_that_load_one_state_dict_do_not_share_it():
    first, second, third = parameters("adamw"), parameters("adamw"), parameters("adamw")
    source = make("adamw", first)
    train(source, first, range(1, 4))
    state = copy.deepcopy(source.state_dict())
    runs = []
    for params in (second, third):
        optimizer = make("adamw", params)
        optimizer.load_state_dict(state)
        runs.append(train(optimizer, params, range(4, 7)))
    assert_close(runs[0], runs[1], **EXACT)


@pytest.mark.parametrize(
    ("rule", "peer"),
    [("adamw", torch.optim.AdamW), ("muon", torch.optim.Muon), ("sgd", partial(torch.optim.SGD, momentum=0.9))],
)
def test_bfloat16_state_of_a_stock_checkpoint_is_widened(rule, peer):
    theirs, ours = parameters(rule, torch.bfloat16), parameters(rule, torch.bfloat16)
    stock, optimizer = peer(theirs, lr=0.05), make(rule, ours)
    train(stock, theirs, [1, 2])
    optimizer.load_state_dict(stock.state_dict())
    for p, q in zip(ours, theirs, strict=True):
        for name in RULES[rule].buffers:
            assert optimizer.state[p][name].dtype == torch.float32
            assert torch.equal(optimizer.state[p][name], stock.state[q][name].float())
    assert all(v.isfinite().all() for v in train(optimizer, ours, [3]))


def test_state_dict_of_a_new_optimizer_is_empty_and_loads():
    params = parameters("adamw")
    optimizer = make("adamw", params)
    assert optimizer.state_dict()["state"] == {}
    optimizer.load_state_dict(optimizer.state_dict())
    fresh = parameters("adamw")
    assert_close(train(optimizer, params, [1, 2]), train(make("adamw", fresh), fresh, [1, 2]), **EXACT)


def test_a_state_dict_with_another_number_of_groups_is_refused():
    one = make("adamw", parameters("adamw"))
    two = AdamW([{"params": [p]} for p in parameters("adamw")])
    with pytest.raises(ValueError, match="number of parameter groups"):
        one.load_state_dict(two.state_dict())


PROBE = """
import sys, torch
before = set(sys.modules)
import cwd.optim
new = set(sys.modules) - before
foreign = {m.partition(".")[0] for m in new} - set(sys.stdlib_module_names)
print(*sorted(foreign - {"torch"}))
print(*sorted(m for m in new if m.startswith("cwd.") and not m.startswith("cwd.optim")))
print(*[m for m in ("hydra", "omegaconf", "transformers", "accelerate", "scipy", "datasets") if m in sys.modules])
"""


def test_importing_the_optimizers_imports_nothing_but_torch():
    output = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout
    assert output.split("\n") == ["cwd", "", "", ""]


def test_a_state_of_another_method_is_refused():
    params = parameters("adamw", torch.float32)
    for p in params:
        p.grad = torch.ones_like(p)
    coupled = torch.optim.Adam(params, weight_decay=0.1)
    coupled.step()
    with pytest.raises(ValueError, match="coupled"):
        make("adamw", params, "decoupled").load_state_dict(coupled.state_dict())
    lion = make("lion", params, "cautious")
    lion.step()
    with pytest.raises(ValueError, match="another rule"):
        make("adamw", params, "cautious").load_state_dict(lion.state_dict())
