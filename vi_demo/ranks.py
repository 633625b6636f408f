"""Ranks of true values among draws of fits to data simulated from them: are they uniform?

If a fit were the posterior, the rank of the truth would be uniform (Talts et al. 2018, arXiv
1804.06788). A histogram that leans shows bias, one like a U a guide too narrow, one like a dome a
guide too wide (Yao et al. 2018, arXiv 1802.02538).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from arviz_stats.base import array_stats
from scipy.special import ndtr, ndtri

LEVEL = 0.05  # of finding anything at all in a calibrated fit
CENTRAL = 0.9  # interval whose coverage is told


class Ranked(NamedTuple):
    """What the ranks of one entry say: p-values, as they are and after Holm, and sizes.

    `bias_in_sd` is how far the fit lies above the truth on average, in its own sds; `spread` how
    many times as wide as the fit says the truth lies around it; `coverage` the share of central
    90% intervals that hold the truth.
    """

    p: dict[str, float]
    adjusted: dict[str, float]
    bias_in_sd: float
    spread: float
    coverage: float
    findings: tuple[str, ...]


def assess(normalised: np.ndarray) -> list[Ranked]:
    """What normalised ranks (refits, entries), (rank + ½)/(L + 1), say of each entry.

    Three tests an entry: of the mean u against ½, which sees bias; of the mean (2u − 1)² against
    ⅓, which sees width; and of any departure (POT-C, Tesso et al. 2026, arXiv 2603.02928). Holm's
    correction is over all tests of all entries.
    """
    p = [tests(u) for u in normalised.T]
    flat = holm(np.array([list(each.values()) for each in p]).ravel()).reshape(len(p), -1)
    rows = zip(normalised.T, p, flat, strict=True)
    return [told(u, each, dict(zip(each, row, strict=True))) for u, each, row in rows]


def tests(u: np.ndarray) -> dict[str, float]:
    """p-values of normalised ranks (n,): of bias, of width, of any departure from uniform."""
    root = np.sqrt(len(u))
    bias = root * (u.mean() - 1 / 2) * np.sqrt(12)
    width = root * (((2 * u - 1) ** 2).mean() - 1 / 3) / np.sqrt(4 / 45)
    shape, *_ = array_stats.uniformity_test(u, method="pot_c")
    return {"bias": two_sided(bias), "width": two_sided(width), "shape": float(shape)}


def two_sided(z: float) -> float:
    """The p-value of a standard normal statistic."""
    return float(2 * ndtr(-abs(z)))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (n,) after Holm's correction for testing them all."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(stepped)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def told(u: np.ndarray, p: dict[str, float], adjusted: dict[str, float]) -> Ranked:
    """Sizes, and in words what was found: nothing where no test rejects."""
    normal = ndtri(u)
    bias, spread = float(-normal.mean()), float(normal.std())
    found = []
    if adjusted["bias"] < LEVEL:
        side = "high" if u.mean() < 1 / 2 else "low"
        found.append(f"biased {side}, by {abs(bias):.2g} of its own sds on average")
    if adjusted["width"] < LEVEL:
        narrow = ((2 * u - 1) ** 2).mean() > 1 / 3
        found.append(
            f"too {'narrow' if narrow else 'wide'}: the truth lies {spread:.2g} times as far from "
            "it as it says"
        )
    if not found and adjusted["shape"] < LEVEL:
        found.append("not uniform, though neither its place nor its width shows why")
    inside = float((np.abs(u - 1 / 2) < CENTRAL / 2).mean())
    return Ranked(p, adjusted, bias, spread, inside, tuple(found))
