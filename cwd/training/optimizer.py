"""From the configuration to an optimizer over a model's parameters."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from cwd import schema
from cwd.errors import UserError
from cwd.optim import RULES, GroupPattern, RuleOptimizer, assign_groups, describe_groups


def build_optimizer(config: schema.Config, model: nn.Module, compiled: bool = False) -> tuple[RuleOptimizer, list[str]]:
    """The optimizer, its step compiled if asked, and a line for each parameter group that says who went where.

    Raises:
        UserError: a group takes a tensor that its rule cannot, or no pattern matches a parameter.
    """
    optimizer, decay = config.optimizer, config.decay
    try:
        groups = assign_groups(
            model.named_parameters(),
            _patterns(config),
            lr=optimizer.lr,
            weight_decay=decay.weight_decay,
            decay=decay.mode,
        )
        groups = [part for group in groups for part in _by_size(group, optimizer)]
        if config.recipe.layer_decay < 1:
            groups = _by_layer(groups, model, config.recipe.layer_decay)
        normalized = [*decay.normalized, *getattr(config.model, "normalized", [])]
        groups = [part for group in groups for part in _scheduled(group, decay, normalized, config.training.steps)]
        if decay.towards == "start":
            groups = [{**group, "anchor": "initial"} for group in groups]
        if decay.schedule == "corrected" and not any("lr_max" in group and group["params"] for group in groups):
            raise UserError(f"decay.normalized={decay.normalized}: no parameter that decays has such a name")
        lines = describe_groups(groups)
        defaults = {"rule": optimizer.name, "lr": optimizer.lr, **RULES[optimizer.name].defaults}
        options: dict[str, Any] = {"seed": config.seed, "compile": compiled, "flat": True}
        built = RuleOptimizer([group for group in groups if group["params"]], defaults, **options)
    except ValueError as error:
        raise UserError(f"optimizer.groups: {error}") from error
    return built, lines


def _patterns(config: schema.Config) -> list[GroupPattern]:
    """The configured groups; before them, under Muon, what the model itself says is no hidden matrix."""
    optimizer = config.optimizer
    patterns = [
        GroupPattern(group.match, group.rule, group.decay, group.lr_multiple, _hyper(optimizer, group.rule))
        for group in optimizer.groups
    ]
    beside = getattr(config.model, "beside_muon", []) if isinstance(optimizer, schema.Muon) else []
    return [GroupPattern(beside, "adamw", hyper=_hyper(optimizer, "adamw")), *patterns] if beside else patterns


def _by_size(group: dict[str, Any], optimizer: schema.Optimizer) -> list[dict[str, Any]]:
    """The group; where Muon has a threshold, its matrices with a longer side as a group of AdamW's, with the same rate
    and decay (google-deepmind/simply).
    """
    threshold = optimizer.dim_threshold if isinstance(optimizer, schema.Muon) else None
    if threshold is None or group["rule"] != "muon":
        return [group]
    large = [(name, p) for name, p in group["params"] if max(p.shape) > threshold]
    rest = [(name, p) for name, p in group["params"] if max(p.shape) <= threshold]
    shared = {key: group[key] for key in ("lr", "lr_multiple", "weight_decay", "decay", "param_names")}
    return [{**group, "params": rest}, {**shared, "params": large, "rule": "adamw", **_hyper(optimizer, "adamw")}]


def _by_layer(groups: list[dict[str, Any]], model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The groups, each in parts of one multiple of its learning rate."""
    from cwd.models.classifiers import layer_multiples  # timm is needed by nothing else here

    multiples = layer_multiples(model, decay)
    parts: dict[tuple[int, float], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for name, parameter in group["params"]:
            rate = {key: group[key] * multiples[name] for key in ("lr", "lr_multiple")}
            part = parts.setdefault((number, multiples[name]), {**group, **rate, "params": []})
            part["params"].append((name, parameter))
    return list(parts.values())


def _scheduled(group: dict[str, Any], decay: schema.Decay, normalized: list[str], steps: int) -> list[dict[str, Any]]:
    """The group with the schedule of lambda; two groups, where the schedule is for a part of it only."""
    if decay.schedule == "constant" or not group["weight_decay"]:
        return [group]
    named = {"decay_schedule": decay.schedule, "decay_steps": steps}
    if decay.schedule != "corrected":
        return [{**group, **named}]
    inside = [(n, p) for n, p in group["params"] if any(fnmatchcase(n, glob) for glob in normalized)]
    rest = [(n, p) for n, p in group["params"] if not any(n == name for name, _ in inside)]
    return [{**group, "params": inside, **named, "lr_max": group["lr"]}, {**group, "params": rest}]


def _hyper(optimizer: schema.Optimizer, rule: str) -> dict[str, Any]:
    """The rule's hyperparameters as the configuration has them: the optimizer's own, or those of the rule beside it."""
    source = optimizer if rule == optimizer.name else getattr(optimizer, rule)
    names = [name for name in RULES[rule].defaults if hasattr(source, name)]
    return {name: _value(getattr(source, name)) for name in names}


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
