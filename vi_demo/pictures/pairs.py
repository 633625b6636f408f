"""Pairs of coordinates: the reference's density, and every fit's contours over it."""

from __future__ import annotations

import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vi_demo.pictures.contents import (
    draws_of,
    fit_names,
    groups_of,
    landscape_dim,
    most_different,
    peak_sd,
    short,
    smooth,
    view,
)
from vi_demo.pictures.drawing import (
    COLOURS,
    HALO,
    LINE,
    STYLE,
    WIDTH,
    density_levels,
    draw_densities,
    keys,
    looks,
    note,
    shade,
)
from vi_demo.pictures.words import spoken

MOST = 3  # coordinates
BINS = 128
AROUND = 0.3  # of what is seen, more on each side
LEAST_DRAWS = 10
SHRUNK = 0.9  # of the draws' correlation: at one a kernel would be a line
LETTERS_OF_AXIS = 18  # of a panel's label
SHADES = (0.5, 0.8, 0.95)  # of the reference's mass
LINES = (0.5, 0.9)  # of a fit's


def pairs_figure(run: xr.DataTree) -> Figure | None:
    """Draw the coordinates that the fits get most wrong, each against each.

    Below the diagonal the joint densities, on it the marginal ones. None where a single picture
    shows all there is.
    """
    ranked = most_different(run)
    if landscape_dim(run) is not None or len(ranked) < 2:
        return None
    shown = ranked[:MOST]
    groups, size = groups_of(run), min(MOST, len(shown))
    draws = {c: {g: draws_of(run, g, c) for g in groups} for c in shown}
    limits = {c: view(list(draws[c].values())) for c in shown}
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.7 * size + 3 * LINE), layout="constrained")
        panels = figure.subplots(size, size, sharex="col", squeeze=False)
        for i, j in np.ndindex(size, size):
            ax, x, y = panels[i, j], shown[j], shown[i]
            if j > i:
                ax.remove()
                continue
            if i == j:
                curves = {
                    g.replace("reference", "target"): smooth(d, limits[x])
                    for g, d in draws[x].items()
                }
                draw_densities(ax, curves)
            else:
                joint(ax, run, (draws[x], draws[y]), (limits[x], limits[y]))
                ax.set_ylim(limits[y])
            ax.set_xlim(limits[x])
            ax.label_outer(remove_inner_ticks=True)
            if i == size - 1:
                ax.set_xlabel(short(x.title, LETTERS_OF_AXIS))
            if j == 0 and i > 0:
                ax.set_ylabel(short(y.title, LETTERS_OF_AXIS))
        handles = keys(run)
        labels = [
            "target, from the reference's draws" if k == "target" else spoken(k) for k in handles
        ]
        figure.legend(list(handles.values()), labels, loc="outside upper left", ncols=len(handles))
        note(
            figure,
            "shades hold 50, 80 and 95% of the reference's draws, lines 50 and 90% of a fit's; "
            "crosses: means",
        )
    return figure


def joint(ax: Axes, run: xr.DataTree, draws: tuple[dict, dict], limits: tuple) -> None:
    """The reference's density as shades, every fit's as lines, of two coordinates."""
    xs, ys = draws
    style = looks(fit_names(run))
    for group in xs:
        found = joint_density(xs[group], ys[group], limits)
        if found is None:
            continue
        x, y, density = found
        log_p = np.log(np.maximum(density, 1e-300))
        if group == "reference":
            levels = np.unique(density_levels(log_p, SHADES))
            fills = [shade(s) for s in np.linspace(0.18, 0.55, len(levels))]
            ax.contourf(x, y, log_p.T, levels=[*levels, log_p.max() + 1e-9], colors=fills)
            ax.contour(x, y, log_p.T, levels=levels, colors=COLOURS["target"], linewidths=0.4)
        else:
            look = style[group]
            levels = np.unique(density_levels(log_p, LINES))
            ax.contour(
                *(x, y, log_p.T),
                levels=levels,
                colors=[look.color],
                linestyles=[look.linestyle],
                linewidths=1.1,
            )
            ax.plot(xs[group].mean(), ys[group].mean(), "x", color=look.color, path_effects=[HALO])


def joint_density(x: np.ndarray, y: np.ndarray, limits: tuple):
    """A kernel density of two columns of draws around limits: two axes, and values (n, n).

    The kernel is as wide as Silverman's rule for the peak, so that modes stay apart, and as
    correlated as the draws, so that a ridge stays one.
    """
    if len(x) != len(y) or not len(x) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    spans = [(low, high, AROUND * (high - low)) for low, high in limits]
    edges = [np.linspace(low - out, high + out, BINS + 1) for low, high, out in spans]
    counts, *_ = np.histogram2d(x, y, bins=edges)
    if counts.sum() < LEAST_DRAWS:
        return None
    steps = np.array([e[1] - e[0] for e in edges])
    width = 1.06 * np.array([peak_sd(np.sort(v)) for v in (x, y)]) * len(x) ** (-1 / 6)
    width = np.maximum(width, 0.7 * steps)
    rho = SHRUNK * np.corrcoef(x, y)[0, 1]
    u, v = (
        2 * np.pi * np.fft.fftfreq(BINS, step) * w for step, w in zip(steps, width, strict=True)
    )
    kernel = np.exp(-0.5 * (u[:, None] ** 2 + v**2) - rho * u[:, None] * v)
    density = np.maximum(np.fft.ifft2(np.fft.fft2(counts) * kernel).real, 0.0)
    return *((e[1:] + e[:-1]) / 2 for e in edges), density
