"""From a composed configuration to a checked one: each value against its schema, and values against each other.

Imports nothing heavy: a bad value is refused before torch is loaded, in one line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from cwd.errors import UserError, nearest
from cwd.schema import (
    GPT2,
    SELECTORS,
    TRAINED_TOKENIZERS,
    VARIANTS,
    WSD,
    Config,
    Dataset,
    Group,
    Images,
    Instructions,
    Language,
    Optimizer,
    Pretrained,
    Qwen3,
    Simply,
    Text,
    Timm,
)

NOT_IDENTITY = tuple(item.name for item in fields(Config) if item.metadata.get("apart"))
KINDS = {
    "int": "whole numbers",
    "float": "finite numbers",
    "bool": "true and false",
    "str": "text",
    "list[float]": "lists of two finite numbers",
    "list[str]": "lists of text, as in [a, b]",
    "list[int]": "lists of whole numbers",
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
    if isinstance(config.model, Simply):
        config.model.head_dim = _head_dim(config.model)
    return config


def identity(config: Config) -> dict[str, Any]:
    """The part of a configuration that can change a run's numbers, as plain nested data.

    Where the text lies is no part of it: the data's fingerprint says what the text is. Nor is a field that came later
    (cwd.schema.later) and has its default.
    """
    return identity_of(asdict(config))


def identity_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`identity` of a configuration that is plain nested data already."""
    names = {section: plain[section][selector] for section, selector in SELECTORS.items()}
    known = {section: name for section, name in names.items() if name in VARIANTS[section]}
    return _part_of_identity(plain, Config, known)


def _part_of_identity(plain: Mapping[str, Any], schema: Any, chosen: Mapping[str, str]) -> dict[str, Any]:
    left_out = {item.name for item in fields(schema) if _left_out(item, plain.get(item.name))}
    found = {}
    for name, value in plain.items():
        if name not in left_out:
            below = _children(schema, name, chosen) if isinstance(value, Mapping) else []
            found[name] = _part_of_identity(value, below[0], chosen) if below else value
    return found


def _left_out(item: Field[Any], value: Any) -> bool:
    if item.metadata.get("later"):
        default: Any = item.default if item.default_factory is MISSING else item.default_factory()
        return bool(value == (asdict(default) if is_dataclass(default) and not isinstance(default, type) else default))
    return bool(item.metadata.get("apart"))


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
    key = f"{section}.{SELECTORS[section]}"
    chosen = OmegaConf.select(node, key)
    if not isinstance(chosen, str) or chosen not in VARIANTS[section]:
        raise UserError(_not_allowed(key, chosen, tuple(VARIANTS[section])))
    return VARIANTS[section][chosen]


def _explain(error: OmegaConfBaseException, node: DictConfig) -> str:
    key = error.full_key or ""
    if error.object_type is Group:  # a list's elements are built on their own and do not know where they stand
        key = f"optimizer.groups.{key}"
    chosen = {section: OmegaConf.select(node, f"{section}.{selector}") for section, selector in SELECTORS.items()}
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
    training, machine = config.training, config.machine
    if isinstance(config.model, Language):
        _check_language(config.model, training.seq_len)
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
    if isinstance(config.dataset, Instructions) != isinstance(config.model, Pretrained):
        raise UserError(
            f"dataset={config.dataset.name}, model.family={config.model.family}: fine-tuning takes instructions and "
            "pretrained together; task=finetune sets both"
        )
    if isinstance(config.dataset, Dataset):
        _check_text(config, config.dataset)
    else:
        _check_images(config)
    _check_optimizer(config.optimizer)


def model_shape(model: Language) -> dict[str, Any]:
    """What cwd.models.build takes of a model's configuration, beside the family."""
    return {name: value for name, value in vars(model).items() if name not in ("family", "beside_muon", "normalized")}


def _head_dim(model: Language) -> int:
    return getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads


def _check_language(model: Language, seq_len: int | None) -> None:
    given = getattr(model, "head_dim", None)
    if given is None and model.hidden_size % model.num_attention_heads:
        raise UserError(
            f"model.num_attention_heads={model.num_attention_heads}: does not divide "
            f"model.hidden_size={model.hidden_size}; allowed are its divisors {_divisors(model.hidden_size)}"
            + (", or give model.head_dim" if hasattr(model, "head_dim") else "")
        )
    if _head_dim(model) % 2:
        raise UserError(f"model.head_dim={_head_dim(model)}: must be even, rotary embeddings pair its halves")
    if isinstance(model, Qwen3) and model.num_attention_heads % model.num_key_value_heads:
        raise UserError(
            f"model.num_key_value_heads={model.num_key_value_heads}: does not divide model.num_attention_heads="
            f"{model.num_attention_heads}; allowed are its divisors {_divisors(model.num_attention_heads)}"
        )
    if isinstance(model, GPT2) and seq_len and seq_len > model.positions:
        raise UserError(f"training.seq_len={seq_len}: more than model.positions={model.positions}")
    common = math.gcd(model.hidden_size, _head_dim(model) // 2, getattr(model, "intermediate_size", 0))
    if common % model.shrink:
        raise UserError(
            f"model.shrink={model.shrink}: does not divide every width of the model and leave heads an even size; "
            f"allowed are {_divisors(common)}"
        )


def _check_text(config: Config, dataset: Dataset) -> None:
    if isinstance(config.model, Timm):
        raise UserError(f"dataset={dataset.name}: is text, and model.family=timm classifies images; add task=vision")
    for key, value in (
        ("training.seq_len", config.training.seq_len),
        ("evaluation.sequences", config.evaluation.sequences),
    ):
        if value is None:
            raise UserError(f"{key}: a value is needed")
    if (dataset.tokenizer in TRAINED_TOKENIZERS) != (dataset.vocab_size is not None):
        raise UserError(
            f"dataset.vocab_size={_shown(dataset.vocab_size)}: give it with dataset.tokenizer=bpe or bpe_fallback and "
            f"only then (dataset.tokenizer={dataset.tokenizer})"
        )
    if isinstance(dataset, Text) and not dataset.files:
        raise UserError("dataset.files=[]: name at least one file, folder or glob, as in dataset.files=[notes.txt]")


def _check_images(config: Config) -> None:
    model, dataset, recipe = config.model, config.dataset, config.recipe
    if not isinstance(model, Timm):
        raise UserError(
            f"dataset={dataset.name}: is images, and model.family={model.family} is for text; add task=vision"
        )
    if isinstance(dataset, Images) and not dataset.root:
        raise UserError("dataset.root=null: name the folder of the images, as in dataset.root=photos")
    mixed = recipe.mixup or recipe.cutmix
    for key, size in (
        ("training.batch_size", config.training.batch_size),
        ("machine.micro_batch_size", config.machine.micro_batch_size),
    ):
        if mixed and size is not None and size % 2:
            raise UserError(f"{key}={size}: must be even, as recipe.mixup and recipe.cutmix mix images in pairs")
    if recipe.crop_scale[0] > recipe.crop_scale[1]:
        raise UserError(f"recipe.crop_scale={recipe.crop_scale}: the first must not be above the second")


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
