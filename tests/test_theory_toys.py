"""Figures 2 and 3: distances against brute force, trajectories against torch.optim, ends against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwd.runs import MetricsLog, read_metrics
from cwd.theory.objectives import OBJECTIVES, Array
from cwd.theory.toys import distance_to_front, distance_to_minimisers, run_toy, toy_settings

CURVES = {
    "circle": lambda t: np.stack([3 + np.cos(t), 3 + np.sin(t)], axis=1),
    "parabola": lambda t: np.stack([t, 3 + (t - 3) ** 2], axis=1),
}
RANGES = {  # of the parameter: the whole curve, its local front and its front
    "circle": [[(0, 2 * np.pi)], [(np.pi, 1.5 * np.pi), (0, 0.5 * np.pi)], [(np.pi, 1.5 * np.pi)]],
    "parabola": [[(-6, 12)], [(0, 3)], [(0, 3)]],
}


def nearest(toy: str, ranges: list[tuple[float, float]], point: Array) -> float:
    curve = np.concatenate([CURVES[toy](np.linspace(*ends, 200_001)) for ends in ranges])
    return float(np.min(np.linalg.norm(curve - point, axis=1)))


@pytest.mark.parametrize("toy", ["circle", "parabola"])
def test_distances_are_those_to_the_nearest_of_many_points_of_the_curve(toy: str) -> None:
    points = np.random.default_rng(0).uniform(0, 6, (8, 2))
    whole, local, front = RANGES[toy]
    for ranges, ours in (
        (whole, distance_to_minimisers(toy, points)),
        (local, distance_to_front(toy, points, local=True)),
        (front, distance_to_front(toy, points, local=False)),
    ):
        np.testing.assert_allclose(ours, [nearest(toy, ranges, point) for point in points], atol=1e-7)


@pytest.mark.parametrize("toy", ["circle", "parabola"])
def test_the_local_front_is_what_no_near_minimiser_beats(toy: str) -> None:
    """By the definition, on a fine grid of minimisers: a point is beaten if a neighbour is at most as far from zero in
    every coordinate.
    """
    (low, high), *_ = RANGES[toy][0]
    curve = np.abs(CURVES[toy](np.linspace(low, high, 10_001)))
    beaten = [np.all(curve[2:] <= curve[1:-1], axis=1), np.all(curve[:-2] <= curve[1:-1], axis=1)]
    middle = CURVES[toy](np.linspace(low, high, 10_001))[1:-1]
    on_front = distance_to_front(toy, middle, local=True) < 1e-9
    tips = np.any(np.abs(np.diff(np.sign(np.diff(curve, axis=0)), axis=0)) > 0, axis=1)  # where a coordinate turns
    assert np.all((~(beaten[0] | beaten[1]) == on_front)[~tips])


def small(toy: str, **more: Any) -> dict[str, Any]:
    runs = [["none", 0.01], ["decoupled", 0.01], ["cautious", 0.01]]
    return {**toy_settings(toy), "runs": runs, "starts": [[5.0, 6.0], [1.0, 5.0]], "steps": 120, "kept": 11, **more}


def run(settings: dict[str, Any], tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    log = MetricsLog(tmp_path / "m")
    summary = run_toy(settings, lambda text: None, log)
    log.close()
    return summary, read_metrics(tmp_path / "m", "trajectory")


@pytest.mark.parametrize("toy", ["circle", "parabola"])
def test_trajectories_are_torchs_and_cautious_ones_the_papers_algorithm(toy: str, tmp_path: Path) -> None:
    summary, lines = run(small(toy), tmp_path)
    for decay, run_summary in zip(("none", "decoupled", "cautious"), summary["runs"], strict=True):
        for number, start in enumerate(run_summary["starts"]):
            expected = reference(toy, decay, start, 120)
            np.testing.assert_allclose(run_summary["ends"][number], expected, rtol=1e-10)
            last = [line for line in lines if line["decay"] == decay][-1]
            assert (last["step"], last["points"][number]) == (120, run_summary["ends"][number])
    assert [line["step"] for line in lines if line["decay"] == "none"][:4] == [0, 1, 5, 11]


def reference(toy: str, decay: str, start: list[float], steps: int) -> list[float]:
    """torch.optim.AdamW, or Algorithm 6 written out."""
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    decayed = 0.5 if decay == "decoupled" else 0.0
    stepper = torch.optim.AdamW([x], lr=0.01, betas=(0.9, 0.99), weight_decay=decayed)
    for _ in range(steps):
        x.grad = torch.from_numpy(OBJECTIVES[toy](0).gradient(x.detach().numpy()))
        before = x.detach().clone()
        stepper.step()
        if decay == "cautious":
            with torch.no_grad():
                x -= 0.01 * 0.5 * before * ((before - x) * before >= 0)
    return x.tolist()


@pytest.mark.parametrize("toy", ["circle", "parabola"])
def test_adam_ends_at_any_minimiser_and_cautious_decay_on_the_front(toy: str, tmp_path: Path) -> None:
    settings = small(toy, starts=[[5.0, 6.0], [0.5, 0.5]], steps=4000, runs=[["none", 0.01], ["cautious", 0.01]])
    adam, cautious = run(settings, tmp_path)[0]["runs"]
    assert max(adam["to_minimisers"]) < 2e-3
    assert adam["to_front"][0] > 1
    assert max(cautious["to_front"]) < 0.02
    assert max(cautious["f"]) < 1e-3
    assert cautious["worst"] == {name: max(cautious[name]) for name in ("to_minimisers", "to_local_front")}


@pytest.mark.parametrize(("toy", "f"), [("circle", 1.0), ("parabola", 4.0)])
def test_adamw_ends_at_the_corner_of_the_box(toy: str, f: float, tmp_path: Path) -> None:
    summary, _ = run(small(toy, steps=12_000, runs=[["decoupled", 0.01]]), tmp_path)
    assert summary["corner"] == [2, 2]
    assert summary["runs"][0]["worst"]["to_corner"] < 1e-4
    assert summary["runs"][0]["f"] == pytest.approx([f, f], rel=1e-3)
