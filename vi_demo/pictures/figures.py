"""Every figure of a run: how each is drawn, its title, and what to see in it.

A figure needs a saved run and nothing else: no JAX, no model, no display. A function gives None
where the run does not hold what it draws. A new figure is one function and its row in `FIGURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import xarray as xr
from matplotlib.figure import Figure

from vi_demo.pictures.drawing import save
from vi_demo.pictures.fit import fit_figure
from vi_demo.pictures.measures import (
    divergences_figure,
    modes_figure,
    ranks_figure,
    weights_figure,
)
from vi_demo.pictures.pairs import pairs_figure
from vi_demo.pictures.sandwich import sandwich_figure
from vi_demo.pictures.ways import (
    descent_figure,
    history_figure,
    kl_landscape_figure,
    path_figure,
)


class Plate(NamedTuple):
    """A figure of a run: how it is drawn, its title, and what to see in it."""

    draw: Callable[[xr.DataTree], Figure | None]
    title: str
    caption: str


FIGURES = {
    "fit": Plate(
        fit_figure,
        "The fits over the target",
        "Where a guide has no mass under the target's shade, draws from it miss what is there.",
    ),
    "evidence": Plate(
        sandwich_figure,
        "The evidence between its bounds",
        "ELBO ≤ log evidence ≤ EUBO: the way to the left is KL(q‖p), that to the right KL(p‖q).",
    ),
    "modes": Plate(
        modes_figure,
        "Modes, and who covers them",
        "A mode is covered where the guide has at least a tenth of its mass in its basin.",
    ),
    "divergences": Plate(
        divergences_figure,
        "Every divergence from the target",
        "On a logarithmic scale; a triangle at the left edge is as near as can be told.",
    ),
    "pairs": Plate(
        pairs_figure,
        "Pairs of coordinates, the worst fitted first",
        "What marginal densities cannot show: correlations, and curves that no ellipse follows.",
    ),
    "ranks": Plate(
        ranks_figure,
        "Ranks of the reference's draws among each fit's",
        "Inside the grey band a fit cannot be told from the reference by this coordinate alone.",
    ),
    "weights": Plate(
        weights_figure,
        "Importance weights and their tail",
        "A curve that falls steeply has weights that correct the fit; a flat one has a few draws "
        "that outweigh all others.",
    ),
    "descent": Plate(
        descent_figure,
        "The way down, from the same starts",
        "Plain Adam on each divergence: whatever differs is the divergence's doing.",
    ),
    "kl_landscape": Plate(
        kl_landscape_figure,
        "Both KLs over the guide's mean and sd",
        "Reverse KL has a valley for each mode that is apart; forward KL has one.",
    ),
    "history": Plate(
        history_figure,
        "How the fits went",
        "What each fitter goes by, every start; fits begin where climbs have ended.",
    ),
    "path": Plate(
        path_figure,
        "From reverse to forward KL",
        "The best guide along α; where it jumps, no compromise between the two lies in between.",
    ),
}


def drawn(run: xr.DataTree) -> dict[str, Figure]:
    """Every figure of a run that can be drawn, by name."""
    found = {name: plate.draw(run) for name, plate in FIGURES.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def writers(figures: dict[str, Figure], suffix: str = "png") -> dict[str, Callable]:
    """Writers of figures, by the names of their files."""
    return {f"{name}.{suffix}": partial(save, figure) for name, figure in figures.items()}
