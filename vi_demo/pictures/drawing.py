"""How everything is drawn: one meaning a colour, one look a fit, and the marks that figures share.

Figures are built without pyplot, so that drawing one changes nothing outside it.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vi_demo.pictures.contents import fit_names

# Matplotlib's own letters first; a model's names may be in others, which these have.
FONTS = (
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans"),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans", "Arial Unicode MS", "Microsoft YaHei", "Yu Gothic"),
    *("Malgun Gothic", "Nirmala UI", "Noto Sans Devanagari"),
)
# Some of them have no bold, which would be told at each word in bold.
logging.getLogger("matplotlib.font_manager").addFilter(lambda told: "font weight" not in told.msg)
INSTALLED = [name for name in FONTS if name in {font.name for font in fontManager.ttflist}]
STYLE = [Path(__file__).with_name("colours.mplstyle"), {"font.family": INSTALLED}]

# One meaning a colour, in every picture: Okabe and Ito's blue and vermilion and Tol's wine, which
# colour-blind readers tell apart and which differ in lightness too.
COLOURS = {
    "target": "#0072B2",
    "reverse_kl": "#D55E00",
    "forward_kl": "#882255",
    "quiet": "#555555",  # notes
}
# What a line means without its colour, in a grey print.
DASHES = {"forward_kl": "-", "reverse_kl": (0, (3.5, 1.4))}
# For fits of any other name, in the order of the run.
OTHERS = (
    ("#009E73", (0, (6, 1.5, 1, 1.5))),
    ("#E69F00", (0, (1, 1.2))),
    ("#CC79A7", (0, (8, 2))),
    ("#000000", (0, (3, 1.2, 1, 1.2, 1, 1.2))),
    ("#56B4E9", (0, (5, 1))),
    ("#117733", (0, (2, 0.8))),
    ("#999933", (0, (7, 1, 2, 1))),
)

MASSES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)  # of the target, inside each contour
WIDTH = 6.5  # inches: a column
LETTERS = 96  # in a line of that width
LINE = 0.155  # inches: the height of a line of the legend
HIGHEST = 5.0  # the peak of a fit that is still shown whole, in peaks of the target
FINER = 4  # points drawn for each of the grid: contours as small as a few of them stay round
CHANCE = 1.36  # over √n: Kolmogorov and Smirnov's 95%
HALO = withStroke(linewidth=3.6, foreground="white")  # a cross on the darkest blue, in grey


class Look(NamedTuple):
    """How one fit is drawn, in every panel of a picture."""

    color: str
    linestyle: str | tuple
    zorder: float = 3.0


def looks(names: Sequence[str]) -> dict[str, Look]:
    """The look of each fit: fixed for the two directions of KL, cycled for any other."""
    table = {name: (COLOURS[name], dashes) for name, dashes in DASHES.items()}
    others = (name for name in names if name not in table)
    table |= zip(others, cycle(OTHERS), strict=False)
    # A solid line lies below: dashes over it leave both in sight where the two agree.
    return {name: Look(*table[name], 2.5 if table[name][1] == "-" else 3.0) for name in names}


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as its suffix says; the same run gives the same bytes."""
    path = Path(path)
    # Every format stamps a file with a date or a version of its own, unless told not to.
    stamps = {
        ".png": ["Software"],
        ".svg": ["Date", "Creator"],
        ".pdf": ["CreationDate", "Creator", "Producer"],
    }
    with matplotlib.style.context(STYLE):
        figure.savefig(path, metadata=dict.fromkeys(stamps.get(path.suffix, ())) or None)


def letters_without_font(text: str) -> str:
    """The letters of a text that no font of this machine has, each once."""
    fonts = [get_font(findfont(FontProperties(family=name))) for name in INSTALLED]
    missing = (c for c in dict.fromkeys(text) if not any(f.get_char_index(ord(c)) for f in fonts))
    return "".join(missing)


def note(figure: Figure, text: str) -> None:
    """A quiet line below a picture: how to read it."""
    text = textwrap.fill(text, LETTERS)
    figure.supxlabel(text, fontsize=8, color=COLOURS["quiet"])


def logarithmic(axis: Axis) -> None:
    """A logarithmic axis whose ticks are plain numbers: names, not formulas, are set here."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def keys(run: xr.DataTree, marker: str | None = None) -> dict:
    """A handle for the legend for the target, where it is drawn, and for each fit."""
    drawn = "reference" in run.children or "landscape" in run.children
    blue = Patch(facecolor=shade(0.45), edgecolor=COLOURS["target"], linewidth=0.8)
    fits = looks(fit_names(run)).items()
    return ({"target": blue} if drawn else {}) | {
        name: Line2D([], [], marker=marker, **look._asdict()) for name, look in fits
    }


def draw_densities(ax: Axes, curves: dict, upright: bool = True) -> None:
    """Draw the target's density filled and each fit's as its line; those that are None not."""
    style = looks([name for name in curves if name != "target"])
    curves = {name: curve for name, curve in curves.items() if curve is not None}
    for name, (x, density) in curves.items():
        xy = (x, density) if upright else (density, x)
        if name != "target":
            ax.plot(*xy, **style[name]._asdict())
            continue
        fill = ax.fill_between if upright else ax.fill_betweenx
        fill(x, density, color=shade(0.35), linewidth=0)
        ax.plot(*xy, color=COLOURS["target"], linewidth=0.8)
    peaks = {name: density.max() for name, (_, density) in curves.items()}
    # A fit far too narrow would press the target flat.
    top = 1.05 * min(max(peaks.values()), HIGHEST * peaks.get("target", np.inf))
    if upright:
        ax.set(ylim=(0, top), yticks=[])
        ax.xaxis.set_major_locator(MaxNLocator(4))
    else:
        ax.set(xlim=(0, top), xticks=[])
    ax.spines["left" if upright else "bottom"].set_visible(False)


def contours(ax: Axes, axes: list, log_p: np.ndarray, levels: np.ndarray) -> None:
    """Fill the regions of highest density, the densest darkest."""
    # Where there is no density there is no number to draw a contour through.
    finer = [refinement(n) for n in log_p.shape]
    log_p = finer[0] @ np.fmax(log_p, levels[0] - 4.0) @ finer[1].T
    axes = [weights @ x for weights, x in zip(finer, axes, strict=True)]
    # A grid may be too coarse to tell the innermost levels apart.
    levels = np.unique(levels[levels < log_p.max()])
    if not levels.size:
        return
    fills = [shade(s) for s in np.linspace(0.12, 0.75, levels.size)]
    ax.contourf(*axes, log_p.T, levels=[*levels, log_p.max()], colors=fills)
    ax.contour(*axes, log_p.T, levels=levels, colors=COLOURS["target"], linewidths=0.5)


def refinement(points: int) -> np.ndarray:
    """Weights of even points in `FINER` times as many on Catmull and Rom's cubics through them.

    SciPy's splines would do too, and take a third of a second to import.
    """
    t = np.arange(FINER)[:, None] / FINER
    cubic = [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    ends = np.pad(np.eye(points), ((1, 1), (0, 0)), "reflect", reflect_type="odd")  # straight on
    between = sum(c * ends[k : k + points - 1, None] for k, c in enumerate(cubic)) / 2
    return np.concatenate([between.reshape(-1, points), ends[-2:-1]])


def density_levels(log_p: np.ndarray, masses: Iterable[float]) -> np.ndarray:
    """The levels of log p on an even grid above which these shares of its mass lie, ascending."""
    ordered = np.sort(np.where(np.isnan(log_p), -np.inf, log_p), axis=None)[::-1]
    inside = np.cumsum(np.exp(ordered - ordered[0]))
    last = np.searchsorted(inside, np.asarray(sorted(masses, reverse=True)) * inside[-1])
    return ordered[np.minimum(last, ordered.size - 1)]


def shade(strength: float) -> tuple:
    """The target's blue on white, from 0 to 1."""
    return LinearSegmentedColormap.from_list("target", ["white", COLOURS["target"]])(strength)


def ellipse(mean: np.ndarray, covariance: np.ndarray, **look) -> Ellipse:
    """The 2σ ellipse of a distribution on R²."""
    (width, height), angle = half_axes(covariance)
    return Ellipse(mean, 2 * width, 2 * height, angle=angle, **look)


def half_axes(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half axes (..., 2) of 2σ ellipses, 2√λ along the covariance's own, and angles in degrees."""
    values, vectors = np.linalg.eigh(covariance)
    angle = np.degrees(np.arctan2(vectors[..., 1, 0], vectors[..., 0, 0]))
    return 2 * np.sqrt(np.maximum(values, 0.0)), angle
