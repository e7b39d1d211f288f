"""Who gets which rule, decay and learning rate: an ordered list of name patterns; the first that matches a parameter
wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class GroupPattern:
    """A line of the list.

    Attributes:
        match: globs on the parameter's name, such as ``"embed.*"`` or ``"*norm*"``; one of them must match.
        rule: name of the update rule.
        decay: whether weight decay acts on the group at all.
        lr_multiple: the group's learning rate is this times the base rate, > 0.
        hyper: the rule's hyperparameters.
    """

    match: Sequence[str]
    rule: str
    decay: bool = True
    lr_multiple: float = 1.0
    hyper: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.match, str):  # its letters would be taken for globs
            raise ValueError(f"match={self.match!r}: a sequence of globs is needed, not one string")


def assign_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    patterns: Sequence[GroupPattern],
    *,
    lr: float,
    weight_decay: float,
    decay: str,
) -> list[dict[str, Any]]:
    """Parameter groups for :class:`cwd.optim.RuleOptimizer`, in the order of `patterns`; groups that match nothing stay
    empty.

    Args:
        named_parameters: (name, tensor) pairs, as ``model.named_parameters()`` gives them; those that need no gradient
            are left out.
        lr, weight_decay, decay: base rate, lambda and mode for the groups that decay.

    Raises:
        ValueError: a parameter that no pattern matches, or two parameters of one name.
    """
    groups: list[dict[str, Any]] = [
        {
            "params": [],
            "param_names": [],  # torch fills it, but not for an empty group, which it then refuses beside named ones
            "rule": pattern.rule,
            "lr": lr * pattern.lr_multiple,
            "lr_multiple": pattern.lr_multiple,
            "weight_decay": weight_decay if pattern.decay else 0.0,
            "decay": decay if pattern.decay else "none",
            **pattern.hyper,
        }
        for pattern in patterns
    ]
    seen: set[str] = set()
    for name, tensor in named_parameters:
        if name in seen:
            raise ValueError(f"parameter {name}: given twice")
        seen.add(name)
        if tensor.requires_grad:
            groups[_first_match(name, patterns)]["params"].append((name, tensor))
    return groups


def describe_groups(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each group: its rule, rate, decay, and the names in it. For groups from :func:`assign_groups`, before
    or after an optimizer took them (``optimizer.param_groups``).
    """
    lines = []
    for group in groups:
        named = [pair for pair in group["params"] if isinstance(pair, tuple)]
        names = [name for name, _ in named] or list(group.get("param_names", []))
        elements = sum(tensor.numel() for tensor in ([tensor for _, tensor in named] or group["params"]))
        schedule = group.get("decay_schedule", "constant")
        decay = f"{group['decay']} {group['weight_decay']:g}" if group["weight_decay"] else "no decay"
        decay += "" if schedule == "constant" else f" {schedule}"
        head = f"{group['rule']:<6} lr {group['lr']:<8.3g} {decay:<16} {len(names):>3} tensors {elements:>11,} elements"
        lines.append(f"{head}  {_summary(names)}")
    return lines


def _first_match(name: str, patterns: Sequence[GroupPattern]) -> int:
    for i, pattern in enumerate(patterns):
        if any(fnmatchcase(name, glob) for glob in pattern.match):
            return i
    raise ValueError(f'parameter {name}: no group pattern matches it; end the list with one that matches "*"')


def _summary(names: Sequence[str]) -> str:
    """Names with layer numbers folded to `*`, each once, in order."""
    folded = dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names)
    return ", ".join(folded) or "(none)"
