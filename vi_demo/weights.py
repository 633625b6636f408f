"""What importance weights p/q say of themselves: how heavy their tail is, what they add up to."""

from __future__ import annotations

import numpy as np
from arviz_stats.base import array_stats

from vi_demo.divergences.estimators import Estimate, effective_sample_size

LEAST_TAIL = 25  # draws, for a tail to be fitted
NEARLY_CONSTANT = 0.95  # ESS / draws above which weights need no smoothing
CONSTANT = 0.99  # ESS / draws above which their tail has no shape
REPLICATES = 20


def pareto_khat(log_weights: np.ndarray) -> tuple[float | None, str | None]:
    """Shape of the weights' upper tail, or None and why there is none to fit.

    Of weights that are nearly constant it is none: fitted to differences that change no mean, it
    is a number of their rounding.
    """
    finite = log_weights[np.isfinite(log_weights)]
    if len(finite) < LEAST_TAIL:
        return None, f"only {len(finite)} draws of the guide lie where the target has density"
    if effective_sample_size(log_weights) > CONSTANT * len(finite):
        return None, "the importance weights are nearly constant, over 99% of the draws effective"
    khat = float(array_stats.psislw(-log_weights)[1])
    if not np.isfinite(khat):
        return None, "the importance weights have no tail to fit"
    return khat, None


def khat_of(log_weights: np.ndarray) -> float | None:
    """k-hat, or None where there is none."""
    return pareto_khat(log_weights)[0]


def khat_spread(log_weights: np.ndarray) -> float | None:
    """The sd of k-hat over bootstrap replicates of the draws."""
    rng = np.random.default_rng(0)
    size = len(log_weights)
    replicates = [khat_of(log_weights[rng.integers(size, size=size)]) for _ in range(REPLICATES)]
    found = [khat for khat in replicates if khat is not None]
    return float(np.std(found, ddof=1)) if len(found) > 1 else None


def pareto_smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed log weights and k-hat: +inf where too few have weight, -inf without a tail."""
    finite = np.isfinite(log_weights).sum()
    if finite < LEAST_TAIL:
        return log_weights, np.inf
    if effective_sample_size(log_weights) > NEARLY_CONSTANT * finite:
        return log_weights, -np.inf
    smooth, khat = array_stats.psislw(-log_weights)
    return np.asarray(smooth), float(khat)


def smoothed(log_weights: np.ndarray) -> np.ndarray | None:
    """Pareto-smoothed weights adding up to one, or None where there is no weight at all."""
    if not np.isfinite(log_weights).any():
        return None
    smooth, _ = pareto_smoothed(np.where(np.isfinite(log_weights), log_weights, -np.inf))
    weights = np.exp(smooth - smooth.max())
    return weights / weights.sum()


def importance_evidence(log_weights: np.ndarray) -> Estimate | None:
    """Log of the weights' mean, their upper tail taken at its fitted mean; None where it has none.

    The tail beyond the largest of S weights is missing from their plain mean, and the plain
    error does not know it. A generalised Pareto fitted to the M largest has the mean
    u + σ / (1 − k); the error adds to the plain one the step from plain to fitted mean and
    what an error of (1 + k) / √M in k makes of it.
    """
    size, top = len(log_weights), log_weights.max()
    w = np.sort(np.exp(log_weights - top))
    plain = w.mean()
    error = w.std() / plain / np.sqrt(size)
    number = int(min(0.2 * size, 3 * np.sqrt(size)))
    tail, threshold = w[-number:], w[-number - 1]
    if threshold <= 0:  # nearly all the weight is on less than the tail
        return None
    if number < 25 or tail[-1] / threshold - 1 < 1e-6:
        return Estimate(float(top + np.log(plain)), float(error))
    k, sigma = generalised_pareto(tail - threshold)
    if k >= 1:
        return None
    mean = (w[:-number].sum() + number * (threshold + sigma / (1 - k))) / size
    of_k = number / size * sigma / (1 - k) ** 2 / mean * (1 + k) / np.sqrt(number)
    step = np.log(mean / plain)
    return Estimate(float(top + np.log(mean)), float(np.sqrt(error**2 + step**2 + of_k**2)))


def generalised_pareto(excess: np.ndarray) -> tuple[float, float]:
    """Shape k and scale σ of a generalised Pareto, from sorted positive excesses (n,).

    Zhang and Stephens' (2009) posterior mean over a grid, doi:10.1198/tech.2009.08017.
    """
    n = len(excess)
    grid = 30 + int(np.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    b = 1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))
    b = b / (3 * quartile) + 1 / excess[-1]
    shapes = np.log1p(-b[:, None] * excess).mean(axis=1)
    profile = n * (np.log(-b / shapes) - shapes - 1)
    weights = np.exp(profile - profile.max())
    b = float(np.sum(b * weights) / weights.sum())
    k = float(np.log1p(-b * excess).mean())
    return k, -k / b
