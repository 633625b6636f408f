"""The models of the panel: a function each that returns a NumPyro model and its data.

A new one is one function here. `@posterior` marks a posterior of the kind that databases of
posteriors hold (posteriordb, BUGS and Stan examples), `@feature` one that is here for what it asks
of NumPyro, `@refused` a model that has to be refused with a line that holds these words, and
`@improper` one whose posterior cannot be normalised: it must be refused or at least never be
called reliable.

Data are simulated, each by a generator of its own, unless a source is named. Names in brackets are
posteriordb's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.experimental.ode import odeint
from numpyro import handlers, plate, sample
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

PANEL: dict[str, Entry] = {}


@dataclass(frozen=True)
class Entry:
    """A model of the panel.

    `kind` is posterior, feature, refused or improper. `gaussian`: near enough to a Gaussian on
    R^d for a full-rank fit to have the means right. `words` are what a refusal must say, or what a
    feature is. `reference` are data that NUTS gets instead of the model's own, and `begin` the
    values at which it begins where it has to.
    """

    name: str
    make: Callable[[], tuple[Callable, dict]]
    kind: str
    gaussian: bool = False
    words: str = ""
    reference: dict = field(default_factory=dict)
    begin: dict = field(default_factory=dict)


def registered(kind: str, words: str = "", **settings):
    """The decorator that puts a function into the panel under its name."""

    def register(make):
        PANEL[make.__name__] = Entry(make.__name__, make, kind, words=words, **settings)
        return make

    return register


def posterior(**settings):
    """A posterior like those of the databases."""
    return registered("posterior", **settings)


def feature(words: str, **settings):
    """A model that is here for a feature of NumPyro."""
    return registered("feature", words, **settings)


def refused(words: str):
    """A model that must be refused in a line with these words."""
    return registered("refused", words)


def improper(words: str):
    """A model whose posterior cannot be normalised, for the reason given."""
    return registered("improper", words)


def flat(size: int):
    """A flat prior on R^size."""
    return dist.ImproperUniform(constraints.real_vector, (), (size,))


def positive():
    """A flat prior on the positive numbers."""
    return dist.ImproperUniform(constraints.positive, (), ())


def ordered(name: str, prior: dist.Distribution):
    """A vector in rising order whose entries have a prior each, as Stan writes it."""
    size = prior.batch_shape[0]
    x = sample(name, dist.ImproperUniform(constraints.ordered_vector, (), (size,)))
    numpyro.factor(f"{name}_prior", prior.log_prob(x).sum())
    return x


def linear(x, y=None):
    """A linear regression with flat priors, predictors as they are."""
    beta = sample("beta", flat(x.shape[1]))
    sigma = sample("sigma", positive())
    with plate("row", len(x)):
        sample("y", dist.Normal(x @ beta, sigma), obs=y)


def logit(x, y=None):
    """A logistic regression with flat priors, predictors as they are."""
    beta = sample("beta", flat(x.shape[1]))
    with plate("row", len(x)):
        sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def bernoulli(rng, logits):
    """Zeros and ones of given log odds."""
    return (rng.random(np.shape(logits)) < 1 / (1 + np.exp(-logits))).astype(int)


# Regressions on the scale that their data came in


@posterior(gaussian=True, begin={"beta": [0.0, 0.0], "sigma": 1e4})
def earnings():
    """Dollars on inches [earnings-earn_height]."""
    rng = np.random.default_rng(1)
    height = rng.normal(66.6, 3.8, 500).round()
    earn = np.maximum(-60_000 + 1_250 * height + rng.normal(0, 19_000, 500), 0).round(-2)
    return linear, {"x": np.column_stack([np.ones(500), height]), "y": earn}


@posterior(gaussian=True)
def log_earnings():
    """Log dollars on inches, sex and both [earnings-logearn_interaction]."""
    rng = np.random.default_rng(2)
    male = rng.integers(0, 2, 500)
    height = (64.5 + 5.5 * male + rng.normal(0, 2.8, 500)).round()
    log_earn = 8.4 + 0.017 * height + 0.4 * male + rng.normal(0, 0.88, 500)
    x = np.column_stack([np.ones(500), height, male, height * male])
    return linear, {"x": x, "y": log_earn}


@posterior(gaussian=True)
def kid_score():
    """A child's score on the mother's IQ and schooling, and both [kidiq-kidscore_interaction]."""
    rng = np.random.default_rng(3)
    school, iq = rng.integers(0, 2, 434), rng.normal(100, 15, 434)
    score = -11 + 51 * school + (0.97 - 0.48 * school) * iq + rng.normal(0, 18, 434)
    x = np.column_stack([np.ones(434), school, iq, school * iq])

    def model(x, y=None):
        beta = sample("beta", flat(4))
        sigma = sample("sigma", dist.HalfCauchy(2.5))
        with plate("child", len(x)):
            sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return model, {"x": x, "y": score.round()}


@posterior(gaussian=True)
def mesquite():
    """Log weight of bushes on log sizes, much alike [mesquite-logmesquite]."""
    rng = np.random.default_rng(4)
    size = rng.normal(0, 0.5, (46, 1))
    logs = np.array([0.6, 0.3, 0.4, 0.2, 0.6]) + size + rng.normal(0, 0.25, (46, 5))
    group = rng.integers(0, 2, 46)
    weight = 5 + logs @ [0.4, 1.1, 0.7, 0.4, 0.1] - 0.6 * group + rng.normal(0, 0.33, 46)
    return linear, {"x": np.column_stack([np.ones(46), logs, group]), "y": weight}


@posterior(gaussian=True)
def nes():
    """A vote on income in five classes [nes-logit]."""
    rng = np.random.default_rng(5)
    income = rng.integers(1, 6, 1179)
    x = np.column_stack([np.ones(1179), income])
    return logit, {"x": x, "y": bernoulli(rng, -1.4 + 0.33 * income)}


@posterior(gaussian=True)
def wells():
    """Changing the well or not on metres to a safe one, and arsenic [wells-wells_interaction]."""
    rng = np.random.default_rng(6)
    metres, arsenic = rng.gamma(1.6, 30.0, 1500), 0.5 + rng.gamma(1.2, 0.95, 1500)
    x = np.column_stack([np.ones(1500), metres, arsenic, metres * arsenic])
    return logit, {"x": x, "y": bernoulli(rng, x @ [-0.15, -0.006, 0.56, -0.0018])}


@posterior(gaussian=True, begin={"beta": [0.0, 0.0, 0.0]})
def roaches_poisson():
    """Counts on raw counts before, with exposure as offset."""
    rng = np.random.default_rng(7)
    before = np.round(rng.exponential(42.0, 262)) * (rng.random(262) < 0.8)
    treated, days = rng.integers(0, 2, 262), rng.uniform(0.2, 4.3, 262)
    x = np.column_stack([np.ones(262), before, treated])
    y = rng.poisson(days * np.exp(x @ [3.0, 0.007, -0.5]))

    def model(x, log_days, y=None):
        beta = sample("beta", flat(3))
        with plate("flat", len(x)):
            sample("y", dist.Poisson(jnp.exp(log_days + x @ beta)), obs=y)

    return model, {"x": x, "log_days": np.log(days), "y": y}


@posterior(gaussian=True, begin={"beta": [0.0, 0.0, 0.0]})
def roaches_negative_binomial():
    """The same with more spread than a Poisson has."""
    rng = np.random.default_rng(8)
    before = np.round(rng.exponential(42.0, 262)) * (rng.random(262) < 0.8)
    treated, days = rng.integers(0, 2, 262), rng.uniform(0.2, 4.3, 262)
    x = np.column_stack([np.ones(262), before, treated])
    mean = days * np.exp(x @ [2.8, 0.013, -0.8])
    y = rng.poisson(mean * rng.gamma(0.4, 1 / 0.4, 262))

    def model(x, log_days, y=None):
        beta = sample("beta", flat(3))
        concentration = sample("concentration", dist.Exponential(1.0))
        mean = jnp.exp(log_days + x @ beta)
        with plate("flat", len(x)):
            sample("y", dist.NegativeBinomial2(mean, concentration), obs=y)

    return model, {"x": x, "log_days": np.log(days), "y": y}


@posterior(gaussian=True)
def conjugate_regression():
    """Five predictors under normal priors [sblrc-blr]."""
    rng = np.random.default_rng(9)
    x = rng.normal(size=(100, 5)) @ (np.eye(5) + 0.9)
    y = x @ np.ones(5) + rng.normal(0, 1.0, 100)

    def model(x, y=None):
        beta = sample("beta", dist.Normal(0, 10).expand([5]).to_event(1))
        sigma = sample("sigma", dist.HalfNormal(10.0))
        with plate("row", len(x)):
            sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return model, {"x": x, "y": y}


@posterior(gaussian=True)
def student_t_regression():
    """A line through points a tenth of which are far off, degrees of freedom unknown."""
    rng = np.random.default_rng(10)
    x = rng.uniform(0, 10, 120)
    y = 1 + 2 * x + rng.standard_t(3, 120)

    def model(x, y=None):
        a = sample("a", dist.Normal(0, 10))
        b = sample("b", dist.Normal(0, 10))
        sigma = sample("sigma", dist.HalfCauchy(2.5))
        df = sample("df", dist.Gamma(2, 0.1))
        with plate("row", len(x)):
            sample("y", dist.StudentT(df, a + b * x, sigma), obs=y)

    return model, {"x": x, "y": y}


@posterior(gaussian=True)
def beta_regression():
    """Shares between 0 and 1."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=150)
    mean = 1 / (1 + np.exp(-(0.3 + 0.8 * x)))
    y = rng.beta(20 * mean, 20 * (1 - mean))

    def model(x, y=None):
        a = sample("a", dist.Normal(0, 5))
        b = sample("b", dist.Normal(0, 5))
        phi = sample("phi", dist.Gamma(2, 0.05))
        with plate("row", len(x)):
            sample("y", dist.BetaProportion(jax.nn.sigmoid(a + b * x), phi), obs=y)

    return model, {"x": x, "y": y}


@posterior(gaussian=True)
def gamma_regression():
    """Costs with a log link."""
    rng = np.random.default_rng(12)
    x = rng.normal(size=150)
    y = rng.gamma(3.0, np.exp(5 + 0.5 * x) / 3.0)

    def model(x, y=None):
        a = sample("a", dist.Normal(0, 10))
        b = sample("b", dist.Normal(0, 5))
        shape = sample("shape", dist.HalfNormal(10.0))
        with plate("row", len(x)):
            sample("y", dist.Gamma(shape, shape / jnp.exp(a + b * x)), obs=y)

    return model, {"x": x, "y": y}


@posterior(gaussian=True)
def zero_inflated():
    """Counts with zeros of two kinds."""
    rng = np.random.default_rng(13)
    x = rng.normal(size=250)
    y = rng.poisson(np.exp(0.8 + 0.4 * x)) * (rng.random(250) < 0.7)

    def model(x, y=None):
        gate = sample("gate", dist.Beta(1, 1))
        a = sample("a", dist.Normal(0, 5))
        b = sample("b", dist.Normal(0, 5))
        with plate("row", len(x)):
            sample("y", dist.ZeroInflatedPoisson(gate, jnp.exp(a + b * x)), obs=y)

    return model, {"x": x, "y": y}


@posterior(gaussian=True)
def categories():
    """A choice among three, coefficients in a matrix."""
    rng = np.random.default_rng(14)
    x = np.column_stack([np.ones(300), rng.normal(size=(300, 2))])
    logits = x @ np.array([[0.0, 0.5, -0.5], [0.0, 1.0, 0.3], [0.0, -0.7, 0.8]])
    y = (logits + rng.gumbel(size=(300, 3))).argmax(1)

    def model(x, y=None):
        beta = sample("beta", dist.Normal(0, 2.5).expand([3, 2]).to_event(2))
        logits = jnp.concatenate([jnp.zeros((len(x), 1)), x @ beta], 1)
        with plate("row", len(x)):
            sample("y", dist.Categorical(logits=logits), obs=y)

    return model, {"x": x, "y": y}


@posterior(gaussian=True)
def bones():
    """Graded answers with cutpoints in order."""
    rng = np.random.default_rng(15)
    x = rng.normal(size=(200, 2))
    latent = x @ [1.0, -0.6] + rng.logistic(size=200)
    y = np.searchsorted([-1.5, 0.0, 1.8], latent)

    def model(x, y=None):
        beta = sample("beta", dist.Normal(0, 2.5).expand([2]).to_event(1))
        cutpoints = ordered("cutpoints", dist.Normal(jnp.zeros(3), 5.0))
        with plate("row", len(x)):
            sample("y", dist.OrderedLogistic(x @ beta, cutpoints), obs=y)

    return model, {"x": x, "y": y}


@posterior()
def horseshoe():
    """A regularised horseshoe: eight predictors, two of which matter."""
    rng = np.random.default_rng(16)
    x = rng.normal(size=(60, 8))
    y = x @ [2.0, -1.5, 0, 0, 0, 0, 0, 0] + rng.normal(size=60)

    def model(x, y=None):
        sigma = sample("sigma", dist.HalfNormal(2.0))
        tau = sample("tau", dist.HalfCauchy(0.1))
        slab = sample("slab", dist.InverseGamma(2.0, 8.0))
        with plate("predictor", x.shape[1]):
            lam = sample("lam", dist.HalfCauchy(1.0))
            z = sample("z", dist.Normal(0, 1))
        width = tau * lam * jnp.sqrt(slab / (slab + tau**2 * lam**2))
        beta = numpyro.deterministic("beta", z * width)
        with plate("row", len(x)):
            sample("y", dist.Normal(x @ beta, sigma), obs=y)

    return model, {"x": x, "y": y}


@posterior(gaussian=True)
def circular():
    """Angles that turn with a predictor."""
    rng = np.random.default_rng(17)
    x = rng.normal(size=120)
    y = rng.vonmises(0.5 + 2 * np.arctan(0.8 * x), 4.0)

    def model(x, y=None):
        mu = sample("mu", dist.VonMises(0.0, 0.5))
        slope = sample("slope", dist.Normal(0, 2))
        kappa = sample("kappa", dist.Gamma(2, 0.2))
        with plate("row", len(x)):
            sample("y", dist.VonMises(mu + 2 * jnp.arctan(slope * x), kappa), obs=y)

    return model, {"x": x, "y": y}


@posterior(gaussian=True)
def tobit():
    """What falls below 0 is recorded as 0."""
    rng = np.random.default_rng(18)
    x = rng.normal(size=150)
    y = np.maximum(0.5 + 1.5 * x + rng.normal(size=150), 0.0)

    def model(x, y):
        a = sample("a", dist.Normal(0, 5))
        b = sample("b", dist.Normal(0, 5))
        sigma = sample("sigma", dist.HalfNormal(5.0))
        line = dist.Normal(a + b * x, sigma)
        below = jax.scipy.stats.norm.logcdf(0.0, a + b * x, sigma)
        numpyro.factor("y", jnp.where(y > 0, line.log_prob(y), below).sum())

    return model, {"x": x, "y": y}


@posterior(gaussian=True)
def truncated():
    """Only what lies above 1 was recorded at all."""
    rng = np.random.default_rng(19)
    y = rng.normal(2.0, 1.5, 400)
    y = y[y > 1.0]

    def model(y):
        mu = sample("mu", dist.Normal(0, 5))
        sigma = sample("sigma", dist.HalfNormal(5.0))
        with plate("row", len(y)):
            sample("y", dist.TruncatedNormal(mu, sigma, low=1.0), obs=y)

    return model, {"y": y}


# Survival and capture


@posterior(gaussian=True)
def weibull():
    """Times to failure, all seen."""
    rng = np.random.default_rng(20)
    y = 30.0 * rng.weibull(1.7, 80)

    def model(y):
        scale = sample("scale", dist.LogNormal(3.0, 2.0))
        shape = sample("shape", dist.Gamma(2.0, 1.0))
        with plate("row", len(y)):
            sample("y", dist.Weibull(scale, shape), obs=y)

    return model, {"y": y}


@posterior(gaussian=True)
def weibull_censored():
    """Times to an event that some had not had when the study ended."""
    rng = np.random.default_rng(21)
    x = rng.integers(0, 2, 120)
    time = np.exp(3.0 + 0.6 * x) * rng.weibull(1.4, 120)
    seen = time < 30.0

    def model(x, time, seen):
        a = sample("a", dist.Normal(0, 10))
        b = sample("b", dist.Normal(0, 5))
        shape = sample("shape", dist.Gamma(2.0, 1.0))
        scale = jnp.exp(a + b * x)
        with plate("seen", len(x)), handlers.mask(mask=seen):
            sample("time", dist.Weibull(scale, shape), obs=time)
        survival = -((time / scale) ** shape)
        numpyro.factor("censored", jnp.where(seen, 0.0, survival).sum())

    return model, {"x": x, "time": np.minimum(time, 30.0), "seen": seen}


@posterior(gaussian=True)
def cormack_jolly_seber():
    """Survival between seven visits and the chance to be seen, states summed out."""
    rng = np.random.default_rng(22)
    visits, first = 7, np.sort(rng.integers(0, 6, 120))
    seen = np.zeros((120, visits), bool)
    for i, begin in enumerate(first):
        seen[i, begin], alive = True, True
        for t in range(begin + 1, visits):
            alive = alive and rng.random() < 0.7
            seen[i, t] = alive and rng.random() < 0.6
    last = visits - 1 - seen[:, ::-1].argmax(1)

    def model(seen, first, last):
        with plate("interval", visits - 1):
            survival = sample("survival", dist.Beta(1, 1))
        capture = sample("capture", dist.Beta(1, 1))
        chi = [jnp.ones(())]  # the chance never to be seen after a visit
        for phi in survival[::-1]:
            chi.append(1 - phi + phi * (1 - capture) * chi[-1])
        chi = jnp.stack(chi[::-1])
        t = jnp.arange(visits - 1)
        known = (t >= first[:, None]) & (t < last[:, None])
        each = jnp.log(survival) + jnp.where(seen[:, 1:], jnp.log(capture), jnp.log1p(-capture))
        numpyro.factor("histories", jnp.where(known, each, 0.0).sum() + jnp.log(chi[last]).sum())

    return model, {"seen": seen, "first": first, "last": last}


# Hierarchies

SCHOOLS = {
    # D. B. Rubin (1981), "Estimation in parallel randomized experiments".
    "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
}


def schools(sigma, y=None):
    """Eight schools, centred."""
    mu = sample("mu", dist.Normal(0, 5))
    tau = sample("tau", dist.HalfCauchy(5))
    with plate("school", 8):
        theta = sample("theta", dist.Normal(mu, tau))
        sample("y", dist.Normal(theta, sigma), obs=y)


@posterior()
def eight_schools_centred():
    """The funnel of every textbook [eight_schools-eight_schools_centered]."""
    return schools, SCHOOLS


@posterior()
def eight_schools_noncentred():
    """The same without the funnel [eight_schools-eight_schools_noncentered]."""

    def model(sigma, y=None):
        mu = sample("mu", dist.Normal(0, 5))
        tau = sample("tau", dist.HalfCauchy(5))
        with plate("school", 8):
            z = sample("z", dist.Normal(0, 1))
            sample("y", dist.Normal(mu + tau * z, sigma), obs=y)

    return model, SCHOOLS


def houses(seed):
    """Log radon on the ground floor and above it, in twenty counties."""
    rng = np.random.default_rng(seed)
    county = np.sort(rng.integers(0, 20, 250))
    floor = (rng.random(250) < 0.2).astype(float)
    intercept, slope = rng.normal(1.5, 0.35, 20), rng.normal(-0.7, 0.3, 20)
    y = intercept[county] + slope[county] * floor + rng.normal(0, 0.75, 250)
    return {"county": county, "floor": floor, "y": y}


@posterior(gaussian=True)
def radon_intercepts():
    """An intercept for each county, partially pooled [radon_mn-radon_variable_intercept]."""

    def model(county, floor, y=None):
        mu = sample("mu", dist.Normal(0, 10))
        tau = sample("tau", dist.HalfNormal(1.0))
        slope = sample("slope", dist.Normal(0, 10))
        sigma = sample("sigma", dist.HalfNormal(1.0))
        with plate("counties", 20):
            intercept = sample("intercept", dist.Normal(mu, tau))
        with plate("house", len(county)):
            sample("y", dist.Normal(intercept[county] + slope * floor, sigma), obs=y)

    return model, houses(23)


def lines(county, floor, y=None):
    """An intercept and a slope for each county."""
    mu = sample("mu", dist.Normal(0, 10).expand([2]).to_event(1))
    tau = sample("tau", dist.HalfNormal(1.0).expand([2]).to_event(1))
    sigma = sample("sigma", dist.HalfNormal(1.0))
    with plate("counties", 20):
        intercept = sample("intercept", dist.Normal(mu[0], tau[0]))
        slope = sample("slope", dist.Normal(mu[1], tau[1]))
    with plate("house", len(county)):
        sample("y", dist.Normal(intercept[county] + slope[county] * floor, sigma), obs=y)


@posterior()
def radon_slopes_centred():
    """Both vary, centred [radon_mn-radon_variable_intercept_slope_centered]."""
    return lines, houses(24)


@posterior()
def radon_slopes_noncentred():
    """Both vary, non-centred [radon_mn-radon_variable_intercept_slope_noncentered]."""

    def model(county, floor, y=None):
        mu = sample("mu", dist.Normal(0, 10).expand([2]).to_event(1))
        tau = sample("tau", dist.HalfNormal(1.0).expand([2]).to_event(1))
        sigma = sample("sigma", dist.HalfNormal(1.0))
        with plate("counties", 20):
            z = sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        intercept, slope = (mu + tau * z).T
        with plate("house", len(county)):
            sample("y", dist.Normal(intercept[county] + slope[county] * floor, sigma), obs=y)

    return model, houses(24)


@posterior(gaussian=True)
def rats():
    """Thirty rats weighed five times, a line each, days uncentred."""
    rng = np.random.default_rng(25)
    days = np.array([8.0, 15.0, 22.0, 29.0, 36.0])
    a, b = rng.normal(106, 11, 30), rng.normal(6.2, 0.5, 30)
    y = a[:, None] + b[:, None] * days + rng.normal(0, 6, (30, 5))

    def model(days, y=None):
        mu_a = sample("mu_a", dist.Normal(0, 1000))
        mu_b = sample("mu_b", dist.Normal(0, 100))
        sd_a = sample("sd_a", dist.HalfNormal(100.0))
        sd_b = sample("sd_b", dist.HalfNormal(10.0))
        sigma = sample("sigma", dist.HalfNormal(100.0))
        with plate("rat", 30, dim=-2):
            a = sample("a", dist.Normal(mu_a, sd_a))
            b = sample("b", dist.Normal(mu_b, sd_b))
            with plate("day", 5, dim=-1):
                sample("y", dist.Normal(a + b * days, sigma), obs=y)

    return model, {"days": days, "y": y}


@posterior()
def seeds():
    """Germination on 21 plates, a random effect each.

    Data: M. J. Crowder (1978), "Beta-binomial Anova for proportions", as in BUGS volume 1.
    """
    r = [10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3]
    n = [39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7]
    seed = np.repeat([0, 1], [11, 10])
    root = np.repeat([0, 1, 0, 1], [5, 6, 5, 5])
    x = np.column_stack([np.ones(21), seed, root, seed * root])

    def model(x, n, r=None):
        alpha = sample("alpha", dist.Normal(0, 1000).expand([4]).to_event(1))
        sigma = sample("sigma", dist.HalfNormal(1.0))
        with plate("plate", 21):
            effect = sample("effect", dist.Normal(0, sigma))
            sample("r", dist.Binomial(n, logits=x @ alpha + effect), obs=r)

    return model, {"x": x, "n": np.array(n), "r": np.array(r)}


@posterior()
def surgical():
    """Deaths of infants in twelve hospitals. Data: BUGS volume 1, "Surgical"."""
    n = [47, 148, 119, 810, 211, 196, 148, 215, 207, 97, 256, 360]
    r = [0, 18, 8, 46, 8, 13, 9, 31, 14, 8, 29, 24]

    def model(n, r=None):
        mu = sample("mu", dist.Normal(0, 1000))
        variance = sample("variance", dist.InverseGamma(0.001, 0.001))
        with plate("hospital", 12):
            b = sample("b", dist.Normal(mu, jnp.sqrt(variance)))
            sample("r", dist.Binomial(n, logits=b), obs=r)

    return model, {"n": np.array(n), "r": np.array(r)}


@posterior()
def logistic_mixed():
    """Answers of fifteen groups with an intercept each."""
    rng = np.random.default_rng(26)
    group, x = rng.integers(0, 15, 300), rng.normal(size=300)
    y = bernoulli(rng, 0.4 + 0.9 * x + rng.normal(0, 0.8, 15)[group])

    def model(group, x, y=None):
        a = sample("a", dist.Normal(0, 5))
        b = sample("b", dist.Normal(0, 5))
        tau = sample("tau", dist.HalfCauchy(2.5))
        with plate("groups", 15):
            effect = sample("effect", dist.Normal(0, tau))
        with plate("row", len(x)):
            sample("y", dist.Bernoulli(logits=a + b * x + effect[group]), obs=y)

    return model, {"group": group, "x": x, "y": y}


@posterior()
def item_response():
    """Thirty persons, eight items, a discrimination and a difficulty each."""
    rng = np.random.default_rng(27)
    ability, difficulty = rng.normal(size=30), rng.normal(size=8)
    steep = rng.lognormal(0.2, 0.3, 8)
    y = bernoulli(rng, steep * (ability[:, None] - difficulty))

    def model(y):
        spread = sample("spread", dist.HalfNormal(1.0))
        with plate("item", 8, dim=-1):
            steep = sample("steep", dist.LogNormal(0.0, spread))
            difficulty = sample("difficulty", dist.Normal(0, 2))
        with plate("person", 30, dim=-2):
            ability = sample("ability", dist.Normal(0, 1))
            with plate("answer", 8, dim=-1):
                sample("y", dist.Bernoulli(logits=steep * (ability - difficulty)), obs=y)

    return model, {"y": y}


@posterior()
def varying_effects():
    """Ten cafés, morning and afternoon, correlated by an LKJ prior."""
    rng = np.random.default_rng(28)
    effects = rng.multivariate_normal([3.5, -1.0], [[1.0, -0.35], [-0.35, 0.25]], 10)
    cafe, afternoon = np.repeat(np.arange(10), 10), np.tile([0.0, 1.0], 50)
    y = effects[cafe, 0] + effects[cafe, 1] * afternoon + rng.normal(0, 0.5, 100)

    def model(cafe, afternoon, y=None):
        mu = sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
        sd = sample("sd", dist.Exponential(1.0).expand([2]).to_event(1))
        factor = sample("factor", dist.LKJCholesky(2, 2.0))
        sigma = sample("sigma", dist.Exponential(1.0))
        with plate("cafes", 10):
            z = sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        a, b = (mu + z @ (sd[:, None] * factor).T).T
        with plate("visit", len(cafe)):
            sample("y", dist.Normal(a[cafe] + b[cafe] * afternoon, sigma), obs=y)

    return model, {"cafe": cafe, "afternoon": afternoon, "y": y}


@posterior(gaussian=True)
def covariance():
    """Means, sds and correlations of three measures."""
    rng = np.random.default_rng(29)
    true = np.array([[1.0, 0.6, 0.0], [0.6, 2.0, -0.5], [0.0, -0.5, 0.5]])
    y = rng.multivariate_normal([1.0, 0.0, -1.0], true, 80)

    def model(y):
        mu = sample("mu", dist.Normal(0, 5).expand([3]).to_event(1))
        sd = sample("sd", dist.HalfNormal(3.0).expand([3]).to_event(1))
        factor = sample("factor", dist.LKJCholesky(3, 1.5))
        with plate("row", len(y)):
            sample("y", dist.MultivariateNormal(mu, scale_tril=sd[:, None] * factor), obs=y)

    return model, {"y": y}


@posterior(gaussian=True)
def dugongs():
    """Length on age of sea cows, levelling off.

    Data: D. Ratkowsky (1983), "Nonlinear regression modeling", as in BUGS volume 2.
    """
    age = [1, 1.5, 1.5, 1.5, 2.5, 4, 5, 5, 7, 8, 8.5, 9, 9.5, 9.5]
    age += [10, 12, 12, 13, 13, 14.5, 15.5, 15.5, 16.5, 17, 22.5, 29, 31.5]
    length = [1.80, 1.85, 1.87, 1.77, 2.02, 2.27, 2.15, 2.26, 2.47, 2.19, 2.26, 2.40, 2.39, 2.41]
    length += [2.50, 2.32, 2.32, 2.43, 2.47, 2.56, 2.65, 2.47, 2.64, 2.56, 2.70, 2.72, 2.57]

    def model(age, length=None):
        alpha = sample("alpha", dist.Normal(0, 1000))
        beta = sample("beta", dist.Normal(0, 1000))
        decay = sample("decay", dist.Uniform(0.5, 1.0))
        precision = sample("precision", dist.Gamma(0.0001, 0.0001))
        with plate("cow", len(age)):
            mean = alpha - beta * decay**age
            sample("length", dist.Normal(mean, 1 / jnp.sqrt(precision)), obs=length)

    return model, {"age": np.array(age), "length": np.array(length)}


# Mixtures and hidden states


@posterior(gaussian=True)
def low_dim_gauss_mix():
    """Two Gaussians, means in order [low_dim_gauss_mix-low_dim_gauss_mix]."""
    rng = np.random.default_rng(30)
    first = rng.random(400) < 0.4
    y = np.where(first, rng.normal(-2.75, 1.0, 400), rng.normal(2.75, 1.2, 400))

    def model(y):
        mu = ordered("mu", dist.Normal(jnp.zeros(2), 2.0))
        sigma = sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
        share = sample("share", dist.Beta(5, 5))
        which = dist.Categorical(probs=jnp.stack([share, 1 - share]))
        with plate("row", len(y)):
            sample("y", dist.MixtureSameFamily(which, dist.Normal(mu, sigma)), obs=y)

    return model, {"y": y}


@feature("discrete latents in a plate, summed out", gaussian=True)
def mixture_enumerated():
    """Three Gaussians with an assignment for each point."""
    rng = np.random.default_rng(31)
    y = np.array([-4.0, 0.0, 3.5])[rng.integers(0, 3, 200)] + rng.normal(0, 0.8, 200)

    def model(y):
        share = sample("share", dist.Dirichlet(2 * jnp.ones(3)))
        mu = ordered("mu", dist.Normal(jnp.zeros(3), 5.0))
        sigma = sample("sigma", dist.HalfNormal(2.0))
        with plate("row", len(y)):
            which = sample("which", dist.Categorical(share))
            sample("y", dist.Normal(mu[which], sigma), obs=y)

    return model, {"y": y}


@feature("a discrete latent outside plates, summed out", gaussian=True)
def changepoint():
    """Counts whose rate changes once, when is not known."""
    rng = np.random.default_rng(32)
    y = np.concatenate([rng.poisson(3.2, 18), rng.poisson(1.1, 22)])

    def model(y):
        early = sample("early", dist.Exponential(1.0))
        late = sample("late", dist.Exponential(1.0))
        when = sample("when", dist.Categorical(jnp.full(40, 1 / 40)))
        with plate("year", 40):
            sample("y", dist.Poisson(jnp.where(jnp.arange(40) < when, early, late)), obs=y)

    return model, {"y": y}


def states(seed):
    """A hundred points from two hidden states that last."""
    rng = np.random.default_rng(seed)
    state, y = 0, np.zeros(100)
    for t in range(100):
        state = state if rng.random() < (0.9, 0.8)[state] else 1 - state
        y[t] = rng.normal((3.0, 9.0)[state], 1.0)
    return {"y": y}


@posterior(gaussian=True)
def hidden_markov():
    """Two hidden states summed out by the forward algorithm [hmm_example-hmm_example]."""

    def model(y):
        moves = sample("moves", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))
        mu = ordered("mu", dist.Normal(jnp.array([3.0, 10.0]), 1.0))
        terms = dist.Normal(mu, 1.0).log_prob(y[:, None])

        def forward(alpha, term):
            return jax.nn.logsumexp(alpha[:, None] + jnp.log(moves), 0) + term, None

        alpha, _ = jax.lax.scan(forward, terms[0] - jnp.log(2), terms[1:])
        numpyro.factor("y", jax.nn.logsumexp(alpha))

    return model, states(33)


@feature("contrib.control_flow.scan with enumeration", gaussian=True)
def hidden_markov_enumerated():
    """Two hidden states summed out by NumPyro."""

    def model(y):
        moves = sample("moves", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))
        mu = ordered("mu", dist.Normal(jnp.array([3.0, 10.0]), 1.0))

        def step(state, y):
            state = sample("state", dist.Categorical(moves[state]))
            sample("y", dist.Normal(mu[state], 1.0), obs=y)
            return state, None

        scan(step, 0, y)

    return model, states(34)


# Time series


@posterior(gaussian=True)
def autoregression():
    """Five lags [arK-arK]."""
    rng = np.random.default_rng(35)
    y = np.zeros(205)
    for t in range(5, 205):
        y[t] = 0.1 + y[t - 5 : t][::-1] @ [0.7, -0.5, 0.0, -0.3, 0.2] + rng.normal(0, 0.15)

    def model(y):
        alpha = sample("alpha", dist.Normal(0, 10))
        beta = sample("beta", dist.Normal(0, 10).expand([5]).to_event(1))
        sigma = sample("sigma", dist.HalfCauchy(2.5))
        lags = jnp.stack([y[5 - k : len(y) - k] for k in range(1, 6)], 1)
        with plate("time", len(y) - 5):
            sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[5:])

    return model, {"y": y}


@posterior(gaussian=True)
def arma():
    """ARMA(1, 1) [arma-arma11]."""
    rng = np.random.default_rng(36)
    noise, y = rng.normal(0, 0.15, 151), np.zeros(151)
    for t in range(1, 151):
        y[t] = 0.3 + 0.6 * y[t - 1] + 0.3 * noise[t - 1] + noise[t]

    def model(y):
        mu = sample("mu", dist.Normal(0, 10))
        phi = sample("phi", dist.Normal(0, 2))
        theta = sample("theta", dist.Normal(0, 2))
        sigma = sample("sigma", dist.HalfCauchy(2.5))

        def step(error, pair):
            before, now = pair
            error = now - (mu + phi * before + theta * error)
            return error, error

        begin = y[0] - (mu + phi * mu)
        _, errors = jax.lax.scan(step, begin, (y[:-1], y[1:]))
        errors = jnp.concatenate([begin[None], errors])
        numpyro.factor("y", dist.Normal(0, sigma).log_prob(errors).sum())

    return model, {"y": y}


@posterior()
def garch():
    """GARCH(1, 1), whose intervals depend on other sites [garch-garch11]."""
    rng = np.random.default_rng(37)
    y, sd = np.zeros(200), 1.0
    for t in range(200):
        y[t] = 5.0 + sd * rng.normal()
        sd = np.sqrt(1.5 + 0.5 * (y[t] - 5.0) ** 2 + 0.25 * sd**2)

    def model(y):
        mu = sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        alpha0 = sample("alpha0", positive())
        alpha1 = sample("alpha1", dist.Uniform(0.0, 1.0))
        beta1 = sample("beta1", dist.Uniform(0.0, 1.0 - alpha1))

        def step(variance, now):
            return alpha0 + alpha1 * (now - mu) ** 2 + beta1 * variance, variance

        _, variances = jax.lax.scan(step, jnp.ones(()), y)
        with plate("time", len(y)):
            sample("y", dist.Normal(mu, jnp.sqrt(variances)), obs=y)

    return model, {"y": y}


@posterior()
def stochastic_volatility():
    """Forty returns whose log volatility is an autoregression, non-centred."""
    rng = np.random.default_rng(38)
    h = np.zeros(40)
    for t in range(1, 40):
        h[t] = 0.9 * h[t - 1] + rng.normal(0, 0.4)
    y = np.exp((h - 1) / 2) * rng.normal(size=40)

    def model(y):
        mu = sample("mu", dist.Cauchy(0, 10))
        phi = sample("phi", dist.Uniform(-1, 1))
        sigma = sample("sigma", dist.HalfCauchy(5))
        noise = sample("noise", dist.Normal(0, 1).expand([40]).to_event(1))

        def step(h, e):
            h = phi * h + sigma * e
            return h, h

        begin = sigma * noise[0] / jnp.sqrt(1 - phi**2)
        _, h = jax.lax.scan(step, begin, noise[1:])
        h = mu + jnp.concatenate([begin[None], h])
        with plate("time", 40):
            sample("y", dist.Normal(0, jnp.exp(h / 2)), obs=y)

    return model, {"y": y}


@posterior()
def holt_winters():
    """Level, trend and four seasons smoothed by exponentials."""
    rng = np.random.default_rng(39)
    t = np.arange(60)
    y = 10 + 0.2 * t + np.array([2.0, -1.0, -2.0, 1.0])[t % 4] + rng.normal(0, 0.5, 60)

    def model(y):
        smooth = sample("smooth", dist.Beta(1, 1).expand([3]).to_event(1))
        level = sample("level", dist.Normal(10, 5))
        trend = sample("trend", dist.Normal(0, 1))
        seasons = sample("seasons", dist.Normal(0, 3).expand([4]).to_event(1))
        sigma = sample("sigma", dist.HalfNormal(2.0))

        def step(carry, now):
            level, trend, seasons = carry
            mean = level + trend + seasons[0]
            new = smooth[0] * (now - seasons[0]) + (1 - smooth[0]) * (level + trend)
            trend = smooth[1] * (new - level) + (1 - smooth[1]) * trend
            season = smooth[2] * (now - new) + (1 - smooth[2]) * seasons[0]
            return (new, trend, jnp.append(seasons[1:], season)), mean

        _, means = jax.lax.scan(step, (level, trend, seasons), y)
        with plate("time", len(y)):
            sample("y", dist.Normal(means, sigma), obs=y)

    return model, {"y": y}


@posterior()
def local_level():
    """A level that walks at random, seen with noise."""
    rng = np.random.default_rng(40)
    y = 5 + np.cumsum(rng.normal(0, 0.5, 40)) + rng.normal(0, 1.0, 40)

    def model(y):
        begin = sample("begin", dist.Normal(5, 5))
        step = sample("step", dist.HalfNormal(1.0))
        sigma = sample("sigma", dist.HalfNormal(2.0))
        walk = sample("walk", dist.GaussianRandomWalk(step, num_steps=40))
        with plate("time", 40):
            sample("y", dist.Normal(begin + walk, sigma), obs=y)

    return model, {"y": y}


@feature("contrib.control_flow.scan with latents")
def scanned_level():
    """The same written with NumPyro's scan, a latent site in each step."""
    rng = np.random.default_rng(41)
    y = 5 + np.cumsum(rng.normal(0, 0.5, 30)) + rng.normal(0, 1.0, 30)

    def model(y):
        step = sample("step", dist.HalfNormal(1.0))
        sigma = sample("sigma", dist.HalfNormal(2.0))

        def move(level, now):
            level = sample("level", dist.Normal(level, step))
            sample("y", dist.Normal(level, sigma), obs=now)
            return level, None

        scan(move, 5.0, y)

    return model, {"y": y}


# Curves: Gaussian processes and differential equations


def kernel(x, amplitude, length):
    """The squared exponential with a little on its diagonal."""
    apart = (x[:, None] - x) / length
    return amplitude**2 * jnp.exp(-0.5 * apart**2) + 1e-8 * jnp.eye(len(x))


@posterior(gaussian=True)
def gp_regression():
    """Length, amplitude and noise of a Gaussian process [gp_pois_regr-gp_regr]."""
    rng = np.random.default_rng(42)
    x = np.linspace(-10, 10, 25)
    y = 2 * np.sin(x / 3) + rng.normal(0, 0.5, 25)

    def model(x, y=None):
        length = sample("length", dist.Gamma(25, 4))
        amplitude = sample("amplitude", dist.HalfNormal(2.0))
        sigma = sample("sigma", dist.HalfNormal(1.0))
        covariance = kernel(x, amplitude, length) + sigma**2 * jnp.eye(len(x))
        sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)

    return model, {"x": x, "y": y}


@posterior()
def gp_poisson():
    """Counts on a log rate that is a Gaussian process [gp_pois_regr-gp_pois_regr]."""
    rng = np.random.default_rng(43)
    x = np.linspace(-10, 10, 11)
    y = rng.poisson(np.exp(1.5 + 1.5 * np.sin(x / 4)))

    def model(x, y=None):
        length = sample("length", dist.Gamma(25, 4))
        amplitude = sample("amplitude", dist.HalfNormal(2.0))
        with plate("point", len(x)):
            z = sample("z", dist.Normal(0, 1))
        f = jnp.linalg.cholesky(kernel(x, amplitude, length)) @ z
        with plate("count", len(x)):
            sample("y", dist.Poisson(jnp.exp(f)), obs=y)

    return model, {"x": x, "y": y}


@posterior(gaussian=True, begin={"theta": [0.5, 0.03, 0.8, 0.03], "begin": [30.0, 5.0]})
def lotka_volterra():
    """Hares and lynxes by an adaptive solver [hudson_lynx_hare-lotka_volterra].

    Data: thousands of pelts a year from 1900 to 1920, Hudson's Bay Company, from C. Elton and
    M. Nicholson (1942), "The ten-year cycle in numbers of the lynx in Canada".
    """
    hare = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1]
    hare += [40.3, 57, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7]
    lynx = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4]
    lynx += [8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]

    def slope(z, t, theta):
        hares, lynxes = z
        birth, eaten, death, fed = theta
        return jnp.stack([(birth - eaten * lynxes) * hares, (fed * hares - death) * lynxes])

    def model(pelts):
        theta = sample(
            "theta",
            dist.TruncatedNormal(
                jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05]), low=0.0
            ).to_event(1),
        )
        begin = sample("begin", dist.LogNormal(jnp.log(10.0), 1.0).expand([2]).to_event(1))
        sigma = sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
        times = jnp.arange(21.0)
        z = odeint(slope, begin, times, theta, rtol=1e-6, atol=1e-5, mxstep=1000)
        sample("pelts", dist.LogNormal(jnp.log(z), sigma).to_event(2), obs=pelts)

    return model, {"pelts": np.column_stack([hare, lynx])}


@posterior(gaussian=True)
def logistic_growth():
    """A culture that fills its dish, by an adaptive solver."""
    rng = np.random.default_rng(44)
    times = np.linspace(0, 12, 15)
    y = 10 / (1 + 19 * np.exp(-0.7 * times)) * rng.lognormal(0, 0.1, 15)

    def model(times, y=None):
        rate = sample("rate", dist.LogNormal(-0.5, 0.5))
        full = sample("full", dist.LogNormal(2.0, 1.0))
        begin = sample("begin", dist.LogNormal(-1.0, 1.0))
        sigma = sample("sigma", dist.HalfNormal(0.5))
        z = odeint(lambda z, t: rate * z * (1 - z / full), begin, times, mxstep=1000)
        with plate("time", len(times)):
            sample("y", dist.LogNormal(jnp.log(z), sigma), obs=y)

    return model, {"times": times, "y": y}


@posterior(gaussian=True)
def epidemic():
    """Susceptible, infected, removed: counts of a fortnight by steps of Runge and Kutta."""
    rng = np.random.default_rng(45)

    def curve(beta, gamma, begin):
        def slope(z):
            new, gone = beta * z[0] * z[1] / 763, gamma * z[1]
            return jnp.stack([-new, new - gone])

        def step(z, _):
            for _ in range(2):  # half a day each
                a = slope(z)
                b = slope(z + a / 4)
                c = slope(z + b / 4)
                z = z + (a + 2 * b + 2 * c + slope(z + c / 2)) / 12
            return z, z[1]

        return jax.lax.scan(step, jnp.stack([763 - begin, begin]), None, 14)[1]

    y = rng.poisson(rng.gamma(10.0, np.asarray(curve(1.7, 0.5, 1.0 + 0.0)) / 10.0))

    def model(y):
        beta = sample("beta", dist.LogNormal(0.5, 0.5))
        gamma = sample("gamma", dist.LogNormal(-0.7, 0.5))
        begin = sample("begin", dist.LogNormal(0.0, 1.0))
        spread = sample("spread", dist.Exponential(5.0))
        with plate("day", 14):
            mean = jnp.maximum(curve(beta, gamma, begin), 1e-6)
            sample("y", dist.NegativeBinomial2(mean, 1 / spread), obs=y)

    return model, {"y": y}


@posterior()
def neural_network():
    """Four hidden units that can trade places."""
    rng = np.random.default_rng(46)
    x = rng.uniform(-2, 2, 30)
    y = np.sin(2 * x) + rng.normal(0, 0.2, 30)

    def model(x, y=None):
        first = sample("first", dist.Normal(0, 2).expand([2, 4]).to_event(2))
        second = sample("second", dist.Normal(0, 1).expand([4]).to_event(1))
        hidden = jnp.tanh(jnp.column_stack([jnp.ones_like(x), x]) @ first)
        with plate("point", len(x)):
            sample("y", dist.Normal(hidden @ second, 0.2), obs=y)

    return model, {"x": x, "y": y}


# What NumPyro has to offer


@feature("simplices, multinomial", gaussian=True)
def shares():
    """Votes for four in six places, shares drawn from one Dirichlet distribution."""
    rng = np.random.default_rng(47)
    y = np.array([rng.multinomial(200, rng.dirichlet([8, 6, 4, 2])) for _ in range(6)])

    def model(y):
        base = sample("base", dist.Dirichlet(jnp.ones(4)))
        strength = sample("strength", dist.LogNormal(3.0, 1.0))
        with plate("place", 6):
            share = sample("share", dist.Dirichlet(strength * base))
            sample("y", dist.Multinomial(200, share), obs=y)

    return model, {"y": y}


@feature("improper priors on an interval, a half-line and the unit interval", gaussian=True)
def improper_priors():
    """A mean, an sd and a share with no prior but their supports."""
    rng = np.random.default_rng(48)
    y, k = rng.normal(1.0, 2.0, 50), 7

    def model(y, k):
        mu = sample("mu", dist.ImproperUniform(constraints.interval(-10.0, 10.0), (), ()))
        sigma = sample("sigma", dist.ImproperUniform(constraints.greater_than(0.5), (), ()))
        share = sample("share", dist.ImproperUniform(constraints.unit_interval, (), ()))
        sample("k", dist.Binomial(20, share), obs=k)
        with plate("row", len(y)):
            sample("y", dist.Normal(mu, sigma), obs=y)

    return model, {"y": y, "k": k}


@feature("a subsampled plate", gaussian=True, reference={"batch": None})
def subsampled():
    """A logistic regression that looks at 200 of 3,000 rows at a time."""
    rng = np.random.default_rng(49)
    x = rng.normal(size=(3000, 3))

    def model(x, y, batch):
        beta = sample("beta", dist.Normal(0, 2).expand([3]).to_event(1))
        with plate("row", len(x), subsample_size=batch) as rows:
            sample("y", dist.Bernoulli(logits=x[rows] @ beta), obs=y[rows])

    return model, {"x": jnp.array(x), "y": jnp.array(bernoulli(rng, x[:, 0])), "batch": 200}


@feature("LocScaleReparam inside the model")
def loc_scale_reparam():
    """Eight schools, centred as written and non-centred by a handler."""

    def model(sigma, y=None):
        with handlers.reparam(config={"theta": LocScaleReparam(0)}):
            schools(sigma, y)

    return model, SCHOOLS


@feature("TransformReparam inside the model")
def transform_reparam():
    """Eight schools with a transformed distribution taken apart by a handler."""

    def model(sigma, y=None):
        mu = sample("mu", dist.Normal(0, 5))
        tau = sample("tau", dist.LogNormal(1.0, 1.0))
        with plate("school", 8), handlers.reparam(config={"theta": TransformReparam()}):
            affine = dist.transforms.AffineTransform(mu, tau)
            theta = sample("theta", dist.TransformedDistribution(dist.Normal(0, 1), affine))
        with plate("row", 8):
            sample("y", dist.Normal(theta, sigma), obs=y)

    return model, SCHOOLS


@feature("handlers.scale and handlers.mask", gaussian=True)
def scaled_and_masked():
    """Rows that count for two and a half, and rows that do not count."""
    rng = np.random.default_rng(50)
    x = rng.normal(size=60)
    y = 1 + 2 * x + rng.normal(size=60)
    y[::7] = 1000.0

    def model(x, y, good):
        a = sample("a", dist.Normal(0, 5))
        b = sample("b", dist.Normal(0, 5))
        sigma = sample("sigma", dist.HalfNormal(5.0))
        with plate("row", len(x)), handlers.scale(scale=2.5), handlers.mask(mask=good):
            sample("y", dist.Normal(a + b * x, sigma), obs=y)

    return model, {"x": x, "y": y, "good": y < 1000}


@feature("nested plates", gaussian=True)
def nested_plates():
    """Pupils in classes in schools, all crossed with two subjects."""
    rng = np.random.default_rng(51)
    school, room = rng.normal(0, 0.8, (6, 1, 1)), rng.normal(0, 0.5, (6, 4, 1))
    y = 1 + school + room + rng.normal(0, 1.0, (6, 4, 10))

    def model(y):
        mu = sample("mu", dist.Normal(0, 5))
        sd = sample("sd", dist.Gamma(3.0, 4.0).expand([2]).to_event(1))
        sigma = sample("sigma", dist.HalfNormal(2.0))
        with plate("schools", 6, dim=-3):
            school = sample("school", dist.Normal(mu, sd[0]))
            with plate("rooms", 4, dim=-2):
                room = sample("room", dist.Normal(school, sd[1]))
                with plate("pupils", 10, dim=-1):
                    sample("y", dist.Normal(room, sigma), obs=y)

    return model, {"y": y}


@feature("sites that are matrices", gaussian=True)
def matrix_sites():
    """Three responses on four predictors with a matrix normal prior."""
    rng = np.random.default_rng(52)
    x = rng.normal(size=(60, 4))
    y = x @ rng.normal(size=(4, 3)) + rng.normal(0, 0.5, (60, 3))

    def model(x, y=None):
        prior = dist.MatrixNormal(jnp.zeros((4, 3)), 2 * jnp.eye(4), jnp.eye(3))
        weights = sample("weights", prior)
        with plate("response", 3):
            sigma = sample("sigma", dist.HalfNormal(1.0))
        with plate("row", len(x)):
            sample("y", dist.Normal(x @ weights, sigma).to_event(1), obs=y)

    return model, {"x": x, "y": y}


@feature("obs_mask: missing values imputed", gaussian=True, reference={"by_hand": True})
def imputed():
    """A predictor some of whose values are missing."""
    rng = np.random.default_rng(53)
    x = rng.normal(2.0, 1.5, 60)
    y = 1 + 0.8 * x + rng.normal(0, 0.5, 60)
    known = np.arange(60) % 6 > 0

    def model(x, y, known, by_hand=False):
        mu = sample("mu", dist.Normal(0, 5))
        sd = sample("sd", dist.HalfNormal(5.0))
        beta = sample("beta", dist.Normal(0, 5).expand([2]).to_event(1))
        sigma = sample("sigma", dist.HalfNormal(5.0))
        if by_hand:
            missing = sample("missing", dist.Normal(mu, sd).expand([10]).to_event(1))
            numpyro.factor("x", jnp.where(known, dist.Normal(mu, sd).log_prob(x), 0.0).sum())
            x = jnp.asarray(x).at[np.flatnonzero(~known)].set(missing)
        with plate("row", 60):
            if not by_hand:
                x = sample("x", dist.Normal(mu, sd), obs=x, obs_mask=known)
            sample("y", dist.Normal(beta[0] + beta[1] * x, sigma), obs=y)

    return model, {"x": np.where(known, x, 0.0), "y": y, "known": known}


@feature("ZeroSumNormal", gaussian=True)
def zero_sum():
    """Effects of five groups that add up to nothing."""
    rng = np.random.default_rng(54)
    group = np.repeat(np.arange(5), 12)
    y = 3 + np.array([-1.0, 0.5, 0.0, 1.5, -1.0])[group] + rng.normal(size=60)

    def model(group, y=None):
        mu = sample("mu", dist.Normal(0, 5))
        effect = sample("effect", dist.ZeroSumNormal(2.0, event_shape=(5,)))
        sigma = sample("sigma", dist.HalfNormal(2.0))
        with plate("row", len(group)):
            sample("y", dist.Normal(mu + effect[group], sigma), obs=y)

    return model, {"group": group, "y": y}


@feature("CAR: neighbours on a map")
def neighbours():
    """Counts on a grid of four by four whose rates are like their neighbours'."""
    rng = np.random.default_rng(55)
    cells = np.indices((4, 4)).reshape(2, -1)
    adjacent = np.abs(cells[:, :, None] - cells[:, None]).sum(0) == 1
    y = rng.poisson(np.exp(1.5 + 0.2 * (cells[0] - 1.5) + rng.normal(0, 0.2, 16)))

    def model(adjacent, y=None):
        mu = sample("mu", dist.Normal(0, 5))
        rho = sample("rho", dist.Beta(2, 2))
        precision = sample("precision", dist.Gamma(2, 0.5))
        field = sample("field", dist.CAR(jnp.zeros(16), rho, precision, adjacent))
        with plate("cell", 16):
            sample("y", dist.Poisson(jnp.exp(mu + field)), obs=y)

    return model, {"adjacent": adjacent.astype(float), "y": y}


@feature("BetaBinomial", gaussian=True)
def overdispersed():
    """Litters whose shares vary more than a binomial's."""
    rng = np.random.default_rng(56)
    n = rng.integers(8, 20, 40)
    y = rng.binomial(n, rng.beta(4, 8, 40))

    def model(n, y=None):
        share = sample("share", dist.Uniform(0, 1))
        strength = sample("strength", dist.Gamma(2.0, 0.1))
        with plate("litter", len(n)):
            sample("y", dist.BetaBinomial(share * strength, (1 - share) * strength, n), obs=y)

    return model, {"n": n, "y": y}


# What must be refused


def normal(y=None):
    """A mean of a few numbers."""
    sample("y", dist.Normal(sample("mu", dist.Normal(0, 1)), 1.0).expand([3]), obs=y)


@refused("cannot be traced by JAX")
def python_if():
    """A Python `if` on a latent."""

    def model():
        x = sample("x", dist.Normal(0, 1))
        if x > 0:
            numpyro.factor("f", -x)

    return model, {}


@refused("cannot be traced by JAX")
def numpy_function():
    """A NumPy function of a latent."""

    def model():
        numpyro.factor("f", -np.exp(np.asarray(sample("x", dist.Normal(0, 1)))))

    return model, {}


@refused("cannot be traced by JAX")
def loop_over_a_latent():
    """As many steps as a latent says."""

    def model():
        x = sample("x", dist.Exponential(1.0))
        for _ in range(int(x)):
            numpyro.factor("f", -x)

    return model, {}


@refused("endlessly many values")
def latent_poisson():
    """A discrete latent that cannot be enumerated."""

    def model(y=3.0):
        n = sample("n", dist.Poisson(4.0))
        sample("y", dist.Normal(n, sample("sigma", dist.HalfNormal(1.0))), obs=y)

    return model, {}


@refused("outside of a plate")
def batch_outside_a_plate():
    """A batch that enumeration would take for something else."""

    def model():
        which = sample("which", dist.Bernoulli(0.5))
        mu = sample("mu", dist.Normal(jnp.zeros(3), 1.0))
        sample("y", dist.Normal(mu + which, 1.0), obs=jnp.zeros(3))

    return model, {}


@refused("no continuous latent site")
def no_latent():
    """Nothing to infer."""

    def model(y):
        sample("y", dist.Normal(0, 1), obs=y)

    return model, {"y": 1.0}


@refused("no continuous latent site")
def nothing_at_all():
    """Not a single site."""
    return lambda: None, {}


@refused("'x' is a Delta")
def delta():
    """A site without a density."""

    def model():
        x = sample("x", dist.Delta(1.0))
        sample("y", dist.Normal(x, sample("sigma", dist.HalfNormal(1.0))), obs=0.3)

    return model, {}


@refused("nothing depends on site 'idle'")
def flat_and_idle():
    """A flat prior that no likelihood ever meets."""

    def model():
        sample("idle", dist.ImproperUniform(constraints.real, (), ()))
        sample("y", dist.Normal(sample("mu", dist.Normal(0, 1)), 1.0), obs=0.3)

    return model, {}


@refused("finite at none of")
def nowhere_finite():
    """No value of the latent could have given the data."""

    def model():
        numpyro.factor("f", -jnp.inf * jnp.ones(()) + sample("x", dist.Normal(0, 1)))

    return model, {}


@refused("y[1] is nan")
def missing_in_data():
    """A number in the data is not one."""
    return normal, {"y": np.array([0.1, np.nan, 0.2])}


@refused("'y'")
def outside_the_support():
    """A negative number under a distribution on positive ones."""

    def model(y):
        sample("y", dist.Gamma(sample("a", dist.Exponential(1.0)), 1.0), obs=y)

    return model, {"y": np.array([0.5, -1.0])}


@refused("the model stopped with")
def shapes_that_do_not_fit():
    """Three coefficients for two predictors."""

    def model(x):
        beta = sample("beta", dist.Normal(0, 1).expand([3]).to_event(1))
        sample("y", dist.Normal(x @ beta, 1.0), obs=jnp.zeros(5))

    return model, {"x": np.ones((5, 2))}


@refused("the model stopped with")
def plate_of_another_size():
    """A batch of four in a plate of three."""

    def model():
        with plate("row", 3):
            sample("x", dist.Normal(jnp.zeros(4), 1.0))

    return model, {}


@refused("holds nothing")
def empty_site():
    """A site for each of no rows."""

    def model(x):
        sample("theta", dist.Normal(0, 1).expand([len(x)]))
        sample("mu", dist.Normal(0, 1))

    return model, {"x": np.zeros(0)}


@refused("mu")
def same_name_twice():
    """Two sites of one name."""

    def model():
        sample("mu", dist.Normal(0, 1))
        sample("mu", dist.Normal(0, 1))

    return model, {}


@refused("inside a loop or function that JAX compiles")
def sample_in_lax_scan():
    """A site out of reach inside JAX's own scan."""

    def model():
        def step(x, _):
            x = sample("x", dist.Normal(x, 1.0))
            return x, x

        _, path = jax.lax.scan(step, 0.0, None, 5)
        sample("y", dist.Normal(path[-1], 1.0), obs=0.3)

    return model, {}


@refused("the model stopped with")
def sample_outside():
    """A site asked for where no handler is."""

    def model():
        x = sample("x", dist.Normal(0, 1))
        with handlers.block():
            hidden = dist.Normal(0, 1).sample(None)
        sample("y", dist.Normal(x + hidden, 1.0), obs=0.3)

    return model, {}


@refused("data are the keyword arguments of model")
def data_that_no_argument_takes():
    """A name in the data that the model does not know."""
    return normal, {"z": np.zeros(3)}


@refused("data are the keyword arguments of model")
def data_too_few():
    """An argument without a value."""
    return linear, {"y": np.zeros(3)}


@refused("the model stopped with")
def words_for_numbers():
    """Text where numbers belong."""
    return linear, {"x": np.array([["a", "b"]]), "y": np.zeros(1)}


@refused("the model stopped with ValueError")
def an_error_of_its_own():
    """A model that objects to its data."""

    def model(y):
        raise ValueError("y must be\nsorted")

    return model, {"y": np.zeros(3)}


@refused("changes with every run of the model")
def mutable_state():
    """State that each run changes."""

    def model():
        state = numpyro.primitives.mutable("state", {"n": jnp.zeros(())})
        sample("y", dist.Normal(sample("mu", dist.Normal(0, 1)) + state["n"], 1.0), obs=0.3)

    return model, {}


# What cannot be normalised


@improper("perfect separation under a flat prior")
def separated():
    """A logistic regression whose likelihood rises for ever."""
    x = np.linspace(-1, 1, 20)
    return logit, {"x": np.column_stack([np.ones(20), x]), "y": (x > 0).astype(int)}


@improper("infinite mass where tau goes to 0")
def jeffreys_hierarchy():
    """Eight schools with p(tau) ∝ 1 / tau: log tau is flat."""

    def model(sigma, y=None):
        mu = sample("mu", dist.Normal(0, 5))
        log_tau = sample("log_tau", dist.ImproperUniform(constraints.real, (), ()))
        with plate("school", 8):
            z = sample("z", dist.Normal(0, 1))
            sample("y", dist.Normal(mu + jnp.exp(log_tau) * z, sigma), obs=y)

    return model, SCHOOLS


@improper("two intercepts of which only the sum is known")
def unidentified():
    """A ridge without an end."""

    def model(y):
        a = sample("a", dist.ImproperUniform(constraints.real, (), ()))
        b = sample("b", dist.ImproperUniform(constraints.real, (), ()))
        with plate("row", len(y)):
            sample("y", dist.Normal(a + b, 1.0), obs=y)

    return model, {"y": np.random.default_rng(57).normal(size=20)}
