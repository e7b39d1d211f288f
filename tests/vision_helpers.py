"""Small image data in the real formats, for the tests of vision."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("ant", "bee", "cat")
SMALL = ["task=vision", "training.steps=4", "training.batch_size=8", "evaluation.every=2", "evaluation.images=24"]
TINY = ["model=vit_23k", "model.image_size=16", "model.patch_size=4"]


def picture(seed: int, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Image.Image:
    """A smooth random image."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" and image.mode == "RGB" else {}))
    return file.getvalue()


def write_folders(root: Path, count: int = 6, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """root/SPLIT/CLASS/*.jpg, different images in each."""
    for i, split in enumerate(splits):
        for j, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"{k}.jpg").write_bytes(encoded(picture(1000 * i + 100 * j + k)))
    return root


def write_parquet(root: Path, split: str, labels: list[int], shard: str = "00000-of-00001") -> None:
    """A file as Hugging Face's imagenet-1k has them."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(picture(i)), "path": f"{split}_{i}.JPEG"} for i in range(len(labels))]
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    pq.write_table(table, root / "data" / f"{split}-{shard}.parquet")


def write_tar(path: Path, labels: list[int]) -> None:
    """A shard as WebDataset writes them."""
    with tarfile.open(path, "w") as tar:
        for i, label in enumerate(labels):
            for kind, content in (("cls", str(label).encode()), ("jpg", encoded(picture(i)))):
                member = tarfile.TarInfo(f"n{i:06d}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
