"""From the configuration to images. Needs no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from cwd import schema
from cwd.data.images import ImageData
from cwd.errors import UserError


def load_images(config: schema.Config) -> ImageData:
    """The configured images.

    Raises:
        UserError: timm is missing, or as the readers of cwd.data.
    """
    for library in ("timm", "torchvision"):
        if find_spec(library) is None:
            raise UserError(
                f"dataset={config.dataset.name}: needs {library}, which is not installed; pip install '.[vision]'"
            )
    from cwd.data.digits import make_digits
    from cwd.data.image_folders import read_folders

    dataset = config.dataset
    if isinstance(dataset, schema.Digits):
        return make_digits(dataset.examples, dataset.canvas, dataset.clutter, dataset.views)
    if isinstance(dataset, schema.ImageNet):
        return _imagenet(dataset, Path(config.machine.data))
    assert isinstance(dataset, schema.ImageFolder)
    return read_folders(dataset.name, Path(dataset.root or ""), dataset.validation_fraction)


def _imagenet(dataset: schema.ImageNet, cache: Path) -> ImageData:
    """The layout that is there: class folders, parquet files, or tar shards."""
    from cwd.data.image_folders import has_folders, read_folders
    from cwd.data.image_shards import find_shards, read_parquet, read_tars

    root = Path(dataset.root or "")
    if has_folders(root):
        data = read_folders(dataset.name, root, None)
        if len(data.classes) != dataset.classes:
            raise UserError(
                f"dataset.root={root}: has {len(data.classes)} class folders; "
                f"dataset.classes={dataset.classes} are wanted"
            )
        return data
    for extension, read in (("parquet", read_parquet), ("tar", read_tars)):
        if any(find_shards(root, extension).values()):
            return read(dataset.name, root, dataset.classes, cache / "imagenet")
    raise UserError(
        f"dataset.root={root}: no ImageNet here; allowed are train/CLASS/ and val/CLASS/ folders, Hugging Face's "
        "data/train-*.parquet and data/validation-*.parquet, or shards *train*.tar and *val*.tar"
    )
