"""From the configuration to an optimizer over a model's parameters."""

from __future__ import annotations

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
    if decay.schedule != "constant":
        raise UserError(f"decay.schedule={decay.schedule}: the optimizers do not take one yet; allowed is constant")
    patterns = [
        GroupPattern(group.match, group.rule, group.decay, group.lr_multiple, _hyper(optimizer, group.rule))
        for group in optimizer.groups
    ]
    try:
        groups = assign_groups(
            model.named_parameters(), patterns, lr=optimizer.lr, weight_decay=decay.weight_decay, decay=decay.mode
        )
        lines = describe_groups(groups)  # before torch takes the names out of them
        defaults = {"rule": optimizer.name, "lr": optimizer.lr, **RULES[optimizer.name].defaults}
        options: dict[str, Any] = {"seed": config.seed, "compile": config.machine.compile}
        built = RuleOptimizer([group for group in groups if group["params"]], defaults, **options)
    except ValueError as error:
        raise UserError(f"optimizer.groups: {error}") from error
    return built, lines


def _hyper(optimizer: schema.Optimizer, rule: str) -> dict[str, Any]:
    """The rule's hyperparameters as the configuration has them: the optimizer's own, or those of the rule beside it."""
    source = optimizer if rule == optimizer.name else getattr(optimizer, rule)
    names = [name for name in RULES[rule].defaults if hasattr(source, name)]
    return {name: _value(getattr(source, name)) for name in names}


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
