"""The bundled models: what each is made of, and the densities and figures known exactly."""

import ast
import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import logsumexp

from vi_demo import loading

# Each model's latent sites and their shapes, and the observed site, named like its argument.
MODELS = {
    "banana": ({"x": (), "y": ()}, None),
    "bimodal": ({"x": (2,)}, None),
    "coal": ({"before": (), "after": (), "change": ()}, "disasters"),
    "eight_schools": ({"mu": (), "tau": (), "theta": (8,)}, "y"),
    "eight_schools_noncentred": ({"mu": (), "tau": (), "z": (8,)}, "y"),
    "funnel": ({"log_width": (), "x": (9,)}, None),
    "gaussian_process": ({"length": (), "amplitude": (), "noise": ()}, "y"),
    "horseshoe": ({"sigma": (), "tau": (), "lam": (8,), "beta": (8,)}, "y"),
    "neural_network": ({"weight": (8,), "bias": (8,), "output": (8,), "offset": ()}, "y"),
    "old_faithful": ({"weight": (), "mu": (2,), "sigma": (2,)}, "waiting"),
    "penguins": (
        {
            **{"intercept_mean": (), "intercept_sd": (), "slope_mean": (), "slope_sd": ()},
            **{"sigma": (), "intercept": (5,), "slope": (5,)},
        },
        "mass",
    ),
    "ring": ({"x": (2,)}, None),
    "student_t": ({"x": (2,)}, None),
    "unequal_modes": ({"x": (2,)}, None),
    "vae": ({"code": (400, 2)}, "digits"),
    "vote": ({"alpha": (), "beta": (6,)}, "vote"),
}
OBSERVING = [name for name, (_, observed) in MODELS.items() if observed]


def module_of(loaded):
    return sys.modules[loaded.model.__module__]


def density(loaded, **values):
    """The log density of the model at values of its latent sites, drawn where not given."""
    return float(traced_density(loaded, values)[0])


def traced_density(loaded, values):
    """The log density in one compiled program, and the trace it was compiled from."""
    traces = []

    def value(values):
        found, trace = log_density(handlers.seed(loaded.model, 0), (), loaded.data, values)
        traces.append(trace)
        return found

    return jax.jit(value)(values), traces[0]


def test_every_bundled_model_is_here():
    assert list(MODELS) == list(loading.bundled())


@pytest.mark.parametrize("name", MODELS)
def test_sites_and_dims(name):
    loaded = loading.load(name)
    # An improper site has no draw of its own.
    value, trace = traced_density(loaded, {"x": jnp.zeros(2)} if name == "bimodal" else {})
    assert np.isfinite(value)
    sites = {k: site for k, site in trace.items() if site["type"] == "sample"}
    latent = {k: jnp.shape(v["value"]) for k, v in sites.items() if not v["is_observed"]}
    known, observed = MODELS[name]
    assert latent == known
    assert observed is None or (sites[observed]["is_observed"] and observed in loaded.data)
    for site, dims in loaded.dims.items():
        shape = jnp.shape(trace[site]["value"])
        assert len(dims) == len(shape)
        for dim, size in zip(dims, shape, strict=True):
            assert len(loaded.coords.get(dim, range(size))) == size


@pytest.mark.parametrize("name", OBSERVING)
def test_prior_predictive(name):
    """Without what it observes, a model draws it."""
    loaded, observed = loading.load(name), MODELS[name][1]
    inputs = {k: v for k, v in loaded.data.items() if k != observed}

    def draw(key):
        site = handlers.trace(handlers.seed(loaded.model, key)).get_trace(**inputs)[observed]
        assert not site["is_observed"]
        return site["value"]

    drawn = jax.eval_shape(draw, jax.random.key(0))
    assert drawn.shape == loaded.data[observed].shape


@pytest.mark.parametrize("name", MODELS)
def test_the_file_reads_well(name):
    text = loading.bundled()[name].read_text(encoding="utf-8")
    first = ast.get_docstring(ast.parse(text)).partition("\n")[0]
    widest = max(map(len, MODELS))
    assert len(f"{name:<{widest}}  {first}") <= 80  # a line of `vi-demo models`
    assert "vi_demo" not in text


def test_every_data_file_has_its_provenance():
    folder = loading.bundled()["vote"].parent / "data"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    files = [file for file in folder.iterdir() if file.name != "README.md"]
    assert files
    for file in files:
        assert f"## `{file.name}`" in readme
        assert file.stat().st_size < 60_000
        assert any(file.name in m.read_text(encoding="utf-8") for m in folder.parent.glob("*.py"))


# Densities, against SciPy

X = np.array([0.7, -1.3])
NINE = np.linspace(-2.0, 2.0, 9)
COMPASS = [(np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)) for k in range(8)]


def scipy_mixture(shares, centres, sds):
    parts = zip(shares, centres, sds, strict=True)
    return logsumexp([np.log(w) + stats.norm(c, s).logpdf(X).sum() for w, c, s in parts])


KNOWN = {
    "banana": (
        {"x": X[0], "y": X[1]},
        stats.norm.logpdf(X[0]) + stats.norm(2 * (X[0] ** 2 - 1), 0.5).logpdf(X[1]),
    ),
    "bimodal": ({"x": X}, scipy_mixture([0.5, 0.5], [(-4, 0), (4, 0)], [1, 1])),
    "funnel": (
        {"log_width": 1.1, "x": NINE},
        stats.norm(0, 3).logpdf(1.1) + stats.norm(0, np.exp(0.55)).logpdf(NINE).sum(),
    ),
    "ring": ({"x": X}, scipy_mixture([1 / 8] * 8, 4 * np.array(COMPASS), [0.5] * 8)),
    "student_t": ({"x": X}, stats.multivariate_t(np.zeros(2), np.eye(2), df=3).logpdf(X)),
    "unequal_modes": ({"x": X}, scipy_mixture([0.9, 0.1], [(-3, 0), (3, 0)], [1, 0.25])),
}


@pytest.mark.parametrize("name", KNOWN)
def test_density(name):
    values, expected = KNOWN[name]
    assert density(loading.load(name), **values) == pytest.approx(expected, rel=1e-6)


def test_the_year_of_change_is_summed_out():
    pytest.importorskip("funsor")
    from numpyro.contrib.funsor import enum
    from numpyro.contrib.funsor import log_density as summed

    loaded = loading.load("coal")
    rates = {"before": 3.0, "after": 1.0}
    model = handlers.substitute(handlers.seed(loaded.model, 0), rates)
    model = enum(model, first_available_dim=-2)
    found = float(jax.jit(lambda: summed(model, (), loaded.data, {})[0])())
    counts, last = loaded.data["disasters"], np.arange(111)[:, None]
    each = stats.poisson(np.where(np.arange(112) <= last, 3.0, 1.0)).logpmf(counts).sum(1)
    prior = stats.expon(scale=2).logpdf([3.0, 1.0]).sum() - np.log(111)
    assert found == pytest.approx(logsumexp(each) + prior, rel=1e-6)


def test_two_forms_of_eight_schools():
    """With theta = mu + tau z the densities differ by the Jacobian, tau to the power of eight."""
    centred, other = loading.load("eight_schools"), loading.load("eight_schools_noncentred")
    mu, tau, z = 4.0, 3.0, np.linspace(-1.0, 1.5, 8)
    expected = density(centred, mu=mu, tau=tau, theta=mu + tau * z) + 8 * np.log(tau)
    assert density(other, mu=mu, tau=tau, z=z) == pytest.approx(expected, rel=1e-6)


def test_units_of_the_network_trade_places_and_signs():
    loaded = loading.load("neural_network")
    rng = np.random.default_rng(0)
    values = {k: rng.normal(size=8) for k in ("weight", "bias", "output")}
    signs, order = rng.choice([-1.0, 1.0], 8), rng.permutation(8)
    other = {k: (signs * v)[order] for k, v in values.items()}
    found = [density(loaded, offset=0.3, **v) for v in (values, other)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_the_guide_of_the_autoencoder():
    """It takes what the model takes, has its sites, and its KL from the prior in closed form."""
    loaded = loading.load("vae")
    guide = module_of(loaded).guide
    arguments = [list(inspect.signature(f).parameters) for f in (loaded.model, guide)]
    assert arguments == [["digits"], ["digits"]]

    @jax.jit
    def code(key):
        fns = [
            handlers.trace(handlers.seed(f, key)).get_trace(**loaded.data)["code"]["fn"]
            for f in (guide, loaded.model)
        ]
        return dist.kl_divergence(*fns), fns[0].base_dist.loc, fns[0].base_dist.scale

    found, mean, sd = code(jax.random.key(0))
    assert mean.shape == (400, 2)
    expected = (0.5 * (mean**2 + sd**2 - 1) - np.log(sd)).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# Figures that the docstrings state

FORWARD_KL = {"banana": 80.0, "ring": 8.0, "unequal_modes": 8.0}  # and how far up its mass goes
STEP = 0.1


@pytest.mark.parametrize("name", FORWARD_KL)
def test_forward_kl_as_stated(name):
    """KL(p‖q) of the Gaussian with p's own mean and covariance, summed over a grid."""
    loaded = loading.load(name)
    along, up = np.arange(-8.0, 8.0, STEP), np.arange(-8.0, FORWARD_KL[name], STEP)
    points = np.stack(np.meshgrid(along, up), -1).reshape(-1, 2)

    def log_p(z):
        sites = {"x": z[0], "y": z[1]} if "y" in MODELS[name][0] else {"x": z}
        return traced_density(loaded, sites)[0]

    log_densities = np.asarray(jax.jit(jax.vmap(log_p))(points))
    mass = np.exp(log_densities) * STEP**2
    assert mass.sum() == pytest.approx(1.0, abs=1e-4)
    covariance = np.cov(points.T, aweights=mass, bias=True)
    kl = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1] + mass @ log_densities
    assert f"{kl:.3f} nats" in module_of(loaded).__doc__


def test_log_evidence_of_coal_as_stated():
    """Exponential priors are conjugate to Poisson counts: ∫ rates, then a sum over years."""
    loaded = loading.load("coal")
    counts = loaded.data["disasters"]

    def segment(part):
        exposure, total = len(part), part.sum()
        gamma = stats.gamma(1 + total, scale=1 / (exposure + 0.5))
        # Bayes' theorem at a rate of one, as it holds at any rate.
        at_one = stats.poisson(1.0).logpmf(part).sum() + stats.expon(scale=2).logpdf(1.0)
        return at_one - gamma.logpdf(1.0)

    each = [segment(counts[:k]) + segment(counts[k:]) for k in range(1, 112)]
    evidence = logsumexp(each) - np.log(111)
    assert f"{evidence:.3f}".replace("-", "−") in module_of(loaded).__doc__
