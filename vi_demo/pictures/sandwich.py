"""The evidence sandwich: ELBO ≤ log evidence ≤ EUBO, a row for each fit."""

from __future__ import annotations

import json

import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vi_demo.pictures.contents import fit_names, short
from vi_demo.pictures.drawing import LINE, STYLE, WIDTH, Look, looks, note
from vi_demo.pictures.words import number, spoken, with_error

ROW = 0.62  # inches
LINEAR = 0.1  # nats from the evidence within which the axis is linear; logarithmic beyond
MOST_TICKS = 4  # on each side
ROOM = 6.0  # times the longest bar


def sandwich_figure(run: xr.DataTree) -> Figure | None:
    """Draw how far ELBO and EUBO of each fit are from log evidence; None where that is unknown.

    The way from ELBO to log evidence is KL(q‖p), that from log evidence to EUBO KL(p‖q), and
    both together are EUBO − ELBO.
    """
    summary = json.loads(run.attrs["summary"])
    evidence = summary["reference"]["log_evidence"]
    if evidence["value"] is None:
        return None
    names = fit_names(run)
    with matplotlib.style.context(STYLE):
        height = ROW * len(names) + 6 * LINE
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        ax = figure.subplots()
        longest = LINEAR
        for row, name in enumerate(names):
            fit = summary["fits"][name]
            longest = max(longest, bars(ax, row, fit, evidence["value"], looks(names)[name]))
        axis(ax, names, longest * ROOM)
        title = short(summary["model"]["name"], 60)
        ax.set_title(
            f"{title}: log evidence {with_error(evidence)} nats", loc="left", fontweight="bold"
        )
        note(
            figure,
            "to the left ELBO, KL(q‖p) below log evidence; to the right EUBO, KL(p‖q) above it",
        )
    return figure


def bars(ax: Axes, row: int, fit: dict, evidence: float, look: Look) -> float:
    """The two bars of a fit, each with its length in nats beside it; gives the longer one's."""
    longest = 0.0
    for name, side in (("elbo", -1), ("eubo", 1)):
        value = fit[name]["value"]
        if value is None:
            words, length = "unknown", 0.0
        else:
            length = side * (value - evidence)
            words = number(length, 3 if abs(length) < 100 else 0)
            ax.plot([0, side * length], [row, row], color=look.color, lw=7, solid_capstyle="butt")
            ax.errorbar(side * length, row, xerr=fit[name]["mcse"], color="black", capsize=2.5)
        ax.annotate(
            words,
            (side * max(length, 0.0), row),
            (side * 6, 9),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
        )
        longest = max(longest, abs(length))
    return longest


def axis(ax: Axes, names: list[str], most: float) -> None:
    """The axis of nats around log evidence, and the fits' names."""
    ax.axvline(0, color="black", lw=1)
    ax.set_xscale("symlog", linthresh=LINEAR)
    ax.set_xlim(-most, most)
    decades = 10.0 ** np.arange(np.log10(LINEAR), np.log10(most))
    decades = decades[:: -(-len(decades) // MOST_TICKS)]
    ticks = [*-decades[::-1], 0.0, *decades]
    ax.set_xticks(ticks, [f"{tick:,g}".replace("-", "−") for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_ylim(len(names) - 0.4, -0.8)
    ax.set_yticks(range(len(names)), [spoken(name) for name in names])
    ax.set_xlabel("nats from log evidence")
