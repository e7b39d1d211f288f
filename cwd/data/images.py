"""Labelled images, wherever they come from: what the batches need to know of them. Needs no torch."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from cwd.errors import UserError

SPLITS = ("train", "validation")


class Unreadable(Exception):
    """An image that cannot be read; the message says which and why."""


class ImageSet(Protocol):
    """The images of a split, by number. Small: it goes to every worker."""

    labels: np.ndarray  # (n,) int64, each the number of a class

    def where(self, index: int) -> str:
        """What a person finds the image by."""

    def load(self, index: int) -> Image.Image:
        """The image in RGB; grey, palette and CMYK images are converted. Raises Unreadable."""


class EncodedImages:
    """Images that lie encoded (JPEG, PNG, ...) somewhere: :meth:`content` says where."""

    labels: np.ndarray

    def where(self, index: int) -> str:
        """What a person finds the image by."""
        raise NotImplementedError

    def content(self, index: int) -> bytes:
        """The encoded image. Raises OSError."""
        raise NotImplementedError

    def load(self, index: int) -> Image.Image:
        """The image in RGB. Raises Unreadable."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd metadata
                return Image.open(io.BytesIO(self.content(index))).convert("RGB")
        except Exception as error:  # Pillow's plugins raise what they like on broken data
            raise Unreadable(
                f"{self.where(index)}: cannot be read as an image ({error or type(error).__name__})"
            ) from error


class ArrayImages:
    """Images in memory.

    Args:
        pixels: (n, height, width) grey or (n, height, width, 3), uint8.
        labels: (n,) int64.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, name: str) -> None:
        self.pixels, self.labels, self._name = pixels, labels, name

    def where(self, index: int) -> str:
        """The number of the image."""
        return f"{self._name} {index}"

    def load(self, index: int) -> Image.Image:
        """The image in RGB."""
        return Image.fromarray(self.pixels[index]).convert("RGB")


@dataclass(frozen=True)
class ImageData:
    """A dataset of images that is ready to train on."""

    name: str
    train: ImageSet
    validation: ImageSet
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def description(self) -> dict[str, Any]:
        """What a run's record says of its data."""
        counts = {split: len(getattr(self, split).labels) for split in SPLITS}
        return {"fingerprint": self.fingerprint, "images": counts, "classes": len(self.classes)}


def check_labels(labels: np.ndarray, classes: int, where: Callable[[int], str]) -> None:
    """Raises UserError for the first label that is no class's number; `where(i)` names image i."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{where(first)}: label {labels[first]}; allowed are 0 to {classes - 1} "
            f"({len(wrong)} of {len(labels)} images are out of range)"
        )


def fingerprint_of(parts: Iterable[object]) -> str:
    """16 hexadecimal digits that tell datasets apart: of names and sizes, or of the content itself."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else f"{part}\n".encode())
    return digest.hexdigest()[:16]
