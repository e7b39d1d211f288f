"""Figures: one colour for each arm everywhere, legible on white and to the colour-blind; files that do not change."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence_helpers import noise, write_state
from matplotlib.axes import Axes

from cwd.evidence.colours import ARM_COLOURS, DASHES, MARKERS, OPTIMIZER_COLOURS, PAPER_COLOUR, other_styles, style_of
from cwd.evidence.document import Document, Figure, Panel, Series
from cwd.evidence.figures import build_figure
from cwd.evidence.plots import canvas_of, draw, spread
from cwd.evidence.study import Study
from cwd.schema.optimization import MODES

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
SIGHT = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour: str) -> np.ndarray:
    """sRGB's inverse transfer function (IEC 61966-2-1)."""
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, white D65."""
    xyz = XYZ @ rgb / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_every_arm_and_optimizer_has_a_style_of_its_own() -> None:
    assert set(ARM_COLOURS) == set(MODES)
    for names in (ARM_COLOURS, OPTIMIZER_COLOURS):
        styles = [(DASHES[name], MARKERS[name]) for name in names]
        assert len(set(styles)) == len(styles)  # told apart without colour
    assert style_of("AdamW") == style_of("adamw")
    assert style_of("from (0, 0)") is None


@pytest.mark.parametrize("colours", [ARM_COLOURS, OPTIMIZER_COLOURS])
def test_colours_are_legible_on_white_and_told_apart_by_colour_blind_readers(colours: dict[str, str]) -> None:
    for colour in colours.values():
        assert 1.05 / (float((XYZ @ linear(colour))[1]) + 0.05) >= 3.0
    for matrix in SIGHT.values():
        seen = {name: lab(np.clip(np.asarray(matrix) @ linear(colour), 0, 1)) for name, colour in colours.items()}
        for one, two in itertools.combinations(seen, 2):
            assert np.linalg.norm(seen[one] - seen[two]) >= 13, (one, two)


def test_nine_lines_that_are_no_arms_have_nine_colours_that_are_told_apart() -> None:
    """As many as Figures 2 and 3 have starts, whose paths are known by their colours alone."""
    nine = [style.colour for style in itertools.islice(other_styles(), 9)]
    assert len(set(nine)) == 9
    for matrix in SIGHT.values():
        seen = [lab(np.clip(np.asarray(matrix) @ linear(colour), 0, 1)) for colour in nine]
        assert min(np.linalg.norm(one - two) for one, two in itertools.combinations(seen, 2)) >= 11


# Drawn


def labels_of(axes: Axes) -> dict[str, str]:
    """Text -> colour, of the names at the ends of the lines."""
    return {text.get_text(): str(text.get_color()) for text in axes.texts}


def figure_of(labels: tuple[str, ...], ends: tuple[float, ...], panels: int = 1, **more: Any) -> Figure:
    xs = (1.0, 2.0, 3.0)
    lines = tuple(
        Series(label, xs, (4.0, 3.0, end), (3.9, 2.9, end - 0.1), (4.1, 3.1, end + 0.1))
        for label, end in zip(labels, ends, strict=True)
    )
    return Figure("title", tuple(Panel(f"p{i}", "step", "loss", lines, **more) for i in range(panels)), 3)


def test_an_arm_has_its_colour_in_every_figure_whatever_stands_beside_it() -> None:
    for labels in (("decoupled", "cautious"), ("none", "cautious", "decoupled"), ("cautious",)):
        (axes,) = canvas_of(figure_of(labels, (1.0, 2.0, 3.0)[: len(labels)])).axes
        assert [line.get_color() for line in axes.lines] == [ARM_COLOURS[label] for label in labels]
        assert labels_of(axes) == {label: ARM_COLOURS[label] for label in labels}
    (axes,) = canvas_of(figure_of(("AdamW", "Muon"), (1.0, 2.0))).axes
    assert [line.get_color() for line in axes.lines] == [OPTIMIZER_COLOURS["adamw"], OPTIMIZER_COLOURS["muon"]]


@pytest.mark.parametrize("ends", [(1.0, 1.0, 1.0), (1.0, 1.001, 3.0), (2.0, 1.0, 1.02), (1.0, 2.0, 3.0)])
def test_names_at_the_ends_do_not_overlap_each_other_or_the_axis_below(ends: tuple[float, ...]) -> None:
    canvas = canvas_of(figure_of(("none", "decoupled", "cautious"), ends, panels=4))
    canvas.draw_without_rendering()
    labelled = [axes for axes in canvas.axes if axes.texts]
    assert len(labelled) == 2  # of four panels, the last of each row
    for axes in labelled:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert all(box.y0 >= axes.get_window_extent().y0 for box in boxes)
        assert all(box.x1 <= canvas.bbox.x1 for box in boxes)


def test_names_are_moved_as_little_as_they_must() -> None:
    assert spread([0.1, 0.5, 0.9], 0.2) == [0.1, 0.5, 0.9]
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([0.9, 0.6, 0.5], 0.2) == pytest.approx([0.9, 0.65, 0.45])
    assert spread([0.5, 0.5, 0.6], 0.2) == pytest.approx([0.5 + 1 / 30 - 0.2, 0.5 + 1 / 30, 0.5 + 1 / 30 + 0.2])
    assert spread([0.0, 0.05], 0.2, 0.1) == pytest.approx([0.1, 0.3])


def test_intervals_are_drawn_as_bands_around_curves_and_bars_on_points() -> None:
    (curve,) = canvas_of(figure_of(("cautious",), (1.0,))).axes
    assert len(curve.collections) == 1  # the band
    (points,) = canvas_of(figure_of(("cautious",), (1.0,), x_scale="log")).axes
    (bars,) = points.containers
    (stems,) = bars.lines[2]
    ends = [y for path in stems.get_segments() for y in path[:, 1]]
    assert ends == pytest.approx([3.9, 4.1, 2.9, 3.1, 0.9, 1.1])


def test_marks_stand_in_red_above_the_figure() -> None:
    marked = canvas_of(figure_of(("cautious",), (1.0,)), ["INCOMPLETE: of 9 runs, 3 missing"])
    assert "INCOMPLETE: of 9 runs, 3 missing" in marked.get_suptitle()
    assert marked.texts[0].get_color() == "#B00000"


def test_a_pdf_is_the_same_each_time_has_no_date_and_embeds_truetype() -> None:
    one = Document("d", "title", parts=(figure_of(("decoupled", "cautious"), (1.0, 2.0)),))
    pdf = draw(one, "pdf")
    assert draw(one, "pdf") == pdf
    assert b"CreationDate" not in pdf
    assert b"ModDate" not in pdf
    assert b"/FontFile2" in pdf  # TrueType: type 42
    assert b"/Subtype /Type3" not in pdf
    png = draw(one, "png")
    assert draw(one, "png") == png
    assert b"matplotlib" not in png.lower()


# What the paper printed, and captions


def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {"loss": 3.0 + 0.01 * noise(seed, where["arm"])}


def test_printed_losses_stand_beside_runs_of_the_papers_size_and_nowhere_else(tmp_path: Path) -> None:
    for scale, printed in (("paper", True), ("laptop", False)):
        state = write_state(Study(scale, tmp_path / scale, 3), "figure6", outcome)
        (panel,) = build_figure(state).panels
        labels = [series.label for series in panel.series]
        assert labels == ["decoupled", "cautious", *(["paper: decoupled", "paper: cautious"] if printed else [])]
        if printed:
            by_label = {series.label: series for series in panel.series}
            # Table 10, AdamW; 111M is in no table
            assert by_label["paper: decoupled"].y == (3.0136, 2.7142, 2.4973)
            assert by_label["paper: cautious"].y == (3.0059, 2.7053, 2.4881)
            (axes,) = canvas_of(build_figure(state)).axes
            assert labels_of(axes)["paper: cautious"] == PAPER_COLOUR


@pytest.mark.parametrize(
    ("seeds", "words"), [(1, "One seed: no interval."), (3, "Mean of 3 seeds. Bars: one standard")]
)
def test_the_caption_says_over_how_many_seeds(tmp_path: Path, seeds: int, words: str) -> None:
    state = write_state(Study("laptop", tmp_path, seeds), "figure6", outcome)
    figure = build_figure(state)
    assert figure.caption.startswith(words)
    assert (figure.panels[0].series[0].low is None) == (seeds == 1)
