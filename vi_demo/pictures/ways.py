"""Pictures of ways: down a divergence, through its landscape, of a fit, along alpha."""

from __future__ import annotations

import json
from collections.abc import Sequence

import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vi_demo.pictures.contents import axis_labels, fit_names, short
from vi_demo.pictures.drawing import (
    COLOURS,
    DASHES,
    STYLE,
    WIDTH,
    Look,
    keys,
    logarithmic,
    looks,
    note,
    shade,
)
from vi_demo.pictures.words import SIGNS, measured, number, spoken

FAINT = 0.3
LEVELS = 12
NEAR = 1e-3  # nats from the least value: the innermost level
TRACES = {"elbo": "ELBO, nats", "loss": "loss, nats", "ess": "effective draws"}


# Down a divergence, from a few starts in common.


def descended(run: xr.DataTree) -> list[str]:
    """The fits whose way down was recorded."""
    return [name for name in fit_names(run) if "descent" in run[name].children]


def labels_of(run: xr.DataTree, name: str) -> list[str]:
    """A label for each coordinate whose way was recorded."""
    every = dict(zip(run[name]["guide"]["coordinate"].values, axis_labels(run), strict=True))
    return [every[c] for c in run[name]["descent"]["coordinate"].values]


def descent_figure(run: xr.DataTree) -> Figure | None:
    """Draw every divergence as it falls from the same starts, and where that takes the guide."""
    names = descended(run)
    if not names:
        return None
    chosen = parted(run, names)
    labels = labels_of(run, names[0])
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.2 + 1.25 * len(chosen)), layout="constrained")
        grid = figure.add_gridspec(1 + len(chosen), 2, height_ratios=[1.4] + [1.0] * len(chosen))
        top = figure.add_subplot(grid[0, :])
        panels = [[figure.add_subplot(grid[1 + i, j]) for j in (0, 1)] for i in range(len(chosen))]
        for name, look in looks(names).items():
            way = run[name]["descent"].to_dataset()
            trace(top, way["step"].values, np.maximum(way["divergence"].values, 1e-4), look)
            for (left, right), i in zip(panels, chosen, strict=True):
                mean, sd = total_moments(way, i)
                trace(left, way["step"].values, mean, look)
                trace(right, way["step"].values, sd, look)
                left.set_ylabel(named(labels[i]))
        logarithmic(top.yaxis)
        top.set_ylabel("divergence, nats")
        panels[0][0].set_title("mean")
        panels[0][1].set_title("sd")
        for ax in panels[-1]:
            ax.set_xlabel("step of Adam")
        ends = [f"{measured(n)}: ends at {number(last(run, n), 3)}" for n in names]
        handles = [keys(run)[name] for name in names]
        figure.legend(handles, ends, loc="outside upper left", ncols=2)
    return figure


def named(label: str) -> str:
    """A label for a low panel: its name cut short, and its scale on a line of its own."""
    name, _, scale = label.partition(" (")
    return short(name, 16) + (f"\n({scale}" if scale else "")


def last(run: xr.DataTree, name: str) -> float:
    """The divergence at the end of the first start's way."""
    return float(run[name]["descent"]["divergence"].values[-1, 0])


def parted(run: xr.DataTree, names: Sequence[str], most: int = 2) -> list[int]:
    """The coordinates in which the ways end furthest apart, or move most where there is one."""
    ends, sds = [], []
    for name in names:
        way = run[name]["descent"].to_dataset()
        d = way.sizes["coordinate"]
        moments = [total_moments(way, i) for i in range(d)]
        ends.append([[m[-1, 0], m[0, 0]] for m, _ in moments])
        sds.append([[s[-1, 0], s[0, 0]] for _, s in moments])
    ends, sds = np.array(ends), np.array(sds)
    scale = sds[:, :, 0].max(0)
    apart = np.ptp(ends[:, :, 0], axis=0) / scale + np.ptp(np.log(sds[:, :, 0]), axis=0)
    apart += 1e-3 * np.abs(ends[:, :, 0] - ends[:, :, 1]).max(0) / scale
    return sorted(int(i) for i in np.argsort(-apart)[:most])


def total_moments(way: xr.Dataset, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (frames, starts) of one coordinate of a mixture on its way."""
    mass, mean = way["mass"].values, way["mean"].values[..., i]
    variance = way["covariance"].values[..., i, i]
    whole = (mass * mean).sum(-1)
    within = (mass * (variance + (mean - whole[..., None]) ** 2)).sum(-1)
    return whole, np.sqrt(within)


def trace(ax: Axes, steps: np.ndarray, values: np.ndarray, look: Look) -> None:
    """The first start's curve of values (frames, starts), and the others' faintly."""
    ax.plot(steps, values[:, 1:], **look._asdict() | {"linewidth": 0.8}, alpha=FAINT)
    ax.plot(steps, values[:, 0], **look._asdict())


# The landscape of both KLs, for targets of one dimension.


def kl_landscape_figure(run: xr.DataTree) -> Figure | None:
    """Draw both KLs over a Gaussian's mean and sd, with the ways down from the same starts."""
    if "kl_landscape" not in run.children:
        return None
    kls = run["kl_landscape"].to_dataset()
    names = [name for name in kls.data_vars if name in descended(run)]
    if not names:
        return None
    mean, sd = kls["mean"].values, np.exp(kls["log_sd"].values)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for ax, name in zip(panels, names, strict=True):
            valley(ax, mean, sd, kls[name].values)
            path_over(ax, run[name]["descent"].to_dataset(), looks(names)[name])
            ax.set_title(f"{SIGNS[name]}: least {number(float(kls[name].min()), 3)} nats")
            ax.set_xlabel(f"mean of q, {axis_labels(run)[0]}")
        logarithmic(panels[0].yaxis)
        panels[0].set_ylabel("sd of q")
        note(figure, "the darker, the nearer to the target; lines are a decade / 3 apart in nats")
    return figure


def valley(ax: Axes, mean: np.ndarray, sd: np.ndarray, kl: np.ndarray) -> None:
    """The contours of a KL, each three times as far above the least value as the one inside."""
    above = np.maximum(kl - kl.min(), 0.0).T
    levels = np.geomspace(max(NEAR, 1e-6 * above.max()), above.max(), LEVELS)
    fills = [shade(s) for s in np.linspace(0.8, 0.0, LEVELS)]
    ax.contourf(mean, sd, above, levels=[0.0, *levels], colors=fills, extend="max")
    ax.contour(mean, sd, above, levels=levels, colors="white", linewidths=0.4)


def path_over(ax: Axes, way: xr.Dataset, look: Look) -> None:
    """Every start's way over (mean, sd): a dot where it begins, a cross where it ends."""
    mean, sd = total_moments(way, 0)
    for start in range(mean.shape[1])[::-1]:
        first = start == 0
        thin = {
            "color": look.color,
            "linewidth": 1.8 if first else 0.9,
            "alpha": 1.0 if first else 0.55,
        }
        ax.plot(mean[:, start], sd[:, start], linestyle=look.linestyle, **thin)
        ax.plot(mean[0, start], sd[0, start], "o", color=look.color, markersize=4 if first else 3)
        ax.plot(mean[-1, start], sd[-1, start], "x", color="black", zorder=5)


# The fits' own ways.


def history_figure(run: xr.DataTree) -> Figure | None:
    """Draw what each fit went by, step by step: the ELBO, its loss or its effective draws."""
    known = {name: of_history(run, name) for name in fit_names(run)}
    known = {name: found for name, found in known.items() if found is not None}
    if not known:
        return None
    style = looks(fit_names(run))
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.1), layout="constrained")
        panels = figure.subplots(1, len(known), squeeze=False)[0]
        for ax, (name, (label, rows, best)) in zip(panels, known.items(), strict=True):
            rows = np.where(np.isfinite(rows), rows, np.nan)
            order = [best, *(i for i in range(rows.shape[1]) if i != best)]
            marked = {"marker": "."} if len(rows) < 12 else {}
            for i in order[1:]:
                ax.plot(rows[:, i], color=style[name].color, linewidth=0.8, alpha=FAINT, **marked)
            ax.plot(rows[:, best], color=style[name].color, **marked)
            ax.set(title=spoken(name), ylabel=label, xlabel="recorded step")
            ax.xaxis.get_major_locator().set_params(integer=True)
            tall(ax, rows)
    return figure


def of_history(run: xr.DataTree, name: str) -> tuple[str, np.ndarray, int] | None:
    """What to call a fit's trace, its rows (steps, restarts), and which of them is the best."""
    if "history" not in run[name].children:
        return None
    history = run[name]["history"].to_dataset()
    for key, label in TRACES.items():
        if key in history and history.sizes["step"] > 1:
            rows = history[key].values.reshape(history.sizes["step"], -1)
            restarts = run[name].children.get("restarts")
            best = int(restarts.attrs.get("best", 0)) if restarts is not None else 0
            return label, rows, min(best, rows.shape[1] - 1)
    return None


def tall(ax: Axes, rows: np.ndarray) -> None:
    """Limits in which the end of a trace is seen, where its beginning was far off."""
    seen = rows[np.isfinite(rows)]
    if not seen.size:
        return
    late = rows[len(rows) // 4 :]
    late = late[np.isfinite(late)]
    if late.size and np.ptp(late) > 0 and np.ptp(seen) > 30 * np.ptp(late):
        ax.set_ylim(late.min() - 0.5 * np.ptp(late), late.max() + 0.2 * np.ptp(late))


# Along alpha.


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
