"""The colour of each arm and each optimizer, the same in every figure and on every page. Needs no plotting library.

From Okabe and Ito's and Tol's palettes, as hexadecimal sRGB. On white each has a contrast of at least 3 to 1 (WCAG 2.1,
1.4.11), and any two arms lie at least 13 apart in CIELAB, for people with protanopia, deuteranopia and tritanopia too
(Machado et al. 2009). Colour is never alone: lines differ in their dashes and markers as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ARM_COLOURS: dict[str, str] = {
    "decoupled": "#0072B2",
    "cautious": "#D55E00",
    "none": "#767676",
    "random": "#CC79A7",
    "gradient": "#117733",
    "inner_product": "#999933",
    "opposite": "#332288",
    "scaled": "#2F9BD6",
    "spd": "#882255",
}
"""decay.mode -> its colour."""

OPTIMIZER_COLOURS: dict[str, str] = {"adamw": "#332288", "lion": "#999933", "muon": "#117733", "sgd": "#CC79A7"}
"""optimizer.name -> its colour, where lines are optimizers and not arms."""

PAPER_COLOUR = "#8A8A8A"
"""What the paper printed, beside what was measured."""

DASHES: dict[str, tuple[float, ...]] = {
    "decoupled": (5.0, 2.0),
    "cautious": (),
    "none": (1.2, 1.6),
    "random": (6.0, 1.5, 1.2, 1.5),
    "gradient": (3.0, 1.5),
    "inner_product": (8.0, 2.0),
    "opposite": (6.0, 1.5, 1.2, 1.5, 1.2, 1.5),
    "scaled": (2.0, 1.0),
    "spd": (8.0, 1.5, 3.0, 1.5),
    "adamw": (),
    "lion": (1.2, 1.6),
    "muon": (5.0, 2.0),
    "sgd": (6.0, 1.5, 1.2, 1.5),
}
"""An arm or an optimizer -> lengths of dash and gap in line widths; () is a whole line."""

MARKERS: dict[str, str] = {
    "decoupled": "s",
    "cautious": "o",
    "none": "^",
    "random": "D",
    "gradient": "v",
    "inner_product": "P",
    "opposite": "X",
    "scaled": "<",
    "spd": ">",
    "adamw": "o",
    "lion": "^",
    "muon": "s",
    "sgd": "D",
}
"""An arm or an optimizer -> matplotlib's name of its marker."""

OTHERS = ("#117733", "#CC79A7", "#332288", "#999933", "#2F9BD6", "#882255", "#6B3D2E", "#009E73", "#9030F0")
"""For lines that are neither, as many as Figures 2 and 3 have starts; none is the colour of the arms that nearly every
figure has.
"""


@dataclass(frozen=True)
class Style:
    """How a line is drawn."""

    colour: str
    dashes: tuple[float, ...] = ()
    marker: str = "o"


def style_of(label: str) -> Style | None:
    """The style of an arm or an optimizer, by its name or as people read it (AdamW); None for anything else."""
    name = label.lower()
    colour = {**ARM_COLOURS, **OPTIMIZER_COLOURS}.get(name)
    return Style(colour, DASHES[name], MARKERS[name]) if colour else None


def other_styles() -> Iterator[Style]:
    """Styles for lines that are neither arms nor optimizers, one after another, without end."""
    markers = list(MARKERS.values())
    count = 0
    while True:
        yield Style(OTHERS[count % len(OTHERS)], (), markers[count % len(markers)])
        count += 1
