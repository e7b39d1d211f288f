"""What happens between steps: copies, state dicts, tensors replaced, gradients that come and go; and flat buffers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import AdamW
from tests.optim_helpers import EXACT, make, parameters, set_gradients, train, values

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer))}


def step_counts(optimizer) -> list[float]:
    return [entry["step"].item() for entry in optimizer.state_dict()["state"].values()]


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("flat", [False, True])
def test_a_copy_counts_the_steps_of_each_tensor_by_itself(duplicate, flat):
    params = parameters("adamw")
    optimizer = make("adamw", params, flat=flat)
    train(optimizer, params, [1, 2])
    twin = COPIES[duplicate](optimizer)
    others = twin.param_groups[0]["params"]
    set_gradients(others, 3)
    others[1].grad = None
    twin.step()
    assert step_counts(twin) == [3, 2, 3]
    assert step_counts(optimizer) == [2, 2, 2]
