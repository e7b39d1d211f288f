"""Optimizers in which any update rule runs with any decay mode: ``x <- x - lr * (u + weight_decay * M(u, x, g) * x)``.

Needs nothing but torch. See :mod:`cwd.optim.directions` for the rules, :mod:`cwd.optim.decay` for the modes.
"""

from cwd.optim.decay import MODES
from cwd.optim.directions import RULES
from cwd.optim.engine import Observation, RuleOptimizer
from cwd.optim.groups import GroupPattern, assign_groups, describe_groups
from cwd.optim.optimizers import SGD, AdamW, Lion, Muon
from cwd.optim.options import Options
from cwd.optim.wrapper import CautiousWeightDecay

__all__ = [
    "MODES",
    "RULES",
    "SGD",
    "AdamW",
    "CautiousWeightDecay",
    "GroupPattern",
    "Lion",
    "Muon",
    "Observation",
    "Options",
    "RuleOptimizer",
    "assign_groups",
    "describe_groups",
]
