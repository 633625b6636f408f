"""What a saved run holds, as arrays: its fits, its coordinates, their draws and densities.

No JAX and no model: everything is read from the DataTree.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import xarray as xr

GAUSSIAN = ("diagonal", "full_rank", "low_rank")
BINS = 512


class Coordinate(NamedTuple):
    """One number of a draw: its site, its place in it, and its title as a reader writes it."""

    site: str
    index: tuple[int, ...]
    title: str

    @property
    def plain(self) -> str:
        """The name with numbers for labels, as in `summary.json`: theta[3]."""
        return f"{self.site}[{', '.join(map(str, self.index))}]" if self.index else self.site


def fit_names(run: xr.DataTree) -> list[str]:
    """The fits of a run, in its own order."""
    return [name for name in json.loads(run.attrs["summary"])["fits"] if name in run.children]


def landscape_dim(run: xr.DataTree) -> int | None:
    """How many axes the grid of the target has, where there is a grid."""
    return run["landscape"]["log_p"].ndim if "landscape" in run.children else None


def coordinates(run: xr.DataTree) -> list[Coordinate]:
    """Every number of a draw of the latent sites, titled by the model's own labels."""
    posterior = run[next(iter(fit_names(run)))]["posterior"]
    sites = [s for s in json.loads(run.attrs["summary"])["model"]["sites"] if s in posterior]
    found = []
    for site in sites:
        values = posterior[site].transpose("chain", "draw", ...)
        labels = [values[dim].values for dim in values.dims[2:]]
        for index in np.ndindex(values.shape[2:]):
            entry = ", ".join(str(x[i]) for x, i in zip(labels, index, strict=True))
            found.append(Coordinate(site, index, short(f"{site}[{entry}]" if index else site)))
    return found


def short(title: str, most: int = 26) -> str:
    """A title cut in its middle: labels often differ at their ends alone."""
    half = most // 2
    return title if len(title) <= most else f"{title[:half]}…{title[1 - half :]}"


def draws_of(run: xr.DataTree, group: str, coordinate: Coordinate) -> np.ndarray:
    """The finite draws (S,) of one coordinate, of a fit or of the reference."""
    values = run[group]["posterior"][coordinate.site].transpose("chain", "draw", ...).values
    values = values[(slice(None), slice(None), *coordinate.index)].ravel().astype(float)
    return values[np.isfinite(values)]


def moments(run: xr.DataTree, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean (d,) and covariance (d, d) of a guide on R^d, where it has finite ones."""
    guide = run[name]["guide"]
    if "mean" not in guide or "covariance" not in guide:
        return None
    mean, covariance = guide["mean"].values, guide["covariance"].values
    return (mean, covariance) if np.isfinite([mean.sum(), covariance.sum()]).all() else None


def axis_labels(run: xr.DataTree) -> list[str]:
    """A label for each coordinate of R^d, which says where that is not the model's own scale."""
    names = fit_names(run)
    plain = run[names[0]]["guide"]["coordinate"].values
    titles = {c.plain: c.title for c in coordinates(run)}
    # A fit that failed cannot tell, so any will do.
    scale = "" if any(on_own_scale(run, name) for name in names) else " (unconstrained)"
    return [titles.get(str(p), str(p)) + scale for p in plain]


def on_own_scale(run: xr.DataTree, name: str) -> bool:
    """Whether R^d is the model's own scale: the draws have the mean and widths of the guide."""
    found, columns = moments(run, name), coordinates(run)
    if found is None or len(columns) != len(found[0]):
        return False
    draws = [draws_of(run, name, c) for c in columns]
    if not all(map(len, draws)):
        return False
    sd = np.sqrt(np.diag(found[1]))
    shifts = np.array([d.mean() for d in draws]) - found[0]
    ratios = np.array([d.std() for d in draws]) / sd
    return bool(np.all(np.abs(shifts) < 0.3 * sd) and np.all(np.abs(ratios - 1) < 0.3))


def groups_of(run: xr.DataTree) -> list[str]:
    """The groups whose draws are compared: the reference, where there is one, and every fit."""
    return ["reference"] * ("reference" in run.children) + fit_names(run)


def most_different(run: xr.DataTree) -> list[Coordinate]:
    """The coordinates in which the fits are furthest from the reference, the worst first.

    Where there is none, those in which they are furthest from the first fit. What does not vary,
    as above the diagonal of a Cholesky factor, is left out.
    """
    groups = groups_of(run)
    apart = {c: difference([draws_of(run, g, c) for g in groups]) for c in coordinates(run)}
    return sorted((c for c in apart if apart[c] >= 0), key=lambda c: -apart[c])


def difference(draws: list[np.ndarray]) -> float:
    """How far sets of draws are from the first: in sds of its mean, or in log sd ratios."""
    first, *others = [d for d in draws if d.size] or [np.zeros(1)]
    if np.ptp(first) == 0:
        return -1.0
    mean, sd = first.mean(), first.std()
    with np.errstate(divide="ignore"):
        apart = [max(abs(d.mean() - mean) / sd, abs(np.log(d.std() / sd))) for d in others]
    return max(apart, default=0.0)


# Densities, and where they are worth a look.


def densities(run: xr.DataTree, i: int) -> dict:
    """The density of coordinate i of R^d, of the target and of every guide: points and values."""
    x, density = target_density(run["landscape"]["log_p"], i)
    guides = {name: guide_density(run, name, i, x) for name in fit_names(run)}
    return {"target": (x, density)} | guides


def target_density(grid: xr.DataArray, i: int) -> tuple[np.ndarray, np.ndarray]:
    """The marginal density along axis i of a grid of log p: points (n,) and values (n,)."""
    density = np.exp((grid - grid.max()).fillna(-np.inf))
    for dim in grid.dims:
        if dim != grid.dims[i]:
            density = density.integrate(dim)
    x = grid[grid.dims[i]].values
    return x, density.values / np.trapezoid(density.values, x)


def guide_density(run: xr.DataTree, name: str, i: int, x: np.ndarray):
    """The density of coordinate i of a guide on R^d: points (n,) and values (n,), or None."""
    found = moments(run, name)
    if found is None:
        return None
    gaussian = run[name]["guide"].attrs["family"].partition(":")[0] in GAUSSIAN
    if not gaussian and on_own_scale(run, name):
        return smooth(draws_of(run, name, coordinates(run)[i]), (x[0], x[-1]))
    mean, variance = found[0][i], found[1][i, i]
    return x, np.exp(-0.5 * (x - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)


def smooth(draws: np.ndarray, limits: tuple[float, float]):
    """A kernel density of draws within limits: points (n,) and values (n,), or None.

    The kernel is reflected at the least and the largest draw, so that the density of a scale
    does not leak below zero; where nothing piles up there, reflection changes nothing.
    """
    draws = np.sort(draws)
    if not draws.size or draws[0] == draws[-1]:
        return None
    bandwidth = 1.06 * peak_sd(draws) * draws.size**-0.2
    low = max(draws[0], limits[0] - 4 * bandwidth)
    high = min(draws[-1], limits[1] + 4 * bandwidth)
    counts, edges = np.histogram(draws, bins=BINS, range=(low, high))
    step = edges[1] - edges[0]
    reach = int(np.ceil(4 * bandwidth / step))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / bandwidth) ** 2)
    # An edge of the support is drawn as one: what a kernel would spill over it stays on its side.
    counts = np.pad(counts, reach, "symmetric") / (draws.size * step)
    density = np.convolve(counts, kernel / kernel.sum(), "valid")
    return np.r_[low, (edges[1:] + edges[:-1]) / 2, high], np.r_[0.0, density, 0.0]


def peak_sd(draws: np.ndarray) -> float:
    """The sd of a Gaussian as peaked as sorted draws are: small for narrow modes far apart.

    A bandwidth from the sd of all draws would smear such modes out, and a heavy tail's too.
    """
    number = max(1, draws.size // 5)
    shortest = (draws[number:] - draws[:-number]).min() / 0.5067  # of N(0, 1): a fifth's width
    return min(shortest, draws.std()) or draws.std()


def view(draws: list[np.ndarray]) -> tuple[float, float]:
    """Limits that show the bulk of every set of draws, the first one's with its tails."""
    first, *others = [d for d in draws if d.size]
    low, high = np.quantile(first, [0.005, 0.995])
    # A fit's tail may be so long that nothing else could be seen.
    reach = 0.4 * (high - low)
    tails = [np.clip(np.quantile(d, [0.005, 0.995]), low - reach, high + reach) for d in others]
    bulks = [np.quantile(d, [0.1, 0.9]) for d in others]
    ends = np.array([(low, high), *tails, *bulks])
    low, high = ends.min(), ends.max()
    margin = 0.05 * (high - low) or 1.0
    # An edge of the support that is near is drawn with air beside it.
    least, most = min(d.min() for d in draws if d.size), max(d.max() for d in draws if d.size)
    return max(low - margin, least - margin / 2), min(high + margin, most + margin / 2)
