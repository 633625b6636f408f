"""Guides: families of NumPyro distributions q on R^d.

A family is pure functions: initial parameters around a point, parameters -> distribution, and,
where it exists in closed form, the weighted maximum-likelihood fit to draws. Parameters are
unconstrained, so any optimiser moves them as they are. A new family is one function and its
name in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from vi_demo.errors import InputError


class Family(NamedTuple):
    """A family of distributions on R^d as pure functions of its parameters.

    `init(loc, scale)` gives the parameters of a member at `loc` (d,) of width `scale`;
    `distribution(params)` the member itself; `fit(draws, weights)` the parameters that maximise
    Σ wᵢ log q(xᵢ), the forward-KL optimum, for draws (S, d) and normalised weights (S,).
    """

    name: str
    init: Callable[[Array, float], dict]
    distribution: Callable[[dict], dist.Distribution]
    fit: Callable[[Array, Array], dict] | None = None


def moments(draws: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted mean (d,) and covariance (d, d) of draws (S, d), weights adding up to one."""
    mean = weights @ draws
    centred = draws - mean
    return mean, (weights[:, None] * centred).T @ centred


def diagonal() -> Family:
    """Independent Gaussians: q = ∏ N(locᵢ, exp(log_scaleᵢ)²)."""

    def init(loc, scale):
        return {"loc": loc, "log_scale": jnp.full(loc.shape, jnp.log(scale), loc.dtype)}

    def distribution(params):
        return dist.Normal(params["loc"], jnp.exp(params["log_scale"])).to_event(1)

    def fit(draws, weights):
        mean = weights @ draws
        return {"loc": mean, "log_scale": 0.5 * jnp.log(weights @ (draws - mean) ** 2)}

    return Family("diagonal", init, distribution, fit)


def full_rank() -> Family:
    """A Gaussian of any covariance: q = N(loc, L Lᵀ) with L = diag(exp(log_scale)) · U.

    U is unit lower triangular: its entries are correlations rather than covariances, so one
    learning rate suits coordinates of any scale.
    """

    def init(loc, scale):
        return {
            "loc": loc,
            "log_scale": jnp.full(loc.shape, jnp.log(scale), loc.dtype),
            "lower": jnp.zeros((loc.size * (loc.size - 1) // 2,), loc.dtype),
        }

    def distribution(params):
        d = params["loc"].size
        unit = jnp.eye(d, dtype=params["loc"].dtype)
        unit = unit.at[jnp.tril_indices(d, -1)].set(params["lower"])
        scale_tril = jnp.exp(params["log_scale"])[:, None] * unit
        return dist.MultivariateNormal(params["loc"], scale_tril=scale_tril)

    def fit(draws, weights):
        mean, covariance = moments(draws, weights)
        scale_tril = jnp.linalg.cholesky(covariance)
        scale = jnp.diagonal(scale_tril)
        lower = (scale_tril / scale[:, None])[jnp.tril_indices(mean.size, -1)]
        return {"loc": mean, "log_scale": jnp.log(scale), "lower": lower}

    return Family("full_rank", init, distribution, fit)


FAMILIES = {family.__name__: family for family in (diagonal, full_rank)}


def family(name: str) -> Family:
    """The family of that name; raises `InputError` for a name that is not one."""
    if name not in FAMILIES:
        raise InputError(f"no guide named '{name}'; choose from {', '.join(FAMILIES)}.")
    return FAMILIES[name]()


def number_of_parameters(params: dict) -> int:
    """How many numbers the parameters of a guide are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
