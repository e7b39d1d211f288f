"""From the configuration to prepared data. Needs no torch, so that a finished run is found without loading it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cwd import schema
from cwd.data.batches import evaluation_rows
from cwd.data.corpora import SPLITS, Corpus, PythonSource, TextFiles
from cwd.data.tokens import TokenData, prepare
from cwd.errors import UserError

if TYPE_CHECKING:  # Pillow is for images only
    from cwd.data.images import ImageData

    Data: TypeAlias = TokenData | ImageData


def load_data(config: schema.Config, say: Callable[[str], None]) -> tuple[Data, dict[str, Any]]:
    """The configured data, and what a run's record says of it.

    Raises:
        UserError: as :func:`cwd.data.tokens.prepare` and the readers of images; a library for images is missing.
    """
    if isinstance(config.dataset, schema.Dataset):
        data = load_tokens(config, say)
        tokens = data.manifest["splits"]
        return data, {"fingerprint": data.fingerprint, "tokens": tokens, "vocab_size": data.vocab_size}
    images = load_images(config)
    return images, images.description


def load_tokens(config: schema.Config, say: Callable[[str], None]) -> TokenData:
    """The configured text as token files, prepared if they are not there. Raises UserError as
    :func:`cwd.data.tokens.prepare`.
    """
    dataset = config.dataset
    assert isinstance(dataset, schema.Dataset)
    assert config.training.seq_len is not None
    data = prepare(
        _corpus(dataset),
        tokenizer=dataset.tokenizer,
        vocab_size=dataset.vocab_size,
        validation_fraction=dataset.validation_fraction,
        root=Path(config.machine.data),
        progress=say,
    )
    for split in SPLITS:  # said before the run's folder exists
        evaluation_rows(data.tokens(split), 1, config.training.seq_len, split)
    return data


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


def _corpus(dataset: schema.Dataset) -> Corpus:
    if isinstance(dataset, schema.Text):
        return TextFiles(dataset.files, dataset.field, dataset.separator)
    return PythonSource()
