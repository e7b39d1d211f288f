"""Figures: one colour for each arm everywhere, legible on white and to the colour-blind; files that do not change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cwd.evidence.colours import ARM_COLOURS, DASHES, MARKERS, OPTIMIZER_COLOURS, style_of
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
