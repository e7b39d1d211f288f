"""Images in class folders: ``root/train/CLASS/*.jpg`` and ``root/val/CLASS/*.jpg``, or ``root/CLASS/*.jpg`` alone."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import numpy as np

from cwd.data.images import EncodedImages, ImageData, fingerprint_of
from cwd.errors import UserError, nearest

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
TRAIN, VALIDATION = ("train", "training"), ("val", "validation", "valid")
Listing = dict[str, list[tuple[str, int]]]  # class -> (path below the root, bytes) of each image, sorted


class FileImages(EncodedImages):
    """Image files.

    Args:
        root: what the paths are below.
        paths: of the images.
        labels: (n,) int64.
    """

    def __init__(self, root: Path, paths: list[str], labels: np.ndarray) -> None:
        self._root, self.labels = root, labels
        self._paths = np.array([path.encode() for path in paths])  # one block: workers share it with their parent

    def where(self, index: int) -> str:
        """The file's path."""
        return str(self._root / self._paths[index].decode())

    def content(self, index: int) -> bytes:
        """The file's bytes."""
        return Path(self.where(index)).read_bytes()


def has_folders(root: Path) -> bool:
    """Whether a folder is laid out as one of training images in class folders."""
    return any((root / name).is_dir() for name in TRAIN)


def read_folders(name: str, root: Path, validation_fraction: float | None) -> ImageData:
    """The images below `root`.

    Its fingerprint is of the paths and sizes of all files, not of their content: a million images are not read for it.

    Args:
        validation_fraction: of each class, to be held out where the root has no train/ and val/; which images, is a
            function of their paths. None: a split of its own is needed.

    Raises:
        UserError: no such folder, no classes, a class without images or only in val/, a split that is missing.
    """
    if not root.is_dir():
        raise UserError(f"dataset.root={root}: no such folder")
    train, validation = (_split(root, names) for names in (TRAIN, VALIDATION))
    if train and validation:
        found = {"train": _list(root, train), "validation": _list(root, validation)}
        for unknown in sorted(found["validation"].keys() - found["train"].keys()):
            guess = nearest(unknown, found["train"])
            raise UserError(f"{root / validation / unknown}: a class that {root / train} does not have{guess}")
    elif train or validation or validation_fraction is None:
        lacks = VALIDATION if train else TRAIN
        raise UserError(f"dataset.root={root}: has no {lacks[0]}/ folder; allowed names are {', '.join(lacks)}")
    else:
        found = _divide(root, _list(root, ""), validation_fraction)
    classes = tuple(found["train"])
    sets = {split: _images(root, listing, classes) for split, listing in found.items()}
    parts = (f"{split} {path} {size}" for split in found for files in found[split].values() for path, size in files)
    return ImageData(name, sets["train"], sets["validation"], classes, fingerprint_of(parts))


def _split(root: Path, names: tuple[str, ...]) -> str:
    return next((name for name in names if (root / name).is_dir()), "")


def _list(root: Path, below: str) -> Listing:
    folder = root / below
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"{folder}: has no class folders; images are looked for in {folder}/CLASS/")
    found = {name: sorted(_files(folder / name, os.path.join(below, name))) for name in classes}
    for name, files in found.items():
        if not files:
            raise UserError(f"{folder / name}: a class folder without images ({', '.join(EXTENSIONS)})")
    return found


def _files(folder: Path, below: str) -> list[tuple[str, int]]:
    found = []
    for entry in os.scandir(folder):
        path = os.path.join(below, entry.name)
        if entry.is_dir():
            found += _files(folder / entry.name, path)
        elif entry.name.lower().endswith(EXTENSIONS):
            found.append((path, entry.stat().st_size))
    return found


def _divide(root: Path, listing: Listing, fraction: float) -> dict[str, Listing]:
    """Of each class, `fraction` of the images, at least one, held out."""
    found: dict[str, Listing] = {"train": {}, "validation": {}}
    for name, files in listing.items():
        if len(files) < 2:
            raise UserError(f"{root / name}: one image; at least two are needed, as one is held out")
        shuffled = sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest())
        count = min(len(files) - 1, math.ceil(fraction * len(files)))
        found["validation"][name], found["train"][name] = sorted(shuffled[:count]), sorted(shuffled[count:])
    return found


def _images(root: Path, listing: Listing, classes: tuple[str, ...]) -> FileImages:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers[name] for name, files in listing.items() for _ in files]
    return FileImages(root, [path for files in listing.values() for path, _ in files], np.array(labels, dtype=np.int64))
