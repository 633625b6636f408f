"""Pictures of what was measured: divergences, modes, weights and ranks, a look for each fit."""

from __future__ import annotations

import json
from collections.abc import Sequence

import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vi_demo.pictures.contents import (
    Coordinate,
    draws_of,
    fit_names,
    most_different,
    short,
)
from vi_demo.pictures.drawing import (
    CHANCE,
    COLOURS,
    LINE,
    STYLE,
    WIDTH,
    Look,
    keys,
    logarithmic,
    looks,
    note,
    shade,
)
from vi_demo.pictures.words import measured, number, spoken, with_error

ROW = 0.3  # inches
LEAST = 1e-3  # nats: nearer than this is drawn here
MOST_MODES = 12
TAIL = 0.2  # of all weights at most, or 3√S of them: Vehtari et al. 2024, arXiv 1507.02646
SPREAD = 1e-3  # of log weights, below which they are all the same
MOST_RANKS = 6
COVERED = 0.1  # of a mode's mass: less of it in a guide, and the mode is missed


# Divergences.


def divergences_figure(run: xr.DataTree) -> Figure | None:
    """Draw every divergence of every fit on one scale, with its value beside it."""
    fits = json.loads(run.attrs["summary"])["fits"]
    names = fit_names(run)
    rows = [
        row
        for row in dict.fromkeys(d for name in names for d in fits[name]["divergences"])
        if any(known(fits[name]["divergences"].get(row)) for name in names)
    ]
    if not rows:
        return None
    with matplotlib.style.context(STYLE):
        height = ROW * len(rows) * max(1, len(names) / 2) + 5 * LINE
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        ax = figure.subplots()
        logarithmic(ax.xaxis)
        shifts = np.linspace(-0.22, 0.22, len(names)) if len(names) > 1 else [0.0]
        for shift, (name, look) in zip(shifts, looks(names).items(), strict=True):
            for i, row in enumerate(rows):
                dot(ax, fits[name]["divergences"].get(row), i + shift, look)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_yticks(range(len(rows)), [measured(row) for row in rows])
        ax.set_xlim(LEAST / 1.5, None)
        ax.grid(axis="x", linewidth=0.4, alpha=0.5)
        ax.set_xlabel("nats (total variation and Hellinger: without unit)")
        ax.legend(handles=dots(names), ncols=min(4, len(names)), loc="lower left", **ABOVE)
    return figure


ABOVE = {"bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}  # a legend's place


def known(estimate: dict | None) -> bool:
    """Whether there is a value."""
    return bool(estimate) and estimate["value"] is not None


def dot(ax: Axes, estimate: dict | None, y: float, look: Look) -> None:
    """One divergence: its place, its error, and its figures."""
    if not known(estimate):
        why = (estimate or {}).get("reason", "unknown").partition(":")[0]
        ax.annotate(why, (LEAST, y), color=look.color, fontsize=8, va="center", alpha=0.8)
        return
    value, error = estimate["value"], estimate["mcse"] or 0.0
    x = max(value, LEAST)
    if value > LEAST and error > 0:
        ends = [max(value - error, LEAST), value + error]
        ax.plot(ends, [y, y], color=look.color, linewidth=1.2)
    marker = "o" if value >= LEAST else "<"
    ax.plot([x], [y], marker, color=look.color, markersize=5)
    ax.annotate(
        with_error(estimate), (x, y), (7, 0), textcoords="offset points", va="center", fontsize=8
    )


def dots(names: Sequence[str]) -> list[Line2D]:
    """A dot for the legend for each fit."""
    return [
        Line2D(
            [], [], marker="o", linestyle="", markersize=5, color=look.color, label=spoken(name)
        )
        for name, look in looks(names).items()
    ]


# Modes.


def modes_figure(run: xr.DataTree) -> Figure | None:
    """Draw the mass of every mode, and what each fit has in its basin; None of one mode alone."""
    summary = json.loads(run.attrs["summary"])
    modes = summary["reference"].get("modes") or []
    names = [name for name in fit_names(run) if summary["fits"][name].get("mode_shares")]
    if len(modes) < 2 or not names:
        return None
    shown = modes[:MOST_MODES]
    style = looks(fit_names(run))
    with matplotlib.style.context(STYLE):
        height = 0.26 * len(shown) * (1 + len(names)) + 6 * LINE
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        ax = figure.subplots()
        thick = 0.8 / (1 + len(names))
        y = np.arange(len(shown))
        masses = [mode["mass"] for mode in shown]
        errors = [mode.get("mcse") or 0.0 for mode in shown]
        blue = {"color": shade(0.45), "edgecolor": COLOURS["target"], "ecolor": COLOURS["target"]}
        ax.barh(y, masses, thick, xerr=errors, label="target", **blue)
        for i, name in enumerate(names, 1):
            shares = summary["fits"][name]["mode_shares"][: len(shown)]
            look = style[name]
            ax.barh(y + i * thick, shares, 0.8 * thick, color=look.color, label=spoken(name))
            for j, (share, mass) in enumerate(zip(shares, masses, strict=True)):
                missed = "" if share >= COVERED * mass else "  missed"
                ax.annotate(
                    f"{100 * share:.0f}%{missed}",
                    (share, j + i * thick),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        ax.set_yticks(y + thick * len(names) / 2, [place(mode) for mode in shown])
        ax.set_ylim(len(shown) - 0.3, -0.5)
        most = max(*masses, *(max(summary["fits"][n]["mode_shares"]) for n in names))
        ax.set_xlim(0, 1.2 * most)
        ax.set_xlabel("share of all mass in the mode's basin")
        ax.legend(loc="lower left", ncols=1 + len(names), **ABOVE)
        if len(modes) > len(shown):
            note(figure, f"the {len(shown)} heaviest of {len(modes)} modes")
    return figure


def place(mode: dict) -> str:
    """Where a mode is, by its first few numbers."""
    values = [
        f"{site} = {number(float(np.ravel(value)[0]), 2)}" + ", …" * (np.size(value) > 1)
        for site, value in list(mode["location"].items())[:2]
        if np.size(value)
    ]
    return short("; ".join(values), 30)


# Weights.


def weights_figure(run: xr.DataTree) -> Figure | None:
    """Draw how many draws have larger weights than each, with the Pareto tail that k-hat fits."""
    fits = json.loads(run.attrs["summary"])["fits"]
    known = {name: weights_of(run, name) for name in fit_names(run)}
    known = {name: log_w for name, log_w in known.items() if log_w is not None}
    if not known:
        return None
    style = looks(fit_names(run))
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
        for ax, (name, log_w) in zip(panels, known.items(), strict=True):
            exceedance(ax, log_w, fits[name]["khat"], style[name])
            ax.set_title(f"{spoken(name)}: {khat_words(fits[name])}")
        panels[0].set_ylabel("share of draws above")
        logarithmic(panels[0].yaxis)
        note(
            figure,
            "both axes logarithmic; dotted: the Pareto tail of k-hat, from 0.7 on too heavy to "
            "correct with",
        )
    return figure


def weights_of(run: xr.DataTree, name: str) -> np.ndarray | None:
    """Log weights (S,), descending, of mean weight one; None where there are none."""
    stats = run[name].children.get("sample_stats")
    if stats is None or "log_weights" not in stats:
        return None
    log_w = stats["log_weights"].values.ravel()
    log_w = np.sort(log_w[np.isfinite(log_w)])[::-1]
    if len(log_w) < 100:
        return None
    top = log_w[0]
    return log_w - top - np.log(np.mean(np.exp(log_w - top)))


def exceedance(ax: Axes, log_w: np.ndarray, khat: float | None, look: Look) -> None:
    """The share of draws above each weight, and the tail that a generalised Pareto law has."""
    above = np.arange(1, len(log_w) + 1) / len(log_w)
    tens = log_w / np.log(10)
    ax.plot(tens, above, color=look.color, linestyle="-", linewidth=1.6)
    number_in_tail = int(min(TAIL * len(log_w), 3 * np.sqrt(len(log_w))))
    if khat is not None and np.ptp(log_w) > SPREAD:
        w = np.exp(log_w[: number_in_tail + 1])
        excess = w[:-1] - w[-1]
        # The scale that has the excess's median, given the shape.
        scale = np.median(excess) * (khat / (2**khat - 1) if abs(khat) > 1e-6 else 1 / np.log(2))
        x = np.geomspace(max(excess.min(), 1e-12), 3 * excess.max(), 100)
        with np.errstate(invalid="ignore", divide="ignore"):
            survival = np.maximum(1 + khat * x / scale, 0.0) ** (-1 / khat)
        tail = above[number_in_tail] * survival
        ax.plot(np.log10(w[-1] + x), tail, ":", color="black", linewidth=1.4)
        ax.axvspan(np.log10(w[-1]), np.log10(w[-1] + x[-1]), color="0.93", zorder=0)
    ax.set_ylim(0.5 / len(log_w), 1.3)
    low = np.quantile(tens, 0.02)
    ax.set_xlim(min(low, -0.5), max(tens[0], 0.5) * 1.15)
    ax.set_xlabel("log₁₀ of weight p/q over its mean")


def khat_words(fit: dict) -> str:
    """k-hat as the title of a panel."""
    if fit["khat"] is not None:
        return f"k-hat {number(fit['khat'], 2)}"
    return "constant weights" if "constant" in fit.get("khat_reason", "") else "no k-hat"


# Ranks.


def ranks_figure(run: xr.DataTree) -> Figure | None:
    """Draw where the reference's draws rank among each fit's, less what even ranks would do.

    Δ-ECDFs (Säilynoja et al. 2022, arXiv 2103.10522) of the coordinates that differ most. ArviZ
    draws one fit a panel; here both lie over each other.
    """
    if "reference" not in run.children:
        return None
    names = fit_names(run)
    shown = most_different(run)[:MOST_RANKS]
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.45 * rows + 4 * LINE), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for ax, coordinate in zip(panels, shown, strict=False):
            for name, look in looks(names).items():
                rank_curve(ax, run, name, coordinate, look)
            ax.set_title(coordinate.title)
        for ax in panels[len(shown) :]:
            ax.remove()
        handles = {k: v for k, v in keys(run).items() if k != "target"}
        band = Patch(color="0.85", label="chance, 95%")
        figure.legend(
            [*handles.values(), band],
            [*map(spoken, handles), "chance, 95%"],
            loc="outside upper left",
            ncols=1 + len(handles),
        )
        note(
            figure,
            "above 0 at the left and below it at the right: the fit is too narrow there; one "
            "hump: it is shifted",
        )
    return figure


def rank_curve(ax: Axes, run: xr.DataTree, name: str, coordinate: Coordinate, look: Look) -> None:
    """The ECDF of the reference's normalised ranks among a fit's draws, less the diagonal."""
    theirs = draws_of(run, "reference", coordinate)
    ours = np.sort(draws_of(run, name, coordinate))
    if not len(ours) or not len(theirs):
        return
    # In the middle of ties, of which discrete sites are full.
    sides = [np.searchsorted(ours, theirs, side=side) for side in ("left", "right")]
    u = np.sort((np.mean(sides, axis=0) + 0.5) / (len(ours) + 1))
    even = np.linspace(0, 1, 201)
    ecdf = np.searchsorted(u, even, side="right") / len(u)
    chance = CHANCE * np.sqrt(1 / len(u) + 1 / len(ours))
    ax.fill_between(even, -chance, chance, color="0.85", linewidth=0, zorder=0)
    ax.plot(even, ecdf - even, **look._asdict())
    ax.axhline(0, color=COLOURS["quiet"], linewidth=0.5, zorder=1)
    ax.set_xlim(0, 1)
