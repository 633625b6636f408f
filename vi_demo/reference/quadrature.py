"""Adaptive quadrature of a density in one and two dimensions: evidence and draws without noise.

R^d is mapped onto (−1, 1)^d by xᵢ = cᵢ + sᵢ t / (1 − t²), which reaches every tail, and SciPy's
adaptive cubature divides that square until the integral of exp(log p) settles, with cuts through
every mode so that narrow ones are not stepped over. Its final cells carry Gauss–Legendre nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.integrate import cubature

from vi_demo.divergences.estimators import Draws, Estimate

NODES = 10  # a cell and dimension
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
        cells, error, converged = divide(watched, centres, scale, peak)
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


def divide(log_densities, centres, scale, peak) -> tuple[tuple, float, bool]:
    """Cells (lower, upper) of (−1, 1)^d on which exp(log p − peak) is smooth, and the error."""
    middle, dim = centres.mean(0), centres.shape[1]

    def density(t):
        points, log_volume = mapped(t, middle, scale)
        # A peak that nobody knew of shall not overflow: it is noticed and begun again with.
        exponent = np.minimum(log_densities(points) - peak, 100.0)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.nan_to_num(np.exp(exponent + log_volume))

    result = cubature(
        *(density, -np.ones(dim), np.ones(dim)),
        rule="gk15" if dim > 1 else "gk21",
        rtol=TOLERANCE[str(jnp.zeros(()).dtype)],
        max_subdivisions=MOST_CELLS,
        points=[unmapped((c - middle) / scale) for c in centres],
    )
    cells = tuple(np.array([getattr(c, side) for c in result.regions]) for side in "ab")
    return cells, float(result.error), result.status == "converged"


def mapped(t: np.ndarray, middle: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of R^d for t in (−1, 1)^d, and the log of how much the map stretches volumes."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        points = middle + scale * t / (1 - t**2)
        log_volume = np.sum(np.log(scale * (1 + t**2)) - 2 * np.log1p(-(t**2)), axis=-1)
    return points, log_volume


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
