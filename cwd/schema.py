"""The schemas of a run's configuration: every setting with its type, its range and its unit.

`steps` are optimizer updates, sizes are in sequences or tokens, fractions are of the run's steps. What a section may
hold can depend on the `name` in it; VARIANTS says how. cwd.config does the checking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

RULES = ("adamw", "lion", "muon", "sgd")
DECAY_SCHEDULES = ("constant", "corrected", "linear", "cosine")
MODES = ("none", "decoupled", "cautious", "random", "gradient", "inner_product", "opposite", "scaled", "spd")

TRAINED_TOKENIZERS = ("bpe", "bpe_fallback")


def number(
    default: Any = "???", *, low: float = -math.inf, high: float = math.inf, above: bool = False, below: bool = False
) -> Any:
    """A numeric field in [low, high]; `above`/`below` leave the bound itself out. A list has two."""
    return _field(default, {"low": low, "high": high, "above": above, "below": below})


def choice(default: Any = "???", *, of: tuple[str, ...]) -> Any:
    """A text field with a fixed set of values."""
    return _field(default, {"of": of})


def later(default: Any, spec: Any = None) -> Any:
    """A field that came after runs had been recorded: at its default, under which a run is what it was before, it takes
    no part in the run's identity, so that those runs keep their keys. `spec` is a number() or choice().
    """
    return _field(default, {**(spec.metadata if spec is not None else {}), "later": True})


def apart(default: Any) -> Any:
    """A field that never takes part in a run's identity."""
    return _field(default, {"apart": True})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Model:
    """What every model has; `family` picks the architecture."""

    family: str = "???"


@dataclass
class Language(Model):
    """What every language model has."""

    hidden_size: int = number(low=1)
    num_hidden_layers: int = number(low=1)
    num_attention_heads: int = number(low=1)
    embedding_size: int | None = later(None, number(low=1))  # rows of the table; none: as many as the data has ids
    shrink: int = later(1, number(low=1))  # divides the widths, to try a model of any size on a small machine


@dataclass
class Simply(Language):
    """The paper's Transformer; see cwd.models.simply for what each option means."""

    family: str = choice("simply", of=("simply",))
    head_dim: int | None = number(None, low=2)  # none: hidden_size / num_attention_heads
    ffn_factor: int = number(8, low=1)
    activation: str = choice("gelu_tanh", of=("gelu_tanh", "silu"))
    ffn_bias: bool = True
    output_bias: bool = True
    norm_scale_plus_one: bool = True
    per_dim_scale: bool = True
    logit_softcap: float | None = number(30.0, low=0, above=True)
    attn_softcap: float | None = number(50.0, low=0, above=True)


@dataclass
class Hub(Language):
    """A language model of transformers; see cwd.models.hub. Its own names say who is who in it, as globs."""

    beside_muon: list[str] = field(default_factory=list)  # with optimizer=muon these go to AdamW, before its groups
    normalized: list[str] = field(default_factory=list)  # beside decay.normalized


@dataclass
class Olmo(Hub):
    """OLMo (Table 9)."""

    family: str = choice("olmo", of=("olmo",))
    mlp_ratio: int = number(8, low=2)  # width of gate and up together / hidden_size
    rope_theta: float = number(10_000.0, low=0, above=True)
    tie_word_embeddings: bool = True


@dataclass
class Qwen3(Hub):
    """Qwen3 (Figure 7)."""

    family: str = choice("qwen3", of=("qwen3",))
    num_key_value_heads: int = number(low=1)
    head_dim: int = number(low=2)
    intermediate_size: int = number(low=1)
    rope_theta: float = number(1e6, low=0, above=True)
    rms_norm_eps: float = number(1e-6, low=0, above=True)
    tie_word_embeddings: bool = True


@dataclass
class GPT2(Hub):
    """GPT-2."""

    family: str = choice("gpt2", of=("gpt2",))
    positions: int = number(1024, low=1)  # rows of the position table
    dropout: float = number(0.0, low=0, high=1, below=True)


@dataclass
class Pretrained(Model):
    """A trained causal language model to go on from, whole or by low-rank adapters (LoRA, arXiv 2106.09685)."""

    family: str = choice("pretrained", of=("pretrained",))
    source: str = "???"  # a run's key, a folder, or a name on the hub
    adapter: str = choice("lora", of=("lora", "none"))
    rank: int = number(16, low=1)
    alpha: float = number(32.0, low=0, above=True)  # the adapter is scaled by alpha / rank
    dropout: float = number(0.0, low=0, high=1, below=True)
    targets: list[str] = field(default_factory=lambda: ["all-linear"])  # or names of modules


@dataclass
class Timm(Model):
    """An image classifier of timm: `name` in its registry. The sizes make a smaller one of its kind; null: its own."""

    family: str = choice("timm", of=("timm",))
    name: str = "???"
    image_size: int = number(224, low=8)  # pixels, of a square
    patch_size: int | None = number(None, low=1)  # of a ViT, as the next three
    embed_dim: int | None = number(None, low=1)
    depth: int | None = number(None, low=1)
    num_heads: int | None = number(None, low=1)
    layers: list[int] | None = None  # of a ResNet, as the next two: blocks in each stage
    channels: list[int] | None = None  # of the stages
    stem_width: int | None = number(None, low=1)  # of a stem of three small convolutions


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
    crop_fraction: float = number(0.875, low=0, high=1, above=True)  # of the image, in evaluation: the centre


@dataclass
class Group:
    """A line of the parameter groups: the first whose globs match a parameter's name gets it."""

    match: list[str] = field(default_factory=list)
    rule: str = choice(of=RULES)
    decay: bool = True
    lr_multiple: float = number(1.0, low=0, above=True)


@dataclass
class Optimizer:
    """What every update rule has."""

    name: str = "???"
    lr: float = number(low=0, above=True)
    groups: list[Group] = field(default_factory=list, metadata={"each": Group})


@dataclass
class AdamHyper:
    """AdamW's own hyperparameters."""

    betas: list[float] = number([0.9, 0.95], low=0, high=1, below=True)
    eps: float = number(1e-8, low=0)


@dataclass
class AdamW(Optimizer):
    """AdamW (Algorithm 6)."""

    name: str = choice("adamw", of=("adamw",))
    betas: list[float] = number([0.9, 0.95], low=0, high=1, below=True)
    eps: float = number(1e-8, low=0)


@dataclass
class Lion(Optimizer):
    """Lion (Algorithm 4)."""

    name: str = choice("lion", of=("lion",))
    betas: list[float] = number([0.9, 0.95], low=0, high=1, below=True)


@dataclass
class Muon(Optimizer):
    """Muon (Algorithm 5) on the matrices, AdamW on the rest."""

    name: str = choice("muon", of=("muon",))
    momentum: float = number(0.95, low=0, high=1, below=True)
    nesterov: bool = True
    ns_steps: int = number(5, low=1, high=99)
    adjust_lr_fn: str = choice("match_rms_adamw", of=("match_rms_adamw", "original", "none"))
    dim_threshold: int | None = later(None, number(low=1))  # matrices with a longer side go to AdamW; none: all to Muon
    adamw: AdamHyper = field(default_factory=AdamHyper)


@dataclass
class SGD(Optimizer):
    """SGD with momentum (Algorithm 2)."""

    name: str = choice("sgd", of=("sgd",))
    momentum: float = number(0.9, low=0, high=1, below=True)
    dampening: float | None = number(None, low=0, high=1, below=True)  # none: the momentum, as in the paper
    nesterov: bool = False


@dataclass
class Decay:
    """Which coordinates decay, lambda, and how lambda moves over the run (corrected: AdamC, lambda * lr / peak lr)."""

    mode: str = choice(of=MODES)
    weight_decay: float = number(low=0)
    schedule: str = choice("constant", of=DECAY_SCHEDULES)
    towards: str = later("zero", choice("zero", of=("zero", "start")))  # start: what the parameters were at first
    # Globs on the names of parameters that a normalization follows: those that the corrected schedule is for.
    normalized: list[str] = field(default_factory=lambda: ["layers.*_proj.weight", "layers.*.ffn.*.weight"])


@dataclass
class Schedule:
    """Learning rate over the run: a linear warmup, then a shape that ends at end_factor times the peak."""

    name: str = "???"
    warmup: float = number(0.05, low=0, high=1, below=True)  # fraction of the steps
    end_factor: float = number(0.1, low=0, high=1)


@dataclass
class Cosine(Schedule):
    """Half a cosine from the peak to the end."""

    name: str = choice("cosine", of=("cosine",))


@dataclass
class WSD(Schedule):
    """Warmup, stable, linear decay over the last part (Table 7)."""

    name: str = choice("wsd", of=("wsd",))
    decay_fraction: float = number(0.2, low=0, high=1, above=True)


@dataclass
class Constant(Schedule):
    """The peak to the end; end_factor is 1."""

    name: str = choice("constant", of=("constant",))
    end_factor: float = number(1.0, low=1, high=1)


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

    name: str = choice("none", of=("wandb", "none"))
    project: str = "cautious-weight-decay"
    group: str | None = None


@dataclass
class Machine:
    """What may change speed, place or the order of a sum, never the mathematics."""

    runs: str = "runs"
    data: str = "data"
    device: str = choice("auto", of=("auto", "cpu", "cuda"))
    threads: int | None = number(None, low=1)  # of each process; none: torch's choice
    micro_batch_size: int | None = number(None, low=1)  # sequences or images at once on one process; none: its share
    compile: bool = False
    attention: str = choice("auto", of=("auto", "eager", "sdpa", "flex_attention"))
    activation_checkpointing: bool = False  # of each layer only its input is kept; the rest is computed again
    processes: int | None = number(None, low=1)  # that must take part; none: as many as were started
    sharding: str = choice("none", of=("none", "full", "hybrid"))  # of weights, gradients and optimizer state
    shard_size: int | None = number(None, low=1)  # hybrid: processes that share a copy; none: those of one machine
    profile: int = number(0, low=0)  # updates to trace
    channels_last: bool = False  # memory order of images
    workers: int = number(0, low=0)  # of each process, that read images ahead; 0: it reads them itself
    checkpoint_seconds: float = number(30.0, low=0)  # time between checkpoints; 0: after every step
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


VARIANTS: dict[str, dict[str, type]] = {
    "model": {"simply": Simply, "olmo": Olmo, "qwen3": Qwen3, "gpt2": GPT2, "pretrained": Pretrained, "timm": Timm},
    "optimizer": {"adamw": AdamW, "lion": Lion, "muon": Muon, "sgd": SGD},
    "dataset": {
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
    },
    "schedule": {"cosine": Cosine, "wsd": WSD, "constant": Constant},
}
SELECTORS = {section: "family" if section == "model" else "name" for section in VARIANTS}  # the key that picks
