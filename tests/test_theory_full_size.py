"""Every check at full size: what the paper claims and what was found against it, read from the records alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cwd.theory import CHECKS, run_check

pytestmark = pytest.mark.slow
ROWS = [name for name in CHECKS if name.startswith("table1")]


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The summary of a check at full size, computed once."""
    root: Path = tmp_path_factory.mktemp("runs")

    def find(name: str) -> dict[str, Any]:
        found = run_check(name, root).summary
        assert found is not None
        return found

    return find


@pytest.mark.parametrize("name", ROWS)
def test_h_never_rises_beyond_the_integrators_error(name: str, summary: Callable[[str], dict[str, Any]]) -> None:
    found = summary(name)
    assert found["worst"]["rise_over_tolerance"] <= 1
    assert found["worst"]["sharp_rise_over_tolerance"] <= 1
    assert found["worst"]["largest_rate"] <= 0
    assert found["worst"]["tolerance_over_drop"] < 1e-5
    for one in found["objectives"].values():
        for row in (row for level in one["levels"] for row in level["starts"]):
            assert row["rise"] <= row["tolerance"]
            assert row["sharp_rise"] <= row["sharp_tolerance"]
        balances = [max(row["balance"] for row in level["starts"]) for level in one["levels"]]
        assert balances[0] > balances[1] > balances[2]  # the error falls with the integrator's tolerance
        assert balances[0] > 30 * balances[2]
        for end in one["ends"]:
            assert end["gradient_norm"] < 0.3 * end["gradient_norm_at_start"]


@pytest.mark.parametrize("name", ROWS)
def test_the_analogous_function_rises_with_plain_decay(name: str, summary: Callable[[str], dict[str, Any]]) -> None:
    controls = [one["control"] for one in summary(name)["objectives"].values()]
    rising = [one for one in controls if one["rise"] > 1000 * one["tolerance"]]
    assert len(rising) >= 3
    if name in ("table1_sgd", "table1_sgdm", "table1_adam"):
        assert len(rising) == len(controls)


def test_sgd_slides_as_the_closed_form_says(summary: Callable[[str], dict[str, Any]]) -> None:
    for toy in summary("table1_sgd")["sliding"].values():
        distances = np.array([row["distance"] for row in toy["layers"]])
        assert np.all(distances[1:] < 0.2 * distances[:-1])
        assert distances[-1] < 1e-5 * toy["length"]


def test_h_rises_for_muon_where_the_condition_on_k_fails(summary: Callable[[str], dict[str, Any]]) -> None:
    found = summary("table1_muon")
    for path in found["signs"]["paths"]:
        limit = found["signs"]["gamma"] / found["signs"]["worst"][0]["conflict"]
        assert (path["rise"] > 100 * path["tolerance"]) == (path["weight_decay"] > limit)
    rising = [
        rows[-1] for rows in found["mask_reads_direction"].values() if rows[-1]["rise"] > 100 * rows[-1]["tolerance"]
    ]
    assert len(rising) >= 4


def test_the_bound_on_gamma_matters_for_adam(summary: Callable[[str], dict[str, Any]]) -> None:
    found = summary("table1_adam")
    assert all(row["rise"] <= row["tolerance"] for rows in found["gamma_at_bound"].values() for row in rows)
    assert all(row["rise"] > 1000 * row["tolerance"] for rows in found["gamma_beyond_bound"].values() for row in rows)


@pytest.mark.parametrize(("name", "f"), [("figure2", 1.0), ("figure3", 4.0)])
def test_toys_end_where_the_paper_says(name: str, f: float, summary: Callable[[str], dict[str, Any]]) -> None:
    adam, adamw, *cautious = summary(name)["runs"]
    assert adam["worst"]["to_minimisers"] < 2e-3
    assert np.sum(np.array(adam["to_front"]) > 0.1) >= 3  # generic minimisers
    assert adamw["worst"]["to_corner"] < 1e-6
    assert adamw["f"] == pytest.approx([f] * len(adamw["f"]), rel=1e-5)
    for one in cautious:
        assert one["worst"]["to_local_front"] < 1.5 * one["lr"] + 1e-3
    assert name == "figure3" or cautious[0]["nearest_local_front_only"] == 1  # from (3.5, 3.2), and not from the rest


def test_theorem_1_holds_and_the_means_fall(summary: Callable[[str], dict[str, Any]]) -> None:
    found = summary("theorem1")
    assert found["largest_over_bound"] < 1
    exact = found["sweeps"][0]["slope_in_T"][-1]
    assert exact["batch"] == 0
    assert exact["high"] < -0.5  # at least as fast as the theorem says
    assert all(row["high"] < 0 for row in found["sweeps"][0]["slope_in_T"])
    assert found["sweeps"][0]["slope_in_batch"]["high"] < 0
    assert found["lemmas"]["mask_violations"] == 0
    assert max(max(row["random_over_C"], row["worst_over_C"]) for row in found["lemmas"]["update"]) < 1 + 1e-12


def test_decoupled_decay_ends_at_kkt_points_and_cautious_decay_at_stationary_ones(
    summary: Callable[[str], dict[str, Any]],
) -> None:
    for objective in summary("appendix_c")["objectives"].values():
        for optimizer in ("sgd", "lion", "adamw", "muon"):
            short, long = objective[optimizer]["runs"]
            assert objective[optimizer]["solver"]["residual"] < 1e-7
            assert long["decoupled"]["distance"] < 1e-4
            assert long["decoupled"]["gradient_norm"] > 0.1
            assert long["cautious"]["gradient_norm"] < (0.01 if optimizer == "sgd" else 1e-5)
            assert optimizer != "sgd" or long["cautious"]["gradient_norm"] < 0.5 * short["cautious"]["gradient_norm"]
        assert objective["muon_default"]["runs"][-1]["decoupled"]["distance"] > 0.01  # its steps are not orthogonal
