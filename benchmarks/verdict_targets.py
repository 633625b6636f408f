"""Targets of which all is known: exact draws, exact log evidence, and the mass of every mode.

Each is a function of no arguments that returns a `Truth`. Nothing in one comes from vi_demo, save
that draws of a model are mapped to R^d by its bijections. Where a posterior has no closed form, it
is integrated in one dimension, the rest being Gaussian given that one, or weighed by importance
from Student-t's around its modes, with at least `LEAST_EFFECTIVE` effective draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import optimize, special, stats

from vi_demo import Target, loading

PROPOSED = 400_000
LEAST_EFFECTIVE = 40_000
TAILS = 5  # degrees of freedom of the proposals
INFLATED = 1.2
LEAST_DF = 4  # below which the fourth moment is infinite, and an sd all noise
WIDEST = 2.0  # sd of a funnel's log variance, above which sds are all noise


def one_place(points: np.ndarray) -> np.ndarray:
    """The mode of each point where there is one mode."""
    return np.zeros(len(points), int)


@dataclass(frozen=True)
class Truth:
    """A target and what is known of it.

    `draw(rng, n)` gives exact draws (n, d) on R^d; `place(points)` the index of the mode that each
    point lies in, of modes with these `masses`. Where tails are so heavy that sds are infinite, or
    not to be had from a hundred thousand draws, there are no `moments` to compare.
    """

    target: Target
    log_evidence: float
    draw: Callable[[np.random.Generator, int], np.ndarray]
    place: Callable[[np.ndarray], np.ndarray] = one_place
    masses: tuple[float, ...] = (1.0,)
    moments: bool = True


TARGETS: dict[str, Callable[[], Truth]] = {}


def known(make: Callable[[], Truth]) -> Callable[[], Truth]:
    """Register a target under the name of its function."""
    TARGETS[make.__name__] = make
    return make


def many(name: str, make: Callable[..., Truth], *settings) -> None:
    """Register a target of a family under a name of its own."""
    TARGETS[name] = lambda: make(*settings)


def of_distribution(p: dist.Distribution, **known) -> Truth:
    """A NumPyro distribution over vectors of reals, which draws from itself."""

    def draw(rng, n):
        return np.asarray(p.sample(jax.random.key(int(rng.integers(2**31))), (n,)))

    return Truth(Target.from_log_density(p.log_prob, p.event_shape[0]), 0.0, draw, **known)


def of_model(model, data, log_evidence, sites) -> Truth:
    """A NumPyro model, whose sites' exact posterior draws `sites(rng, n)` gives by name."""
    target = Target.from_numpyro(model, data)
    back = jax.jit(jax.vmap(target.unconstrain))

    def draw(rng, n):
        return np.asarray(back({k: jnp.asarray(v) for k, v in sites(rng, n).items()}))

    return Truth(target, float(log_evidence), draw)


# --- Gaussians --------------------------------------------------------------------------------


def gaussian(covariance, mean=0.0) -> Truth:
    """N(mean, covariance)."""
    covariance = np.asarray(covariance, float)
    return of_distribution(dist.MultivariateNormal(mean * jnp.ones(len(covariance)), covariance))


def equicorrelated(d: int, rho: float) -> np.ndarray:
    """Ones, and every correlation rho."""
    return (1 - rho) * np.eye(d) + rho * np.ones((d, d))


def decaying(d: int, rho: float) -> np.ndarray:
    """Ones, and correlations rho to the power of the distance."""
    return rho ** np.abs(np.subtract.outer(np.arange(d), np.arange(d)))


def ill_scaled(d: int) -> np.ndarray:
    """Sds from a thousandth to a thousand, correlated."""
    sd = np.logspace(-3, 3, d)
    return sd[:, None] * decaying(d, 0.5) * sd


many("gaussian_2", gaussian, equicorrelated(2, 0.9))
many("gaussian_10", gaussian, decaying(10, 0.9))
many("gaussian_30_scales", gaussian, ill_scaled(30))
many("gaussian_50", gaussian, equicorrelated(50, 0.5))
many("gaussian_100", gaussian, decaying(100, 0.9))
many("gaussian_5_far", gaussian, 0.01 * np.eye(5), 100.0)


# --- modes ------------------------------------------------------------------------------------


def modes(centres, sds, weights) -> Truth:
    """Isotropic Gaussians of these centres (k, d), sds (k,) and weights (k,)."""
    centres, sds = jnp.asarray(centres, float), jnp.asarray(sds, float)
    each = dist.Normal(centres, jnp.broadcast_to(sds[:, None], centres.shape)).to_event(1)
    weights = np.asarray(weights, float)

    def place(points):
        parts = each.log_prob(jnp.asarray(points)[:, None]) + jnp.log(jnp.asarray(weights))
        return np.asarray(parts.argmax(-1))

    mixture = dist.MixtureSameFamily(dist.Categorical(probs=jnp.asarray(weights)), each)
    return of_distribution(mixture, place=place, masses=tuple(weights))


def two(d: int, distance: float, weight: float = 0.5, sds=(1.0, 1.0)) -> Truth:
    """Two modes on an axis, so far to either side."""
    ends = np.zeros((2, d))
    ends[:, 0] = -distance, distance
    return modes(ends, sds, (weight, 1 - weight))


def circle(k: int, radius: float) -> Truth:
    """Equal modes around a circle."""
    angle = 2 * np.pi * np.arange(k) / k
    return modes(radius * np.stack([np.cos(angle), np.sin(angle)], 1), [0.5] * k, [1 / k] * k)


def scattered(d: int) -> Truth:
    """Five modes of different masses and widths, here and there."""
    centres = np.zeros((5, d))
    centres[:, :2] = (-7, -2), (0, 7), (5, -6), (8, 3), (-3, -9)
    return modes(centres, [1.0, 0.7, 0.5, 1.0, 0.7], [0.4, 0.25, 0.15, 0.12, 0.08])


for d in (2, 5, 10, 20):
    many(f"equal_{d}", two, d, 4.0)
for d in (2, 10):
    many(f"far_{d}", two, d, 10.0)
    many(f"unequal_{d}", two, d, 4.0, 0.9)
    many(f"widths_{d}", two, d, 4.0, 0.5, (1.0, 0.3))
    many(f"scattered_{d}", scattered, d)
for d in (2, 10, 20):
    many(f"rare_{d}", two, d, 4.0, 0.99)
many("seldom_5", two, 5, 4.0, 0.95)
many("near_2", two, 2, 1.5)
many("near_5", two, 5, 1.5)
many("circle_of_8", circle, 8, 6.0)


# --- shapes without modes to miss -------------------------------------------------------------


def shell(d: int, radius: float, width: float) -> Truth:
    """Points whose distance from 0 is normal about a radius, the same in all directions."""
    log_area = np.log(2) + d / 2 * np.log(np.pi) - special.gammaln(d / 2)
    log_mass = stats.norm.logsf(-radius / width)

    def log_density(z):
        r = jnp.sqrt(jnp.sum(z**2) + 1e-20)
        at = dist.Normal(radius, width).log_prob(r)
        return at - log_mass - log_area - (d - 1) * jnp.log(r)

    def draw(rng, n):
        r = stats.truncnorm.rvs(-radius / width, np.inf, radius, width, n, random_state=rng)
        way = rng.normal(size=(n, d))
        return r[:, None] * way / np.linalg.norm(way, axis=1, keepdims=True)

    return Truth(Target.from_log_density(log_density, d), 0.0, draw)


def banana(d: int, bend: float) -> Truth:
    """Normals, the second bent along the first's square."""

    def log_density(z):
        straight = z.at[1].add(-bend * (z[0] ** 2 - 4.0))
        return dist.Normal(0, jnp.ones(d).at[0].set(2.0)).log_prob(straight).sum()

    def draw(rng, n):
        z = rng.normal(size=(n, d))
        z[:, 0] *= 2
        z[:, 1] += bend * (z[:, 0] ** 2 - 4)
        return z

    return Truth(Target.from_log_density(log_density, d), 0.0, draw)


def funnel(d: int, sd: float) -> Truth:
    """Neal's: the log variance of all others is the first."""

    def log_density(z):
        others = dist.Normal(0, jnp.exp(z[0] / 2)).log_prob(z[1:])
        return dist.Normal(0, sd).log_prob(z[0]) + others.sum()

    def draw(rng, n):
        z = rng.normal(size=(n, d))
        z[:, 0] *= sd
        z[:, 1:] *= np.exp(z[:, :1] / 2)
        return z

    return Truth(Target.from_log_density(log_density, d), 0.0, draw, moments=sd < WIDEST)


def tails(d: int, df: float) -> Truth:
    """Independent Student-t's."""
    p = dist.StudentT(df, jnp.zeros(d), 1.0).to_event(1)
    return of_distribution(p, moments=df > LEAST_DF)


@known
def student_5() -> Truth:
    """A multivariate t of 3 degrees of freedom, correlated."""
    root = np.linalg.cholesky(equicorrelated(5, 0.5))
    return of_distribution(dist.MultivariateStudentT(3.0, jnp.zeros(5), root), moments=False)


@known
def skewed_5() -> Truth:
    """Logarithms of gamma variates of shape 1 to 5."""
    shape = jnp.arange(1.0, 6.0)

    def log_density(z):
        return (shape * z - jnp.exp(z) - jax.scipy.special.gammaln(shape)).sum()

    def draw(rng, n):
        return np.log(rng.gamma(np.asarray(shape), size=(n, 5)))

    return Truth(Target.from_log_density(log_density, 5), 0.0, draw)


@known
def skew_normal_2() -> Truth:
    """Two skew normals, of slant 4 and −8."""
    slant = np.array([4.0, -8.0])

    def log_density(z):
        each = jnp.log(2.0) + dist.Normal().log_prob(z) + jax.scipy.special.log_ndtr(slant * z)
        return each.sum()

    def draw(rng, n):
        return stats.skewnorm.rvs(slant, size=(n, 2), random_state=rng)

    return Truth(Target.from_log_density(log_density, 2), 0.0, draw)


many("ring", shell, 2, 5.0, 0.5)
many("shell_8", shell, 8, 6.0, 0.7)
many("banana_2", banana, 2, 0.5)
many("banana_10", banana, 10, 0.2)
many("funnel_10", funnel, 10, 3.0)
many("funnel_3_mild", funnel, 3, 1.0)
many("cauchy_1", tails, 1, 1.0)
many("cauchy_5", tails, 5, 1.0)
many("t5_10", tails, 10, 5.0)
many("t10_2", tails, 2, 10.0)
many("t30_10", tails, 10, 30.0)


# --- priors alone, which are their own posteriors ---------------------------------------------


def prior(model: Callable, **sites: dist.Distribution) -> Truth:
    """A model without data: log evidence 0, and draws from each site's distribution."""

    def draw(rng, n):
        keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), len(sites))
        return {k: p.sample(key, (n,)) for (k, p), key in zip(sites.items(), keys, strict=True)}

    return of_model(model, {}, 0.0, draw)


@known
def simplex() -> Truth:
    """A Dirichlet with a sparse entry."""
    p = dist.Dirichlet(jnp.array([0.7, 2.0, 5.0, 3.0]))
    return prior(lambda: numpyro.sample("share", p), share=p)


@known
def correlations() -> Truth:
    """The Cholesky factor of a correlation matrix of three."""
    p = dist.LKJCholesky(3, 2.0)
    return prior(lambda: numpyro.sample("L", p), L=p)


@known
def scales() -> Truth:
    """Scales of heavy and of light tails, and an interval."""
    each = {
        "a": dist.HalfCauchy(jnp.full(2, 5.0)).to_event(1),
        "b": dist.HalfNormal(2.0),
        "c": dist.Uniform(-1.0, 3.0),
    }

    def model():
        for name, p in each.items():
            numpyro.sample(name, p)

    return replace(prior(model, **each), moments=False)  # a half-Cauchy has none


# --- conjugate models -------------------------------------------------------------------------


@known
def proportions() -> Truth:
    """Three proportions, one of them at the edge."""
    tries, hits = np.array([12.0, 40.0, 9.0]), np.array([5.0, 31.0, 0.0])

    def model():
        with numpyro.plate("group", 3):
            p = numpyro.sample("p", dist.Beta(1.0, 1.0))
            numpyro.sample("y", dist.Binomial(tries.astype(int), p), obs=hits)

    evidence = stats.betabinom.logpmf(hits, tries, 1, 1).sum()

    def sites(rng, n):
        return {"p": rng.beta(1 + hits, 1 + tries - hits, size=(n, 3))}

    return of_model(model, {}, evidence, sites)


@known
def rates() -> Truth:
    """Ten Poisson rates with gamma priors."""
    y = np.array([3.0, 0.0, 7.0, 2.0, 15.0, 1.0, 4.0, 4.0, 9.0, 30.0])

    def model():
        with numpyro.plate("place", 10):
            rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
            numpyro.sample("y", dist.Poisson(rate), obs=y)

    evidence = stats.nbinom.logpmf(y, 2, 0.5 / 1.5).sum()
    return of_model(
        model, {}, evidence, lambda rng, n: {"rate": rng.gamma(2 + y, 1 / 1.5, (n, 10))}
    )


@known
def votes() -> Truth:
    """Shares of four parties from a few ballots."""
    counts = np.array([4, 11, 1, 20])

    def model():
        share = numpyro.sample("share", dist.Dirichlet(jnp.ones(4)))
        numpyro.sample("y", dist.Multinomial(int(counts.sum()), share), obs=counts)

    total = counts.sum()
    evidence = special.gammaln(total + 1) + special.gammaln(4) - special.gammaln(total + 4)
    return of_model(model, {}, evidence, lambda rng, n: {"share": rng.dirichlet(1.0 + counts, n)})


@known
def linear_regression() -> Truth:
    """Normal-inverse-gamma: coefficients whose prior's scale is the noise."""
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(40), rng.normal(size=(40, 3))])
    y = x @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.7 * rng.normal(size=40)

    def model():
        variance = numpyro.sample("variance", dist.InverseGamma(2.0, 1.0))
        sd = jnp.sqrt(variance)
        beta = numpyro.sample("beta", dist.Normal(jnp.zeros(4), 3 * sd).to_event(1))
        numpyro.sample("y", dist.Normal(x @ beta, sd), obs=y)

    precision = x.T @ x + np.eye(4) / 9
    mean = np.linalg.solve(precision, x.T @ y)
    shape, rate = 2 + 20, 1 + (y @ y - mean @ precision @ mean) / 2
    evidence = (
        -20 * np.log(2 * np.pi)
        - 0.5 * (np.linalg.slogdet(precision)[1] + 4 * np.log(9))
        + (special.gammaln(shape) - shape * np.log(rate) - special.gammaln(2))
    )
    root = np.linalg.inv(np.linalg.cholesky(precision)).T

    def sites(rng, n):
        variance = rate / rng.gamma(shape, size=n)
        noise = rng.normal(size=(n, 4)) @ root.T
        return {"variance": variance, "beta": mean + np.sqrt(variance)[:, None] * noise}

    return of_model(model, {}, evidence, sites)


@known
def gaussian_process() -> Truth:
    """Twenty values of a smooth curve, seen through noise."""
    at = np.linspace(0, 1, 20)
    prior_covariance = np.exp(-0.5 * ((at[:, None] - at) / 0.3) ** 2) + 1e-4 * np.eye(20)
    y = np.sin(6 * at) + 0.3 * np.random.default_rng(2).normal(size=20)

    def model():
        f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(20), prior_covariance))
        numpyro.sample("y", dist.Normal(f, 0.3), obs=y)

    marginal = prior_covariance + 0.09 * np.eye(20)
    gain = prior_covariance @ np.linalg.inv(marginal)
    mean, covariance = gain @ y, prior_covariance - gain @ prior_covariance
    evidence = stats.multivariate_normal.logpdf(y, np.zeros(20), marginal)
    return of_model(
        model,
        {},
        evidence,
        lambda rng, n: {"f": rng.multivariate_normal(mean, covariance, n, method="cholesky")},
    )


# --- hierarchies: Gaussian, given one scale ---------------------------------------------------


def schools(centred: bool) -> Truth:
    """Eight schools: given tau all else is Gaussian, and tau's own posterior is integrated."""
    name = "eight_schools" if centred else "eight_schools_noncentred"
    loaded = loading.load(name)
    data = loading.load("eight_schools").data
    y, sigma = np.asarray(data["y"]), np.asarray(data["sigma"])
    # Logarithms of tau, evenly, from where its prior is flat to where there is nothing left.
    log_tau = np.linspace(-14, 9, 40_001)
    tau = np.exp(log_tau)
    spread = sigma**2 + tau[:, None] ** 2
    precision = 1 / 25 + (1 / spread).sum(1)
    centre = (y / spread).sum(1) / precision
    # The marginal likelihood of tau, mu ~ N(0, 5²) integrated out.
    log_y = -0.5 * (np.log(2 * np.pi * spread) + y**2 / spread).sum(1)
    log_y += 0.5 * (centre**2 * precision - np.log(25 * precision))
    log_tau_density = stats.halfcauchy.logpdf(tau, scale=5) + log_tau + log_y
    evidence = special.logsumexp(log_tau_density) + np.log(log_tau[1] - log_tau[0])
    shares = np.cumsum(np.exp(log_tau_density - special.logsumexp(log_tau_density)))

    def sites(rng, n):
        drawn = np.exp(np.interp(rng.random(n), shares, log_tau))[:, None]
        spread = sigma**2 + drawn**2
        precision = 1 / 25 + (1 / spread).sum(1)
        centre = (y / spread).sum(1) / precision
        mu = centre + rng.normal(size=n) / np.sqrt(precision)
        within = 1 / (1 / sigma**2 + 1 / drawn**2)
        theta = within * (y / sigma**2 + mu[:, None] / drawn**2)
        theta += np.sqrt(within) * rng.normal(size=(n, 8))
        both = {"mu": mu, "tau": drawn[:, 0]}
        return both | ({"theta": theta} if centred else {"z": (theta - mu[:, None]) / drawn})

    return of_model(loaded.model, loaded.data, evidence, sites)


many("eight_schools", schools, True)
many("eight_schools_noncentred", schools, False)


# --- by importance: regressions and mixtures --------------------------------------------------


def weighed(model, data, begin: np.ndarray, place=one_place) -> Truth:
    """A model whose posterior is weighed by importance, from t's around the summits that climbs
    from these points (k, d) lead to, the places of which are told apart by `place`.
    """
    target = Target.from_numpyro(model, data)
    density = jax.jit(jax.vmap(target.log_density))
    slope = jax.jit(jax.value_and_grad(target.log_density))
    curvature = jax.jit(jax.hessian(target.log_density))

    def down(z):
        value, gradient = slope(jnp.asarray(z))
        return -float(value), -np.asarray(gradient)

    rng = np.random.default_rng(11)
    summits = [optimize.minimize(down, z, jac=True).x for z in begin]
    roots = [np.linalg.cholesky(np.linalg.inv(-np.asarray(curvature(z)))) for z in summits]
    logs = [
        float(slope(z)[0]) + np.linalg.slogdet(r)[1] for z, r in zip(summits, roots, strict=True)
    ]
    shares = np.exp(logs - special.logsumexp(logs))
    each = dist.MultivariateStudentT(TAILS, jnp.array(summits), INFLATED * jnp.array(roots))
    proposal = dist.MixtureSameFamily(dist.Categorical(probs=jnp.array(shares)), each)
    points = np.asarray(proposal.sample(jax.random.key(12), (PROPOSED,)))
    log_weights = np.asarray(density(points) - proposal.log_prob(points))
    log_weights = np.where(np.isfinite(log_weights), log_weights, -np.inf)
    weights = np.exp(log_weights - special.logsumexp(log_weights))
    effective = 1 / (weights**2).sum()
    if effective < LEAST_EFFECTIVE:
        raise RuntimeError(f"only {effective:,.0f} effective draws: not known well enough")
    evidence = special.logsumexp(log_weights) - np.log(PROPOSED)
    kept = rng.choice(PROPOSED, PROPOSED, p=weights)
    masses = np.bincount(place(points), weights)

    def draw(rng, n):
        return points[rng.choice(kept, n)]

    return Truth(target, float(evidence), draw, place, tuple(masses))


def logistic(n: int, d: int, scale: float) -> Truth:
    """A logistic regression on normal columns."""
    rng = np.random.default_rng(n + d)
    x = rng.normal(size=(n, d))
    y = (rng.random(n) < special.expit(x @ np.linspace(-1.5, 1.5, d))).astype(int)

    def model(x, y):
        beta = numpyro.sample("beta", dist.Normal(jnp.zeros(d), scale).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

    return weighed(model, {"x": x, "y": y}, np.zeros((1, d)))


many("logistic_4", logistic, 100, 4, 2.5)
many("logistic_10", logistic, 200, 10, 2.5)
many("logistic_3_few", logistic, 9, 3, 5.0)


@known
def poisson() -> Truth:
    """A Poisson regression with an overdispersed intercept's prior."""
    rng = np.random.default_rng(7)
    x = np.column_stack([np.ones(60), rng.normal(size=(60, 2))])
    y = rng.poisson(np.exp(x @ np.array([1.0, 0.6, -0.4])))

    def model(x, y):
        beta = numpyro.sample("beta", dist.Normal(jnp.zeros(3), 5.0).to_event(1))
        numpyro.sample("y", dist.Poisson(jnp.exp(x @ beta)), obs=y)

    return weighed(model, {"x": x, "y": y}, np.zeros((1, 3)))


def labels(centres: tuple[float, ...]) -> Truth:
    """The means of a mixture whose components are alike: as many modes as orders of them."""
    k = len(centres)
    rng = np.random.default_rng(k)
    y = rng.normal(np.repeat(centres, 12), 1.0)
    orders = np.array([*permutations(range(k))])

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(jnp.zeros(k), 5.0).to_event(1))
        each = dist.Normal(mean, 1.0)
        share = dist.Categorical(probs=jnp.full(k, 1 / k))
        numpyro.sample("y", dist.MixtureSameFamily(share, each).expand([len(y)]), obs=y)

    def place(points):
        number = {tuple(order): i for i, order in enumerate(orders)}
        return np.array([number[tuple(order)] for order in np.argsort(points, axis=1)])

    return weighed(model, {"y": y}, np.array(centres)[orders], place)


many("labels_2", labels, (-2.5, 2.5))
many("labels_3", labels, (-5.0, 0.0, 5.0))
