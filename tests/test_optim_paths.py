"""What happens between steps: copies, tensors replaced, groups changed by hand, gradients that come and go."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import SGD
from tests.optim_helpers import EXACT, PATHS, gradient_of, make, normal, set_gradients, train, values

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer))}
SHAPES = [(3, 4), (5,), (5,), (1,)]
COMPILED = [path for path in PATHS if "compiled" in path]


def step_counts(optimizer) -> list[float]:
    return [entry["step"].item() for entry in optimizer.state_dict()["state"].values()]


def begin(flat: bool = False, steps=(1, 2), **kwargs):
    """An optimizer after two steps, and its parameters."""
    params = [torch.nn.Parameter(normal(*shape, seed=i)) for i, shape in enumerate(SHAPES)]
    optimizer = make("adamw", params, flat=flat, **kwargs)
    train(optimizer, params, steps)
    return optimizer, params


def rebuilt(optimizer, params, **kwargs):
    """An optimizer that was made anew, from values: it has no plan, and shares nothing."""
    twins = [torch.nn.Parameter(v) for v in values(params)]
    fresh = make("adamw", twins, **kwargs)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return fresh, twins


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("flat", [False, True])
def test_a_copy_counts_the_steps_of_each_tensor_by_itself(duplicate, flat):
    optimizer, _ = begin(flat)
    twin = COPIES[duplicate](optimizer)
    others = twin.param_groups[0]["params"]
    set_gradients(others, 3)
    others[1].grad = None
    twin.step()
    assert step_counts(twin) == [3, 2, 3, 3]
    assert step_counts(optimizer) == [2, 2, 2, 2]


def new_data(optimizer, params):
    params[1].data = normal(5, seed=9)


def new_buffer(optimizer, params):
    optimizer.state[params[1]]["exp_avg"] = normal(5, seed=9)


def buffer_with_new_data(optimizer, params):
    optimizer.state[params[1]]["exp_avg"].data = normal(5, seed=9)


def new_count(optimizer, params):
    optimizer.state[params[1]]["step"] = torch.tensor(7.0)


def new_entry(optimizer, params):
    optimizer.state[params[1]] = {name: 2 * value for name, value in optimizer.state[params[2]].items()}


def no_state(optimizer, params):
    optimizer.state.clear()


def no_entry(optimizer, params):
    del optimizer.state[params[1]]


def empty_entry(optimizer, params):
    optimizer.state[params[1]].clear()


CHANGES = [new_data, new_buffer, buffer_with_new_data, new_count, new_entry, no_state, no_entry, empty_entry]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("flat", [False, True])
def test_what_the_user_replaced_is_what_the_next_step_sees(change, flat):
    optimizer, params = begin(flat)
    change(optimizer, params)
    fresh, twins = rebuilt(optimizer, params)
    assert_close(train(optimizer, params, [3, 4]), train(fresh, twins, [3, 4]), **EXACT)
    assert step_counts(optimizer) == step_counts(fresh)


def test_data_replaced_by_a_part_of_itself_is_seen():
    p = torch.nn.Parameter(normal(4, 3))
    optimizer = SGD([p], lr=1.0, momentum=0.0, weight_decay=0.0)
    p.grad = torch.ones_like(p)
    optimizer.step()
    rest, p.data = p.data[2:].clone(), p.data[:2]
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert_close(p.detach(), normal(4, 3)[:2] - 2, **EXACT)
    assert_close(rest, normal(4, 3)[2:] - 1, **EXACT)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_a_buffer_of_another_shape_is_refused_by_name_before_anything_is_stepped(flat, compile):
    optimizer, params = begin(flat, steps=[1], compile=False)
    optimizer.compile = compile
    optimizer.state[params[1]]["exp_avg"] = torch.zeros(2, dtype=torch.float64)
    before = values(params)
    set_gradients(params, 2)
    with pytest.raises(ValueError, match=r"group0\.1: exp_avg of shape \(2,\); the parameter's is \(5,\)"):
        optimizer.step()
    assert_close(values(params), before, **EXACT)


def test_a_gradient_older_than_the_data_is_refused():
    optimizer, params = begin()
    params[1].data = torch.zeros(9, dtype=torch.float64)
    optimizer.state[params[1]].clear()
    with pytest.raises(ValueError, match=r"grad of shape \(5,\); the parameter's is \(9,\)"):
        optimizer.step()


def test_buffers_of_several_dtypes_are_each_read_as_what_they_are():
    optimizer, params = begin()
    buffer = normal(5, seed=9, dtype=torch.bfloat16)
    optimizer.state[params[1]]["exp_avg"] = buffer
    before, v = params[1].detach().clone(), optimizer.state[params[1]]["exp_avg_sq"].clone()
    train(optimizer, params, [3])
    g = params[1].grad
    m = 0.9 * normal(5, seed=9, dtype=torch.bfloat16).double() + 0.1 * g
    u = (m / (1 - 0.9**3)) / (((0.95 * v + 0.05 * g**2) / (1 - 0.95**3)).sqrt() + 1e-8)
    expected = before - 0.05 * (u + 0.7 * torch.where(u * before >= 0, before, 0))
    assert_close(params[1].detach(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(buffer, m.to(torch.bfloat16))


def test_a_parameter_that_moves_to_another_group_is_stepped_as_that_one_says():
    p, q = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    settings = {"momentum": 0.0, "weight_decay": 0.0}
    optimizer = SGD([{"params": [p, q], "lr": 1.0}, {"params": [], "lr": 10.0}], **settings)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    optimizer.param_groups[1]["params"].append(optimizer.param_groups[0]["params"].pop())
    optimizer.step()
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 100.0}
    optimizer.step()
    assert p.tolist() == [-102, -102, -102]
    assert q.tolist() == [-21, -21, -21]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"decay": "coutious"}, "decay='coutious'"), ({"decay_schedule": "corrected"}, "lr_max=None")],
    ids=str,
)
def test_a_setting_changed_by_hand_to_what_cannot_be_is_refused(change, named):
    optimizer, params = begin()
    optimizer.param_groups[0].update(change)
    before = values(params)
    with pytest.raises(ValueError, match=named):
        optimizer.step()
    assert_close(values(params), before, **EXACT)


@pytest.mark.parametrize("flat", [False, True])
def test_a_module_that_changes_its_dtype_keeps_its_state_and_is_computed_in_the_new_one(flat):
    module = torch.nn.Linear(4, 3)
    params = list(module.parameters())
    optimizer = make("sgd", params, flat=flat, momentum=0.5, weight_decay=0.0, lr=0.1)
    train(optimizer, params, [1])
    module.to(torch.float64)
    before, buffers = values(params), [optimizer.state[p]["momentum_buffer"].double().clone() for p in params]
    train(optimizer, params, [2])
    for p, x, m in zip(params, before, buffers, strict=True):
        assert p.dtype == torch.float64
        assert_close(p.detach(), x - 0.1 * (0.5 * m + 0.5 * p.grad), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("flat", [False, True])
def test_a_state_dict_that_is_loaded_on_the_way_replaces_what_was(flat):
    optimizer, params = begin(flat)
    saved, at = copy.deepcopy(optimizer.state_dict()), values(params)
    expected = train(optimizer, params, [3, 4])
    train(optimizer, params, [5, 6, 7])
    optimizer.load_state_dict(saved)
    with torch.no_grad():
        for p, x in zip(params, at, strict=True):
            p.copy_(x)
    assert_close(train(optimizer, params, [3, 4]), expected, **EXACT)
    assert step_counts(optimizer) == [4] * len(params)


@pytest.mark.parametrize("flat", [False, True])
def test_a_group_added_on_the_way_begins_with_its_own_first_step(flat):
    optimizer, params = begin(flat)
    fresh, twins = rebuilt(optimizer, params)
    late, alone = (torch.nn.Parameter(normal(5, seed=7)) for _ in range(2))
    optimizer.add_param_group({"params": [late], "lr": 0.1})
    single = make("adamw", [alone], lr=0.1)
    for step in (3, 4):
        set_gradients([*params, late], step)
        optimizer.step()
        alone.grad = late.grad.clone()
        single.step()
    assert_close(values(params), train(fresh, twins, [3, 4]), **EXACT)
    assert_close(late.detach(), alone.detach(), **EXACT)
    assert step_counts(optimizer) == [4, 4, 4, 4, 2]


@pytest.mark.parametrize("path", ["eager", "flat", *(pytest.param(p, marks=pytest.mark.slow) for p in COMPILED)])
def test_gradients_that_come_and_go_leave_each_tensor_its_own_steps(path):
    """Each tensor ends as if it had been trained alone, on the steps in which it had a gradient."""
    pattern = ["0123", "0", "12", "0123", "", "3", "0123", "0123", "13"]
    params = [torch.nn.Parameter(normal(*shape, seed=i)) for i, shape in enumerate(SHAPES)]
    optimizer = make("adamw", params, **PATHS[path])
    for step, present in enumerate(pattern, 1):
        set_gradients(params, step)
        for i, p in enumerate(params):
            if str(i) not in present:
                p.grad = None
        optimizer.step()
    for i, p in enumerate(params):
        alone = torch.nn.Parameter(normal(*SHAPES[i], seed=i))
        single = make("adamw", [alone], compile="compiled" in path)
        steps = [step for step, present in enumerate(pattern, 1) if str(i) in present]
        for step in steps:
            alone.grad = gradient_of(alone, i, step)
            single.step()
        assert_close(p.detach(), alone.detach(), **EXACT)
        assert optimizer.state_dict()["state"][i]["step"] == len(steps)


@pytest.mark.parametrize("flat", [False, True])
def test_state_dict_gives_each_tensor_a_step_of_its_own(flat):
    optimizer, _ = begin(flat)
    steps = [entry["step"] for entry in optimizer.state_dict()["state"].values()]
    assert len({step.data_ptr() for step in steps}) == len(SHAPES)
    steps[0].fill_(99)
    assert step_counts(optimizer) == [2] * len(SHAPES)


@pytest.mark.parametrize("flat", [False, True])
def test_an_exception_in_a_closure_leaves_everything_as_it_was(flat):
    optimizer, params = begin(flat)
    fresh, twins = rebuilt(optimizer, params)
    before = values(params)

    def closure():
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        optimizer.step(closure)
    assert_close(values(params), before, **EXACT)
    assert step_counts(optimizer) == [2] * len(SHAPES)
    assert_close(train(optimizer, params, [3]), train(fresh, twins, [3]), **EXACT)


@pytest.mark.parametrize("flat", [False, True])
def test_a_sparse_gradient_is_refused_before_anything_is_stepped(flat):
    dense, embedding = torch.nn.Parameter(torch.ones(3)), torch.nn.Embedding(5, 3, sparse=True)
    optimizer = SGD([dense, embedding.weight], flat=flat)
    for p in (dense, embedding.weight):
        p.grad = torch.ones_like(p)
    optimizer.step()
    before, state = values([dense, embedding.weight]), copy.deepcopy(optimizer.state_dict()["state"])
    embedding.weight.grad = None
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"group0\.1: sparse"):
        optimizer.step()
    assert_close(values([dense, embedding.weight]), before, **EXACT)
    assert_close(optimizer.state_dict()["state"], state, **EXACT)
    embedding.weight.grad = torch.ones(5, 3)
    optimizer.step()
    assert step_counts(optimizer) == [2, 2]


@pytest.mark.parametrize(
    ("key", "meant"), [("weight_deacy", "weight_decay"), ("beta", "betas"), ("decays", "decay"), ("anchors", "anchor")]
)
def test_a_misspelt_key_of_a_group_is_refused_with_the_name_that_was_meant(key, meant):
    optimizer, _ = begin()
    with pytest.raises(ValueError, match=f"{key}: .*{meant}"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], key: 0.1})
    assert len(optimizer.param_groups) == 1


def test_keys_of_schedulers_and_of_the_users_own_are_kept():
    optimizer, _ = begin()
    keys = {"initial_lr": 0.1, "lr_scale": 0.5, "layer": 3, "name": "head"}
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], **keys})
    assert keys.items() <= optimizer.param_groups[1].items()


@pytest.mark.slow
def test_buffers_of_several_dtypes_do_not_share_a_graph():
    params, others = ([torch.nn.Parameter(normal(9, seed=i)) for i in range(12)] for _ in range(2))
    optimizers = [make("lion", own, compile=compile) for own, compile in ((params, True), (others, False))]
    for own, optimizer in zip((params, others), optimizers, strict=True):
        train(optimizer, own, [1])
        optimizer.state[own[4]]["exp_avg"] = normal(9, seed=99, dtype=torch.float32)
        train(optimizer, own, [2, 3])
    assert_close(values(params), values(others), rtol=1e-15, atol=1e-15)
    assert optimizers[0].state[params[4]]["exp_avg"].dtype == torch.float32
