"""The picture of a run: its target, every fit over it, and in words what became of each."""

from __future__ import annotations

import json
import textwrap

import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vi_demo.pictures.contents import (
    axis_labels,
    densities,
    draws_of,
    fit_names,
    groups_of,
    landscape_dim,
    moments,
    most_different,
    short,
    smooth,
    view,
)
from vi_demo.pictures.drawing import (
    HALO,
    LETTERS,
    LINE,
    MASSES,
    STYLE,
    WIDTH,
    contours,
    density_levels,
    draw_densities,
    ellipse,
    keys,
    looks,
    note,
)
from vi_demo.pictures.words import SIGNS, spoken

MOST_PANELS = 6
COLUMNS = 3
BESIDE = 0.6  # inches: the height of a marginal beside contours
TALLEST = 4.0  # inches: contours
FLATTEST = 0.4  # height over width of contours, or the other way round


def fit_figure(run: xr.DataTree) -> Figure:
    """Draw a run: its target, every fit over it, and in words what became of each.

    Targets of one or two dimensions are drawn on R^d, where they were fitted; others by the
    marginals that the fits get most wrong, on the model's own scale.
    """
    panels = {1: line, 2: plane}.get(landscape_dim(run), marginals)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        handles, height = panels(figure, run)
        height += header(figure, run, handles)
        figure.set_size_inches(WIDTH, height)
    return figure


# The words above.


def header(figure: Figure, run: xr.DataTree, handles: dict) -> float:
    """Write the model's name and a line of words for each thing drawn; gives their height."""
    summary = json.loads(run.attrs["summary"])
    words = {"target": target_words(summary["reference"])}
    words |= {name: fit_words(name, fit) for name, fit in summary["fits"].items()}
    labels = [words[name] for name in handles]
    legend = figure.legend(
        list(handles.values()),
        labels,
        loc="outside upper left",
        title=short(summary["model"]["name"], 60),
        alignment="left",
        labelspacing=0.6,
    )
    legend.get_title().set_fontweight("bold")
    lines = sum(1 + label.count("\n") for label in labels)
    return LINE * (lines + 0.5 * len(labels) + 2)


def target_words(reference: dict) -> str:
    """Where the target that is drawn comes from, and whether to trust it."""
    words = f"target, by {spoken(reference['method'])}"
    if not reference["trusted"]:
        words += " — not to be trusted"
        words += "".join(f": {reason}" for reason in reference["reasons"][:1])
    return textwrap.fill(words, LETTERS)


def fit_words(name: str, fit: dict) -> str:
    """The verdict on a fit with the first of its reasons, and how far it is from the target."""
    reason = next(iter(fit["reasons"]), "")
    words = f"{spoken(name)}: {fit['verdict']}" + f" — {reason}" * bool(reason)

    def distance(key, sign):
        found = fit["divergences"].get(key)
        if not found or found["value"] is None:
            return []
        return [f"{sign} = {number(found['value'], found['mcse'])}"]

    kls = distance("reverse_kl", "KL(q‖p)") + distance("forward_kl", "KL(p‖q)")
    distances = [", ".join(kls) + " nats"] if kls else []
    if name not in SIGNS:
        distances += distance(name, spoken(name))
    lines = textwrap.wrap(words, LETTERS)
    return "\n".join([*lines, "; ".join(distances)] if distances else lines)


def number(value: float, mcse: float | None) -> str:
    """A value to three digits or to its Monte Carlo error, which is shown where it matters."""
    digits = 2 - int(np.floor(np.log10(abs(value)))) if value else 2
    if mcse:
        digits = min(digits, -int(np.floor(np.log10(mcse))))
    digits = min(max(digits, 0), 4)
    text = f"{round(value, digits) + 0.0:.{digits}f}"
    return text + f" ± {mcse:.{digits}f}" if mcse and mcse > 0.005 * abs(value) else text


# Two dimensions: contours, and the 2σ ellipse of each guide.


def plane(figure: Figure, run: xr.DataTree) -> tuple[dict, float]:
    """Draw a target on R² by its contours, every guide over it, and the marginals beside it."""
    grid = run["landscape"]["log_p"]
    axes = [grid[dim].values for dim in grid.dims]
    levels = density_levels(grid.values, MASSES)
    ax = figure.add_subplot(anchor="S")
    contours(ax, axes, grid.values, levels)
    inside = np.nonzero(grid.values >= levels[0])
    seen = [np.stack([x[i] for x, i in zip(axes, inside, strict=True)], -1)]
    for name, look in looks(fit_names(run)).items():
        if found := moments(run, name):
            ax.add_patch(ellipse(*found, fill=False, linewidth=1.8, **look._asdict()))
            ax.plot(*found[0], "x", color=look.color, path_effects=[HALO], zorder=4)
            # The box around an ellipse is as wide as the marginals' own 2σ.
            reach = 2 * np.sqrt(np.diag(found[1]))
            seen.append(np.stack([found[0] - reach, found[0] + reach]))
    width, height = frame(ax, np.concatenate(seen))
    beside(ax, run, np.array([width, height]))
    x, y = axis_labels(run)
    ax.set(xlabel=x, ylabel=y)
    shares = ", ".join(f"{100 * m:.0f}" for m in MASSES)
    note(figure, f"Shades hold {shares}% of the target's mass; cross and ellipse: mean and 2σ.")
    return keys(run, marker="x"), height + BESIDE + 0.8


def frame(ax: Axes, seen: np.ndarray) -> tuple[float, float]:
    """Limits around points (n, 2), in one scale where that is legible; gives inches."""
    low, high = seen.min(0), seen.max(0)
    centre, half = (low + high) / 2, 0.54 * np.maximum(high - low, 1e-9)
    ratio = half[1] / half[0]
    if 0.1 < ratio < 10:
        ax.set_aspect("equal")
        half = np.maximum(half, half.max() * FLATTEST)
        ratio = half[1] / half[0]
    else:
        ratio = 0.6
        ax.set_box_aspect(ratio)
    ax.set_xlim(centre[0] - half[0], centre[0] + half[0])
    ax.set_ylim(centre[1] - half[1], centre[1] + half[1])
    width = min(WIDTH - BESIDE - 0.8, TALLEST / ratio)
    return width, width * ratio


def beside(ax: Axes, run: xr.DataTree, size: np.ndarray) -> None:
    """Draw the marginal of x above a panel and that of y to its right, sharing its scales."""
    (wide, high), (gap_x, gap_y) = BESIDE / size, 0.06 / size
    top = ax.inset_axes([0, 1 + gap_y, 1, high], sharex=ax)
    right = ax.inset_axes([1 + gap_x, 0, wide, 1], sharey=ax)
    for i, panel in enumerate((top, right)):
        draw_densities(panel, densities(run, i), upright=i == 0)
        panel.tick_params(labelbottom=False, labelleft=False, length=0)


# One dimension: densities.


def line(figure: Figure, run: xr.DataTree) -> tuple[dict, float]:
    """Draw a target on R by its density, and every guide's over it."""
    grid = run["landscape"]["log_p"]
    inside = grid.values >= density_levels(grid.values, [0.999])
    seen = [grid[grid.dims[0]].values[inside]]
    for name in fit_names(run):
        if found := moments(run, name):
            mean, reach = found[0], 3 * np.sqrt(found[1][0])
            seen += [mean - reach, mean + reach]
    ax = figure.add_subplot()
    draw_densities(ax, densities(run, 0))
    ax.set_xlim(np.concatenate(seen).min(), np.concatenate(seen).max())
    ax.set_xlabel(axis_labels(run)[0])
    return keys(run), 2.6


# More dimensions: the marginals that tell most.


def marginals(figure: Figure, run: xr.DataTree) -> tuple[dict, float]:
    """Draw the marginals in which the fits are furthest from the reference, the worst first."""
    groups, ranked = groups_of(run), most_different(run)
    shown = ranked[:MOST_PANELS]
    rows = max(1, -(-len(shown) // COLUMNS))
    panels = figure.subplots(rows, min(COLUMNS, max(1, len(shown))), squeeze=False).ravel()
    for ax, coordinate in zip(panels, shown, strict=False):
        draws = [draws_of(run, group, coordinate) for group in groups]
        limits = view(draws)
        curves = {
            group.replace("reference", "target"): smooth(each, limits)
            for group, each in zip(groups, draws, strict=True)
        }
        draw_densities(ax, curves)
        ax.set(title=coordinate.title, xlim=limits)
    for ax in panels[len(shown) :]:
        ax.remove()
    note(figure, ranking_words(len(shown), len(ranked), groups))
    return keys(run), 1.35 * rows + 0.2


def ranking_words(shown: int, total: int, groups: list[str]) -> str:
    """Which coordinates are shown and in what order."""
    which = f"{shown} of {total} coordinates" if shown < total else "Marginal densities"
    if groups[0] == "reference":
        return f"{which}, the worst fitted first."
    if len(groups) > 1:
        return f"{which}, where the fits differ most first; there is no reference."
    return f"{which}; there is no reference to compare with."
