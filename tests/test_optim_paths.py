"""What happens between steps: copies, tensors replaced, groups changed by hand, gradients that come and go."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import SGD
from tests.optim_helpers import EXACT, make, normal, set_gradients, train, values

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer))}
SHAPES = [(3, 4), (5,), (5,), (1,)]


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
