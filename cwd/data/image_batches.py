"""Which images a batch has, and every random number of its augmentation: a pure function of (data, seed, step).

What a batch is, is a few numbers for each of its rows. The images themselves are read from them later, by any number of
workers in any order, and come out the same.

Rows 2k and 2k + 1 are a pair, for mixup and CutMix. timm mixes row i with row B - 1 - i, one draw for the batch of a
process; here a draw is for a pair, so that neither processes nor micro-batches change it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cwd.data.batches import chosen

TRIES = 10  # for a rectangle that fits, as timm's RandomErasing has
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # as it has
Rows = dict[str, np.ndarray]


class Draws(NamedTuple):
    """What is drawn for a row. Probabilities and alphas as in cwd.schema.Recipe."""

    size: int  # pixels of an image's side
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1


def image_rows(count: int, draws: Draws, *, seed: int, step: int, batch_size: int) -> Rows:
    """The rows of a step's batch.

    Args:
        count: of the training images.

    Returns:
        index, seed (B,) int64: which image, and the seed of its own augmentation;
        erase (B, 4) int64: top, left, height, width of a rectangle of noise, height 0 for none;
        keep (B,) float32: the share of a row's own image and label in a mixture, 1 for none;
        cut (B, 4) int64: top, left, bottom, right of what comes from the pair's other image; all zero where the images
        are not cut but blended.
    """
    distinct = -(-batch_size // draws.repeats)
    picked = chosen(count, seed=seed, step=step, batch_size=distinct)
    index = np.tile(picked, draws.repeats)[:batch_size]  # an image's repeats are far apart: no pair is one image twice
    draw = np.random.Generator(np.random.Philox(key=np.array([seed, (1 << 63) + step], dtype=np.uint64)))
    found = {
        "index": index,
        "seed": draw.integers(0, 2**63 - 1, batch_size),
        "erase": _erased(draw, draws, batch_size),
    }
    keep, cut = _mixed(draw, draws, batch_size // 2) if draws.mixup or draws.cutmix else _unmixed(batch_size // 2)
    last = batch_size % 2  # without a pair; the configuration allows it only where nothing is mixed
    found["keep"] = np.concatenate([np.repeat(keep, 2), np.ones(last)]).astype(np.float32)
    found["cut"] = np.concatenate([np.repeat(cut, 2, axis=0), np.zeros((last, 4), dtype=np.int64)])
    return found


def evaluation_index(count: int, wanted: int | None) -> np.ndarray:
    """The evaluation set, evenly spaced over the split, that no seed changes: (min(count, wanted),) int64."""
    wanted = count if wanted is None else min(wanted, count)
    return np.arange(wanted) * count // wanted


def _erased(draw: np.random.Generator, draws: Draws, rows: int) -> np.ndarray:
    """Rectangles as timm's RandomErasing draws them: the first of ten that fits into the image, (rows, 4) int64."""
    if not draws.erase:
        return np.zeros((rows, 4), dtype=np.int64)
    wanted = draw.random(rows) < draws.erase
    area = draw.uniform(*ERASED_AREA, (rows, TRIES)) * draws.size**2
    aspect = np.exp(draw.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1]), (rows, TRIES)))
    height = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    width = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (height < draws.size) & (width < draws.size)
    first = fits.argmax(1)
    height, width = (np.take_along_axis(sides, first[:, None], 1)[:, 0] for sides in (height, width))
    places = draw.random((rows, 2))
    top = (places[:, 0] * (draws.size - height + 1)).astype(np.int64)
    left = (places[:, 1] * (draws.size - width + 1)).astype(np.int64)
    found = np.stack([top, left, height, width], 1)
    return np.where((wanted & fits.any(1))[:, None], found, 0)


def _mixed(draw: np.random.Generator, draws: Draws, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """(keep, cut) of pairs: mixup or CutMix, by even chances where a recipe has both, as in timm's Mixup."""
    use_cut = draw.random(pairs) < 0.5 if draws.mixup and draws.cutmix else np.full(pairs, draws.cutmix > 0)
    mixup, cutmix = (
        draw.beta(alpha, alpha, pairs) if alpha else np.ones(pairs) for alpha in (draws.mixup, draws.cutmix)
    )
    centre = draw.integers(0, draws.size, (pairs, 2))
    cut = _cut(centre, cutmix, draws.size)
    area = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
    keep = np.where(use_cut, 1 - area / draws.size**2, mixup)
    return keep, np.where(use_cut[:, None], cut, 0)


def _cut(centre: np.ndarray, keep: np.ndarray, size: int) -> np.ndarray:
    """Squares of the area (1 - keep) of the image around the centres, clipped at its edges: as timm's rand_bbox."""
    side = (size * np.sqrt(1 - keep)).astype(np.int64)[:, None]
    low, high = np.clip(centre - side // 2, 0, size), np.clip(centre + (side + 1) // 2, 0, size)
    return np.concatenate([low, high], 1)


def _unmixed(pairs: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(pairs), np.zeros((pairs, 4), dtype=np.int64)
