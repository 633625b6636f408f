"""Adaptive quadrature of a density in one and two dimensions: evidence and draws without noise.

R^d is mapped onto (−1, 1)^d by xᵢ = cᵢ + sᵢ t / (1 − t²), which reaches every tail, and cells of
that square are halved until Gauss–Legendre rules of two sizes agree on the integral of
exp(log p), beginning with cuts through every mode so that narrow ones are not stepped over. The
final cells' nodes stand for draws. (SciPy's `cubature` halves the wrong cells when it is given
points to cut at: its heap of cells does not begin as one, in SciPy 1.18.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vi_demo.divergences.estimators import Draws, Estimate

NODES = 10  # a cell and dimension
FINE = 15  # by which the error of those is measured
NARROWEST = 1e-9  # of a cell at first, out of 2
TOLERANCE = {"float64": 1e-8, "float32": 1e-4}  # relative
MOST_CELLS = 4000
NEGLIGIBLE = 1e-16  # of the mass
RESTARTS = 5
MISSED_PEAK = 5.0  # nats above all known ones: a mode that no centre stood for


class Integral(NamedTuple):
    """∫ exp(log p): its logarithm with an error bound, and nodes weighted like draws of p."""

    log_total: Estimate
    nodes: Draws
    log_p: np.ndarray
    evaluations: int
    converged: bool


def integrate(log_densities: Callable, centres: np.ndarray, scale: np.ndarray) -> Integral:
    """Integrate a density given its log at many points, (n, d) -> (n,).

    `centres` (k, d) are points near all its modes and `scale` (d,) its rough extent. Where a
    much higher point comes up on the way, integration begins again with that one as a centre.
    """
    seen = Highest(centres, np.asarray(log_densities(centres)))
    evaluations = 0

    def watched(points):
        nonlocal evaluations
        evaluations += len(points)
        log_p = np.asarray(log_densities(points))
        seen.look(points, log_p)
        return log_p

    for _ in range(RESTARTS):
        peak, middle = seen.value, centres.mean(0)
        cells, _, error, converged = divide(watched, centres, scale, peak)
        missed = seen.value >= peak + MISSED_PEAK
        if not missed:
            break
        centres = np.concatenate([centres, seen.point[None]])
    converged = converged and not missed
    error = np.inf if missed else error
    t, log_width, boxes = tensor_nodes(*cells)
    points, log_volume = mapped(t, middle, scale)
    log_p = watched(points)
    log_weights = log_p - peak + log_volume + log_width
    kept = log_weights > log_weights.max() + np.log(NEGLIGIBLE)
    weights = np.exp(log_weights[kept])
    total = float(weights.sum())
    if not total > 0:
        raise ArithmeticError("the density has no bounds: its nodes are infinitely far out")
    corners = mapped(boxes[kept], middle, scale)[0]
    # The last corners of the tails are infinite: draw them in to their node.
    corners = np.where(np.isfinite(corners), corners, points[kept][:, None])
    return Integral(
        log_total=Estimate(peak + float(np.log(total)), error / total),
        nodes=Draws(points[kept], weights / total, boxes=corners),
        log_p=log_p[kept],
        evaluations=evaluations,
        converged=converged,
    )


class Highest:
    """The highest point that was seen."""

    def __init__(self, points: np.ndarray, log_p: np.ndarray):
        self.value = -np.inf
        self.look(points, log_p)

    def look(self, points: np.ndarray, log_p: np.ndarray) -> None:
        """Keep the highest of these points, if it is higher than all before."""
        top = int(np.argmax(log_p))
        if log_p[top] > self.value:
            self.value, self.point = float(log_p[top]), points[top]


def divide(log_densities, cuts, scale, peak, tolerance=None) -> tuple:
    """Cells (lower, upper) of (−1, 1)^d on which exp(log p − peak) is smooth.

    With them its integral, the error of that, and whether the relative tolerance was met. Each
    round halves, along every axis, the cells that hold nearly all of the error, all at once.
    """
    middle = cuts.mean(0)
    tolerance = tolerance or TOLERANCE[str(jnp.zeros(()).dtype)]
    lower, upper = boxes_between(unmapped((cuts - middle) / scale))
    sums = sum_cells(log_densities, lower, upper, middle, scale, peak)
    while len(lower) < MOST_CELLS:
        errors, total = np.abs(sums[0] - sums[1]), sums[0].sum()
        if errors.sum() <= tolerance * total:
            break
        order = np.argsort(-errors)
        left = errors.sum() - np.cumsum(errors[order])
        split = order[: 1 + np.searchsorted(-left, -0.3 * tolerance * total)]
        new = halves(lower[split], upper[split])
        fresh = sum_cells(log_densities, *new, middle, scale, peak)
        lower, upper, sums = (
            np.concatenate([np.delete(old, split, axis=-1 - side), more], axis=-1 - side)
            for old, more, side in ((lower, new[0], 1), (upper, new[1], 1), (sums, fresh, 0))
        )
    total, error = float(sums[0].sum()), float(np.abs(sums[0] - sums[1]).sum())
    return (lower, upper), total, error, error <= tolerance * total


def sum_cells(log_densities, lower, upper, middle, scale, peak) -> np.ndarray:
    """∫ exp(log p − peak) over each cell (m, d) by a fine and by the coarse rule: (2, m)."""
    sums = []
    for number in (FINE, NODES):
        t, log_weights, _ = tensor_nodes(lower, upper, number)
        points, log_volume = mapped(t, middle, scale)
        # A peak that nobody knew of shall not overflow: it is noticed and begun again with.
        exponent = np.minimum(log_densities(points) - peak, 100.0)
        with np.errstate(over="ignore", invalid="ignore"):
            terms = np.nan_to_num(np.exp(exponent + log_volume + log_weights))
        sums.append(terms.reshape(len(lower), -1).sum(1))
    return np.array(sums)


def boxes_between(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells (lower, upper), (m, d) each, of (−1, 1)^d cut through every coordinate of points."""
    edges = []
    for x in points.T:
        x = np.sort(np.r_[-1.0, x, 1.0])
        # Cells need a width: a cut next to another is none.
        edges.append(np.r_[x[:-1][np.diff(x) > NARROWEST], 1.0])
    lower = np.stack(np.meshgrid(*(e[:-1] for e in edges), indexing="ij"), -1)
    upper = np.stack(np.meshgrid(*(e[1:] for e in edges), indexing="ij"), -1)
    return lower.reshape(-1, len(edges)), upper.reshape(-1, len(edges))


def halves(lower, upper) -> tuple[np.ndarray, np.ndarray]:
    """Every cell (m, d) cut in two along each axis."""
    at = (lower + upper) / 2
    sides = list(itertools.product([False, True], repeat=lower.shape[1]))
    return (
        np.concatenate([np.where(side, at, lower) for side in sides]),
        np.concatenate([np.where(side, upper, at) for side in sides]),
    )


def mapped(t: np.ndarray, middle: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of R^d for t in (−1, 1)^d, and the log of how much the map stretches volumes."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        points = middle + scale * t / (1 - t**2)
        log_volume = np.sum(np.log(scale * (1 + t**2)) - 2 * np.log1p(-(t**2)), axis=-1)
    return points, log_volume


def unmapped(y: np.ndarray) -> np.ndarray:
    """The t in (−1, 1) with t / (1 − t²) = y."""
    return 2 * y / (1 + np.sqrt(1 + 4 * y**2))


def tensor_nodes(
    lower: np.ndarray, upper: np.ndarray, number: int = NODES
) -> tuple[np.ndarray, ...]:
    """Gauss–Legendre points (n, d) of many cells (m, d), their log weights (n,), their boxes.

    A node's box (2, d) is its share of the cell: its weight wide, and the node lies within it.
    """
    nodes, weights = np.polynomial.legendre.leggauss(number)
    edges = np.concatenate([[-1.0], np.cumsum(weights) - 1.0])
    dim = lower.shape[1]
    index = np.stack(np.meshgrid(*[np.arange(number)] * dim, indexing="ij"), -1).reshape(-1, dim)
    middle, half = (lower + upper)[:, None] / 2, (upper - lower)[:, None] / 2
    points = middle + half * nodes[index]
    boxes = np.stack([middle + half * edges[index], middle + half * edges[index + 1]], -2)
    log_weights = np.log(half).sum(-1) + np.log(weights[index]).sum(-1)
    return points.reshape(-1, dim), log_weights.reshape(-1), boxes.reshape(-1, 2, dim)
