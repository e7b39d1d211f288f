"""CautiousWeightDecay's state, groups and refusals."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import lion_pytorch
import pytest
import torch
from torch.distributed.checkpoint import state_dict as distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from cwd.optim import MODES, AdamW
from cwd.optim.wrapper import CautiousWeightDecay
from tests.wrapper_helpers import (
    BETAS,
    EXACT,
    NAN,
    REFUSED,
    TOLERANCE,
    Odd,
    each_mode,
    fused_adamw,
    loss_of,
    network,
    parameters,
    plain_adamw,
    plain_sgd,
    through_torch_file,
    train,
    values,
    wrapped,
)

PASSAGES = {
    "memory": lambda state: state,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "torch file": through_torch_file,
}
INNER = {"fused": fused_adamw, "sgd": plain_sgd, "lion": partial(lion_pytorch.Lion, weight_decay=0.0)}


@pytest.mark.parametrize("passage", PASSAGES)
@pytest.mark.parametrize("inner", INNER)
def test_a_run_continued_from_its_state_dict_ends_bit_equal(inner, passage):
    params = parameters()
    optimizer = wrapped(params, "random", INNER[inner], seed=7)
    resumed = [torch.nn.Parameter(v) for v in train(optimizer, params, range(1, 6))]
    again = wrapped(resumed, "scaled", INNER[inner], seed=7, lr=9.0, weight_decay=9.0)
    again.load_state_dict(PASSAGES[passage](copy.deepcopy(optimizer.state_dict())))
    assert_close(train(again, resumed, range(6, 12)), train(optimizer, params, range(6, 12)), **EXACT)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, PASSAGES["pickle"]], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("inner", ["fused", "sgd"])
def test_a_copied_optimizer_goes_on_alone_and_bit_equal(inner, duplicate):
    params = parameters()
    optimizer = wrapped(params, "random", INNER[inner], seed=7)
    torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)  # which puts a function into the object
    train(optimizer, params, range(1, 6))
    twin = duplicate(optimizer)
    assert twin.optimizer is not optimizer.optimizer
    expected = train(optimizer, params, range(6, 12))
    assert_close(train(twin, twin.param_groups[0]["params"], range(6, 12)), expected, **EXACT)


def test_a_bare_state_dict_loads_and_leaves_the_decay_as_it_is():
    params, bare = parameters(), parameters()
    inner = plain_adamw(bare, lr=0.05)
    train(inner, bare, range(1, 4))
    for p, q in zip(params, bare, strict=True):
        p.data.copy_(q.detach())
    optimizer = wrapped(params, "scaled", lr=9.0)
    optimizer.load_state_dict(inner.state_dict())
    group = optimizer.param_groups[0]
    assert {key: group[key] for key in ("lr", "cwd_mode", "cwd_weight_decay")} == {
        "lr": 0.05,
        "cwd_mode": "scaled",
        "cwd_weight_decay": 0.7,
    }
    native = AdamW(bare, betas=BETAS, decay="scaled")
    native.load_state_dict(inner.state_dict())
    native.param_groups[0]["weight_decay"] = 0.7
    assert_close(train(optimizer, params, range(4, 9)), train(native, bare, range(4, 9)), **TOLERANCE[torch.float64])


def test_the_bare_optimizer_loads_a_wrapped_state_dict():
    params = parameters()
    optimizer = wrapped(params, weight_decay=0.0)
    alone = [torch.nn.Parameter(v) for v in train(optimizer, params, range(1, 4))]
    inner = plain_adamw(alone, lr=9.0)
    inner.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_close(train(inner, alone, range(4, 8)), train(optimizer, params, range(4, 8)), **EXACT)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("mode", [name for name, mode in MODES.items() if mode.sums is None])
def test_sharded_parameters_train_as_whole_ones(mode, one_process):
    results = []
    for sharded in (False, True):
        model = network()
        if sharded:
            fully_shard(model, mesh=one_process)
        optimizer = wrapped(model.parameters(), mode)
        for batch in range(3):
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([p.full_tensor() if sharded else p.detach() for p in model.parameters()])
    assert_close(*results, **EXACT)


def test_distributed_checkpoints_state_dict_carries_settings_and_count():
    model, again = network(), network()
    optimizer = wrapped(model.parameters(), "random", seed=7)
    for batch in range(3):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    again.load_state_dict(model.state_dict())
    fresh = wrapped(again.parameters(), "scaled", weight_decay=9.0, seed=7)
    saved = distributed.get_optimizer_state_dict(model, optimizer)
    distributed.set_optimizer_state_dict(again, fresh, copy.deepcopy(saved))
    for one, trained in ((model, optimizer), (again, fresh)):
        loss_of(one, 9).backward()
        trained.step()
    assert_close(values(again.parameters()), values(model.parameters()), **EXACT)
    assert fresh.param_groups[0]["cwd_step"] == 4


def test_groups_may_differ_in_mode_and_lambda_and_change_them_between_steps():
    settings = [("cautious", 0.7), ("scaled", 0.2), ("opposite", 0.0), ("decoupled", 0.4)]
    ours, theirs = parameters(), parameters()
    own = [
        {"params": [p], "cwd_mode": m, "cwd_weight_decay": d} for p, (m, d) in zip(ours[:3], settings[:3], strict=True)
    ]
    inner = plain_adamw([*own, {"params": ours[3:]}], lr=0.05)
    optimizer = CautiousWeightDecay(inner, 0.4, "decoupled")
    groups = [{"params": [p], "decay": m, "weight_decay": d} for p, (m, d) in zip(theirs, settings, strict=True)]
    native = AdamW(groups, lr=0.05, betas=BETAS)
    for steps in (range(1, 6), range(6, 10)):
        assert_close(train(optimizer, ours, steps), train(native, theirs, steps), **TOLERANCE[torch.float64])
        optimizer.param_groups[2]["cwd_weight_decay"] = native.param_groups[2]["weight_decay"] = 0.9
        optimizer.param_groups[0]["cwd_mode"] = native.param_groups[0]["decay"] = "gradient"


@pytest.mark.parametrize("on", ["wrapper", "inner"])
@pytest.mark.parametrize("mode", ["cautious", "random"])
def test_a_group_added_later_decays_as_the_others(mode, on):
    ours, theirs = parameters(), parameters()
    optimizer = wrapped(ours[:2], mode)
    native = AdamW(theirs[:2], lr=0.05, betas=BETAS, weight_decay=0.7, decay=mode)
    train(optimizer, ours[:2], range(1, 4))
    train(native, theirs[:2], range(1, 4))
    (optimizer if on == "wrapper" else optimizer.optimizer).add_param_group({"params": ours[2:]})
    native.add_param_group({"params": theirs[2:]})
    assert_close(train(optimizer, ours, range(4, 9)), train(native, theirs, range(4, 9)), **TOLERANCE[torch.float64])


@each_mode
def test_a_parameter_without_gradient_is_left_alone(mode):
    params = parameters()
    optimizer = wrapped(params, mode)
    train(optimizer, params, [1])
    params[1].requires_grad_(False)
    before = values(params)
    optimizer.zero_grad()
    train(optimizer, params[2:], [2])
    assert_close(values(params[:2]), before[:2], **EXACT)
    assert not any(torch.equal(p, x) for p, x in zip(params[2:], before[2:], strict=True))


def test_a_parameter_without_gradient_that_the_inner_optimizer_moves_decays():
    moving, still = torch.nn.Parameter(torch.tensor([4.0, -4.0])), torch.nn.Parameter(torch.tensor([4.0]))
    optimizer = CautiousWeightDecay(Odd([moving, still], lr=0.5), 0.5)
    moving.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    assert moving.tolist() == [2.5, -4.5]
    optimizer.step()  # no gradient now, but Odd goes on
    assert moving.tolist() == [2.5 - 0.5 - 0.625, -5.0]
    assert still.tolist() == [4.0]


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_what_cannot_be_wrapped_is_refused_with_what_and_why(make, words):
    arguments = make()
    before = copy.deepcopy(arguments[0].state_dict())
    with pytest.raises(ValueError) as error:
        CautiousWeightDecay(*arguments)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert str(arguments[0].state_dict()) == str(before)


@pytest.mark.parametrize("nonsense", [None, 3, torch.optim.AdamW, torch.nn.Linear(2, 2), "adamw"])
def test_what_is_no_optimizer_is_refused(nonsense):
    with pytest.raises(TypeError, match=r"instance of torch\.optim\.Optimizer"):
        CautiousWeightDecay(nonsense)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"weight_decay": 0.1}, "group 1: weight_decay=0.1"),
        ({"cwd_mode": "no"}, "group 1: mode='no'"),
        ({"cwd_weight_decay": NAN}, "group 1: weight_decay=nan"),
        ({"lr": -1.0}, "group 1: lr=-1.0"),
    ],
)
def test_a_bad_group_leaves_the_optimizer_as_it_was(bad, words):
    params = parameters()
    optimizer = wrapped(params[:1])
    with pytest.raises(ValueError, match=words):
        optimizer.add_param_group({"params": params[1:], **bad})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": params[1:]})
    train(optimizer, params, [1])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("weight_decay", 0.1, "weight_decay=0.1: decay would act twice"),
        ("cwd_mode", "no", "mode='no': allowed"),
        ("cwd_weight_decay", -1.0, "weight_decay=-1.0: a finite"),
        ("lr", NAN, "lr=nan: a finite"),
    ],
)
def test_what_is_turned_on_later_is_refused_at_the_step_and_in_a_state_dict_before_anything_changes(key, value, words):
    params = parameters()
    optimizer = wrapped(params)
    train(optimizer, params, [1])
    before, state = values(params), copy.deepcopy(optimizer.state_dict())
    bad = copy.deepcopy(state)
    bad["param_groups"][0][key] = value
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(bad)
    assert str(optimizer.state_dict()) == str(state)
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=words):
        optimizer.step()
    assert_close(values(params), before, **EXACT)
    optimizer.param_groups[0][key] = state["param_groups"][0][key]
    assert str(optimizer.state_dict()) == str(state)


def test_sparse_gradients_are_refused_before_anything_changes():
    embedding = torch.nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(ValueError, match="parameter 0: sparse"):
        CautiousWeightDecay(torch.optim.SparseAdam(embedding.parameters())).step()
    assert torch.equal(embedding.weight, before)


def test_averaged_models_and_their_batch_statistics_follow():
    model = network()
    optimizer, average = wrapped(model.parameters()), torch.optim.swa_utils.AveragedModel(model)
    seen = []
    for batch in range(3):
        loss_of(model, batch).backward()
        optimizer.step()
        average.update_parameters(model)
        seen.append(values(model.parameters()))
    mean = [torch.stack(tensors).mean(0) for tensors in zip(*seen, strict=True)]
    assert_close(values(average.module.parameters()), mean)
