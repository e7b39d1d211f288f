"""The schemas of a run's configuration: every setting with its type, its range and its unit.

`steps` are optimizer updates, sizes are in sequences or tokens, fractions are of the run's steps. What a section may
hold can depend on the `name` in it; VARIANTS says how. cwd.config does the checking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cwd.schema.data import (
    C4,
    DATASETS,
    TRAINED_TOKENIZERS,
    Data,
    Dataset,
    Digits,
    Dolma,
    FineWebEdu,
    ImageFolder,
    ImageNet,
    Images,
    Instructions,
    Pile,
    Published,
    PythonSource,
    Recipe,
    Text,
)
from cwd.schema.fields import apart, choice, later, number
from cwd.schema.models import GPT2, MODELS, Hub, Language, Model, Olmo, Pretrained, Qwen3, Simply, Timm
from cwd.schema.optimization import (
    DECAY_SCHEDULES,
    MODES,
    OPTIMIZERS,
    SCHEDULES,
    SGD,
    WSD,
    AdamHyper,
    AdamW,
    Constant,
    Cosine,
    Decay,
    Group,
    Lion,
    Muon,
    Optimizer,
    Schedule,
)

__all__ = [
    "C4",
    "DECAY_SCHEDULES",
    "GPT2",
    "MODES",
    "SELECTORS",
    "SGD",
    "TRAINED_TOKENIZERS",
    "VARIANTS",
    "WSD",
    "AdamHyper",
    "AdamW",
    "Config",
    "Constant",
    "Cosine",
    "Data",
    "Dataset",
    "Decay",
    "Digits",
    "Dolma",
    "Evaluation",
    "FineWebEdu",
    "Group",
    "Hub",
    "ImageFolder",
    "ImageNet",
    "Images",
    "Instructions",
    "Language",
    "Lion",
    "Machine",
    "Model",
    "Muon",
    "Olmo",
    "Optimizer",
    "Pile",
    "Pretrained",
    "Published",
    "PythonSource",
    "Qwen3",
    "Recipe",
    "Schedule",
    "Simply",
    "Telemetry",
    "Text",
    "Timm",
    "Tracker",
    "Training",
    "apart",
    "choice",
    "later",
    "number",
]


@dataclass
class Training:
    """How long and how much at once."""

    steps: int = number(low=1)
    batch_size: int = number(low=1)  # sequences or images in an update, over all processes
    seq_len: int | None = later(None, number(None, low=2))  # tokens in a sequence; null: of images
    clip_norm: float | None = number(1.0, low=0, above=True)
    precision: str = choice("fp32", of=("fp32", "bf16", "fp64"))  # fp64: for proofs


@dataclass
class Evaluation:
    """On a fixed set of validation sequences or images, the same for every seed."""

    every: int = number(low=1)  # steps; there is always one at the end
    sequences: int | None = later(None, number(None, low=1))  # of text
    images: int | None = later(None, number(None, low=1))  # null: all that are held out


@dataclass
class Telemetry:
    """What is measured inside the optimizer's step, per tensor."""

    every: int = number(low=0)  # steps; 0: never


@dataclass
class Tracker:
    """Where a view of the metrics goes, besides the run's own metrics file."""

    name: str = choice("none", of=("wandb", "tensorboard", "none"))
    project: str = "cautious-weight-decay"
    group: str | None = None  # of wandb; scripts/artifact.py gives the artifact
    label: str | None = None  # what the run is called, before its seed; null: optimizer, decay mode, rate and lambda
    tags: list[str] = field(default_factory=list)  # of wandb, beside scale, optimizer and decay mode


@dataclass
class Machine:
    """What may change speed, place or the order of a sum, never the mathematics."""

    runs: str = "runs"
    data: str = "data"
    device: str = choice("auto", of=("auto", "cpu", "cuda"))
    threads: int | None = number(None, low=1)  # of each process; none: torch's choice
    micro_batch_size: int | None = number(None, low=1)  # sequences or images at once on one process; none: its share
    compile: bool | None = None  # none: the model and the step, where the run is long enough to pay for it
    attention: str = choice("auto", of=("auto", "eager", "sdpa", "flex_attention"))
    activation_checkpointing: bool = False  # of each layer only its input is kept; the rest is computed again
    processes: int | None = number(None, low=1)  # that must take part; none: as many as were started
    sharding: str = choice("none", of=("none", "full", "hybrid"))  # of weights, gradients and optimizer state
    shard_size: int | None = number(None, low=1)  # hybrid: processes that share a copy; none: those of one machine
    profile: int = number(0, low=0)  # updates to trace
    channels_last: bool = False  # memory order of images
    workers: int = number(0, low=0)  # of each process, that read images ahead; 0: it reads them itself
    checkpoint_seconds: float = number(30.0, low=0)  # time between checkpoints; 0: after every step
    checkpoint_background: bool | None = None  # a thread writes them; none: where it pays
    log_every: int = number(10, low=1)  # steps between lines of the metrics file
    progress: str = choice("auto", of=("auto", "bar", "lines", "summary"))


@dataclass
class Config:
    """A whole run."""

    scale: str = choice(of=("smoke", "laptop", "paper"))
    seed: int = number(0, low=0, high=2**31 - 1)
    model: Model = field(default_factory=Model)
    dataset: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    decay: Decay = field(default_factory=Decay)
    schedule: Schedule = field(default_factory=Schedule)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    telemetry: Telemetry = field(default_factory=Telemetry)
    recipe: Recipe = later(Recipe)
    tracker: Tracker = apart(Tracker)
    machine: Machine = apart(Machine)


VARIANTS: dict[str, Mapping[str, type]] = {
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "dataset": DATASETS,
    "schedule": SCHEDULES,
}
SELECTORS = {section: "family" if section == "model" else "name" for section in VARIANTS}  # the key that picks
