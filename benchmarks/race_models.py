"""The models that are raced on, each a function that returns a NumPyro model and its data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree

from vi_demo import Target, loading
from vi_demo.fitting.objectives import normal_noise

LOOKS = 2**22  # rows times draws that the gap is measured by, at most


def bimodal():
    """Two equal modes."""
    return bundled("bimodal")


def banana():
    """A bent ridge."""
    return bundled("banana")


def eight_schools():
    """A hierarchy, centred: its best Gaussian is a poor one."""
    return bundled("eight_schools")


def eight_schools_noncentred():
    """The same hierarchy, non-centred."""
    return bundled("eight_schools_noncentred")


def bundled(name):
    """One of the models that come with the project."""
    loaded = loading.load(name)
    return loaded.model, loaded.data or {}


def logistic(rows, columns):
    """A logistic regression on correlated columns."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, columns)) + 0.5 * rng.normal(size=(rows, 1))
    x[:, 0] = 1.0
    beta = rng.normal(size=columns) / np.sqrt(columns)
    y = rng.random(rows) < 1 / (1 + np.exp(-x @ beta))

    def model(x, y=None):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    return model, {"x": x, "y": y.astype(float)}


def gaussian_100():
    """Condition number 1e4, in no particular direction."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(100, 100)))[0]
    factor = turn * np.sqrt(np.logspace(0, -4, 100))

    def model():
        numpyro.sample("x", dist.MultivariateNormal(jnp.ones(100), scale_tril=tril))

    tril = np.linalg.cholesky(factor @ factor.T)
    return model, {}


def poisson_200():
    """A hierarchy of 198 counts."""
    rng = np.random.default_rng(0)
    y = rng.poisson(np.exp(2 + 0.5 * rng.normal(size=198)))

    def model(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfNormal(1))
        with numpyro.plate("group", 198):
            effect = numpyro.sample("effect", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Poisson(jnp.exp(effect)), obs=y)

    return model, {"y": y}


def process_50():
    """Counts of a log-Gaussian process at 50 places, whitened."""
    rng, x = np.random.default_rng(0), np.linspace(0, 1, 50)
    kernel = np.exp(-0.5 * (x[:, None] - x) ** 2 / 0.1**2) + 1e-6 * np.eye(50)
    tril = np.linalg.cholesky(kernel)
    y = rng.poisson(np.exp(1 + tril @ rng.normal(size=50)))

    def model(y=None):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([50]).to_event(1))
        numpyro.sample("y", dist.Poisson(jnp.exp(1 + tril @ z)).to_event(1), obs=y)

    return model, {"y": y}


def schools_in_pymc(centred):
    """Eight schools as PyMC writes it."""

    def build(data):
        import pymc as pm

        with pm.Model() as model:
            mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
            if centred:
                theta = pm.Normal("theta", mu, tau, shape=8)
            else:
                theta = mu + tau * pm.Normal("z", 0, 1, shape=8)
            pm.Normal("y", theta, data["sigma"], observed=data["y"])
        return model

    return build


def logistic_in_pymc(data):
    """The logistic regression as PyMC writes it."""
    import pymc as pm

    with pm.Model() as model:
        b = pm.Normal("b", 0, 1, shape=data["x"].shape[1])
        pm.Bernoulli("y", logit_p=data["x"] @ b, observed=data["y"])
    return model


def poisson_in_pymc(data):
    """The hierarchy of counts as PyMC writes it."""
    import pymc as pm

    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfNormal("tau", 1)
        effect = pm.Normal("effect", mu, tau, shape=198)
        pm.Poisson("y", pm.math.exp(effect), observed=data["y"])
    return model


MODELS = {
    "bimodal": bimodal,
    "eight_schools": eight_schools,
    "eight_schools_noncentred": eight_schools_noncentred,
    "logistic_26": partial(logistic, 1_000, 26),
    "logistic_100": partial(logistic, 100_000, 100),
    "gaussian_100": gaussian_100,
    "poisson_200": poisson_200,
    "banana": banana,
    "process_50": process_50,
}
PYMC = {
    "eight_schools": schools_in_pymc(centred=True),
    "eight_schools_noncentred": schools_in_pymc(centred=False),
    "logistic_26": logistic_in_pymc,
    "poisson_200": poisson_in_pymc,
}
# Of the others q* has too many moments for any draws to know it to 0.05 nats in minutes, or NUTS
# does not find it: the neck of centred eight schools.
FORWARD = "bimodal", "eight_schools_noncentred", "logistic_26", "banana", "process_50"


class Problem:
    """A model, its flat density, and the evaluation of a gap that all are judged by."""

    def __init__(self, name, seed=0):
        self.name = name
        self.model, self.data = MODELS[name]()
        self.target = Target.from_numpyro(self.model, self.data, name=name)
        self.dim, self.density = self.target.dim, self.target.log_density
        # NumPyro's guides have sites in the order of their names.
        self.order = np.asarray(
            ravel_pytree(self.target.unravel(jnp.arange(self.dim, dtype=float)))[0], dtype=int
        )
        number = int(np.clip(LOOKS // max(self.target.all_rows, 1), 256, 8192))
        self.noise = normal_noise(jax.random.key(7), number, self.dim)
        self.start = jax.random.uniform(jax.random.key(seed), (self.dim,), minval=-2, maxval=2)

    def elbo(self, mean, factor):
        """The ELBO of N(mean, factor factorᵀ), triangular, up to a constant."""
        if not (np.isfinite(mean).all() and np.isfinite(factor).all()):
            return -np.inf
        heights = self.target.log_densities(mean + self.noise @ factor.T)
        return float(heights.mean() + np.log(np.abs(np.diag(factor))).sum())

    def own(self, mean, factor):
        """A Gaussian in NumPyro's order as one in the target's; its factor stays a root."""
        back = np.argsort(self.order)
        covariance = (factor @ factor.T)[np.ix_(back, back)]
        return mean[back], root_of(covariance)


def root_of(covariance):
    """Its Cholesky factor, or NaN where a racer has lost its way and it has none."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return np.full_like(covariance, np.nan)
