"""Divergences and expectations from draws, each with its Monte Carlo error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A value and its Monte Carlo standard error, in the value's own units."""

    value: float
    mcse: float


class Draws(NamedTuple):
    """Weighted points of one distribution: `points` (n, d), `weights` (n,) adding up to one.

    `blocks` (n,) numbers the independent runs the points come from, where points within a run
    depend on each other. Nodes of a quadrature are `exact`: their sums have no Monte Carlo
    error; `boxes` (n, 2, d) are the lower and upper corners of what each node stands for.
    """

    points: np.ndarray
    weights: np.ndarray
    blocks: np.ndarray | None = None
    boxes: np.ndarray | None = None

    @property
    def exact(self) -> bool:
        """Whether sums over these points have no Monte Carlo error."""
        return self.boxes is not None


def equal_weights(points: np.ndarray, blocks: np.ndarray | None = None) -> Draws:
    """Draws of equal weight."""
    return Draws(points, np.full(len(points), 1 / len(points)), blocks)


def resample(draws: Draws, number: int, seed: int) -> np.ndarray:
    """Points (number, d) of equal weight, by systematic resampling in random order.

    A node of a quadrature gives points spread over what it stands for.
    """
    rng = np.random.default_rng(seed)
    grid = (np.arange(number) + rng.random()) / number
    index = np.minimum(np.searchsorted(np.cumsum(draws.weights), grid), len(draws.points) - 1)
    index = rng.permutation(index)
    if draws.boxes is None:
        return draws.points[index]
    lower, upper = draws.boxes[index, 0], draws.boxes[index, 1]
    return lower + rng.random(lower.shape) * (upper - lower)


def expectation(values: np.ndarray, draws: Draws) -> Estimate:
    """Σ wᵢ vᵢ with its standard error √(Σ wᵢ² (vᵢ − v̄)²), or 0 on quadrature nodes.

    Where the draws come in blocks, the error is at least the spread of the blocks' own means:
    dependence within a run is invisible from inside it. Values of infinite size give an
    infinite mean, with no error.
    """
    w = draws.weights
    with np.errstate(invalid="ignore"):
        values = np.where(w > 0, values, 0.0)
        mean = float(np.sum(w * values))
    if draws.exact or not np.isfinite(mean):
        return Estimate(mean, 0.0)
    variance = float(np.sum(w**2 * (values - mean) ** 2))
    if draws.blocks is not None:
        masses = np.bincount(draws.blocks, w)
        means = np.bincount(draws.blocks, w * values) / masses
        shares = masses / masses.sum()
        count = len(masses)
        between = np.sum(shares**2 * (means - mean) ** 2) * count / max(count - 1, 1)
        variance = max(variance, float(between))
    return Estimate(mean, float(np.sqrt(variance)))


def effective_sample_size(log_weights: np.ndarray) -> float:
    """(Σ w)² / Σ w² from unnormalised log weights (Kish 1965)."""
    w = np.exp(log_weights - np.max(log_weights))
    return float(w.sum() ** 2 / np.sum(w**2))


def divergence(
    f: Callable,
    log_ratio_p: np.ndarray,
    draws_p: Draws,
    log_ratio_q: np.ndarray,
    draws_q: Draws,
    log_ratio_mcse: float = 0.0,
) -> Estimate:
    """D(p, q) of one generator from draws of both p and q, in nats.

    ½ E_p[h(r)] + ½ E_q[h(r)], which is E_m[h(r)] for the midpoint m: each region is seen by the
    distribution that has mass there, so neither p ≫ q nor q ≫ p is missed. `log_ratio_p` and
    `log_ratio_q` are r = log p − log q, both normalised, at the draws of each. The error of the
    log evidence, `log_ratio_mcse`, shifts every r alike and is carried through by differences.
    """

    def at(shift):
        from_p = expectation(np.asarray(f(log_ratio_p + shift)), draws_p)
        from_q = expectation(np.asarray(f(log_ratio_q + shift)), draws_q)
        return 0.5 * (from_p.value + from_q.value), 0.5 * np.hypot(from_p.mcse, from_q.mcse)

    value, mcse = at(0.0)
    if log_ratio_mcse > 0 and np.isfinite(value):
        slope = 0.5 * (at(log_ratio_mcse)[0] - at(-log_ratio_mcse)[0])
        mcse = float(np.hypot(mcse, slope))
    return Estimate(float(value), float(mcse))
