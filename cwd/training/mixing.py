"""What is done to images on the device: normalisation, erasing, mixing; and the targets that belong to it.

Everything random was drawn before (cwd.data.image_batches), but the noise of erased rectangles, which comes from each
row's own seed. So it depends neither on the device nor on how a batch is divided.
"""

from __future__ import annotations

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional as F

THRESHOLD = 0.2  # of a mixture: with the binary loss, a class with a larger share is present (ResNet strikes back)


def normalise(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float32 with ImageNet's mean and deviation, as timm does for all models trained anew."""
    mean, deviation = (
        torch.tensor(values, device=images.device).mul_(255).view(1, 3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return images.float().sub_(mean).div_(deviation)


def erase(images: Tensor, rectangles: Tensor, seeds: Tensor) -> Tensor:
    """Rectangles filled with normal noise, in place (Zhong et al. 2017; timm's mode "pixel").

    Args:
        images: (B, 3, H, W), normalised. rectangles: (B, 4) of top, left, height, width; height 0: none.
        seeds: (B,) int64, of the noise.
    """
    for i, (seed, (top, left, height, width)) in enumerate(zip(seeds.tolist(), rectangles.tolist(), strict=True)):
        if height:
            source = torch.Generator().manual_seed(seed)
            noise = torch.randn(images.shape[1], height, width, generator=source)
            images[i, :, top : top + height, left : left + width] = noise.to(images.device, images.dtype)
    return images


def mix(images: Tensor, keep: Tensor, cut: Tensor) -> Tensor:
    """Mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019) within the pairs of rows 2k, 2k + 1.

    Args:
        images: (B, 3, H, W). keep: (B,), the own image's share. cut: (B, 4) of top, left, bottom, right, what is the
            other's; all zero: the images are blended.
    """
    other = swap(images)
    top, left, bottom, right = (cut[:, i, None, None] for i in range(4))
    rows = torch.arange(images.shape[2], device=images.device)[None, :, None]
    columns = torch.arange(images.shape[3], device=images.device)[None, None, :]
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    blend = torch.where(cut.any(1), 1.0, keep)[:, None, None, None].to(images.dtype)
    return torch.where(inside[:, None], other, images * blend + other * (1 - blend))


def targets(labels: Tensor, keep: Tensor, classes: int, smoothing: float) -> Tensor:
    """The classes' shares (B, classes), float32: smoothed one-hot labels (Szegedy et al. 2015), mixed as the images."""
    own = F.one_hot(labels, classes).float().mul_(1 - smoothing).add_(smoothing / classes)
    share = keep[:, None]
    return own * share + swap(own) * (1 - share)


def swap(rows: Tensor) -> Tensor:
    """Each row of a pair in the other's place; a last row without a pair stays."""
    even = len(rows) // 2 * 2
    swapped = rows[:even].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.cat([swapped, rows[even:]])


def soft_loss(logits: Tensor, shares: Tensor, kind: str) -> Tensor:
    """Mean loss, 0-D float32: "cross_entropy" against the shares, or "binary" of each class by itself, present or not
    (Wightman, Touvron & Jegou 2021).
    """
    if kind == "binary":
        return F.binary_cross_entropy_with_logits(logits.float(), (shares > THRESHOLD).float())
    return F.cross_entropy(logits.float(), shares)
