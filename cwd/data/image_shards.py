"""Images in large files: the parquet files of Hugging Face's imagenet-1k, and tar shards as WebDataset writes them."""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cwd.data.images import SPLITS, EncodedImages, ImageData, check_labels, fingerprint_of
from cwd.errors import UserError
from cwd.files import write_atomically

FILES = {"train": ("train",), "validation": ("validation", "val")}  # what the names of a split's files hold
LONG = 2**30  # bytes that take long enough to copy for somebody who looks on to be shown how far it is
PICTURES = ("jpg", "jpeg", "png", "webp")


class ParquetImages(EncodedImages):
    """Rows of a Hugging Face dataset with the columns ``image`` (encoded) and ``label``."""

    def __init__(self, table: Any, split: str, classes: int) -> None:
        self._table, self._split = table, split
        self.labels = np.array(table.with_format("numpy")["label"][:], dtype=np.int64)
        check_labels(self.labels, classes, self.where)

    def where(self, index: int) -> str:
        """The row, and the name that the image had."""
        return f"{self._split} split, row {index} ({self._table[index]['image'].get('path')})"

    def content(self, index: int) -> bytes:
        """The encoded image."""
        content = self._table[index]["image"]["bytes"]
        if content is None:
            raise OSError("the row holds no bytes")
        return content


class TarImages(EncodedImages):
    """Members of tar files, read where they lie.

    Args:
        files: the tar files.
        places: (n, 4) int64: number of the file, first byte, bytes, label.
    """

    def __init__(self, files: list[Path], places: np.ndarray, classes: int) -> None:
        self._files, self._places, self.labels = files, places, places[:, 3].copy()
        check_labels(self.labels, classes, self.where)

    def where(self, index: int) -> str:
        """The tar file, and where in it."""
        number, start = self._places[index, :2]
        return f"{self._files[number]}, byte {start}"

    def content(self, index: int) -> bytes:
        """The encoded image."""
        number, start, size, _ = self._places[index]
        with open(self._files[number], "rb") as file:
            return os.pread(file.fileno(), int(size), int(start))


def find_shards(root: Path, extension: str) -> dict[str, list[Path]]:
    """The files of each split in `root` or its folder data/, by name; empty lists where there are none."""
    files = sorted([*root.glob(f"*.{extension}"), *(root / "data").glob(f"*.{extension}")])
    return {
        split: [file for file in files if any(name in file.name for name in names)] for split, names in FILES.items()
    }


def read_parquet(name: str, root: Path, classes: int, cache: Path) -> ImageData:
    """Hugging Face's layout, ``data/train-00000-of-00294.parquet``, with `datasets`, which keeps a copy below `cache`
    that can be read in any order. Its fingerprint is of the files' names and sizes.

    Raises:
        UserError: a split without files, files of other columns, a label out of range.
    """
    import datasets

    shards = _both(find_shards(root, "parquet"), root, "parquet")
    if sum(file.stat().st_size for files in shards.values() for file in files) < LONG or not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        tables = {
            split: datasets.load_dataset(
                "parquet", data_files=[str(file) for file in files], split="train", cache_dir=str(cache)
            ).cast_column("image", datasets.Image(decode=False))
            for split, files in shards.items()
        }
        sets = {split: ParquetImages(table, f"{root}, {split}", classes) for split, table in tables.items()}
    except (KeyError, ValueError, TypeError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(f"{root}: not parquet files with the columns image and label ({error})") from error
    return _data(name, sets, classes, shards)


def read_tars(name: str, root: Path, classes: int, cache: Path) -> ImageData:
    """Tar shards, ``*train*.tar`` and ``*val*.tar``, each image beside a file KEY.cls with its label in digits.

    Where each image lies is read once and kept below `cache`. The fingerprint is of the shards' names and sizes.

    Raises:
        UserError: a split without files, a file that cannot be read, an image without a label, a label out of range.
    """
    shards = _both(find_shards(root, "tar"), root, "tar")
    sets = {split: TarImages(files, _kept(files, cache), classes) for split, files in shards.items()}
    return _data(name, sets, classes, shards)


def _both(shards: dict[str, list[Path]], root: Path, extension: str) -> dict[str, list[Path]]:
    for split in SPLITS:
        if not shards[split]:
            names = " or ".join(f"*{name}*.{extension}" for name in FILES[split])
            raise UserError(f"dataset.root={root}: no files {names} of the {split} split")
    return shards


def _data(name: str, sets: dict[str, Any], classes: int, shards: dict[str, list[Path]]) -> ImageData:
    parts = (f"{split} {file.name} {file.stat().st_size}" for split, files in shards.items() for file in files)
    names = tuple(str(number) for number in range(classes))
    return ImageData(name, sets["train"], sets["validation"], names, fingerprint_of(parts))


def _kept(files: list[Path], cache: Path) -> np.ndarray:
    """The places in the shards, read from the cache where nothing has changed since they were written there."""
    known = fingerprint_of(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    path = cache / f"tar-{known}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    places = np.array([place for number, file in enumerate(files) for place in _scan(number, file)], dtype=np.int64)
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _npy(places.reshape(-1, 4)))
    return places.reshape(-1, 4)


def _scan(number: int, path: Path) -> list[tuple[int, int, int, int]]:
    """(file, first byte, bytes, label) of each image of a shard, by key."""
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                key, _, kind = base.partition(".")
                if kind.lower() in PICTURES:
                    pictures[f"{folder}/{key}"] = member.offset_data, member.size
                elif kind == "cls":
                    labels[f"{folder}/{key}"] = _label(tar.extractfile, member)
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a tar file of images and .cls labels ({error})") from error
    for key in sorted(pictures.keys() - labels.keys()):
        raise UserError(f"{path}: image {key.lstrip('/')} has no label beside it ({key.lstrip('/')}.cls)")
    return [(number, *pictures[key], labels[key]) for key in sorted(pictures)]


def _label(extract: Callable[[tarfile.TarInfo], Any], member: tarfile.TarInfo) -> int:
    return int(extract(member).read())


def _npy(array: np.ndarray) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
