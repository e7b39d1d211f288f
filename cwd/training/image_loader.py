"""Reads and augments images, in this process or in workers that run ahead; either way the same images come out.

The transforms are timm's. They draw from the global generators of Python, NumPy and torch: these are seeded for each
image with the image's own number, and put back after it where anything else draws.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from cwd import schema
from cwd.data.images import ArrayImages, ImageData, ImageSet, Unreadable
from cwd.errors import UserError
from cwd.training.signals import NOTED

EVALUATION = -1  # as a seed: nothing is drawn
AHEAD = 2  # batches that each worker may be ahead
Key = tuple[int, int]  # (image, seed of its augmentation or EVALUATION)
Plan = Callable[[], Iterator[list[Key]]]


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """The `bits` highest of each channel's eight, as timm's operation has it, which at its highest level keeps none:
    Pillow took that for a black image up to version 12, and refuses it since.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
    auto_augment.NAME_TO_OP[name] = posterize


class Loaded(NamedTuple):
    """Some rows: images (B, 3, H, W) uint8, labels (B,) int64, and what was wrong with images, in words."""

    images: Tensor
    labels: Tensor
    problems: list[str]


class Samples(Dataset):
    """Images by key. A training image that cannot be read is replaced by the next that can; one of the evaluation set
    has label -1.

    What is in memory and always comes out the same is kept: for a tiny model, to transform an image again would take
    longer than to learn from it.
    """

    def __init__(self, data: ImageData, recipe: schema.Recipe, size: int) -> None:
        self._data = data
        self._size = size
        self._augment, self._draws = augmentation(recipe, size), draws(recipe)
        self._centre = centre_crop(recipe, size)
        self._kept: dict[tuple[bool, int], tuple[Tensor, int, str]] = {}

    def __getitem__(self, key: Key) -> tuple[Key, Tensor, int, str]:
        index, seed = key
        images = self._data.validation if seed == EVALUATION else self._data.train
        still = isinstance(images, ArrayImages) and (seed == EVALUATION or not self._draws)
        place = (seed == EVALUATION, index)
        if place in self._kept:
            return key, *self._kept[place]
        sample = self._held_out(index) if seed == EVALUATION else self._train(index, seed)
        if still:
            self._kept[place] = sample
        return key, *sample

    def _held_out(self, index: int) -> tuple[Tensor, int, str]:
        images: ImageSet = self._data.validation
        try:
            return self._centre(images.load(index)), int(images.labels[index]), ""
        except Unreadable as error:
            return torch.zeros(3, self._size, self._size, dtype=torch.uint8), -1, str(error)

    def _train(self, first: int, seed: int) -> tuple[Tensor, int, str]:
        images: ImageSet = self._data.train
        problem = ""
        for index in itertools.chain(range(first, len(images.labels)), range(first)):
            try:
                image = images.load(index)
            except Unreadable as error:
                problem = problem or str(error)
                continue
            with seeded(seed) if self._draws else nullcontext():
                return self._augment(image), int(images.labels[index]), problem
        raise UserError(f"{problem}; and so it is with every other image")


class Stream:
    """Rows in an order that is known: workers read ahead of :meth:`take`.

    Args:
        samples: what reads an image.
        workers: processes that read; 0: this one does, when it is asked.
    """

    def __init__(self, samples: Samples, workers: int) -> None:
        self._samples, self._workers = samples, workers
        self._upcoming: Iterator[tuple[list[Key], Loaded]] = iter(())

    def take(self, keys: list[Key], plan: Plan) -> Loaded:
        """The rows `keys`. Where they are not the next, the stream begins anew, in the order of `plan` from them on."""
        found, loaded = next(self._upcoming, (None, None))
        if found != keys or loaded is None:
            from_here = itertools.dropwhile(lambda planned: planned != keys, plan())
            next(from_here, None)  # now: later the plan would begin at a later step
            self._upcoming = self._begin(itertools.chain([keys], from_here))
            found, loaded = next(self._upcoming)
        assert found == keys, "a stream gives the rows that were asked for"
        return loaded

    def _begin(self, order: Iterable[list[Key]]) -> Iterator[tuple[list[Key], Loaded]]:
        ahead: dict[str, Any] = {"prefetch_factor": AHEAD} if self._workers else {}
        loader = DataLoader(
            self._samples,
            batch_sampler=_Order(order),
            num_workers=self._workers,
            collate_fn=_collate,
            worker_init_fn=_outlive_signals,
            generator=torch.Generator(),  # else it would draw from the global one, which drop path draws from too
            pin_memory=bool(self._workers) and torch.cuda.is_available(),
            **ahead,
        )
        return iter(loader)


def _outlive_signals(_worker: int) -> None:
    """In a worker: signals are for the process that trains, which saves and then ends its workers.

    Schedulers send SIGTERM to every process of a job; a worker that ended first would make DataLoader raise in the
    middle of the checkpoint. From the parent it means what it says.
    """
    for number in NOTED:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _Order:
    """An iterator as the sampler that DataLoader wants."""

    def __init__(self, order: Iterable[list[Key]]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self._order)


def _collate(samples: Sequence[tuple[Key, Tensor, int, str]]) -> tuple[list[Key], Loaded]:
    keys, images, labels, problems = zip(*samples, strict=True)
    return list(keys), Loaded(torch.stack(images), torch.tensor(labels), [text for text in problems if text])


def draws(recipe: schema.Recipe) -> bool:
    """Whether a training image's transform draws random numbers."""
    return list(recipe.crop_scale) != [1.0, 1.0] or bool(recipe.flip or recipe.color_jitter or recipe.rand_augment)


def augmentation(recipe: schema.Recipe, size: int) -> Callable[[Any], Tensor]:
    """timm's training transform of an image, up to uint8 (3, size, size): erasing and mixing come later."""
    whole, nothing = list(recipe.crop_scale) == [1.0, 1.0], not draws(recipe)
    return create_transform(
        size,
        is_training=True,
        no_aug=nothing,
        scale=(recipe.crop_scale[0], recipe.crop_scale[1]),
        ratio=(1.0, 1.0) if whole else None,
        hflip=recipe.flip,
        color_jitter=recipe.color_jitter or None,  # type: ignore[arg-type]  # None is none
        auto_augment=recipe.rand_augment,
        interpolation="bicubic" if nothing and recipe.interpolation == "random" else recipe.interpolation,
        use_prefetcher=True,  # which leaves the rest to the device
    )


def centre_crop(recipe: schema.Recipe, size: int) -> Callable[[Any], Tensor]:
    """timm's evaluation transform: the shorter side resized, the centre cut out, uint8 (3, size, size)."""
    interpolation = "bicubic" if recipe.interpolation == "random" else recipe.interpolation
    return create_transform(size, crop_pct=recipe.crop_fraction, interpolation=interpolation, use_prefetcher=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of Python, NumPy and torch's CPU from a seed, and after it as they were; in a worker that
    only reads images, where nothing else draws, they are not put back, which takes 2% of the time of a JPEG.
    """
    alone = get_worker_info() is not None
    states = None if alone else (random.getstate(), np.random.get_state(), torch.get_rng_state())
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        if states is not None:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
