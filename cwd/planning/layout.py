"""How a run is laid out on its devices: sharding and micro-batch, the simplest that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from cwd.errors import UserError
from cwd.models.loss import ALL_LOGITS
from cwd.planning.devices import Device
from cwd.planning.memory import SHARDINGS, Memory, Setting, memory_of
from cwd.planning.shapes import Shape, TextShape, takes_targets
from cwd.planning.work import Work

OPTIONS = {"sharding": "--sharding", "checkpointing": "--checkpointing", "chunked_loss": "--chunked-loss"}


@dataclass(frozen=True)
class Wishes:
    """What the user asks for; None: the simplest that fits."""

    sharding: str | None = None
    micro_batch: int | None = None
    checkpointing: bool = False
    chunked_loss: bool = False

    def within(self, shape: Shape) -> Wishes:
        """Without what the trainer has not for such models."""
        return replace(self, **{name: getattr(Wishes(), name) for name in OPTIONS if name not in shape.options})

    def refused(self, shape: Shape) -> list[str]:
        """The options that :meth:`within` leaves out."""
        asked = {"sharding": self.sharding not in (None, "none")}
        asked |= {"checkpointing": self.checkpointing, "chunked_loss": self.chunked_loss}
        return [option for name, option in OPTIONS.items() if asked[name] and name not in shape.options]


@dataclass(frozen=True)
class Layout:
    """A setting, its memory, and whether that fits the device; ``shape`` as it was traced."""

    setting: Setting
    memory: Memory
    fits: bool
    shape: Shape


def check_devices(device: Device, work: Work, size: str) -> None:
    """Refuses a number of devices that cannot share a batch.

    Raises:
        UserError: it does not divide the batch.
    """
    if work.batch % device.together:
        raise UserError(
            f"GPUS={device.count}: does not divide the batch of {work.batch} {work.shape.rows} of {size}; allowed are "
            f"its divisors {', '.join(map(str, _divisors(work.batch)))}"
        )


def lay_out(works: Sequence[Work], device: Device, wishes: Wishes) -> Layout:
    """The layout of runs that differ in decay alone: that of the largest.

    In this order, until one fits: nothing sharded, the devices of a node, all devices; each with the largest
    micro-batch that fits. If none fits, the last of them.

    Raises:
        UserError: a micro-batch that does not divide a device's share, or a sharding that the devices cannot have.
    """
    shape, share = works[0].shape, works[0].batch // device.together
    wishes = wishes.within(shape)
    allowed = [size for size in _divisors(share) if size % shape.together == 0 or size == share]
    if wishes.micro_batch is not None and wishes.micro_batch not in allowed:
        raise UserError(
            f"--micro-batch {wishes.micro_batch}: does not divide a device's {share} {shape.rows}"
            f"{' into pairs' if shape.together == 2 else ''}; allowed are {', '.join(map(str, allowed))}"
        )
    last = None
    for sharding in _shardings(device, wishes.sharding) if "sharding" in shape.options else ["none"]:
        for micro_batch in [wishes.micro_batch] if wishes.micro_batch else reversed(allowed):
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
    shape = works[0].shape
    allowed = {name: trial for name, trial in trials.items() if trial != wishes and not trial.refused(shape)}
    return [name for name, trial in allowed.items() if lay_out(works, device, trial).fits]


def _layout(works: Sequence[Work], setting: Setting, device: Device, wishes: Wishes) -> Layout:
    shape = replace(
        works[0].shape,
        checkpointing=wishes.checkpointing or works[0].shape.checkpointing,
        chunked_loss=wishes.chunked_loss or _by_chunks(works[0], setting.micro_batch),
    )
    memories = (memory_of(shape, work.held, setting, averaged=work.averaged) for work in works)
    largest = max(memories, key=lambda memory: memory.peak)
    return Layout(setting, largest, largest.peak <= device.usable, shape)


def _by_chunks(work: Work, sequences: int) -> bool:
    """Whether the trainer would compute the loss by chunks: where the model can, and all logits would be too many."""
    if not isinstance(work.shape, TextShape):
        return False
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
