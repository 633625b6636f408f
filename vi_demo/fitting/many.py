"""The same fit to each of many data sets, in one compiled program.

Reverse KL. Climbs from a few points give a Gaussian to begin at. From there the ELBO on fixed
quasi-random draws is climbed by natural gradients: for z = m + Lε, with g = E[∇_ε log p] and
M = E[∇_ε log p εᵀ] + I, the step is m + ρLg and L(I + ρC + ½ρ²C²), where C is the lower triangle
of M with half its diagonal (Lin et al. 2021, arXiv 2102.07405). It has no scale to tune, and on a
Gaussian target one step of ρ = 1 is the optimum. The draws being whitened, this gradient is the
sticking-the-landing one too (Roeder et al. 2017, arXiv 1703.09194). A step that lowers the ELBO is
not taken, and ρ halved.

The convergence check. A fit has converged when ½|g|² + ¼‖M‖², the nats that a last step would
gain, is at most `TOLERANCE` on its own draws, and at most `MISSED` on fresh ones, where two halves
are multiplied so that noise adds nothing on average.

Forward KL. From there on, rounds of importance sampling: the proposal is a mixture of inflated
Student-t, each component moved to the truncated weights' (Ionides 2008,
doi:10.1198/106186008X320456) mean and covariance of its share of the draws (Cappé et al. 2008,
doi:10.1007/s11222-008-9059-x). The last round's weights are Pareto-smoothed and taken for not
converged where their k-hat is above 0.7 or they are worth fewer than `LEAST_ESS` draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from vi_demo.batching import in_slices
from vi_demo.climbs import SPREADS, climber, curvature_of, to_the_end
from vi_demo.divergences.estimators import effective_sample_size
from vi_demo.fitting.moment_matching import KHAT
from vi_demo.fitting.objectives import normal_noise
from vi_demo.guides import Family, from_factor, full_rank, moments
from vi_demo.target import Simulation, Target, finite_or_minus_inf
from vi_demo.weights import pareto_smoothed

CANDIDATES = 32  # for where a climb begins
DRAWS = 1024  # fixed, that the ELBO is climbed on
FRESH = 4096  # for the check, and for the ELBO that is told
MOST_STEPS = 400
LONGEST = 1.0  # step, in sds
TOLERANCE = 1e-4  # nats
MISSED = 0.02
COMPONENTS = 16  # of a proposal, a power of two
ROUNDS = 16  # of importance sampling
WEIGHED = 8192, 32_768  # draws of a round, and of the last
TAILS = 5  # degrees of freedom, a whole number
INFLATED = 1.2
LEAST_ESS = 400.0


class Fitted(NamedTuple):
    """The guides of many data sets, their parameters on a leading axis, and how each went.

    `elbo` is each guide's, in nats, where it was climbed; NaN elsewhere.
    """

    params: dict
    elbo: np.ndarray
    converged: np.ndarray


class Refit(NamedTuple):
    """A fit to one data set: mean (d,), lower factor (d, d) or sds (d,), its ELBO in nats.

    `missed` are the nats that fresh draws say were left to gain.
    """

    mean: Array
    factor: Array
    elbo: Array
    missed: Array
    converged: Array
    steps: Array


def reverse_kl(simulation: Simulation, family: Family, dim: int, key: Array) -> Callable:
    """The program that fits a Gaussian family by reverse KL: (data, keys) -> `Fitted`."""
    refits = jax.jit(jax.vmap(climbed(simulation, family, dim, key)))

    def fit(data, keys):
        found = refits(data, keys)
        elbo, converged = np.asarray(found.elbo), np.asarray(found.converged)
        return Fitted(as_params(found.mean, found.factor), elbo, converged)

    return fit


def forward_kl(simulation: Simulation, family: Family, dim: int, key: Array) -> Callable:
    """The program that fits a Gaussian family by forward KL: (data, keys) -> `Fitted`."""
    climb = climbed(simulation, full_rank(), dim, key)
    some, last = (
        normal_noise(jax.random.fold_in(key, n), n, dim + TAILS, whiten=False) for n in WEIGHED
    )

    def one(data, key):
        at = climb(data, key)
        return weighed(simulation.given(data), at.mean, at.factor, some, last)

    program, match = jax.jit(jax.vmap(one)), jax.jit(jax.vmap(family.fit))

    def fit(data, keys):
        points, log_weights = program(data, keys)
        each = [believed(row) for row in np.asarray(log_weights)]
        weights, converged = (np.stack(part) for part in zip(*each, strict=True))
        return Fitted(match(points, weights), np.full(len(keys), np.nan), converged)

    return fit


FITS = {"reverse_kl": reverse_kl, "forward_kl": forward_kl}


def climbed(simulation: Simulation, family: Family, dim: int, key: Array) -> Callable:
    """The fit by reverse KL of one data set, (data, key) -> `Refit`, all on the same noise."""
    fixed = normal_noise(key, DRAWS, dim)
    fresh = normal_noise(jax.random.fold_in(key, 0), FRESH, dim, whiten=False)
    return lambda data, key: reverse(simulation.given(data), family, (fixed, fresh), key)


def as_params(mean: Array, factor: Array) -> dict:
    """The parameters of Gaussians (n, d): of `diagonal` where factors are sds."""
    if factor.ndim == mean.ndim:
        return {"loc": mean, "log_scale": jnp.log(factor)}
    return jax.vmap(from_factor)(mean, factor)


# Reverse KL


class Place(NamedTuple):
    """Where a fit stands: its guide, the ELBO there, its slope along mean and factor."""

    mean: Array
    factor: Array
    elbo: Array
    shift: Array
    bend: Array


class Ascent(NamedTuple):
    """A fit on its way."""

    at: Place
    rate: Array
    step: Array


def reverse(target: Target, family: Family, noise: tuple[Array, Array], key: Array) -> Refit:
    """The fit by reverse KL of one target, to be mapped over the data that made it."""
    fixed, fresh = noise
    look = partial(looked_at, target, noise=fixed)

    def going(now):
        return (now.step < MOST_STEPS) & ~settled(now.at)

    def advance(now):
        at = now.at
        length = jnp.sqrt((at.shift**2).sum() + (at.bend**2).sum())
        rate = jnp.minimum(now.rate, LONGEST / length)
        mean = at.mean + rate * times(at.factor, at.shift)
        tried = look(mean, turned(at.factor, rate * at.bend))
        rises = tried.elbo >= at.elbo
        chosen = jax.tree.map(lambda a, b: jnp.where(rises, a, b), tried, at)
        rate = jnp.where(rises, jnp.minimum(1.5 * rate, 1.0), rate / 2)
        return Ascent(chosen, rate, now.step + 1)

    first = Ascent(look(*begin(target, family, key)), jnp.ones(()), jnp.zeros((), int))
    at, _, steps = jax.lax.while_loop(going, advance, first)
    one, other = (looked_at(target, at.mean, at.factor, half) for half in jnp.split(fresh, 2))
    missed = left(one, other)
    elbo = (one.elbo + other.elbo) / 2
    return Refit(at.mean, at.factor, elbo, missed, settled(at) & (missed <= MISSED), steps)


def begin(target: Target, family: Family, key: Array) -> tuple[Array, Array]:
    """The Gaussian of greatest ELBO that climbs from likely draws of the prior lead to."""
    go = climber(target, curvature_of(target))

    def one(key, spread):
        tried = jax.vmap(target.prior.draw)(jax.random.split(key, CANDIDATES))
        log_p = finite_or_minus_inf(jax.vmap(target.log_density)(tried))
        return to_the_end(go, tried[jnp.argmax(log_p)], spread)

    spreads = jnp.array(SPREADS)
    found = jax.vmap(one)(jax.random.split(key, len(spreads)), spreads)
    best = jax.tree.map(lambda x: x[jnp.argmax(found.elbos)], found)
    if not family.turns:
        return best.centres, best.scales
    return best.centres, jnp.linalg.cholesky(best.factors @ best.factors.T)


def looked_at(target: Target, mean: Array, factor: Array, noise: Array) -> Place:
    """The ELBO of a Gaussian on some noise (n, d), and its slope in units of the Gaussian."""
    points = mean + noise * factor if factor.ndim == 1 else mean + noise @ factor.T
    log_p, slopes = in_slices(jax.value_and_grad(target.log_density), points, target.batch)
    scales = factor if factor.ndim == 1 else jnp.diagonal(factor)
    # Minus log q at the draws, not the entropy: where the guide is the target, nothing is noise.
    log_volume = jnp.log(scales).sum() + 0.5 * mean.size * jnp.log(2 * jnp.pi)
    elbo = (finite_or_minus_inf(log_p) + 0.5 * (noise**2).sum(-1)).mean() + log_volume
    if factor.ndim == 1:
        local = slopes * factor
        return Place(mean, factor, elbo, local.mean(0), ((local * noise).mean(0) + 1) / 2)
    local = slopes @ factor
    bend = jnp.tril(local.T @ noise / len(noise) + jnp.eye(mean.size))
    return Place(mean, factor, elbo, local.mean(0), bend - jnp.diag(jnp.diagonal(bend)) / 2)


def settled(at: Place) -> Array:
    """Whether there is next to nothing to gain."""
    return left(at, at) <= TOLERANCE


def left(one: Place, other: Place) -> Array:
    """Nats that a last step would gain, ½|g|² + ¼‖M‖², of which `bend` is the lower half."""
    squares = one.bend * other.bend
    own = squares.sum() if squares.ndim == 1 else jnp.trace(squares)
    return (one.shift @ other.shift + squares.sum() + own) / 2


def times(factor: Array, vector: Array) -> Array:
    """L v, of sds or of a whole factor."""
    return factor * vector if factor.ndim == 1 else factor @ vector


def turned(factor: Array, bend: Array) -> Array:
    """L(I + C + ½C²), triangular with a positive diagonal as L is."""
    if factor.ndim == 1:
        return factor * (1 + bend + bend**2 / 2)
    return factor + factor @ (bend + bend @ bend / 2)


# Forward KL


def weighed(
    target: Target, mean: Array, factor: Array, some: Array, last: Array
) -> tuple[Array, Array]:
    """Draws (n, d) around a posterior and their log weights, from a few adaptive rounds.

    Proposals are mixtures, as one ellipse does not follow a posterior that bends or narrows; each
    round is a step of their EM on weighted draws.
    """

    def propose(means, factors, noise):
        # χ² is a sum of squares; stretches of a quasi-random sequence are one too.
        t = noise[:, TAILS:] / jnp.sqrt((noise[:, :TAILS] ** 2).mean(-1, keepdims=True))
        strata = t.reshape(COMPONENTS, -1, mean.size)
        points = means[:, None] + INFLATED * jnp.einsum("kni,kji->knj", strata, factors)
        points = points.reshape(-1, mean.size)
        log_each = jax.vmap(
            lambda m, f: dist.MultivariateStudentT(TAILS, m, INFLATED * f).log_prob(points)
        )(means, factors)
        log_q = jax.scipy.special.logsumexp(log_each, 0) - jnp.log(COMPONENTS)
        log_p = in_slices(target.log_density, points, target.batch)
        return points, finite_or_minus_inf(log_p - log_q), log_each

    def adapt(_, state):
        points, log_weights, log_each = propose(*state, some)
        weights = jnp.minimum(jax.nn.softmax(log_weights), len(some) ** -0.5)
        shares = jax.nn.softmax(log_each, axis=0) * (weights / weights.sum())
        return jax.vmap(partial(moved_to, points))(shares, *state)

    def moved_to(points, shares, mean, factor):
        mass = shares.sum() + jnp.finfo(shares.dtype).tiny
        centre, covariance = moments(points, shares / mass)
        # So few draws say little of a covariance: the old one counts for a dimension's worth.
        ess = mass**2 / ((shares**2).sum() + jnp.finfo(shares.dtype).tiny)
        old = (mean.size + 1) / (mean.size + 1 + ess)
        covariance = (1 - old) * covariance + old * factor @ factor.T
        return (1 - old) * centre + old * mean, jnp.linalg.cholesky(covariance)

    apart = jax.random.normal(jax.random.key(0), (COMPONENTS, mean.size))
    first = mean + apart @ factor.T, jnp.broadcast_to(factor, (COMPONENTS, *factor.shape))
    points, log_weights, _ = propose(*jax.lax.fori_loop(0, ROUNDS, adapt, first), last)
    return points, log_weights


def believed(log_weights: np.ndarray) -> tuple[np.ndarray, bool]:
    """Pareto-smoothed weights (n,), adding up to one, and whether they are to be believed."""
    smooth, khat = pareto_smoothed(log_weights)
    if not np.isfinite(smooth).any():
        return np.full(len(smooth), np.nan), False
    weights = np.exp(smooth - smooth.max())
    return weights / weights.sum(), bool(
        khat < KHAT and effective_sample_size(smooth) >= LEAST_ESS
    )
