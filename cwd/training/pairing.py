"""The hashes that prove two runs to be paired: of the initial weights, and of every batch."""

from __future__ import annotations

import hashlib

import torch

from cwd.training.tasks import Batch


def hash_weights(model: torch.nn.Module) -> str:
    """16 hexadecimal digits of the names and the bytes of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def chain(previous: str, batch: Batch) -> str:
    """The hash of all batches so far, from the one before and this batch: a chain, so that a checkpoint can carry
    it.
    """
    digest = hashlib.sha256(previous.encode())
    for name in sorted(batch):
        digest.update(batch[name].contiguous().numpy().data)
    return digest.hexdigest()[:16]
