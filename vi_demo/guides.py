"""Guides: families of NumPyro distributions q on R^d.

A family is pure functions: initial parameters around a point, parameters -> distribution, draws
that gradients pass through, and the weighted maximum-likelihood fit to draws. Parameters are
unconstrained, so any optimiser moves them as they are. A new family is one function and its
name in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from vi_demo.errors import InputError


class Family(NamedTuple):
    """A family of distributions on R^d as pure functions of its parameters.

    `init(loc, scale)` gives the parameters of a member at `loc` (d,) of width `scale`;
    `distribution(params)` the member itself; `draw(params, noise)` turns standard normal noise
    (n, d) into points (n, d) of log masses (n,), whose gradients with respect to the parameters
    are those of expectations under q; `fit(draws, weights, begin=None)` gives the parameters that
    maximise Σ wᵢ log q(xᵢ), the forward-KL optimum, for draws (S, d) and normalised weights (S,),
    by iteration from given ones where there is no closed form.
    `moved(params, shift, factor)` gives those of the image of q under z = shift + factor u, for a
    factor (d, d), or (d,) for one scale a coordinate; `turns` says whether the family has the
    images under all (d, d). With several `components`, their parameters have a leading axis.
    """

    name: str
    init: Callable[[Array, float], dict]
    distribution: Callable[[dict], dist.Distribution]
    draw: Callable[[dict, Array], tuple[Array, Array]]
    fit: Callable[..., dict]
    moved: Callable[[dict, Array, Array], dict]
    turns: bool = True
    components: int = 1


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

    def draw(params, noise):
        return params["loc"] + jnp.exp(params["log_scale"]) * noise, equal_masses(noise)

    def fit(draws, weights, begin=None):
        mean = weights @ draws
        return {"loc": mean, "log_scale": 0.5 * jnp.log(weights @ (draws - mean) ** 2)}

    def moved(params, shift, factor):
        return {
            "loc": shift + factor * params["loc"],
            "log_scale": params["log_scale"] + jnp.log(jnp.abs(factor)),
        }

    return Family("diagonal", init, distribution, draw, fit, moved, turns=False)


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
        return dist.MultivariateNormal(params["loc"], scale_tril=scale_tril(params))

    def draw(params, noise):
        return params["loc"] + noise @ scale_tril(params).T, equal_masses(noise)

    def fit(draws, weights, begin=None):
        return from_moments(*moments(draws, weights))

    def moved(params, shift, factor):
        if factor.ndim == 1:
            factor = jnp.diag(factor)
        # The image's Cholesky factor, without forming its covariance: LᵀFᵀ = QR, so F L = RᵀQᵀ.
        upper = jnp.linalg.qr((factor @ scale_tril(params)).T, mode="r")
        triangle = upper.T * jnp.sign(jnp.diagonal(upper))
        return from_factor(shift + factor @ params["loc"], triangle)

    return Family("full_rank", init, distribution, draw, fit, moved)


@jax.jit  # one program where it is not in a larger one, not fifty
def scale_tril(params: dict) -> Array:
    """The Cholesky factor (d, d) of `full_rank`'s parameters."""
    d = params["loc"].size
    unit = jnp.eye(d, dtype=params["loc"].dtype)
    unit = unit.at[jnp.tril_indices(d, -1)].set(params["lower"])
    return jnp.exp(params["log_scale"])[:, None] * unit


def from_moments(mean: Array, covariance: Array) -> dict:
    """The parameters of `full_rank` with this mean and covariance."""
    return from_factor(mean, jnp.linalg.cholesky(covariance))


def from_factor(mean: Array, factor: Array) -> dict:
    """The parameters of `full_rank` with this mean and Cholesky factor of the covariance."""
    scale = jnp.diagonal(factor)
    lower = (factor / scale[:, None])[jnp.tril_indices(mean.size, -1)]
    return {"loc": mean, "log_scale": jnp.log(scale), "lower": lower}


def nearest(family: Family, mean: Array, factor: Array) -> dict:
    """The parameters of a family of single Gaussians nearest to N(mean, factor factorᵀ).

    Nearest under forward KL: where the family does not turn, they have the same marginals. The
    factor is (d, d), or (d,) for sds alone.
    """
    if factor.ndim == 2 and not family.turns:
        factor = jnp.linalg.norm(factor, axis=1)
    return family.moved(family.init(jnp.zeros_like(mean), 1.0), mean, factor)


def equal_masses(noise: Array) -> Array:
    """Log masses (n,) that add up to one."""
    return jnp.full(len(noise), -jnp.log(len(noise)), noise.dtype)


MOST_COMPONENTS = 64
MOST_FULL_RANK = 500  # dimensions; beyond, a covariance has too many numbers to be fitted
MOMENT_DRAWS = 4096
EM_STARTS = 8
EM_STEPS = 100
EM_DRAWS = 2048  # of each start; then all, from the best
EM_LAST = 30
LEAST_VARIANCE = 1e-6  # of a component, in variances of all draws: none collapses on one draw


def mixture(components: int) -> Family:
    """K Gaussians of any covariance: q = Σ wₖ N(locₖ, Lₖ Lₖᵀ).

    Draws are stratified: as many from each component, carrying its weight as their mass, for
    which component a draw comes from has no gradient. The weighted fit is expectation
    maximisation from several starts.
    """
    one = full_rank()

    def init(loc, scale):
        # A little apart, or all would move as one.
        apart = jax.random.normal(jax.random.key(0), (components, loc.size), loc.dtype)
        locs = loc + scale * (apart - apart.mean(0))
        same = jax.vmap(lambda x: one.init(x, scale))(locs)
        return {"logits": jnp.zeros(components, loc.dtype), **same}

    def distribution(params):
        weights = dist.Categorical(logits=params["logits"])
        factors = jax.vmap(scale_tril)(gaussians(params))
        each = dist.MultivariateNormal(params["loc"], scale_tril=factors)
        return dist.MixtureSameFamily(weights, each)

    def gaussians(params):
        return {k: v for k, v in params.items() if k != "logits"}

    def draw(params, noise):
        each = len(noise) // components
        # Stretches of a quasi-random sequence are one too; every second number of it is not.
        strata = noise[: each * components].reshape(components, each, -1)
        points, log_masses = jax.vmap(one.draw)(gaussians(params), strata)
        log_masses += jax.nn.log_softmax(params["logits"])[:, None]
        return points.reshape(-1, noise.shape[-1]), log_masses.reshape(-1)

    def fit(draws, weights, begin=None):
        _, covariance = moments(draws, weights)
        floor = LEAST_VARIANCE * jnp.diag(jnp.diagonal(covariance))

        def step(params, draws, weights):
            log_each = jax.vmap(lambda p: one.distribution(p).log_prob(draws))(gaussians(params))
            shares = jax.nn.softmax(log_each + params["logits"][:, None], axis=0) * weights
            masses = shares.sum(1) + jnp.finfo(weights.dtype).tiny
            mean, cov = jax.vmap(moments, (None, 0))(draws, shares / masses[:, None])
            return {"logits": jnp.log(masses), **jax.vmap(from_moments)(mean, cov + floor)}

        def climb(params, draws, weights, steps):
            params = jax.lax.fori_loop(0, steps, lambda _, p: step(p, draws, weights), params)
            return params, weights @ distribution(params).log_prob(draws)

        if begin is not None:
            return climb(begin, draws, weights, EM_LAST)[0]
        some, share = draws[:EM_DRAWS], weights[:EM_DRAWS] / weights[:EM_DRAWS].sum()

        def start(key):
            locs = some[jax.random.choice(key, len(some), (components,), p=share)]
            each = jax.vmap(from_moments, (0, None))(locs, covariance / components + floor)
            params = {"logits": jnp.zeros(components, draws.dtype), **each}
            return climb(params, some, share, EM_STEPS)

        every, heights = jax.lax.map(start, jax.random.split(jax.random.key(0), EM_STARTS))
        best = jnp.argmax(jnp.where(jnp.isnan(heights), -jnp.inf, heights))
        return climb(jax.tree.map(lambda x: x[best], every), draws, weights, EM_LAST)[0]

    def moved(params, shift, factor):
        each = jax.vmap(lambda p: one.moved(p, shift, factor))(gaussians(params))
        return {"logits": params["logits"], **each}

    name = f"mixture:{components}"
    return Family(name, init, distribution, draw, fit, moved, components=components)


def covariance_of(guide) -> Array:
    """The covariance (d, d) of a guide: full, diagonal, or of a mixture within and between."""
    if isinstance(guide, dist.MixtureSameFamily):
        weights, each = guide.mixing_distribution.probs, guide.component_distribution
        apart = each.mean - guide.mean
        within = jnp.einsum("k,kij->ij", weights, each.covariance_matrix)
        return within + jnp.einsum("k,ki,kj->ij", weights, apart, apart)
    covariance = getattr(guide, "covariance_matrix", None)
    return jnp.diag(guide.variance) if covariance is None else covariance


class Own(dist.Distribution):
    """A guide that the user wrote, at some values of its parameters, as a distribution on R^d.

    Its mean and variance are those of a few thousand draws.
    """

    support = dist.constraints.real_vector
    reparametrized_params = ()

    def __init__(self, guide, params: dict, dim: int):
        self.guide, self.params = guide, params
        super().__init__((), (dim,), validate_args=False)

    def sample(self, key, sample_shape=()):
        """Draws (*sample_shape, d)."""
        keys = jax.random.split(key, sample_shape)
        draw = lambda key: self.guide.draw(self.params, key)[0]  # noqa: E731
        for _ in sample_shape:
            draw = jax.vmap(draw)
        return draw(keys)

    def log_prob(self, value):
        """Log density in nats of points (..., d)."""
        log_prob = partial(self.guide.log_prob, self.params)
        for _ in value.shape[:-1]:
            log_prob = jax.vmap(log_prob)
        return log_prob(value)

    @cached_property
    def some(self):
        """The draws that moments are taken of."""
        return jax.jit(lambda key: self.sample(key, (MOMENT_DRAWS,)))(jax.random.key(0))

    @property
    def mean(self):
        """Mean (d,)."""
        return self.some.mean(0)

    @property
    def variance(self):
        """Variance (d,)."""
        return self.some.var(0)

    @property
    def covariance_matrix(self):
        """Covariance (d, d)."""
        return jnp.cov(self.some, rowvar=False).reshape(2 * self.event_shape)


def own(guide, dim: int) -> Family:
    """The family of a guide that the user wrote: it can be drawn from, and fitted by SVI alone."""
    return Family("own", None, lambda params: Own(guide, params, dim), None, None, None)


FAMILIES = {family.__name__: family for family in (diagonal, full_rank, mixture)}
WITH_NUMBER = ("mixture",)


def names() -> list[str]:
    """How families are asked for."""
    return [f"{k}:K" if k in WITH_NUMBER else k for k in FAMILIES]


def family(name: str) -> Family:
    """The family of that name, such as `full_rank` or `mixture:3`.

    Raises `InputError` for a name that is not one.
    """
    base, colon, number = name.partition(":")
    if base not in FAMILIES or bool(colon) != (base in WITH_NUMBER):
        raise InputError(f"no guide named '{name}'; choose from {', '.join(names())}.")
    if not colon:
        return FAMILIES[base]()
    if not number.isdecimal() or not 1 <= int(number) <= MOST_COMPONENTS:
        raise InputError(f"guide '{name}': K is a number from 1 to {MOST_COMPONENTS}.")
    return FAMILIES[base](int(number))


def number_of_parameters(params: dict) -> int:
    """How many numbers the parameters of a guide are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
