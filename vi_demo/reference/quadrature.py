"""Adaptive quadrature of a density in one and two dimensions: evidence and draws without noise.

R^d is mapped onto (−1, 1)^d by xᵢ = cᵢ + sᵢ t / (1 − t²), which reaches every tail, and SciPy's
adaptive cubature divides that square until the integral of exp(log p) settles, with cuts through
every mode so that narrow ones are not stepped over. Its final cells carry Gauss–Legendre nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.integrate import cubature

from vi_demo.divergences.estimators import Draws, Estimate

NODES = 10  # a cell and dimension
TOLERANCE = 1e-8
MOST_CELLS = 4000
NEGLIGIBLE = 1e-16  # of the mass


class Integral(NamedTuple):
    """∫ exp(log p): its logarithm with an error bound, and nodes weighted like draws of p."""

    log_total: Estimate
    nodes: Draws
    log_p: np.ndarray
    evaluations: int
    converged: bool


def integrate(log_densities: Callable, centres: np.ndarray, scale: np.ndarray) -> Integral:
    """Integrate a density given its log at many points, (n, d) -> (n,).

    `centres` (k, d) are points near all its modes and `scale` (d,) its rough extent.
    """
    dim = centres.shape[1]
    middle = centres.mean(0)
    peak = float(np.max(np.asarray(log_densities(centres))))
    evaluations = 0

    def mapped(t):
        with np.errstate(divide="ignore", over="ignore"):
            points = middle + scale * t / (1 - t**2)
            log_volume = np.sum(np.log(scale * (1 + t**2)) - 2 * np.log1p(-(t**2)), axis=-1)
        return points, log_volume

    def density(t):
        nonlocal evaluations
        evaluations += len(t)
        points, log_volume = mapped(t)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.nan_to_num(np.exp(np.asarray(log_densities(points)) - peak + log_volume))

    edge = np.ones(dim)
    cuts = [unmapped((c - middle) / scale) for c in centres]
    result = cubature(
        *(density, -edge, edge),
        rule="gk15" if dim > 1 else "gk21",
        rtol=TOLERANCE,
        max_subdivisions=MOST_CELLS,
        points=cuts,
    )
    lower = np.array([cell.a for cell in result.regions])
    upper = np.array([cell.b for cell in result.regions])
    t, log_width, boxes = tensor_nodes(lower, upper)
    points, log_volume = mapped(t)
    log_p = np.asarray(log_densities(points))
    log_weights = log_p - peak + log_volume + log_width
    kept = log_weights > log_weights.max() + np.log(NEGLIGIBLE)
    weights = np.exp(log_weights[kept])
    total = float(weights.sum())
    error = max(float(result.error), abs(total - float(result.estimate))) / total
    return Integral(
        log_total=Estimate(peak + float(np.log(total)), error),
        nodes=Draws(points[kept], weights / total, boxes=mapped(boxes[kept])[0]),
        log_p=log_p[kept],
        evaluations=evaluations + len(t),
        converged=result.status == "converged",
    )


def padded(fn: Callable, size: int = 256) -> Callable:
    """A compiled function of points (n, d), called with few different n so that few compile."""

    def call(points):
        n = len(points)
        slices = -(-n // size)
        full = np.concatenate([points, np.repeat(points[-1:], slices * size - n, 0)])
        return np.asarray(fn(full))[:n]

    return call


def unmapped(y: np.ndarray) -> np.ndarray:
    """The t in (−1, 1) with t / (1 − t²) = y."""
    return 2 * y / (1 + np.sqrt(1 + 4 * y**2))


def tensor_nodes(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, ...]:
    """Gauss–Legendre points (n, d) of many cells (m, d), their log weights (n,), their boxes.

    A node's box (2, d) is its share of the cell: its weight wide, and the node lies within it.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    edges = np.concatenate([[-1.0], np.cumsum(weights) - 1.0])
    dim = lower.shape[1]
    index = np.stack(np.meshgrid(*[np.arange(NODES)] * dim, indexing="ij"), -1).reshape(-1, dim)
    middle, half = (lower + upper)[:, None] / 2, (upper - lower)[:, None] / 2
    points = middle + half * nodes[index]
    boxes = np.stack([middle + half * edges[index], middle + half * edges[index + 1]], -2)
    log_weights = np.log(half).sum(-1) + np.log(weights[index]).sum(-1)
    return points.reshape(-1, dim), log_weights.reshape(-1), boxes.reshape(-1, 2, dim)
