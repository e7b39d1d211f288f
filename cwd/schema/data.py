"""Text, instructions, images, and how images are augmented."""

from __future__ import annotations

from dataclasses import dataclass

from cwd.schema.fields import apart, choice, later, number

TRAINED_TOKENIZERS = ("bpe", "bpe_fallback")


@dataclass
class Data:
    """What all data has; `name` picks the source."""

    name: str = "???"


@dataclass
class Dataset(Data):
    """What every dataset of text has."""

    tokenizer: str = "bytes"  # see cwd.data.tokenizers
    vocab_size: int | None = number(None, low=257)  # of a bpe or bpe_fallback
    validation_fraction: float = number(0.05, low=0, high=0.5, above=True)


@dataclass
class PythonSource(Dataset):
    """The running Python's own standard library source."""

    name: str = choice("python_source", of=("python_source",))


@dataclass
class Text(Dataset):
    """Any text files of the user's."""

    name: str = choice("text", of=("text",))
    files: list[str] = apart([])  # the data's fingerprint says what they hold
    field: str = "text"  # of a .jsonl object
    separator: str | None = None  # splits a .txt or .md file into documents


@dataclass
class Published(Dataset):
    """A corpus that its authors publish, prepared beforehand; see cwd.data.published for what the files are."""

    repository: str = "???"
    revision: str = "???"
    train: str = "???"
    validation: str | None = None  # none: validation_fraction is held out
    urls: str | None = None
    field: str = "text"
    shards: int | None = number(None, low=1)  # training files used; none: all
    source: str | None = apart(None)  # a local folder of the files, to prepare from; none: the hub
    folder: str | None = apart(None)  # of the prepared set; none: below machine.data
    tokenizer_file: str | None = apart(None)  # of a tokenizer that is known by its content


@dataclass
class C4(Published):
    """The paper's main corpus."""

    name: str = choice("c4", of=("c4",))


@dataclass
class Dolma(Published):
    """OLMo's corpus (Table 2)."""

    name: str = choice("dolma", of=("dolma",))


@dataclass
class Pile(Published):
    """Figure 7's corpus."""

    name: str = choice("pile", of=("pile",))


@dataclass
class FineWebEdu(Published):
    """In the place of Dolma."""

    name: str = choice("fineweb_edu", of=("fineweb_edu",))


@dataclass
class Instructions(Dataset):
    """Instructions and answers, of which the answers are learned."""

    name: str = choice("instructions", of=("instructions",))
    tokenizer: str = choice("model", of=("model",))  # the pretrained model's
    files: list[str] = apart([])  # .json or .jsonl; none: the built-in exercises
    template: str = choice("plain", of=("alpaca", "plain", "chat"))
    packing: bool = False  # several examples in a row, which do not see each other; false: one, filled up


@dataclass
class Images(Data):
    """What every dataset of image files has."""

    root: str | None = apart(None)  # the data's fingerprint says what is there
    corrupt: str = choice("fatal", of=("fatal", "skip"))  # an image that cannot be read: ends the run, or is left out


@dataclass
class ImageFolder(Images):
    """A user's images in class folders."""

    name: str = choice("image_folder", of=("image_folder",))
    validation_fraction: float = number(0.1, low=0, high=0.5, above=True)  # where the folder has no split of its own


@dataclass
class ImageNet(Images):
    """ImageNet-1k: class folders, Hugging Face's parquet files, or tar shards."""

    name: str = choice("imagenet", of=("imagenet",))
    classes: int = number(1000, low=2)


@dataclass
class Digits(Data):
    """scikit-learn's handwritten digits in clutter."""

    name: str = choice("digits", of=("digits",))
    examples: int = number(1000, low=10, high=1500)  # to train on; the others are held out
    canvas: int = number(12, low=10, high=64)  # pixels of a square; a digit has 8
    clutter: int = number(1, low=0, high=64)  # pieces of other digits in an image
    views: int = number(8, low=1)  # images made of each digit


@dataclass
class Recipe:
    """How images are augmented, and what softens loss and weights. The defaults do nothing."""

    crop_scale: list[float] = number([1.0, 1.0], low=0, high=1, above=True)  # area of a random crop; [1, 1]: none
    interpolation: str = choice("bicubic", of=("bicubic", "bilinear", "random"))
    flip: float = number(0.0, low=0, high=1)  # probability of a mirror image
    color_jitter: float = number(0.0, low=0)
    rand_augment: str | None = None  # timm's words for it, such as rand-m9-mstd0.5-inc1
    erase: float = number(0.0, low=0, high=1)  # probability of a rectangle of noise
    repeats: int = number(1, low=1)  # times that an image is in a batch, each augmented by itself
    mixup: float = number(0.0, low=0)  # alpha of the beta distribution; 0: none
    cutmix: float = number(0.0, low=0)
    smoothing: float = number(0.0, low=0, high=1, below=True)
    loss: str = choice("cross_entropy", of=("cross_entropy", "binary"))
    drop_path: float = number(0.0, low=0, high=1, below=True)
    ema: float | None = number(None, low=0, high=1, below=True)  # decay of an average of the weights, at each update
    layer_decay: float = later(1.0, number(low=0, high=1, above=True))  # of the rate, from each layer to the one before
    crop_fraction: float = number(0.875, low=0, high=1, above=True)  # of the image, in evaluation: the centre


DATASETS: dict[str, type[Data]] = {
    "python_source": PythonSource,
    "text": Text,
    "c4": C4,
    "dolma": Dolma,
    "pile": Pile,
    "fineweb_edu": FineWebEdu,
    "instructions": Instructions,
    "digits": Digits,
    "image_folder": ImageFolder,
    "imagenet": ImageNet,
}
