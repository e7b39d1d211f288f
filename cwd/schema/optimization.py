"""Update rules, decay, and the learning rate over a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cwd.schema.fields import choice, later, number

DECAY_SCHEDULES = ("constant", "corrected", "linear", "cosine")
MODES = tuple(sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "decay").glob("*.yaml")))


@dataclass
class Group:
    """A line of the parameter groups: the first whose globs match a parameter's name gets it."""

    match: list[str] = field(default_factory=list)
    rule: str = "???"  # the optimizer's, or the one that stands beside it
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
    dim_threshold: int | None = later(None, number(low=1))  # matrices with a longer side go to AdamW; none: all to Muon
    adamw: AdamHyper = field(default_factory=AdamHyper)


@dataclass
class SGD(Optimizer):
    """SGD with momentum (Algorithm 2)."""

    name: str = choice("sgd", of=("sgd",))
    momentum: float = number(0.9, low=0, high=1, below=True)
    dampening: float | None = number(None, low=0, high=1, below=True)  # none: the momentum, as in the paper
    nesterov: bool = False


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "lion": Lion, "muon": Muon, "sgd": SGD}


@dataclass
class Decay:
    """Which coordinates decay, lambda, and how lambda moves over the run (corrected: AdamC, lambda * lr / peak lr)."""

    mode: str = choice(of=MODES)
    weight_decay: float = number(low=0)
    schedule: str = choice("constant", of=DECAY_SCHEDULES)
    towards: str = later("zero", choice("zero", of=("zero", "start")))  # start: what the parameters were at first
    # Globs on the names of parameters that a normalization follows: those that the corrected schedule is for.
    normalized: list[str] = field(default_factory=lambda: ["layers.*_proj.weight", "layers.*.ffn.*.weight"])


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


SCHEDULES: dict[str, type[Schedule]] = {"cosine": Cosine, "wsd": WSD, "constant": Constant}
