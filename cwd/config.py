"""The schemas of a run's configuration, and the checks of each value and across values.

Imports nothing heavy: a bad value is refused before torch is loaded. Units: `steps` are optimizer updates, sizes are in
sequences or tokens, fractions are of the run's steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from cwd.errors import UserError, nearest

RULES = ("adamw", "lion", "muon", "sgd")
MODES = ("none", "decoupled", "cautious", "random", "gradient", "inner_product", "opposite", "scaled")


def number(
    default: Any = "???", *, low: float = -math.inf, high: float = math.inf, above: bool = False, below: bool = False
) -> Any:
    """A numeric field in [low, high]; `above`/`below` leave the bound itself out. A list has two."""
    return _field(default, {"low": low, "high": high, "above": above, "below": below})


def choice(default: Any = "???", *, of: tuple[str, ...]) -> Any:
    """A text field with a fixed set of values."""
    return _field(default, {"of": of})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Model:
    """The paper's Transformer; see cwd.models.simply for what each option means."""

    family: str = choice("simply", of=("simply",))
    hidden_size: int = number(low=1)
    num_hidden_layers: int = number(low=1)
    num_attention_heads: int = number(low=1)
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
class Dataset:
    """What every dataset has; `name` picks the source."""

    name: str = "???"
    tokenizer: str = "bytes"  # bytes, bpe, or any Hugging Face tokenizer by name or path
    vocab_size: int | None = number(None, low=257)  # of a bpe
    validation_fraction: float = number(0.05, low=0, high=0.5, above=True)


@dataclass
class PythonSource(Dataset):
    """The running Python's own standard library source."""

    name: str = choice("python_source", of=("python_source",))


@dataclass
class Text(Dataset):
    """Any text files of the user's."""

    name: str = choice("text", of=("text",))
    files: list[str] = field(default_factory=list)
    field: str = "text"  # of a .jsonl object
    separator: str | None = None  # splits a .txt or .md file into documents


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
    """Which coordinates decay, and lambda."""

    mode: str = choice(of=MODES)
    weight_decay: float = number(low=0)


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
    batch_size: int = number(low=1)  # sequences in an update, over all processes
    seq_len: int = number(low=2)  # tokens in a sequence
    clip_norm: float | None = number(1.0, low=0, above=True)
    precision: str = choice("fp32", of=("fp32", "bf16"))


@dataclass
class Evaluation:
    """On a fixed set of validation sequences, the same for every seed."""

    every: int = number(low=1)  # steps; there is always one at the end
    sequences: int = number(low=1)


@dataclass
class Telemetry:
    """What is measured inside the optimizer's step, per tensor."""

    every: int = number(low=0)  # steps; 0: never


@dataclass
class Tracker:
    """Where a view of the metrics goes, besides the run's own metrics file. Does not take part in a run's identity."""

    name: str = choice("none", of=("wandb", "none"))
    project: str = "cautious-weight-decay"
    group: str | None = None


@dataclass
class Machine:
    """What may change speed, place or the order of a sum, never the mathematics. Does not take part in a run's
    identity.
    """

    runs: str = "runs"
    data: str = "data"
    device: str = choice("auto", of=("auto", "cpu", "cuda"))
    threads: int | None = number(None, low=1)  # of each process; none: torch's choice
    micro_batch_size: int | None = number(None, low=1)  # sequences at once on one process; none: all of its share
    compile: bool = False
    checkpoint_seconds: float = number(30.0, low=0)  # time between checkpoints; 0: after every step
    log_every: int = number(10, low=1)  # steps between lines of the metrics file
    progress: str = choice("auto", of=("auto", "bar", "lines", "summary"))


@dataclass
class Config:
    """A whole run."""

    scale: str = choice(of=("smoke", "laptop"))
    seed: int = number(0, low=0, high=2**31 - 1)
    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    optimizer: Optimizer = field(default_factory=Optimizer)
    decay: Decay = field(default_factory=Decay)
    schedule: Schedule = field(default_factory=Schedule)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    telemetry: Telemetry = field(default_factory=Telemetry)
    tracker: Tracker = field(default_factory=Tracker)
    machine: Machine = field(default_factory=Machine)


VARIANTS: dict[str, dict[str, type]] = {
    "optimizer": {"adamw": AdamW, "lion": Lion, "muon": Muon, "sgd": SGD},
    "dataset": {"python_source": PythonSource, "text": Text},
    "schedule": {"cosine": Cosine, "wsd": WSD, "constant": Constant},
}
NOT_IDENTITY = ("tracker", "machine")
KINDS = {
    "int": "whole numbers",
    "float": "finite numbers",
    "bool": "true and false",
    "str": "text",
    "list[float]": "lists of two finite numbers",
    "list[str]": "lists of text, as in [a, b]",
    "list[Group]": "lists of groups, as in configs/optimizer/",
}


def validate(raw: DictConfig | dict[str, Any]) -> Config:
    """The typed configuration of a composed one.

    Raises:
        UserError: the first thing that is wrong, with the key, the value, what is allowed and the nearest right name.
    """
    node = OmegaConf.create(raw) if isinstance(raw, dict) else raw
    _refuse_resolvers(OmegaConf.to_container(node, resolve=False))
    try:
        schema = OmegaConf.structured(Config(**{section: _variant(node, section)() for section in VARIANTS}))
        merged = OmegaConf.merge(schema, node)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, node)) from error
    assert isinstance(config, Config)
    for key, value, spec in _leaves(config):
        _check_leaf(key, value, spec)
    _check_across(config)
    return config


def identity(config: Config) -> dict[str, Any]:
    """The part of a configuration that can change a run's numbers, as plain nested data."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items() if name not in NOT_IDENTITY}


def allowed_keys(parent: str, chosen: Mapping[str, str] | None = None) -> list[str]:
    """Every key that may stand below `parent` (dotted, "" for the top): in the `chosen` variants, or in any."""
    return list(dict.fromkeys(item.name for item in _fields_below(parent, chosen or {})))


def _fields_below(parent: str, chosen: Mapping[str, str]) -> list[Field[Any]]:
    schemas: list[Any] = [Config]
    for part in filter(None, re.sub(r"\[\d+\]", "", parent).split(".")):
        schemas = [child for schema in schemas for child in _children(schema, part, chosen)]
    return [item for schema in schemas for item in fields(schema)]


def _children(schema: Any, name: str, chosen: Mapping[str, str]) -> list[Any]:
    if schema is Config and name in VARIANTS:
        return [VARIANTS[name][chosen[name]]] if name in chosen else list(VARIANTS[name].values())
    found = [item.metadata.get("each", item.default_factory) for item in fields(schema) if item.name == name]
    return [factory for factory in found if factory is not MISSING and is_dataclass(factory)]


def _variant(node: DictConfig, section: str) -> type:
    chosen = OmegaConf.select(node, f"{section}.name")
    if not isinstance(chosen, str) or chosen not in VARIANTS[section]:
        raise UserError(_not_allowed(f"{section}.name", chosen, tuple(VARIANTS[section])))
    return VARIANTS[section][chosen]


def _explain(error: OmegaConfBaseException, node: DictConfig) -> str:
    key = error.full_key or ""
    if error.object_type is Group:  # a list's elements are built on their own and do not know where they stand
        key = f"optimizer.groups.{key}"
    chosen = {section: OmegaConf.select(node, f"{section}.name") for section in VARIANTS}
    if isinstance(error, ConfigKeyError):
        return unknown_key(key, chosen)
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: a value is needed"
    parent, _, name = re.sub(r"\[\d+\]$", "", key).rpartition(".")
    items = [item for item in _fields_below(parent, chosen) if item.name == name]
    if isinstance(error, ValidationError) and items and error.object_type is Group:
        return f"{key}: not allowed; allowed are {_allowed(items[0])}"
    if isinstance(error, ValidationError) and items:
        return _refusal(key, OmegaConf.select(node, key, throw_on_missing=False), items[0])
    reason = str(error).splitlines()[0]
    return f"{key}: {reason}" if key else reason


def unknown_key(key: str, chosen: Mapping[str, str] | None = None) -> str:
    """The message for a key that does not exist, with the `chosen` variants where they are known."""
    parent, _, name = key.rpartition(".")
    allowed = allowed_keys(parent, chosen)
    if not allowed:
        return unknown_key(parent, chosen)
    where = f"in {parent}{f'={chosen[parent]}' if chosen and parent in chosen else ''}" if parent else "here"
    return f"{key}: no such key{nearest(name, allowed)}; allowed {where} are {', '.join(allowed)}"


def _not_allowed(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    return f"{key}={_shown(value)}: not allowed{nearest(value, allowed)}; allowed are {', '.join(allowed)}"


def _refusal(key: str, value: Any, item: Field[Any]) -> str:
    """The message for a value that its own field does not take."""
    if "of" in item.metadata:
        return _not_allowed(key, value, item.metadata["of"])
    return f"{key}={_shown(value)}: not allowed; allowed are {_allowed(item)}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _refuse_resolvers(value: Any, key: str = "") -> None:
    """Refuses ${resolver:...}, of which one reads the environment: what is secret there would stand in the record."""
    if isinstance(value, dict):
        for name, one in value.items():
            _refuse_resolvers(one, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for i, one in enumerate(value):
            _refuse_resolvers(one, f"{key}[{i}]")
    elif isinstance(value, str) and ":" in value.partition("${")[2]:
        raise UserError(f"{key}={value}: not allowed; ${{...}} may name another key, but not a resolver such as oc.env")


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    for item in fields(node):
        key, value = f"{prefix}{item.name}", getattr(node, item.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{key}.")
        elif isinstance(value, list) and value and is_dataclass(value[0]):
            for i, element in enumerate(value):
                yield from _leaves(element, f"{key}[{i}].")
        else:
            yield key, value, item


def _check_leaf(key: str, value: Any, item: Field[Any]) -> None:
    rules, several = item.metadata, isinstance(value, list)
    if "of" in rules:
        right = value in rules["of"]
    elif "low" in rules:
        right = all(one is None or _inside(one, rules) for one in (value if several else [value]))
        right = right and (not several or len(value) == 2)
    else:
        right = "" not in (value if several else [value])
    if not right:
        raise UserError(_refusal(key, value, item))


def _inside(value: float, rules: Any) -> bool:
    low = value > rules["low"] if rules["above"] else value >= rules["low"]
    high = value < rules["high"] if rules["below"] else value <= rules["high"]
    return low and high and math.isfinite(value)


def _allowed(item: Field[Any]) -> str:
    """What a field takes, in words: "finite numbers above 0", "whole numbers from 1, or null"."""
    kind, _, optional = str(item.type).partition(" | ")
    words, rules = [KINDS[kind]], item.metadata
    if "low" in rules:
        words.append(f"{'above' if rules['above'] else 'from'} {rules['low']:.10g}")
    if rules.get("high", math.inf) != math.inf:
        words.append(f"{'below' if rules['below'] else 'to'} {rules['high']:.10g}")
    return " ".join(words) + (", or null" if optional else "") + (", not empty" if kind == "str" else "")


def _check_across(config: Config) -> None:
    """Checks that need two values. Each says which keys disagree."""
    model, training, machine = config.model, config.training, config.machine
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        raise UserError(
            f"model.num_attention_heads={model.num_attention_heads}: does not divide "
            f"model.hidden_size={model.hidden_size}; allowed are its divisors {_divisors(model.hidden_size)}, "
            "or give model.head_dim"
        )
    head_dim = model.head_dim or model.hidden_size // model.num_attention_heads
    if head_dim % 2:
        raise UserError(f"model.head_dim={head_dim}: must be even, rotary embeddings pair its halves")
    if machine.micro_batch_size and training.batch_size % machine.micro_batch_size:
        raise UserError(
            f"machine.micro_batch_size={machine.micro_batch_size}: does not divide training.batch_size="
            f"{training.batch_size}; allowed are its divisors {_divisors(training.batch_size)}"
        )
    schedule = config.schedule
    if isinstance(schedule, WSD) and schedule.warmup + schedule.decay_fraction > 1:
        raise UserError(
            f"schedule.decay_fraction={schedule.decay_fraction:g}: with schedule.warmup={schedule.warmup:g} it is more "
            f"than the whole run; at most {1 - schedule.warmup:g} is allowed"
        )
    _check_dataset(config.dataset)
    _check_optimizer(config.optimizer)


def _check_dataset(dataset: Dataset) -> None:
    if (dataset.tokenizer == "bpe") != (dataset.vocab_size is not None):
        raise UserError(
            f"dataset.vocab_size={_shown(dataset.vocab_size)}: give it with dataset.tokenizer=bpe and only then "
            f"(dataset.tokenizer={dataset.tokenizer})"
        )
    if isinstance(dataset, Text) and not dataset.files:
        raise UserError("dataset.files=[]: name at least one file, folder or glob, as in dataset.files=[notes.txt]")


def _check_optimizer(optimizer: Optimizer) -> None:
    if not optimizer.groups or "*" not in optimizer.groups[-1].match:
        raise UserError('optimizer.groups: the last group must match "*", so that every parameter is in one')
    for i, group in enumerate(optimizer.groups):
        rules = ("muon", "adamw") if optimizer.name == "muon" else (optimizer.name,)
        if group.rule not in rules:
            raise UserError(_not_allowed(f"optimizer.groups[{i}].rule", group.rule, rules))


def _divisors(number: int) -> str:
    found = [str(i) for i in range(1, number + 1) if number % i == 0]
    return ", ".join(found if len(found) <= 12 else [*found[:5], "...", *found[-5:]])
