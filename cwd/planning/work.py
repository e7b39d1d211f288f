"""What one run is: its model, tokens or images, floating-point operations, and what it leaves on the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from cwd.data.exercises import COUNT
from cwd.models.flops import flops_per_token
from cwd.models.zoo import FAMILIES
from cwd.planning.bases import Bases
from cwd.planning.memory import FLOAT, Held, learned, parameters_of, state_bytes
from cwd.planning.shapes import ImageShape, Items, Shape, TextShape, TunedShape, items_of
from cwd.planning.trace import TWO, count_flops
from cwd.training.checkpoint import KEEP

# Ids of the tokenizers that the configurations name: bytes; the paper's (Table 8); OLMo-1B's (Table 9); Qwen3's own.
IDS = {"bytes": 256, "vb100864_openmix_v1": 100_864, "allenai/OLMo-1B-hf": 50_280, "Qwen/Qwen3-0.6B": 151_669}
BESIDE = "beside_muon"  # of a model's section: globs of what it keeps from Muon
NAMES = (BESIDE, "normalized")  # names for the optimizer, no part of the shape
FLEX = (16, 32, 64, 128, 256)  # sizes of a head
VALUE = 35  # bytes of a number with its name in the metrics file
FIELDS = 6  # numbers for each tensor and step that is measured
DIGITS, IMAGENET = 1797, 50_000  # digits that scikit-learn has; images of ImageNet's validation split
NEEDS = {"timm": "vision", "peft": "finetune"}  # library -> the extra that has it


class Unplanned(Exception):
    """The run's cost is not known; the message says what is missing."""


@dataclass(frozen=True)
class Work:
    """A run's size.

    Attributes:
        shape: of its pass.
        held: its parameters, by rule.
        seen, evaluated: tokens or images that it trains on, and that all its evaluations see.
        flops: operations of all of it, evaluations included.
        forward: operations of a forward pass of one token or image.
        batch: sequences or images in an update.
        lines: of its metrics that measure every tensor.
        averaged: whether it keeps and evaluates an average of its weights.
    """

    shape: Shape
    held: tuple[Held, ...]
    seen: int
    evaluated: int
    flops: float
    forward: float
    batch: int
    lines: int
    averaged: bool = False

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(one.elements for one in self.held)

    @property
    def trained(self) -> int:
        """How many are not frozen."""
        return sum(one.elements for one in learned(self.held))

    @property
    def weights(self) -> int:
        """Bytes of the final weights, those of the average among them."""
        return FLOAT * self.parameters * (2 if self.averaged else 1)

    @property
    def checkpoints(self) -> int:
        """Bytes of the checkpoints while it goes on: those that are kept, and one that is being written."""
        return (KEEP + 1) * (self.weights + sum(map(state_bytes, self.held)))

    @property
    def record(self) -> int:
        """Bytes of its metrics, about."""
        return VALUE * FIELDS * self.lines * (len(learned(self.held)) + 1)

    @property
    def token_bytes(self) -> int:
        """Bytes of the packed token file from which it sees no token twice; 0 of what reads no such file."""
        if not isinstance(self.shape, TextShape):
            return 0
        ids = self.shape.vocab_size
        return self.seen * (1 if ids <= 2**8 else 2 if ids <= 2**16 else 4)


def work_of(
    config: Mapping[str, Any], vocabularies: Mapping[str, int], on_cpu: bool, bases: Bases | None = None
) -> Work:
    """The size of a run.

    Args:
        config: the whole configuration.
        vocabularies: ids of the tokenizers that the configuration does not say it of.
        on_cpu: whether it is to run there, which may decide its attention.
        bases: what a fine-tuning goes on from.

    Raises:
        Unplanned: a library, the number of ids, of classes or of held-out images, or the model to go on from is not
            there.
    """
    training, telemetry = config["training"], config["telemetry"]["every"]
    shape = replace(_shape(config, vocabularies, on_cpu, bases), bf16=training["precision"] == "bf16")
    forward, whole = _flops(replace(shape, checkpointing=False))
    averaged = bool((config.get("recipe") or {}).get("ema"))
    evaluations = 1 + math.ceil(training["steps"] / config["evaluation"]["every"])
    seen, evaluated = training["steps"] * training["batch_size"], evaluations * _held_out(config)
    evaluated *= 2 if averaged else 1
    return Work(
        shape,
        _held(shape, json.dumps(config["optimizer"]), config["decay"]["mode"], tuple(config["model"].get(BESIDE, ()))),
        seen * shape.units,
        evaluated * shape.units,
        whole * seen + forward * evaluated,
        forward / shape.units,
        training["batch_size"],
        training["steps"] // telemetry if telemetry else 0,
        averaged,
    )


def shape_of(model: Mapping[str, Any], vocab_size: int, seq_len: int) -> TextShape:
    """The shape of a language model's section."""
    return TextShape(items_of(model, NAMES), vocab_size, seq_len)


def image_shape(config: Mapping[str, Any], classes: int) -> ImageShape:
    """The shape of an image classifier's configuration."""
    recipe = config["recipe"]
    return ImageShape(
        items_of(config["model"], ("family",)),
        classes,
        recipe["drop_path"],
        recipe["loss"],
        bool(recipe["mixup"] or recipe["cutmix"]),
        config["machine"]["channels_last"],
    )


def _shape(config: Mapping[str, Any], vocabularies: Mapping[str, int], on_cpu: bool, bases: Bases | None) -> Shape:
    model, machine, length = config["model"], config["machine"], config["training"]["seq_len"]
    if model["family"] in FAMILIES:
        return replace(
            shape_of(model, _ids(config["dataset"], vocabularies), length),
            fused=_fused(model, machine.get("attention"), on_cpu),
            checkpointing=bool(machine.get("activation_checkpointing")),
        )
    if model["family"] == "timm":
        _need("timm")
        return image_shape(config, _classes(config["dataset"]))
    adapter = None if model["adapter"] == "none" else items_of(model, ("family", "source"))
    if adapter:
        _need("peft")
    return TunedShape(*_base(model["source"], vocabularies, bases), length, adapter)


def _base(source: str, vocabularies: Mapping[str, int], bases: Bases | None) -> tuple[Items, int]:
    """The model that a fine-tuning goes on from, and its ids."""
    found = bases.find(source) if bases else None
    if found and found.hub:
        return found.hub, dict(found.hub)["vocab_size"]
    if found and found.run and found.run["model"]["family"] in FAMILIES:
        return items_of(found.run["model"], NAMES), _ids(found.run["dataset"], vocabularies)
    raise Unplanned(f"the shape of {source}: no run, no folder with a config.json, and not in cwd/planning/hub.yaml")


def _need(library: str) -> None:
    if find_spec(library) is None:
        raise Unplanned(f"{library}, to count the model: pip install -c requirements.lock -e '.[{NEEDS[library]}]'")


def _classes(dataset: Mapping[str, Any]) -> int:
    found = 10 if dataset["name"] == "digits" else dataset.get("classes")
    if found is None:
        raise Unplanned(f"the number of classes of {dataset['name']}")
    return found


def _held_out(config: Mapping[str, Any]) -> int:
    """Sequences or images of the evaluation set, at most."""
    wanted, dataset = config["evaluation"], config["dataset"]
    if wanted.get("sequences") is not None:
        few = dataset["name"] == "instructions" and not dataset["files"]
        return min(wanted["sequences"], round(dataset["validation_fraction"] * COUNT)) if few else wanted["sequences"]
    known = {"digits": (DIGITS - dataset.get("examples", 0)) * dataset.get("views", 1), "imagenet": IMAGENET}
    if wanted["images"] is None and dataset["name"] not in known:
        raise Unplanned(f"how many images {dataset['name']} holds out: evaluation.images=N")
    return min(wanted["images"] or math.inf, known.get(dataset["name"], math.inf))


def _ids(dataset: Mapping[str, Any], vocabularies: Mapping[str, int]) -> int:
    name = dataset["tokenizer"]
    if dataset.get("vocab_size"):
        return int(dataset["vocab_size"])
    known = {**IDS, **vocabularies}
    if name not in known:
        raise Unplanned(f"the number of ids of {name}: --vocab {name}=N says it")
    return known[name]


@cache
def _flops(shape: Shape) -> tuple[float, float]:
    """Operations of a row: (forward, forward and backward): of text by formula, of others counted."""
    if not isinstance(shape, TextShape):
        forward, whole = (count_flops(shape, TWO, backward) / TWO for backward in (False, True))
        return forward, whole
    with torch.device("meta"):
        model = shape.build()
    whole = shape.seq_len * flops_per_token(model, shape.seq_len)
    return whole / 3, whole


@cache
def _held(shape: Shape, optimizer: str, mode: str, beside: tuple[str, ...]) -> tuple[Held, ...]:
    return parameters_of(shape, json.loads(optimizer), mode, beside)


def _fused(model: Mapping[str, Any], attention: str | None, on_cpu: bool) -> bool:
    """Whether attention never holds all scores: as machine.attention says; auto, on GPUs, where the heads' size is one
    that flex attention takes on each of them.
    """
    if attention != "auto":
        return attention in ("sdpa", "flex_attention")
    size = model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"]
    return not on_cpu and (model.get("attn_softcap") is None or size in FLEX)
