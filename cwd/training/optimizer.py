"""From the configuration to an optimizer over a model's parameters."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from cwd import schema
from cwd.errors import UserError
from cwd.optim import RULES, GroupPattern, RuleOptimizer, assign_groups, describe_groups


def build_optimizer(config: schema.Config, model: nn.Module) -> tuple[RuleOptimizer, list[str]]:
    """The optimizer, and a line for each parameter group that says who went where.

    Raises:
        UserError: a group takes a tensor that its rule cannot, or no pattern matches a parameter.
    """
    optimizer, decay = config.optimizer, config.decay
    patterns = [
        GroupPattern(group.match, group.rule, group.decay, group.lr_multiple, _hyper(optimizer, group.rule))
        for group in optimizer.groups
    ]
    try:
        groups = assign_groups(
            model.named_parameters(), patterns, lr=optimizer.lr, weight_decay=decay.weight_decay, decay=decay.mode
        )
        groups = [part for group in groups for part in _scheduled(group, decay, config.training.steps)]
        if decay.towards == "start":
            groups = [{**group, "anchor": "initial"} for group in groups]
        if decay.schedule == "corrected" and not any("lr_max" in group and group["params"] for group in groups):
            raise UserError(f"decay.normalized={decay.normalized}: no parameter that decays has such a name")
        lines = describe_groups(groups)
        defaults = {"rule": optimizer.name, "lr": optimizer.lr, **RULES[optimizer.name].defaults}
        options: dict[str, Any] = {"seed": config.seed, "compile": config.machine.compile, "flat": True}
        built = RuleOptimizer([group for group in groups if group["params"]], defaults, **options)
    except ValueError as error:
        raise UserError(f"optimizer.groups: {error}") from error
    return built, lines


def _scheduled(group: dict[str, Any], decay: schema.Decay, steps: int) -> list[dict[str, Any]]:
    """The group with the schedule of lambda; two groups, where the schedule is for a part of it only."""
    if decay.schedule == "constant" or not group["weight_decay"]:
        return [group]
    named = {"decay_schedule": decay.schedule, "decay_steps": steps}
    if decay.schedule != "corrected":
        return [{**group, **named}]
    inside = [(n, p) for n, p in group["params"] if any(fnmatchcase(n, glob) for glob in decay.normalized)]
    rest = [(n, p) for n, p in group["params"] if not any(n == name for name, _ in inside)]
    return [{**group, "params": inside, **named, "lr_max": group["lr"]}, {**group, "params": rest}]


def _hyper(optimizer: schema.Optimizer, rule: str) -> dict[str, Any]:
    """The rule's hyperparameters as the configuration has them: the optimizer's own, or those of the rule beside it."""
    source = optimizer if rule == optimizer.name else getattr(optimizer, rule)
    names = [name for name in RULES[rule].defaults if hasattr(source, name)]
    return {name: _value(getattr(source, name)) for name in names}


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
