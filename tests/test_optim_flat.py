"""Flat buffers: the same steps to the bit, with parameters that stay what they were to everybody else."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from tests.optim_helpers import EXACT, make, values


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
    return model, make(rule, trainable(model), flat=flat, compile=False, lr=0.01, **kwargs)


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
