"""Images/s of reading, decoding, augmenting and normalising, against timm's own loader on the same files, by turns."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader

from cwd.benchmarks.report import read_options
from cwd.benchmarks.timing import Turn, ratio_of_neighbours, time_by_turns
from cwd.data.image_folders import read_folders
from cwd.schema import Recipe
from cwd.sweeps import compose_config
from cwd.training.image_loader import Key, Samples, Stream
from cwd.training.mixing import erase, normalise

SIZE, BATCH, CLASSES, FILES = 224, 64, 4, 512  # pixels, rows, class folders, files in each
TIMED, DRAINED = 16, 8  # batches of a piece; before it, those that the workers had ready, and as many again
PICTURE = (500, 375)  # pixels, of a typical image of ImageNet


def main(arguments: Sequence[str]) -> None:
    """`arguments`: workers=2 repeats=5 recipe=deit folder=IMAGES (with train/ and val/; made if not given)."""
    given = read_options(arguments, {"workers": 2, "repeats": 5, "recipe": "deit", "folder": ""})
    recipe = compose_config(["task=vision", f"recipe={given['recipe']}"]).recipe
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        root = Path(given["folder"]) if given["folder"] else make_files(Path(made))
        workers, repeats = given["workers"], given["repeats"]
        turns = [piece(ours(root, recipe, workers)), piece(timms(root, recipe, workers))]
        times = time_by_turns(turns, repeats, warmups=1)
        ratio = ratio_of_neighbours(*reversed(times))
    for name, milliseconds in (("ours", ratio.theirs), ("timm", ratio.ours)):
        print(f"{name:<6} {1e3 * TIMED * BATCH / milliseconds:>8,.0f} images/s with {workers} workers")
    print(f"ratio  {ratio.median:>8.2f} (ours / timm, median of neighbouring pieces of {TIMED} batches of {BATCH})")


def piece(batch: Callable[[], None]) -> Turn:
    """Batches in a steady state: what is ready is taken first, while the other loader's workers fill up and rest."""

    def take(count: int) -> None:
        for _ in range(count):
            batch()

    return Turn(lambda: take(TIMED), prepare=lambda: take(DRAINED))


def make_files(root: Path) -> Path:
    """JPEG files of the size and smoothness of photographs, in class folders."""
    draw = np.random.default_rng(0)
    for split, name in itertools.product(("train", "val"), map(str, range(CLASSES))):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(FILES if split == "train" else 1):
            noise = Image.fromarray(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            noise.resize(PICTURE, Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return root


def ours(root: Path, recipe: Recipe, workers: int) -> Callable[[], None]:
    """A batch of our stream, normalised and erased."""
    data = read_folders("image_folder", root, None)
    stream = Stream(Samples(data, recipe, SIZE), workers)
    count = len(data.train.labels)

    def plan() -> Iterator[list[Key]]:
        numbers = itertools.count()
        while True:
            yield [(number % count, number) for number in itertools.islice(numbers, BATCH)]

    asked = plan()
    boxes = torch.tensor([[40, 40, 90, 90]] * BATCH)
    boxes[int(recipe.erase * BATCH) :] = 0

    def batch() -> None:
        keys = next(asked)
        images = normalise(stream.take(keys, plan).images)
        erase(images, boxes, torch.tensor([seed for _, seed in keys]))

    return batch


def timms(root: Path, recipe: Recipe, workers: int) -> Callable[[], None]:
    """A batch of timm's loader as its training script makes it."""
    loader = create_loader(
        ImageDataset(str(root / "train")),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        re_prob=recipe.erase,
        re_mode="pixel",
        scale=(recipe.crop_scale[0], recipe.crop_scale[1]),
        hflip=recipe.flip,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.rand_augment,
        interpolation=recipe.interpolation,
        num_workers=workers,
        device=torch.device("cpu"),
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def batch() -> None:
        next(batches)

    return batch
