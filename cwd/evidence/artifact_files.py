"""What the files of configs/artifact/ and configs/ladder/ may hold: the paper's tables and figures as data.

An artifact names the paper's own sizes (338m, olmo_1b, vit_s16); a ladder says what stands for each at one scale. So an
artifact is written once, for every scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from cwd.errors import UserError, nearest
from cwd.reading import read_yaml
from cwd.sweeps import CONFIGS

Plain = dict[str, Any]
SCALES = ("smoke", "laptop", "paper")
KINDS = ("table", "figure", "theory")
TESTS = ("difference", "log_ratio", "value", "average", "slope", "minimiser", "check")
EXPECTATIONS = ("below", "above", "within")
SEED_ROLES = ("report", "tuning", "both")


def _of(*allowed: str, default: Any = None) -> Any:
    return field(metadata={"of": allowed}) if default is None else field(default=default, metadata={"of": allowed})


@dataclass(frozen=True)
class Block:
    """A product of runs: Hydra overrides as on the command line (commas are axes), at each of the sizes."""

    sizes: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    lambdas: bool = False  # at each of the ladder's multiples of the tuned lambda; 0 is decay=none
    own: str | None = None  # each arm at its own best (lambda, or whole search) on the tuning seeds of this artifact
    search: bool = False  # the rung's search for each optimizer: the tuning itself
    seeds: str = _of(*SEED_ROLES, default="report")


@dataclass(frozen=True)
class Layout:
    """How runs make a table or a figure.

    An axis is a coordinate of the runs (size, optimizer, arm, lambda, multiple, lr, schedule, decay_schedule, choice)
    or ``metric``. A table has `rows` and `columns`, and is repeated for each metric unless that is one of them. A
    figure has a panel for each metric and each value of `panels`, a line for each of `lines`, over `x`.
    """

    metrics: tuple[str, ...] = ("loss",)
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    where: dict[str, str] = field(default_factory=dict)  # only runs with these coordinates
    x: str = _of("step", "lambda", "size", default="step")
    y: str = _of("linear", "log", default="linear")  # the scale, where the paper's is
    panels: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    windows: tuple[float, ...] = (1.0,)  # over step: each panel again for this first part of the run
    start: float = 0.0  # over step: from this fraction of the run
    paths: bool = False  # theory: the paths that the checks recorded
    fields: tuple[str, ...] = ()  # theory: what of the checks' summaries is shown; see cwd.evidence.theory.select
    published: str | None = None  # where in published.yaml a cell's number (a line's last) is; see Claim.published


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, and what is computed to judge it.

    A comparison is made for each combination of the coordinates `each`. Its per-seed quantity is, by `test`:

    difference: metric(a) - metric(b), of two runs that share weights and batches
    log_ratio:  log metric(a) - log metric(b), likewise
    value:      metric(a)
    average:    the mean of the differences over all combinations of the coordinates `over`, which are one comparison
    slope:      the least-squares slope of metric(a) - metric(b) against log2 of the parameters, over the sizes
    minimiser:  log2 of the lambda that minimises the metric in arm a, minus that of arm b; each the vertex of a
                parabola in log lambda through the best grid point and its neighbours
    check:      no statistics: `field` of the summaries of the theory checks that `check` matches (table1_*); what
                :func:`cwd.evidence.theory.select` finds there

    Its mean is expected `below` or `above` a bound (one number, 0 if none is given), or `within` two. `published` is a
    path into published.yaml, {name} standing for coordinates ({size}, {optimizer-arm}, ... after the aliases).
    """

    id: str
    says: str  # the paper, in a sentence
    means: str  # what is computed, in words
    test: str = _of(*TESTS)
    expect: str = _of(*EXPECTATIONS)
    bound: tuple[float, ...] = (0.0,)
    metric: str = "loss"
    a: dict[str, str] = field(default_factory=dict)
    b: dict[str, str] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    each: tuple[str, ...] = ()
    over: tuple[str, ...] = ()  # of an average
    published: str | None = None
    control: bool = False  # not the paper's: it has no such arm or comparison
    check: str | None = None
    field: str | None = None
    printed: tuple[str, ...] = ()  # the paper's metrics, where the scale's suite has others


@dataclass(frozen=True)
class Artifact:
    """A table or a figure of the paper: the runs it needs, how they are laid out, and the claims it carries."""

    name: str
    kind: str = _of(*KINDS)
    title: str = ""
    paper: str = ""  # what the paper ran
    blocks: tuple[Block, ...] = ()
    checks: tuple[str, ...] = ()  # theory: names for scripts/theory.py
    layout: Layout = field(default_factory=Layout)
    claims: tuple[Claim, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)  # coordinates -> published.yaml's name
    needs: str | None = None  # what must exist before it can be run at any scale
    suite: str | None = None  # what its runs are evaluated on; the metric ``suite`` (``suite%``) is each of its tasks
    seeds: int | None = None  # instead of the ladder's
    ledger: bool = True  # whether its claims stand in the ledger; not those that repeat another's


@dataclass(frozen=True)
class Stage:
    """A grid of a search: the product of the axes that it gives, or `trials` of its cells drawn by chance."""

    lr: tuple[float, ...] = ()
    weight_decay: tuple[float, ...] = ()
    warmup: tuple[float, ...] = ()  # fractions of the steps
    betas: tuple[tuple[float, ...], ...] = ()
    momentum: tuple[float, ...] = ()
    batch_size: tuple[int, ...] = ()  # sequences; the tokens stay the same
    trials: int | None = None

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The axes with values, in the order above."""
        return {name: value for name, value in vars(self).items() if isinstance(value, tuple) and value}


@dataclass(frozen=True)
class Rung:
    """What stands for one of the paper's sizes at a scale."""

    overrides: tuple[str, ...] = ()
    core_seconds: float | None = None  # of one run, measured
    base: tuple[str, ...] = ()  # the run, on seed 0, that its runs go on from (model.source)
    needs: str | None = None  # what must exist before it can be run
    tuned: str | None = None  # configs/tuned/NAME_OPTIMIZER.yaml; the scale's, if not given
    search: dict[str, tuple[Stage, ...]] = field(default_factory=dict)  # of each optimizer, where the size is tuned


@dataclass(frozen=True)
class Ladder:
    """One scale: its sizes, seeds and multiples of lambda."""

    scale: str = _of(*SCALES)
    seeds: int = 5
    tuning_seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    multiples: tuple[float, ...] = ()
    suites: dict[str, str] = field(default_factory=dict)  # what stands for an artifact's suite; itself, if not here
    sizes: dict[str, Rung] = field(default_factory=dict)


def artifact_names() -> list[str]:
    """Every file of configs/artifact/: tables first, each kind in the paper's order, then the rest."""
    return sorted((path.stem for path in (CONFIGS / "artifact").glob("*.yaml")), key=_order)


def load_artifact(name: str) -> Artifact:
    """The artifact of configs/artifact/`name`.yaml.

    Raises:
        UserError: no such file, or what is wrong with it.
    """
    path = CONFIGS / "artifact" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"{name}: no such artifact{nearest(name, artifact_names())}; {_listed(artifact_names())}")
    artifact = read_yaml(path, Artifact, name=name)
    for claim in artifact.claims:
        _check_claim(claim, artifact, path.name)
    return artifact


def load_ladder(scale: str) -> Ladder:
    """The ladder of configs/ladder/`scale`.yaml.

    Raises:
        UserError: no such scale, or what is wrong with its file.
    """
    if scale not in SCALES:
        raise UserError(f"SCALE={scale}: no such scale{nearest(scale, SCALES)}; allowed are {', '.join(SCALES)}")
    return read_yaml(CONFIGS / "ladder" / f"{scale}.yaml", Ladder, scale=scale)


def text_of(value: Any) -> str:
    """A coordinate as it stands in an artifact's file."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_claim(claim: Claim, artifact: Artifact, where: str) -> None:
    count = 2 if claim.expect == "within" else 1
    if len(claim.bound) != count or list(claim.bound) != sorted(claim.bound):
        raise UserError(f"{where}: claim {claim.id}: bound={list(claim.bound)}: {claim.expect} takes {count}, in order")
    if claim.test == "check" and not (claim.check and claim.field):
        raise UserError(f"{where}: claim {claim.id}: test=check needs check and field")
    if claim.check and not any(fnmatchcase(name, claim.check) for name in artifact.checks):
        raise UserError(f"{where}: claim {claim.id}: check={claim.check}: none of checks: {', '.join(artifact.checks)}")
    if claim.test in ("difference", "log_ratio", "average", "slope", "minimiser") and not (claim.a and claim.b):
        raise UserError(f"{where}: claim {claim.id}: test={claim.test} needs a and b")


def _order(name: str) -> tuple[int, int, str]:
    kind = name.rstrip("0123456789")
    number = name[len(kind) :]
    kinds = ("table", "figure", "theorem")
    return kinds.index(kind) if kind in kinds else len(kinds), int(number or 0), name


def _listed(names: Iterable[str]) -> str:
    return f"allowed are {', '.join(names)}"
