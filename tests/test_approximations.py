"""Laplace, Pathfinder and EP against closed forms, quadrature and exact moments."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import special, stats

import vi_demo
from vi_demo import Target, cli, fitting, guides
from vi_demo.approximations import APPROXIMATIONS
from vi_demo.errors import InputError
from vi_demo.pictures.words import spoken

KEY = jax.random.key(0)
FULL, DIAGONAL = guides.family("full_rank"), guides.family("diagonal")
NOISE_SD, PRIOR_SD = 0.7, 2.0


def linear(x, y=None):
    """Gaussian regression: conjugate."""
    b = numpyro.sample("b", dist.Normal(0, PRIOR_SD).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ b, NOISE_SD), obs=y)


def logistic(x, y=None):
    """Logistic regression."""
    b = numpyro.sample("b", dist.Normal(0, PRIOR_SD).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def covariates(rows, columns):
    return np.random.default_rng(0).normal(size=(rows, columns))


@pytest.fixture(scope="module")
def conjugate():
    """A linear regression with its posterior's mean, covariance and log evidence."""
    x = covariates(30, 3)
    y = x @ [1.0, -0.5, 0.2] + NOISE_SD * np.random.default_rng(1).normal(size=30)
    covariance = np.linalg.inv(x.T @ x / NOISE_SD**2 + np.eye(3) / PRIOR_SD**2)
    mean = covariance @ x.T @ y / NOISE_SD**2
    marginal = NOISE_SD**2 * np.eye(30) + PRIOR_SD**2 * x @ x.T
    log_z = stats.multivariate_normal(np.zeros(30), marginal).logpdf(y)
    return Target.from_numpyro(linear, {"x": x, "y": y}), mean, covariance, log_z


@pytest.fixture(scope="module")
def skewed():
    """A logistic regression on 20 rows with mean and sds of its posterior, by a fine grid."""
    x = covariates(20, 2) * [1.0, 0.6]
    y = (np.random.default_rng(1).uniform(size=20) < special.expit(x @ [1.5, -1.0])).astype(int)
    grid = np.stack(np.meshgrid(*[np.linspace(-9, 9, 601)] * 2, indexing="ij"), -1).reshape(-1, 2)
    log_p = -0.5 * (grid**2).sum(1) / PRIOR_SD**2
    log_p += special.log_expit((grid @ x.T) * (2 * y - 1)).sum(1)
    weights = special.softmax(log_p)
    mean = weights @ grid
    return (
        Target.from_numpyro(logistic, {"x": x, "y": y}),
        mean,
        np.sqrt(weights @ grid**2 - mean**2),
    )


def test_each_is_known_in_every_place():
    assert set(fitting.FITTERS) == set(APPROXIMATIONS)
    assert set(APPROXIMATIONS) <= set(cli.FIT.choices)
    assert all(line in cli.fits_help() for line in APPROXIMATIONS.values())
    assert all(name in fitting.objectives.rule_of_thumb(True, False) for name in APPROXIMATIONS)
    assert all(spoken(name) != name for name in APPROXIMATIONS)
    with pytest.raises(InputError, match=r"'reverse'.*reverse_kl.*laplace, pathfinder, ep"):
        fitting.known("reverse")


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_a_gaussian_posterior_is_found_exactly(conjugate, name):
    target, mean, covariance, log_z = conjugate
    fit = fitting.fit(name, target, FULL, KEY)
    assert fit.status == "converged"
    # Pathfinder has the curvature from the steps of L-BFGS alone.
    close = {"pathfinder": 0.05}.get(name, 1e-6)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((fit.guide.mean - mean) / sd, 0, atol=close)
    np.testing.assert_allclose(
        fit.guide.covariance_matrix / np.outer(sd, sd),
        covariance / np.outer(sd, sd),
        atol=2 * close,
    )
    assert fit.evaluations["gradient"] > 0
    if name == "laplace":
        assert fit.measured["log_evidence"] == pytest.approx(log_z, abs=1e-6)
    if name == "pathfinder":
        assert fit.restarts["elbo"].shape == (8,)
        assert fit.restarts["elbo"][fit.best] == pytest.approx(log_z, abs=0.02)
        assert fit.history["elbo"].shape[1] == 8
    if name == "ep":
        assert fit.steps == 1


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_a_diagonal_guide_has_the_marginal_widths(conjugate, name):
    target, _, covariance, _ = conjugate
    fit = fitting.fit(name, target, DIAGONAL, KEY)
    np.testing.assert_allclose(fit.guide.variance, np.diag(covariance), rtol=0.1)
    assert any("marginal widths" in note for note in fit.notes)


def test_ep_has_the_moments_that_laplace_misses(skewed):
    target, mean, sd = skewed
    off = {}
    for name in ("laplace", "ep"):
        guide = fitting.fit(name, target, FULL, KEY).guide
        off[name] = (
            np.abs((guide.mean - mean) / sd).max(),
            np.abs(np.sqrt(guide.variance) / sd - 1).max(),
        )
    assert off["ep"][0] < 0.02
    assert off["ep"][1] < 0.02
    assert off["laplace"][0] > 0.1
    assert off["laplace"][1] > 2 * off["ep"][1]


def test_ep_reaches_where_weights_do_not():
    """40 coefficients: as Minka's EP, a row at a time, with its moments by quadrature.

    Of draws of the Laplace Gaussian hardly any are left after weighting.
    """
    x = covariates(300, 40)
    signs = (
        2 * (np.random.default_rng(1).uniform(size=300) < special.expit(x[:, :8].sum(1) / 2)) - 1
    )
    target = Target.from_numpyro(logistic, {"x": x, "y": (signs + 1) // 2})
    fit = fitting.fit("ep", target, FULL, KEY)
    assert fit.status == "converged"
    mean, covariance = row_by_row(x, signs)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((fit.guide.mean - mean) / sd, 0, atol=0.005)
    np.testing.assert_allclose(np.sqrt(fit.guide.variance) / sd, 1, atol=0.005)
    laplace = fitting.fit("laplace", target, FULL, KEY).guide
    points = laplace.sample(KEY, (2000,))
    weights = special.softmax(np.asarray(target.log_densities(points) - laplace.log_prob(points)))
    assert 1 / (weights**2).sum() < 0.1 * len(points)


def row_by_row(x, signs):
    """EP's mean and covariance for logistic regression, by the textbook's algorithm."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    precision, shift = np.zeros(len(x)), np.zeros(len(x))
    covariance, mean = PRIOR_SD**2 * np.eye(x.shape[1]), np.zeros(x.shape[1])
    for _ in range(12):
        for i, row in enumerate(x):
            way = covariance @ row
            variance, centre = row @ way, row @ mean
            cavity = 1 / (1 / variance - precision[i])
            at = cavity * (centre / variance - shift[i])
            places = at + np.sqrt(cavity) * nodes
            mass = weights * special.expit(signs[i] * places)
            first = mass @ places / mass.sum()
            second = mass @ (places - first) ** 2 / mass.sum()
            added = 1 / second - 1 / cavity - precision[i]
            moved = first / second - at / cavity - shift[i]
            precision[i], shift[i] = precision[i] + added, shift[i] + moved
            mean = mean + way * (moved - added * centre) / (1 + added * variance)
            covariance = covariance - np.outer(way, way) * added / (1 + added * variance)
    return mean, covariance


def test_ep_takes_a_scale_and_a_positive_prior():
    """Mean and scale of a normal, by quadrature: rows of two dimensions, priors of one."""
    y = np.random.default_rng(3).normal(1.0, 2.0, size=40)

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0, 5))
        scale = numpyro.sample("scale", dist.HalfNormal(3))
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)

    fit = fitting.fit("ep", Target.from_numpyro(model, {"y": y}), FULL, KEY)
    m, s = np.meshgrid(np.linspace(-2, 4, 401), np.linspace(0, 1.6, 401), indexing="ij")
    log_p = stats.norm(0, 5).logpdf(m) + stats.halfnorm(scale=3).logpdf(np.exp(s)) + s
    log_p += sum(stats.norm(m, np.exp(s)).logpdf(each) for each in y)
    weights = special.softmax(log_p)
    for i, values in enumerate((m, s)):
        mean = (weights * values).sum()
        sd = np.sqrt((weights * (values - mean) ** 2).sum())
        assert float(fit.guide.mean[i]) == pytest.approx(mean, abs=0.02 * sd)
        assert float(np.sqrt(fit.guide.variance[i])) == pytest.approx(sd, rel=0.03)


def test_laplace_has_every_mode_and_the_best_by_evidence():
    """Weights 0.3 and 0.7, of which the one that is narrower has the higher density."""

    def log_density(z):
        parts = dist.Normal(jnp.array([-1.5, 1.5]), jnp.array([0.1, 0.3])).log_prob(z[0])
        return jax.nn.logsumexp(parts + jnp.log(jnp.array([0.3, 0.7])))

    fit = fitting.fit("laplace", Target.from_log_density(log_density, 1), FULL, KEY)
    np.testing.assert_allclose(np.exp(fit.restarts["log_evidence"]), [0.7, 0.3], atol=1e-5)
    np.testing.assert_allclose(fit.restarts["loc"][:, 0], [1.5, -1.5], atol=1e-4)
    assert float(fit.guide.mean[0]) == pytest.approx(1.5, abs=1e-4)


def test_a_density_without_a_mode_fails_laplace_by_its_coordinate():
    """A centred hierarchy rises without end to where its scale is 0."""

    def model():
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.sample("x", dist.Normal(0, scale).expand([4]).to_event(1))

    fit = fitting.fit("laplace", Target.from_numpyro(model), FULL, KEY)
    assert fit.status == "failed"
    assert "still rises along log scale" in fit.notes[0]
    assert np.isfinite(fit.guide.covariance_matrix).all()


def test_pathfinder_counts_paths_that_are_not_finite(monkeypatch):
    starting = jnp.arange(16.0).reshape(8, 2).at[0].set(-40.0)
    monkeypatch.setattr(fitting.pathfinder.starts, "points", lambda *_: starting)

    def log_density(z):
        return jnp.where(z[0] < -30, jnp.nan, -0.5 * z @ z)

    fit = fitting.fit("pathfinder", Target.from_log_density(log_density, 2), FULL, KEY)
    assert fit.notes == ("1 of 8 paths were not finite, and were left out",)
    assert len(fit.restarts["elbo"]) == 7
    np.testing.assert_allclose(fit.guide.mean, 0, atol=0.01)


def few_rows(y):
    m = numpyro.sample("m", dist.Normal(0, 1))
    with numpyro.plate("rows", len(y), subsample_size=2) as i:
        numpyro.sample("y", dist.Normal(m, 1), obs=y[i])


def many_rows(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal(0, 1)), 1), obs=y)


@pytest.mark.parametrize(
    ("target", "pattern"),
    [
        (lambda: Target.from_draws(np.random.default_rng(0).normal(size=(9, 2))), "only draws"),
        (lambda: Target.from_log_density(lambda z: -z @ z, 2), "there is none"),
        (lambda: Target.from_numpyro(few_rows, {"y": np.zeros(6)}), "subsamples"),
        (lambda: Target.from_numpyro(many_rows, {"y": np.zeros(3000)}), "3,000 are more than"),
    ],
)
def test_ep_refuses_in_a_line_what_is_no_product_of_rows(target, pattern):
    with pytest.raises(InputError, match=rf"ep .*{pattern}.*; fit") as raised:
        fitting.refuse("ep", target(), FULL)
    assert "\n" not in str(raised.value)


def test_one_gaussian_is_not_a_mixture():
    target = Target.from_log_density(lambda z: -z @ z, 2)
    with pytest.raises(InputError, match=r"laplace is one Gaussian.*choose --guide full_rank"):
        fitting.refuse("laplace", target, guides.family("mixture:2"))


def test_they_stand_beside_the_others_in_a_run(skewed):
    run = vi_demo.run(skewed[0], fits=tuple(APPROXIMATIONS), draws=500, reference="none")
    found = vi_demo.summary(run)["fits"]
    assert list(found) == list(APPROXIMATIONS)
    assert found["ep"]["fitter"] == "expectation_propagation"
    assert run["laplace/restarts"]["log_evidence"].sizes["restart"] >= 1
    assert run["pathfinder/history"]["elbo"].sizes["restart"] == 8
    assert set(run["ep/history"]) >= {"change", "noise", "skipped", "loc"}
    assert set(found["ep"]["divergences"]) == set(found["laplace"]["divergences"])
