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
import optax
from jax import Array
from jax.scipy.linalg import solve_triangular

from vi_demo import flows
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
    images under all (d, d). With several `components`, their parameters have a leading axis. A
    step of reverse KL averages over `particles` draws. Where the weighted fit is `judged`, it ends
    where held-out draws say, and the number of parameters tells nothing of its error.
    """

    name: str
    init: Callable[[Array, float], dict]
    distribution: Callable[[dict], dist.Distribution]
    draw: Callable[[dict, Array], tuple[Array, Array]]
    fit: Callable[..., dict]
    moved: Callable[[dict, Array, Array], dict]
    turns: bool = True
    components: int = 1
    particles: int = 8
    judged: bool = False


def moments(draws: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted mean (d,) and covariance (d, d) of draws (S, d), weights adding up to one."""
    mean = weights @ draws
    centred = draws - mean
    return mean, (weights[:, None] * centred).T @ centred


def diagonal() -> Family:
    """Independent Gaussians: q = ∏ N(locᵢ, exp(log_scaleᵢ)²)."""

    def init(loc, scale):
        return {"loc": loc, "log_scale": jnp.full(loc.shape, jnp.log(scale), loc.dtype)}

    @jax.jit
    def distribution(params):
        return dist.Normal(params["loc"], jnp.exp(params["log_scale"])).to_event(1)

    def draw(params, noise):
        return params["loc"] + jnp.exp(params["log_scale"]) * noise, equal_masses(noise)

    @jax.jit
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

    @jax.jit
    def distribution(params):
        return dist.MultivariateNormal(params["loc"], scale_tril=scale_tril(params))

    def draw(params, noise):
        return params["loc"] + noise @ scale_tril(params).T, equal_masses(noise)

    @jax.jit
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


from_factors = jax.jit(jax.vmap(from_factor))  # of several, a leading axis of each


def nearest(family: Family, mean: Array, factor: Array) -> dict:
    """The parameters of a family of single Gaussians nearest to N(mean, factor factorᵀ).

    Nearest under forward KL: where the family does not turn, they have the same marginals. The
    factor is (d, d), or (d,) for sds alone.
    """
    if factor.ndim == 2 and not family.turns:
        factor = jnp.linalg.norm(factor, axis=1)
    return family.moved(family.init(jnp.zeros_like(mean), 1.0), mean, factor)


def low_rank(factors: int) -> Family:
    """A Gaussian of few directions: q = N(loc, S (I + W Wᵀ) S) with S = diag(exp(log_scale)).

    W, `directions` (d, K), is relative to the widths, so one learning rate suits coordinates of
    any scale. The weighted fit is factor analysis, every coordinate having a variance of its own.
    A draw takes O(dK), so it goes where a whole covariance is out of reach.
    """

    def init(loc, scale):
        # Not 0, where the slope of everything is.
        directions = FAINT * jax.random.normal(jax.random.key(0), (loc.size, factors), loc.dtype)
        log_widening = 0.5 * jnp.log1p((directions**2).sum(1))
        return {"loc": loc, "log_scale": jnp.log(scale) - log_widening, "directions": directions}

    def distribution(params):
        scale = jnp.exp(params["log_scale"])
        factor = scale[:, None] * params["directions"]
        return dist.LowRankMultivariateNormal(params["loc"], factor, scale**2)

    def draw(params, noise):
        # With L Lᵀ = I + WᵀW and R = I + W (I + L)⁻¹ Wᵀ, R Rᵀ = I + W Wᵀ: d numbers make a draw.
        w = params["directions"]
        unit = jnp.eye(factors, dtype=w.dtype)
        lower = unit + jnp.linalg.cholesky(unit + w.T @ w)
        along = solve_triangular(lower, w.T @ noise.T, lower=True)
        points = params["loc"] + jnp.exp(params["log_scale"]) * (noise + (w @ along).T)
        return points, equal_masses(noise)

    @jax.jit
    def fit(draws, weights, begin=None):
        mean, covariance = moments(draws, weights)
        sd = jnp.sqrt(jnp.diagonal(covariance))
        loadings, variances = factor_analysis(covariance / jnp.outer(sd, sd), factors)
        own = jnp.sqrt(variances)
        log_scale = jnp.log(sd * own)
        return {"loc": mean, "log_scale": log_scale, "directions": loadings / own[:, None]}

    def moved(params, shift, factor):
        return {
            "loc": shift + factor * params["loc"],
            "log_scale": params["log_scale"] + jnp.log(jnp.abs(factor)),
            "directions": jnp.sign(factor)[:, None] * params["directions"],
        }

    return Family(f"low_rank:{factors}", init, distribution, draw, fit, moved, turns=False)


def factor_analysis(correlation: Array, factors: int) -> tuple[Array, Array]:
    """Loadings V (d, K) and own variances ψ (d,) of the likeliest N(0, V Vᵀ + diag ψ).

    `correlation` (d, d) is that of the draws. It starts at the principal components, which are
    exact where K ≥ d − 1, and goes on by expectation maximisation with the factors' covariance as
    parameters too (PX-EM; Liu, Rubin and Wu 1998, doi:10.1093/biomet/85.4.755).
    """
    d = len(correlation)
    kept = min(factors, d - 1)
    values, vectors = jnp.linalg.eigh(correlation)
    rest = values[: d - kept].mean()
    loadings = vectors[:, d - kept :] * jnp.sqrt(values[d - kept :] - rest)
    loadings = jnp.pad(loadings, ((0, 0), (0, factors - kept)))
    unit = jnp.eye(factors, dtype=loadings.dtype)

    def step(carry):
        loadings, variances, _, steps = carry
        scaled = loadings / variances[:, None]
        weights = jnp.linalg.solve(unit + loadings.T @ scaled, scaled.T)  # of E[factors | x]
        cross = correlation @ weights.T
        spread = jnp.linalg.cholesky(unit - weights @ loadings + weights @ cross)
        loadings = solve_triangular(spread, cross.T, lower=True).T
        new = jnp.maximum(1 - (loadings**2).sum(1), LEAST_VARIANCE)
        return loadings, new, jnp.abs(jnp.log(new / variances)).max(), steps + 1

    def going(carry):
        return (carry[2] > EM_SETTLED) & (carry[3] < EM_MOST)

    start = loadings, jnp.full(d, rest), jnp.array(jnp.inf), jnp.array(0)
    return jax.lax.while_loop(going, step, start)[:2]


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
FAINT = 0.1  # a direction of `low_rank` where it begins, in the widths of the rest
EM_SETTLED = 1e-7  # the last change of a log variance
EM_MOST = 5000
TRAINED_ON = 0.75  # of the draws of a flow's fit; the rest judge
HELD_OUT = 4096
BATCH, BATCHES, EPOCHS = 512, 64, 32
FLOW_PARTICLES = 32  # by 8 the banana's ELBO stops 0.05 nats lower
FLOW_RATE = 0.2


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

    @jax.jit
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

    @jax.jit
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
        # By weight over all of them: the first may be of one component alone.
        spots = (jnp.arange(EM_DRAWS) + 0.5) / EM_DRAWS * weights.sum()
        some = draws[jnp.searchsorted(jnp.cumsum(weights), spots)]
        share = jnp.full(EM_DRAWS, 1 / EM_DRAWS, weights.dtype)

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


def flow() -> Family:
    """A Gaussian bent and stretched: q is the law of loc + A f(ε), ε ~ N(0, I), f as in `flows`.

    A = diag(exp(log_scale)) · `mixing`. It is a whole matrix, for a flow that is turned is not one
    that a triangle stretches: so whatever is moved or turned remains a flow. It begins as a
    Gaussian. The weighted fit is by Adam from the weighted moments; some of the draws are held
    out, and the parameters that are likeliest at those are kept.
    """

    def init(loc, scale):
        log_scale = jnp.full(loc.shape, jnp.log(scale), loc.dtype)
        mixing = jnp.eye(loc.size, dtype=loc.dtype)
        outer = {"loc": loc, "log_scale": log_scale, "mixing": mixing}
        return outer | flows.identity(loc.size, loc.dtype)

    def draw(params, noise):
        return Flow(params).point(noise), equal_masses(noise)

    def fit(draws, weights, begin=None):
        mean, factor, batches, judges = set_apart(draws, weights)
        return moved(likeliest(init(jnp.zeros_like(mean), 1.0), batches, judges), mean, factor)

    def moved(params, shift, factor):
        if factor.ndim == 1:
            factor = jnp.diag(factor)
        whole = factor @ (jnp.exp(params["log_scale"])[:, None] * params["mixing"])
        scale = jnp.linalg.norm(whole, axis=1)
        outer = {"log_scale": jnp.log(scale), "mixing": whole / scale[:, None]}
        return params | outer | {"loc": shift + factor @ params["loc"]}

    particles = FLOW_PARTICLES
    return Family("flow", init, Flow, draw, fit, moved, particles=particles, judged=True)


@jax.jit
def set_apart(draws: Array, weights: Array) -> tuple[Array, Array, Array, Array]:
    """Weighted mean and Cholesky factor of draws (S, d), and some of them, standardised.

    These are batches (n, m, d) to fit to and judges (h, d), as many whatever S is, each by its
    weight. Judges are of the last quarter, not of any: neighbours in a chain of MCMC are alike.
    """
    mean, covariance = moments(draws, weights)
    factor = jnp.linalg.cholesky(covariance)
    share = jnp.cumsum(weights)

    def some(begin, end, number):
        spots = begin + (end - begin) * (jnp.arange(number) + 0.5) / number
        chosen = draws[jnp.searchsorted(share, spots * share[-1])]
        return solve_triangular(factor, (chosen - mean).T, lower=True).T

    batches = some(0.0, TRAINED_ON, BATCH * BATCHES).reshape(BATCH, BATCHES, -1)
    return mean, factor, batches.swapaxes(0, 1), some(TRAINED_ON, 1.0, HELD_OUT)


@jax.jit
def likeliest(begin: dict, batches: Array, judges: Array) -> dict:
    """The parameters of a flow on Adam's way through the batches that are likeliest at judges."""
    adam = optax.adam(optax.cosine_decay_schedule(FLOW_RATE, EPOCHS * BATCHES))
    loss = lambda params, batch: -Flow(params).log_prob(batch).mean()  # noqa: E731

    def step(carry, batch):
        params, optimiser = carry
        updates, optimiser = adam.update(jax.grad(loss)(params, batch), optimiser)
        return (optax.apply_updates(params, updates), optimiser), None

    def epoch(carry, _):
        (params, optimiser), best, least = carry
        value = loss(params, judges)
        best = jax.tree.map(lambda new, old: jnp.where(value < least, new, old), params, best)
        state, _ = jax.lax.scan(step, (params, optimiser), batches)
        return (state, best, jnp.fmin(value, least)), value

    carry = (begin, adam.init(begin)), begin, jnp.inf
    return jax.lax.scan(epoch, carry, length=EPOCHS)[0][1]


class Drawn(dist.Distribution):
    """A distribution on R^d whose moments are those of `some`, a few thousand draws (n, d)."""

    support = dist.constraints.real_vector
    reparametrized_params = ()

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
        return moments(self.some, jnp.full(len(self.some), 1 / len(self.some)))[1]


class Flow(Drawn):
    """A flow of some parameters as a distribution on R^d."""

    pytree_data_fields = ("params",)

    def __init__(self, params: dict):
        self.params = params
        super().__init__((), params["loc"].shape, validate_args=False)

    @property
    def scale(self):
        """The widths (d,) by which the outermost map multiplies."""
        return jnp.exp(self.params["log_scale"])

    def point(self, noise):
        """The points (..., d) that standard normal noise (..., d) becomes."""
        inner = flows.forward(self.params, noise)
        return self.params["loc"] + self.scale * (inner @ self.params["mixing"].T)

    def sample(self, key, sample_shape=()):
        """Draws (*sample_shape, d), through which gradients reach the parameters."""
        shape = *sample_shape, *self.event_shape
        return self.point(jax.random.normal(key, shape, self.scale.dtype))

    def log_prob(self, value):
        """Log density in nats of points (..., d)."""
        standard = ((value - self.params["loc"]) / self.scale).reshape(-1, *self.event_shape)
        inner = jnp.linalg.solve(self.params["mixing"], standard.T).T
        noise, log_det = flows.backward(self.params, inner)
        log_volume = jnp.linalg.slogdet(self.params["mixing"])[1] + self.params["log_scale"].sum()
        log_q = log_det - log_volume + dist.Normal().log_prob(noise).sum(-1)
        return log_q.reshape(value.shape[:-1])

    @cached_property
    def some(self):
        """Draws of noise whose own mean is 0 and covariance I: a Gaussian's moments are exact."""
        noise = jax.random.normal(jax.random.key(0), (MOMENT_DRAWS, *self.event_shape))
        mean, covariance = moments(noise, jnp.full(MOMENT_DRAWS, 1 / MOMENT_DRAWS))
        noise = solve_triangular(jnp.linalg.cholesky(covariance), (noise - mean).T, lower=True).T
        return self.point(noise.astype(self.scale.dtype))


class Own(Drawn):
    """A guide that the user wrote, at some values of its parameters, as a distribution on R^d."""

    pytree_data_fields = ("params",)
    pytree_aux_fields = ("guide",)

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


def own(guide, dim: int) -> Family:
    """The family of a guide that the user wrote: it can be drawn from, and fitted by SVI alone."""
    return Family("own", None, lambda params: Own(guide, params, dim), None, None, None)


FAMILIES = {family.__name__: family for family in (diagonal, full_rank, low_rank, mixture, flow)}
WITH_NUMBER = ("low_rank", "mixture")
WITH_WHOLE_MATRIX = ("full_rank", "flow")


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
