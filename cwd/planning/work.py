"""What one run is: its model, tokens, floating-point operations, and what it leaves on the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from cwd.models.flops import flops_per_token
from cwd.models.zoo import FAMILIES, count_parameters
from cwd.planning.memory import FLOAT, Held, parameters_of, state_bytes
from cwd.planning.trace import Shape
from cwd.training.checkpoint import KEEP

# Ids of the tokenizers that the configurations name: bytes; the paper's (Table 8); OLMo-1B's (Table 9); Qwen3's own.
IDS = {"bytes": 256, "vb100864_openmix_v1": 100_864, "allenai/OLMo-1B-hf": 50_280, "Qwen/Qwen3-0.6B": 151_669}
BESIDE = "beside_muon"  # of a model's section: globs of what it keeps from Muon
NAMES = (BESIDE, "normalized")  # names for the optimizer, no part of the shape
FLEX = (16, 32, 64, 128, 256)  # sizes of a head
VALUE = 35  # bytes of a number with its name in the metrics file
FIELDS = 6  # numbers for each tensor and step that is measured


class Unplanned(Exception):
    """The run's cost is not known; the message says what is missing."""


@dataclass(frozen=True)
class Work:
    """A run's size.

    Attributes:
        shape: of its pass.
        held: its parameters, by rule.
        parameters: how many there are.
        tokens, evaluated: that it trains on, and that all its evaluations see.
        flops: operations of all of it, evaluations included.
        batch: sequences in an update.
        lines: of its metrics that measure every tensor.
    """

    shape: Shape
    held: tuple[Held, ...]
    parameters: int
    tokens: int
    evaluated: int
    flops: float
    batch: int
    lines: int

    @property
    def weights(self) -> int:
        """Bytes of the final weights."""
        return FLOAT * self.parameters

    @property
    def checkpoints(self) -> int:
        """Bytes of the checkpoints while it goes on: those that are kept, and one that is being written."""
        return (KEEP + 1) * (self.weights + sum(map(state_bytes, self.held)))

    @property
    def record(self) -> int:
        """Bytes of its metrics, about."""
        return VALUE * FIELDS * self.lines * (len(self.held) + 1)

    @property
    def token_bytes(self) -> int:
        """Bytes of an id in the packed token file."""
        return 1 if self.shape.vocab_size <= 2**8 else 2 if self.shape.vocab_size <= 2**16 else 4


def work_of(config: Mapping[str, Any], vocabularies: Mapping[str, int], on_cpu: bool) -> Work:
    """The size of a run.

    Args:
        config: the whole configuration.
        vocabularies: ids of the tokenizers that the configuration does not say it of.
        on_cpu: whether it is to run there, which may decide its attention.

    Raises:
        Unplanned: the model is no language model, or the number of ids is not known.
    """
    family, training, machine = config["model"]["family"], config["training"], config["machine"]
    if family not in FAMILIES or "tokenizer" not in config["dataset"]:
        raise Unplanned(f"a cost model for {family}: only language models are planned")
    shape = replace(
        shape_of(config["model"], _ids(config["dataset"], vocabularies), training["seq_len"]),
        bf16=training["precision"] == "bf16",
        fused=_fused(config["model"], machine.get("attention"), on_cpu),
        checkpointing=bool(machine.get("activation_checkpointing")),
    )
    per_token, parameters = _counts(shape)
    tokens = training["steps"] * training["batch_size"] * training["seq_len"]
    evaluation, telemetry = config["evaluation"], config["telemetry"]["every"]
    evaluated = (1 + math.ceil(training["steps"] / evaluation["every"])) * evaluation["sequences"] * training["seq_len"]
    return Work(
        shape,
        _held(shape, json.dumps(config["optimizer"]), config["decay"]["mode"], tuple(config["model"].get(BESIDE, ()))),
        parameters,
        tokens,
        evaluated,
        per_token * (tokens + evaluated / 3),
        training["batch_size"],
        training["steps"] // telemetry if telemetry else 0,
    )


def shape_of(model: Mapping[str, Any], vocab_size: int, seq_len: int) -> Shape:
    """The shape of a model's section."""
    return Shape(tuple(sorted((k, v) for k, v in model.items() if k not in NAMES)), vocab_size, seq_len)


def _ids(dataset: Mapping[str, Any], vocabularies: Mapping[str, int]) -> int:
    name = dataset["tokenizer"]
    if dataset.get("vocab_size"):
        return int(dataset["vocab_size"])
    known = {**IDS, **vocabularies}
    if name not in known:
        raise Unplanned(f"the number of ids of {name}: --vocab {name}=N says it")
    return known[name]


@cache
def _counts(shape: Shape) -> tuple[int, int]:
    """(operations for a token, parameters)."""
    with torch.device("meta"):
        model = shape.build()
    return flops_per_token(model, shape.seq_len), count_parameters(model).total


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
