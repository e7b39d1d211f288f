"""Other libraries, and the manners they have, beside ours: is a step the paper's, and how long does it take."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import Parameter

from cwd.benchmarks import agreement
from cwd.benchmarks.contenders import Contender, contenders
from cwd.benchmarks.ours import CLASSES
from cwd.benchmarks.reference import HYPER
from cwd.benchmarks.report import Table, publish, read_names, read_options
from cwd.benchmarks.timing import Turn, compare
from cwd.benchmarks.workload import LR, SHAPES, Shapes, Workload, matrices
from cwd.optim import Muon

OPTIONS: dict[str, int | str] = {"part": "", "rules": "", "threads": 2, "repeats": 15, "markdown": ""}
PARTS = ("agreement", "time")
NOT_INSTALLED = "not installed"
AGREEMENT_NOTES = (
    "Reference: the paper's algorithm in float64. Four steps: float32 parameters after four steps, to rounding (Muon "
    "in bfloat16: to 3e-3). Zeros, underflow: whether a coordinate decays where u or x is 0, and where u and x have "
    "opposite signs but u x is below the least float32; Lion's u is 0 or of size 1, so nothing underflows there. "
    "bfloat16, off: bfloat16 parameters that after one step are not the correctly rounded exact result. "
    "load_state_dict, deepcopy: whether the copy goes on as the original.",
    "An optimizer with plain decay is compared with plain decay; it has no mask to check. HeavyBall rounds bfloat16 "
    "stochastically, by design, and its Muon has coefficients of its own; its mask is checked all the same. adv-optm "
    "runs with its stochastic rounding off. The wrapper reads u from what a step did to x: an update that rounding "
    "swallows reads as 0, and decays; its documented limitation.",
)
TIME_NOTE = (
    "Their time over ours, of neighbouring steps: median and deciles; above 1 they take longer. Ours is compiled, with "
    "cautious decay, Muon in bfloat16. Theirs as it comes, cautious where there is such a mode; the loop's Muon "
    "iterates in float32."
)


def main(arguments: Sequence[str]) -> None:
    """See scripts/benchmark.py; `arguments` are key=value."""
    options = read_options(arguments, OPTIONS)
    torch.set_num_threads(options["threads"])
    parts, rules = read_names(options, "part", PARTS), read_names(options, "rules", HYPER)
    for part in parts:
        table = agreement_table(rules) if part == "agreement" else time_table(options["repeats"], rules)
        publish("peers", f"Other libraries: {part}", arguments, [table], options["markdown"])


def agreement_table(rules: Sequence[str]) -> Table:
    """A row of verdicts for every contender of those rules."""
    table = Table("One step against the paper's algorithm", ["optimizer", "decay", *agreement.CHECKS], AGREEMENT_NOTES)
    for one in _of(rules):
        if one.version is None:
            table.add(_title(one), one.mode, NOT_INSTALLED, *[agreement.NOTHING] * (len(agreement.CHECKS) - 1))
        else:
            table.add(_title(one), one.mode, *agreement.check(one).values())
    return table


def time_table(repeats: int, rules: Sequence[str]) -> Table:
    """A row of time ratios for every contender of those rules but ours."""
    table = Table("Time of a step, theirs / ours", ["optimizer", "decay", *SHAPES], [TIME_NOTE])
    for one in _of(rules):
        if not one.name.startswith("cwd.optim"):
            table.add(_title(one), one.mode, *(_time(one, shapes, repeats) for shapes in SHAPES.values()))
    return table


def _of(rules: Sequence[str]) -> list[Contender]:
    return [one for one in contenders() if one.rule in rules]


def _title(one: Contender) -> str:
    return f"{one.name} ({one.version})" if one.version else one.name


def _time(one: Contender, shapes: Shapes, repeats: int) -> str:
    if one.version is None:
        return NOT_INSTALLED
    shapes = matrices(shapes) if one.rule == "muon" else shapes
    theirs = partial(one.build, lr=LR, weight_decay=0.1, **{**HYPER[one.rule], **one.hyper})
    try:
        loads = Workload(theirs, shapes), Workload(partial(_ours, one.rule), shapes)
        first, second = (Turn(load.step, load.prepare) for load in loads)
        return str(compare(first, second, max(3, repeats // 5) if one.rule == "muon" else repeats))
    except Exception as error:  # whatever somebody else's code raises is its result
        return f"fails: {type(error).__name__}"


def _ours(rule: str, params: list[Parameter]) -> torch.optim.Optimizer:
    if rule == "muon":
        return Muon(params, lr=LR, weight_decay=0.1, ns_dtype=torch.bfloat16)
    return CLASSES[rule](params, lr=LR, weight_decay=0.1, compile=True)
