"""One function a figure, DataTree -> Figure, and the table of them all.

A figure needs a saved run and nothing else: no JAX, no model, no display. A function gives None
where the run does not hold what it draws. A new figure is one function and its row in `FIGURES`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vi_demo.pictures.contents import axis_labels
from vi_demo.pictures.drawing import COLOURS, DASHES, STYLE, WIDTH, save
from vi_demo.pictures.fit import fit_figure
from vi_demo.pictures.sandwich import sandwich_figure


def path_figure(run: xr.DataTree) -> Figure | None:
    """Draw the optima along alpha from reverse to forward KL: how good, and where they are.

    Branches begin at either end, in its colour; the best is thick, and where it leaves one
    optimum for another there is a line.
    """
    if "path" not in run.children:
        return None
    path = run["path"].to_dataset()
    summary = json.loads(run.attrs["summary"])["path"]
    means, sds = path["mean"].values, path["sd"].values
    i = int((np.ptp(means, axis=(0, 1)) / sds.mean((0, 1))).argmax())
    alpha, name = path["alpha"].values, axis_labels(run)[i]
    rows = {
        "divergence, nats": (path["divergence"].values, summary["divergence"]),
        f"mean of {name}": (means[..., i], np.array(summary["mean"])[:, i]),
        f"sd of {name}": (sds[..., i], np.array(summary["sd"])[:, i]),
    }
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
        panels = figure.subplots(len(rows), 1, sharex=True)
        for ax, (label, (branches, best)) in zip(panels, rows.items(), strict=True):
            for values, begin in zip(branches, path["begins"].values, strict=True):
                end = "forward_kl" if begin else "reverse_kl"
                ax.plot(alpha, values, color=COLOURS[end], linestyle=DASHES[end], linewidth=1)
            best = broken(alpha, np.asarray(best, float), summary["jumps"])
            ax.plot(*best, color="black", linewidth=3, alpha=0.35, solid_capstyle="round")
            for jump in summary["jumps"]:
                ax.axvline(jump, color=COLOURS["quiet"], linewidth=0.8, linestyle=":")
            ax.set_ylabel(label)
        panels[-1].set_xlabel("α, from KL(q‖p) at 0 to KL(p‖q) at 1")
        panels[0].legend(handles=path_keys(summary["jumps"]), loc="best")
    return figure


def broken(x: np.ndarray, y: np.ndarray, jumps: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A curve that is not drawn across its jumps."""
    places = np.searchsorted(x, jumps)
    return np.insert(x, places, jumps), np.insert(y, places, np.nan)


def path_keys(jumps: Sequence[float]) -> list[Line2D]:
    """What the lines of a path are."""
    ends = {"reverse_kl": "followed from reverse KL", "forward_kl": "followed from forward KL"}
    keys = [
        Line2D([], [], color=COLOURS[k], linestyle=DASHES[k], linewidth=1, label=text)
        for k, text in ends.items()
    ]
    keys.append(Line2D([], [], color="black", linewidth=3, alpha=0.35, label="the best"))
    if jumps:
        where = ", ".join(f"{a:.2f}" for a in jumps)
        look = {"color": COLOURS["quiet"], "linewidth": 0.8, "linestyle": ":"}
        keys.append(Line2D([], [], label=f"the best jumps, α = {where}", **look))
    return keys


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
