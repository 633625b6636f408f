"""What can be drawn of a target of one or two dimensions: its density, and both KLs around it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from vi_demo.fitting.descent import Descent
from vi_demo.fitting.objectives import TargetDraws
from vi_demo.target import Target

GRID = {1: 601, 2: 121}  # points along each axis
KL_GRID = 81
MARGIN = 0.1
AROUND = 2.0  # sds around the target's mean that are seen at least
NODES = 241  # of the guide's density
REACH = 7.0  # sds of it


def density(target: Target, points: np.ndarray) -> xr.Dataset:
    """Log p on a grid over where the points (n, d) lie, d being 1 or 2."""
    low, high = np.quantile(points, [0.001, 0.999], axis=0)
    margin = 0.25 * (high - low)
    axes = np.linspace(low - margin, high + margin, GRID[target.dim], axis=1)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    values = target.log_densities(grid.reshape(-1, target.dim))
    names = [f"axis_{i}" for i in range(target.dim)]
    return xr.Dataset(
        {"log_p": (names, values.reshape(grid.shape[:-1]))},
        coords=dict(zip(names, axes, strict=True)),
        attrs={"names": target.coordinate_names},
    )


def of_kls(target: Target, draws: TargetDraws, ways: dict[str, Descent]) -> xr.Dataset | None:
    """KL(q‖p) and KL(p‖q) in nats of q = N(μ, σ²), over (μ, log σ) around p and the ways.

    KL(q‖p) by quadrature over μ ± 7σ; KL(p‖q) = E_p[log p] + log σ + ½ log 2π
    + ½ (v + (m − μ)²)/σ², for p of mean m and variance v. None where those are infinite.
    """
    weights, x = np.exp(draws.log_weights), np.asarray(draws.points)[:, 0]
    mean = weights @ x
    variance, least = weights @ (x - mean) ** 2, weights @ draws.log_p
    if not np.isfinite([mean, variance, least]).all():
        return None
    sd = np.sqrt(variance)
    means, log_sds = led_through(ways)
    mu = reach(np.append(means, mean + AROUND * sd * np.array([-1, 1])))
    log_sd = reach(np.append(log_sds, np.log(2 * sd)))
    sd = np.exp(log_sd)
    away = (variance + (mean - mu[:, None]) ** 2) / sd**2
    forward = least + log_sd + 0.5 * np.log(2 * np.pi) + 0.5 * away
    u = np.linspace(-REACH, REACH, NODES)
    masses = np.exp(-0.5 * u**2) / np.exp(-0.5 * u**2).sum()
    points = mu[:, None, None] + sd[:, None] * u
    log_p = target.log_densities(points.reshape(-1, 1)).reshape(points.shape)
    # Where p is zero so is the chance that this is finite.
    reverse = draws.log_evidence - log_p @ masses - 0.5 * (1 + np.log(2 * np.pi)) - log_sd
    axes = ("mean", "log_sd")
    return xr.Dataset(
        {"reverse_kl": (axes, reverse), "forward_kl": (axes, forward)},
        coords={"mean": mu, "log_sd": log_sd},
    )


def led_through(ways: dict[str, Descent]) -> tuple[np.ndarray, np.ndarray]:
    """Every mean and every log sd on the ways."""
    each = ways.values()
    return (
        np.concatenate([way.mean.ravel() for way in each]),
        0.5 * np.log(np.concatenate([way.covariance.ravel() for way in each])),
    )


def reach(values: np.ndarray) -> np.ndarray:
    """An even grid over values, with a margin."""
    low, high = values.min(), values.max()
    margin = MARGIN * max(high - low, 1e-3)
    return np.linspace(low - margin, high + margin, KL_GRID)
