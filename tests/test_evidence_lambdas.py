"""The best lambda: chosen on tuning seeds, reported on others, counted, and warned about at an edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cwd.evidence.claims import overall
from cwd.evidence.lambdas import best_lambda
from cwd.evidence.report import document
from cwd.evidence.study import State, Study
from cwd.sweeps import CONFIGS
from tests.evidence_helpers import noise, write_state

BEST = {  # what is tuned for decoupled decay, at laptop scale
    name: yaml.safe_load((CONFIGS / "tuned" / f"laptop_{name}.yaml").read_text())["decay"]["weight_decay"]
    for name in ("adamw", "lion", "muon")
}

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("laptop", tmp_path / "runs", 5)


def valley(moved: float = 1.0, cautious: float = -0.01, tuning: float = 0.0) -> Callable[..., dict[str, Any]]:
    """Losses with a parabola in log lambda whose minimum is, for cautious decay, `moved` times decoupled's and lower by
    `cautious`; the tuning seeds find it another `tuning` lower.
    """

    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        arm, lam = where["arm"], where["lambda"]
        own = 0.0005 * noise(seed, where["optimizer"], arm, lam) + 0.1 * noise(seed)
        if arm == "none":
            return {"loss": 3.2 + own}
        best = BEST[where["optimizer"]] * (moved if arm == "cautious" else 1.0)
        shift = (cautious if arm == "cautious" else 0.0) - (tuning if seed >= 100 else 0.0)
        return {"loss": 3.0 + shift + 0.02 * math.log(lam / best) ** 2 + own}

    return outcome


def verdict(state: State, claim: str) -> str:
    return overall(one for one in state.findings if one.claim.id == claim)


def complete(study: Study, outcome: Callable[..., dict[str, Any]], name: str = "figure1") -> State:
    """Written twice: what the tuning seeds choose asks for runs of its own."""
    write_state(study, name, outcome)
    return write_state(Study("laptop", study.folder.root, 5), name, outcome)


# The vertex of a parabola


@pytest.mark.parametrize("true", [0.03, 0.1, 0.25])
def test_the_best_lambda_of_a_parabola_is_its_vertex(true: float) -> None:
    grid = [0.0, 0.01, 0.02, 0.05, 0.15, 0.4, 1.0]  # unevenly spaced
    losses = {lam: 3 + 0.05 * math.log(lam / true) ** 2 if lam else 4.0 for lam in grid}
    best, edge = best_lambda(losses)
    assert (best, edge) == (pytest.approx(true), False)


def test_the_vertex_is_numpys() -> None:
    losses = {0.1: 3.02, 0.3: 3.0, 1.0: 3.05, 3.0: 3.2}
    a, b, _ = np.polyfit(np.log([0.1, 0.3, 1.0]), [3.02, 3.0, 3.05], 2)
    assert best_lambda(losses)[0] == pytest.approx(math.exp(-b / (2 * a)))


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({0.0: 3.1, 0.1: 3.0, 0.3: 3.2}, 0.1),  # below it lies only zero, which has no logarithm
        ({0.0: 3.0, 0.1: 3.1, 0.3: 3.2}, 0.0),
        ({0.1: 3.2, 0.3: 3.1, 1.0: 3.0}, 1.0),
        ({0.1: 3.0, 0.3: 3.1, 1.0: 3.2}, 0.1),
    ],
)
def test_the_edge_of_the_grid_is_said(losses: dict[float, float], best: float) -> None:
    assert best_lambda(losses) == (best, True)


def test_a_neighbour_that_diverged_leaves_the_grid_point() -> None:
    assert best_lambda({0.1: 3.2, 0.3: 3.0, 1.0: math.inf, 3.0: math.inf}) == (0.3, False)


# The claim that it does not move


def test_an_unmoved_best_lambda_supports_and_a_moved_one_contradicts(tmp_path: Path) -> None:
    for moved, expected in ((1.05, "supported"), (3.0, "contradicted"), (3**0.5, "unresolved")):
        study = Study("laptop", tmp_path / f"runs{moved}", 5)
        state = complete(study, valley(moved))
        assert verdict(state, "best_lambda_unchanged") == expected
        ratios = [one for one in state.findings if one.claim.id == "best_lambda_unchanged"]
        for one in ratios:
            assert one.estimate is not None
            assert one.estimate.mean == pytest.approx(math.log2(moved), abs=0.1)


def test_a_best_lambda_at_the_edge_resolves_nothing(study: Study) -> None:
    state = complete(study, valley(moved=30.0))
    (one, *_) = (one for one in state.findings if one.claim.id == "best_lambda_unchanged")
    assert one.verdict == "unresolved"
    assert f"best lambda at the edge of the grid: cautious at {10 * BEST['adamw']:g}" in one.notes[0]


# Each arm at its own best lambda


def test_the_same_lambda_and_the_own_lambda_can_say_opposite_things(study: Study) -> None:
    """What small models show: cautious decay wants more lambda, loses at decoupled's best, wins at its own."""
    state = complete(study, valley(moved=3.0, cautious=-0.01))
    at_tuned = [
        one
        for one in state.findings
        if one.claim.id == "lower_at_each_lambda" and one.coordinates["lambda"] == BEST[one.coordinates["optimizer"]]
    ]
    assert {one.verdict for one in at_tuned} == {"contradicted"}
    assert verdict(state, "lower_at_own_lambda") == "supported"
    own = [point for point in state.points if point.coordinates["choice"] == "own"]
    for point in own:
        factor = 3.0 if point.coordinates["arm"] == "cautious" else 1.0
        assert point.coordinates["lambda"] == pytest.approx(BEST[point.coordinates["optimizer"]] * factor)


def test_lambda_is_chosen_on_tuning_seeds_and_reported_on_others(study: Study) -> None:
    """Report seeds that like another lambda do not change the choice, and tuning seeds are in no finding."""

    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        return valley(moved=3.0 if seed >= 100 else 0.3, tuning=5.0)(where, seed)

    state = complete(study, outcome)
    choices = {(c.optimizer, c.arm): c for c in state.choices}
    assert {choices[optimizer, "cautious"].multiple for optimizer in BEST} == {3.0}
    for one in state.findings:
        assert set(one.values) <= set(range(5))


def test_the_tuning_budget_of_each_arm_is_counted(study: Study) -> None:
    state = complete(study, valley())
    assert {(choice.arm, choice.runs) for choice in state.choices} == {("decoupled", 10), ("cautious", 10)}
    remarks = " ".join(document(state).remarks)
    assert f"adamw cautious: lambda {BEST['adamw']:g} (of 10 runs on seeds 100, 101)" in remarks
    cells = 6 * 4 + 5 * 3 + 4 * 4  # of configs/ladder/laptop.yaml, at 338m
    assert f"decoupled decay ({2 * cells} runs in the tuning's grid); cautious decay reuses them" in remarks


def test_an_own_lambda_at_the_edge_is_warned_about(study: Study) -> None:
    state = complete(study, valley(moved=30.0))
    assert "AT THE EDGE OF ITS GRID" in " ".join(document(state).remarks)
    assert {choice.arm for choice in state.choices if choice.at_edge} == {"cautious"}


@pytest.mark.parametrize(
    ("at_edge", "lower", "expected"),
    [
        ("cautious", "decoupled", "unresolved"),  # with more lambda cautious decay may yet be lower
        ("cautious", "cautious", "supported"),
        ("decoupled", "cautious", "unresolved"),
        ("decoupled", "decoupled", "contradicted"),
    ],
)
def test_an_own_lambda_at_the_edge_gives_no_verdict_that_a_wider_grid_could_turn(
    study: Study, at_edge: str, lower: str, expected: str
) -> None:
    other = {"cautious": "decoupled", "decoupled": "cautious"}
    losses = valley(moved=30.0, cautious=-0.05 if lower == at_edge else 0.05)  # of the arm at the edge

    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        arm = where["arm"] if at_edge == "cautious" else other.get(where["arm"], where["arm"])
        return losses({**where, "arm": arm}, seed)

    found = [one for one in complete(study, outcome).findings if one.claim.id == "lower_at_own_lambda"]
    note = f"own best of {at_edge} at the edge of its grid, widen it"
    for one in found:
        assert (one.verdict, one.notes) == (expected, (note,) if expected == "unresolved" else ())
        assert one.p is not None
        assert one.p < 0.05


def test_before_the_tuning_is_done_own_lambdas_wait(study: Study) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
        return None if seed == 101 else valley()(where, seed)

    state = write_state(study, "figure1", outcome)
    assert state.choices == []
    assert verdict(state, "lower_at_own_lambda") == "not run"
    assert any("the tuning of figure1" in needs for needs in state.needs)


def test_the_own_lambdas_of_table10_are_those_of_figure1(study: Study) -> None:
    complete(study, valley(moved=3.0))
    state = Study("laptop", study.folder.root, 5).state("table10")
    for point in state.points:
        if point.coordinates["choice"] == "own":
            assert point.coordinates["multiple"] == (3.0 if point.coordinates["arm"] == "cautious" else 1.0)


def test_a_lambda_that_diverges_is_never_chosen(study: Study) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        return {"diverged": True} if where["multiple"] == 1 else valley()(where, seed)

    state = complete(study, outcome)
    assert state.choices
    assert all(choice.multiple != 1 for choice in state.choices)
