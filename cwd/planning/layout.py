"""How a run is laid out on its devices: sharding and micro-batch, the simplest that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from cwd.errors import UserError
from cwd.models.loss import ALL_LOGITS
from cwd.planning.devices import Device
from cwd.planning.memory import SHARDINGS, Memory, Setting, memory_of
from cwd.planning.trace import Shape, takes_targets
from cwd.planning.work import Work


@dataclass(frozen=True)
class Wishes:
    """What the user asks for; None: the simplest that fits."""

    sharding: str | None = None
    micro_batch: int | None = None
    checkpointing: bool = False
    chunked_loss: bool = False


@dataclass(frozen=True)
class Layout:
    """A setting, its memory, and whether that fits the device; ``shape`` as it was traced."""

    setting: Setting
    memory: Memory
    fits: bool
    shape: Shape


def check_devices(device: Device, batch: int, size: str) -> None:
    """Refuses a number of devices that cannot share a batch of so many sequences.

    Raises:
        UserError: it does not divide the batch.
    """
    if batch % device.together:
        raise UserError(
            f"GPUS={device.count}: does not divide the batch of {batch} sequences of {size}; allowed are its divisors "
            f"{', '.join(map(str, _divisors(batch)))}"
        )


def lay_out(works: Sequence[Work], device: Device, wishes: Wishes) -> Layout:
    """The layout of runs that differ in decay alone: that of the largest.

    In this order, until one fits: nothing sharded, the devices of a node, all devices; each with the largest
    micro-batch that fits. If none fits, the last of them.

    Raises:
        UserError: a micro-batch that does not divide a device's share, or a sharding that the devices cannot have.
    """
    share = works[0].batch // device.together
    if wishes.micro_batch is not None and share % wishes.micro_batch:
        allowed = ", ".join(map(str, _divisors(share)))
        raise UserError(
            f"--micro-batch {wishes.micro_batch}: does not divide a device's {share} sequences; allowed are {allowed}"
        )
    last = None
    for sharding in _shardings(device, wishes.sharding):
        for micro_batch in [wishes.micro_batch] if wishes.micro_batch else reversed(_divisors(share)):
            setting = Setting(
                sharding, device.together, device.per_node, micro_batch, micro_batch < share, device.is_cpu
            )
            last = _layout(works, setting, device, wishes)
            if last.fits:
                return last
    assert last is not None
    return last


def remedies(works: Sequence[Work], device: Device, wishes: Wishes) -> list[str]:
    """Options under which runs fit that do not fit as they are; the first that helps of each kind."""
    trials = {
        "--checkpointing": replace(wishes, checkpointing=True, micro_batch=None),
        "--chunked-loss": replace(wishes, chunked_loss=True, micro_batch=None),
        "--checkpointing --chunked-loss": replace(wishes, checkpointing=True, chunked_loss=True, micro_batch=None),
        "--sharding full": replace(wishes, sharding="full", micro_batch=None),
    }
    return [name for name, trial in trials.items() if trial != wishes and lay_out(works, device, trial).fits]


def _layout(works: Sequence[Work], setting: Setting, device: Device, wishes: Wishes) -> Layout:
    shape = replace(
        works[0].shape,
        checkpointing=wishes.checkpointing or works[0].shape.checkpointing,
        chunked_loss=wishes.chunked_loss or _by_chunks(works[0], setting.micro_batch),
    )
    largest = max((memory_of(shape, work.held, setting) for work in works), key=lambda memory: memory.peak)
    return Layout(setting, largest, largest.peak <= device.usable, shape)


def _by_chunks(work: Work, sequences: int) -> bool:
    """Whether the trainer would compute the loss by chunks: where the model can, and all logits would be too many."""
    with torch.device("meta"):
        model = work.shape.build()
    rows = model.get_output_embeddings().weight.shape[0]
    return takes_targets(model) and sequences * work.shape.seq_len * rows > ALL_LOGITS


def _shardings(device: Device, wished: str | None) -> Iterator[str]:
    if wished is not None:
        if wished not in SHARDINGS:
            raise UserError(f"--sharding {wished}: allowed are {', '.join(SHARDINGS)}")
        if wished != "none" and device.together == 1:
            raise UserError(f"--sharding {wished}: needs several devices to a run, GPUS={device.together}")
        if wished == "hybrid" and device.together % min(device.per_node, device.together):
            raise UserError(f"--sharding hybrid: GPUS={device.count} are not whole nodes of {device.per_node}")
        yield wished
        return
    yield "none"
    if device.together > device.per_node and device.together % device.per_node == 0:
        yield "hybrid"
    if device.together > 1:
        yield "full"


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]
