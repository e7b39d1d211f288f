"""Flat buffers: the same steps to the bit, with parameters that stay what they were to everybody else."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from cwd.optim import MODES
from tests.optim_helpers import EXACT, each_elementwise_rule, make, values


class Model(torch.nn.Module):
    """Small, with what real models have: a matrix tied to another, a norm, biases, a frozen tensor, a part not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(11, 6)
        self.mix = torch.nn.Linear(6, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.spare = torch.nn.Linear(6, 6, bias=False)
        self.head = torch.nn.Linear(6, 11)
        self.head.weight = self.embedding.weight
        self.frozen = torch.nn.Parameter(torch.ones(6), requires_grad=False)

    def forward(self, tokens: torch.Tensor, spare: bool = True) -> torch.Tensor:
        hidden = self.norm(torch.tanh(self.mix(self.embedding(tokens)))) * self.frozen
        return self.head(hidden + self.spare(hidden) if spare else hidden)


def loss_of(model: Model, step: int, **kwargs) -> torch.Tensor:
    tokens = torch.randint(11, (8, 9), generator=torch.Generator().manual_seed(step))
    return torch.nn.functional.cross_entropy(model(tokens[:, :-1], **kwargs).flatten(0, 1), tokens[:, 1:].flatten())


def trainable(model: Model) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def begin(rule: str = "adamw", flat: bool = True, **kwargs):
    model = Model()
    return model, make(rule, trainable(model), flat=flat, compile=False, **{"lr": 0.01, **kwargs})


def train(model, optimizer, steps, **kwargs) -> list[torch.Tensor]:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step, **kwargs).backward()
        optimizer.step()
    return values(trainable(model))


def is_flat(optimizer) -> bool:
    """Whether the last step was one over flat buffers."""
    return all(one.flat is not None for one in optimizer._plan.sets)


def storages(tensors) -> list[tuple[int, int]]:
    return [(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in tensors]


def test_parameters_of_a_flat_buffer_have_storages_of_their_own():
    model, optimizer = begin()
    train(model, optimizer, [1])
    assert is_flat(optimizer)
    assert storages(trainable(model)) == [(p.data_ptr(), p.numel() * 4) for p in trainable(model)]
    gaps = [q.data_ptr() - p.data_ptr() for p, q in zip(trainable(model), trainable(model)[1:], strict=False)]
    assert gaps == [-(-p.numel() // 16) * 64 for p in trainable(model)[:-1]]  # one after another, padded to 16


def test_a_flattened_model_is_saved_whole(tmp_path):
    """safetensors and accelerate leave tensors out that lie in one storage: they take them for tied."""
    model, optimizer = begin()
    train(model, optimizer, [1, 2])
    safetensors.torch.save_model(model, tmp_path / "own.safetensors")
    Accelerator(cpu=True).save_model(model, tmp_path)
    for name in ("own.safetensors", "model.safetensors"):
        fresh = Model()
        with torch.no_grad():
            for p in fresh.parameters():
                p.fill_(9.0)
        safetensors.torch.load_model(fresh, tmp_path / name)
        assert_close(dict(fresh.named_parameters()), dict(model.named_parameters()), **EXACT)


@pytest.mark.parametrize("measure", [False, True])
def test_autograd_notices_that_a_flat_step_changed_a_parameter(measure):
    model, optimizer = begin()
    train(model, optimizer, [1])
    loss = loss_of(model, 2)
    optimizer.measure = measure
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("mode", [mode for mode in MODES if MODES[mode].sums is None])
@each_elementwise_rule
def test_twenty_flat_steps_of_a_model_are_bit_equal(rule, mode):
    (model, optimizer), (other, plain) = begin(rule, mode=mode), begin(rule, flat=False, mode=mode)
    assert_close(train(model, optimizer, range(20)), train(other, plain, range(20)), **EXACT)
    assert is_flat(optimizer)
    assert not is_flat(plain)


@pytest.mark.parametrize("mode", [mode for mode in MODES if MODES[mode].sums is not None])
def test_modes_that_look_at_a_tensor_as_a_whole_are_stepped_as_without_the_option(mode):
    (model, optimizer), (other, plain) = begin(mode=mode), begin(flat=False, mode=mode)
    assert_close(train(model, optimizer, range(3)), train(other, plain, range(3)), **EXACT)
    assert not is_flat(optimizer)


def test_flattening_changes_no_value():
    model, optimizer = begin(lr=0.0)
    before = values(trainable(model))
    train(model, optimizer, [1])
    assert is_flat(optimizer)
    assert_close(values(trainable(model)), before, **EXACT)


# name: how a loop may forget the gradients
FORGET = {
    "optimizer": lambda model, optimizer: optimizer.zero_grad(),
    "optimizer in place": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "model": lambda model, optimizer: model.zero_grad(),
    "model in place": lambda model, optimizer: model.zero_grad(set_to_none=False),
}


@pytest.mark.parametrize("forget", FORGET)
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("clip", [False, True])
def test_loops_that_accumulate_and_clip_and_forget_go_on_as_they_do(forget, batches, clip):
    def final(flat):
        model, optimizer = begin(flat=flat)
        for step in range(6):
            for batch in range(batches):
                (loss_of(model, 10 * step + batch) / batches).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            FORGET[forget](model, optimizer)
        assert is_flat(optimizer) == flat
        return values(trainable(model))

    assert_close(final(True), final(False), **EXACT)


def test_gradients_are_views_until_a_module_forgets_them_and_again_after_zero_grad():
    model, optimizer = begin()
    train(model, optimizer, [1])
    optimizer.zero_grad()
    [one] = optimizer._plan.sets
    where = [p.grad.data_ptr() for p in trainable(model)]
    assert where[0] == one.flat.g.data_ptr()
    assert all((p.grad == 0).all() for p in trainable(model))
    loss_of(model, 2).backward()
    assert [p.grad.data_ptr() for p in trainable(model)] == where
    model.zero_grad()
    loss_of(model, 2).backward()
    assert all(p.grad.data_ptr() != there for p, there in zip(trainable(model), where, strict=True))
    optimizer.step()
    optimizer.zero_grad()
    assert [p.grad.data_ptr() for p in trainable(model)] == where


def test_a_parameter_without_gradient_in_some_step_stays_and_keeps_its_count():
    """Where the loop leaves it None. After the optimizer's zero_grad it is zero, and the parameter is stepped."""

    def final(flat):
        model, optimizer = begin(flat=flat)
        for step in range(8):
            model.zero_grad()
            loss_of(model, step, spare=step % 3 != 1).backward()
            spare = model.spare.weight.detach().clone()
            optimizer.step()
            assert torch.equal(spare, model.spare.weight) == (step % 3 == 1)
            if step in (0, 1):  # later, the one that stayed behind is in a set of its own
                assert is_flat(optimizer) == (flat and step == 0)
        counts = [entry["step"].item() for entry in optimizer.state_dict()["state"].values()]
        return values(trainable(model)), counts

    flat, plain = final(True), final(False)
    assert_close(flat[0], plain[0], **EXACT)
    assert flat[1] == plain[1]
    assert sorted(flat[1]) == [5, *[8] * (len(flat[1]) - 1)]


def test_a_zero_gradient_is_a_gradient():
    (model, optimizer), (other, plain) = begin(), begin(flat=False)
    for step in range(4):
        optimizer.zero_grad()
        plain.zero_grad(set_to_none=False)
        for one in (model, other):
            loss_of(one, step, spare=step == 0).backward()
        optimizer.step()
        plain.step()
    assert_close(values(trainable(model)), values(trainable(other)), **EXACT)


def test_groups_are_flat_each_by_itself():
    def final(flat):
        model = Model()
        matrices, others = ([p for p in trainable(model) if (p.ndim == 2) == two] for two in (True, False))
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0, "lr": 0.02}]
        optimizer = make("adamw", groups, flat=flat, compile=False)
        result = train(model, optimizer, range(5))
        assert len(optimizer._plan.sets) == 2
        assert is_flat(optimizer) == flat
        return result

    assert_close(final(True), final(False), **EXACT)


def test_a_group_added_on_the_way_is_flat_too():
    def final(flat):
        model = Model()
        late = list(model.head.parameters())[1:]
        early = [p for p in trainable(model) if p is not late[0]]
        optimizer = make("adamw", early, flat=flat, compile=False)
        train(model, optimizer, [1, 2])
        optimizer.add_param_group({"params": [*late, torch.nn.Parameter(torch.zeros(0))], "lr": 0.02})
        return train(model, optimizer, [3, 4])

    assert_close(final(True), final(False), **EXACT)


@pytest.mark.parametrize("destination", [False, True])
@pytest.mark.parametrize("source", [False, True])
def test_a_state_dict_moves_between_flat_and_not(source, destination):
    model, optimizer = begin(flat=source)
    train(model, optimizer, range(3))
    other, again = begin(flat=destination)
    train(other, again, range(7, 9))  # into one that was already on its way
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    expected = train(model, optimizer, range(3, 6))
    assert_close(train(other, again, range(3, 6)), expected, **EXACT)
    assert is_flat(again) == destination


def test_a_copied_model_and_optimizer_go_on_alone():
    model, optimizer = begin()
    train(model, optimizer, range(3))
    other, again = copy.deepcopy((model, optimizer))
    expected = train(model, optimizer, range(3, 6))
    assert not torch.equal(other.mix.weight, model.mix.weight)
    assert_close(train(other, again, range(3, 6)), expected, **EXACT)
    assert is_flat(again)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_model_that_changes_its_dtype_is_flat_again(forgotten):
    def final(flat):
        model, optimizer = begin(flat=flat)
        train(model, optimizer, range(3))
        if forgotten:
            model.zero_grad()
        model.to(torch.float64)
        result = train(model, optimizer, range(3, 6))
        assert is_flat(optimizer) == flat
        return result

    assert_close(final(True), final(False), **EXACT)
    assert {p.dtype for p in final(True)} == {torch.float64}


def test_gradients_whose_data_is_replaced_are_those_that_are_stepped():
    def final(flat):
        model, optimizer = begin(flat=flat)
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            for p in trainable(model):
                p.grad.data = -2 * p.grad.data
            optimizer.step()
        assert is_flat(optimizer) == flat
        return values(trainable(model))

    assert_close(final(True), final(False), **EXACT)


def test_data_given_to_a_flat_parameter_is_stepped():
    def final(flat):
        model, optimizer = begin(flat=flat)
        train(model, optimizer, range(3))
        model.mix.weight.data = torch.eye(6)
        return train(model, optimizer, range(3, 6))

    assert_close(final(True), final(False), **EXACT)


@pytest.mark.parametrize("anchor", [0.5, "initial"])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_options_with_state_are_bit_equal_in_flat_buffers(anchor, state_dtype):
    options = {"anchor": anchor, "state_dtype": state_dtype}
    (model, optimizer), (other, plain) = begin(**options), begin(flat=False, **options)
    assert_close(train(model, optimizer, range(5)), train(other, plain, range(5)), **EXACT)
    assert is_flat(optimizer)
    assert all(
        torch.equal(optimizer.state[p][name], plain.state[q][name])
        for p, q in zip(trainable(model), trainable(other), strict=True)
        for name in plain.state[q]
    )


@pytest.mark.slow
@each_elementwise_rule
def test_compiled_flat_steps_are_the_compiled_ones(rule):
    def final(flat):
        model = Model()
        optimizer = make(rule, trainable(model), flat=flat, compile=True, lr=0.01)
        return train(model, optimizer, range(20))

    assert_close(final(True), final(False), **EXACT)
