"""Fits against closed forms, and what a fitter says of steps that went wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from vi_demo import Target, fitting, guides
from vi_demo.errors import InputError

KEY = jax.random.key(0)
RHO = 0.7
CORRELATED = jnp.array([[1.0, RHO], [RHO, 1.0]])


@pytest.fixture(scope="module")
def correlated():
    """N((3, −2), correlation 0.7), known by its density, its log evidence being 5."""
    p = dist.MultivariateNormal(jnp.array([3.0, -2.0]), CORRELATED)
    return Target.from_log_density(lambda z: p.log_prob(z) + 5.0, 2)


@pytest.fixture(scope="module")
def fitted(correlated):
    """A function that fits one family to the correlated Gaussian, once."""
    fits = {}

    def fit(divergence, guide):
        if (divergence, guide) not in fits:
            fitter = fitting.fitter_for(divergence, correlated)
            fits[divergence, guide] = fitter(correlated, guides.family(guide), KEY)
        return fits[divergence, guide]

    return fit


@pytest.mark.parametrize("name", guides.FAMILIES)
class TestFamilies:
    """Every family keeps the same laws."""

    def test_starts_where_it_is_told(self, name):
        family = guides.family(name)
        loc = jnp.array([1.0, -2.0, 3.0])
        guide = family.distribution(family.init(loc, 0.1))
        np.testing.assert_allclose(guide.mean, loc)
        np.testing.assert_allclose(guide.variance, 0.01, rtol=1e-12)

    def test_closed_form_fit_is_the_most_likely(self, name):
        """No step away from the fit raises the weighted likelihood."""
        family = guides.family(name)
        rng = np.random.default_rng(0)
        draws = jnp.asarray(rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)))
        weights = jnp.asarray(rng.dirichlet(np.ones(500)))
        slope = jax.grad(lambda p: weights @ family.distribution(p).log_prob(draws))
        for leaf in jax.tree.leaves(slope(family.fit(draws, weights))):
            np.testing.assert_allclose(leaf, 0.0, atol=1e-10)

    def test_parameters_are_free(self, name):
        """Any real numbers are parameters of a proper member."""
        family = guides.family(name)
        shapes = family.init(jnp.zeros(3), 1.0)
        params = jax.tree.map(lambda x: jax.random.normal(KEY, x.shape) * 3, shapes)
        guide = family.distribution(params)
        draws = guide.sample(KEY, (10,))
        assert draws.shape == (10, 3)
        assert bool(jnp.isfinite(guide.log_prob(draws)).all())


# What each direction makes of a correlated Gaussian: a factorised guide matches the conditional
# widths under reverse KL and the marginal ones under forward KL.
@pytest.mark.parametrize(
    ("divergence", "guide", "sd", "tolerance"),
    [
        ("reverse_kl", "diagonal", np.sqrt(1 - RHO**2), 0.02),
        ("forward_kl", "diagonal", 1.0, 0.02),
        ("reverse_kl", "full_rank", 1.0, 0.02),
        ("forward_kl", "full_rank", 1.0, 0.02),
    ],
)
def test_widths_of_a_correlated_gaussian(fitted, divergence, guide, sd, tolerance):
    fit = fitted(divergence, guide)
    assert fit.status == "converged"
    np.testing.assert_allclose(fit.guide.mean, [3, -2], atol=0.03)
    np.testing.assert_allclose(np.sqrt(fit.guide.variance), sd, atol=tolerance)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
def test_full_rank_finds_the_correlation(fitted, divergence):
    covariance = fitted(divergence, "full_rank").guide.covariance_matrix
    np.testing.assert_allclose(covariance, CORRELATED, atol=0.04)


def test_reverse_kl_keeps_all_starts_and_reports_the_best(fitted):
    fit = fitted("reverse_kl", "diagonal")
    elbos = fit.restarts["elbo"]
    assert elbos.shape == (8,)
    assert fit.best == elbos.argmax()
    # KL of the best factorised guide is −½ log(1 − ρ²), and the log evidence 5; 1,024 draws.
    assert elbos.max() == pytest.approx(5 + 0.5 * np.log(1 - RHO**2), abs=0.06)
    np.testing.assert_array_equal(fit.params["loc"], fit.restarts["loc"][fit.best])


def test_work_is_counted(fitted):
    fit = fitted("reverse_kl", "diagonal")
    longest = fit.restarts["steps"].max()
    assert fit.evaluations["gradient"] == 8 * 8 * longest
    assert fit.history["elbo"].shape == (longest / 10, 8)
    assert fit.seconds["compile"] > 0
    assert fit.seconds["run"] > 0


def test_forward_kl_reports_its_draws(fitted):
    fit = fitted("forward_kl", "full_rank")
    assert fit.measured["ess"] >= 20_000
    assert fit.measured.get("khat", -np.inf) < 0.7
    assert fit.evaluations["log_density"] > fit.measured["ess"]


def test_a_guide_whose_weights_fail_is_not_called_settled():
    """Student-t tails of 2.5 degrees: k-hat refuses the guide's draws, and SMC takes over."""
    p = dist.StudentT(2.5, jnp.zeros(3), 1.0).to_event(1)
    target = Target.from_log_density(p.log_prob, 3)
    fit = fitting.FITTERS["forward_kl"](target, guides.family("diagonal"), KEY)
    refused = fit.history["khat"] >= 0.7
    assert refused.any()
    after = fit.history["ess"][np.argmax(refused) :]
    assert len(after) > 1  # a refused round is never the last
    assert "khat" not in fit.measured or fit.measured["khat"] >= 0.7


def test_supports_that_depend_on_other_sites():
    """The ELBO that SVI climbs is that of the target's own density."""

    def model():
        a = numpyro.sample("a", dist.Gamma(5.0, 2.0))
        numpyro.sample("b", dist.Uniform(0.0, a))

    target = Target.from_numpyro(model)
    fit = fitting.FITTERS["reverse_kl"](target, guides.family("full_rank"), KEY)
    draws = fit.guide.sample(KEY, (20_000,))
    elbo = float(jnp.mean(target.log_densities(draws) - fit.guide.log_prob(draws)))
    assert fit.history["elbo"][-1, fit.best] == pytest.approx(elbo, abs=0.05)
    assert -0.2 < elbo < 0  # the log evidence is 0


def test_forward_kl_on_draws_is_maximum_likelihood():
    draws = np.random.default_rng(0).normal(size=(500, 2)) * [1.0, 3.0] + 1
    fit = fitting.fitter_for("forward_kl", Target.from_draws(draws))(
        Target.from_draws(draws), guides.family("full_rank"), KEY
    )
    np.testing.assert_allclose(fit.guide.mean, draws.mean(0), rtol=1e-10)
    np.testing.assert_allclose(fit.guide.covariance_matrix, np.cov(draws.T, ddof=0), rtol=1e-10)


def test_reverse_kl_needs_a_density():
    target = Target.from_draws(np.zeros((10, 2)))
    with pytest.raises(InputError, match=r"reverse_kl needs a log density.*forward_kl"):
        fitting.fitter_for("reverse_kl", target)


def test_steps_that_are_not_finite_are_counted_and_named():
    """NumPyro's stable_update skips them in silence; the fit must not."""

    def log_density(z):
        return jnp.where(z[0] > 0.5, jnp.nan, -0.5 * jnp.sum(z**2))

    target = Target.from_log_density(log_density, 2)
    fit = fitting.FITTERS["reverse_kl"](target, guides.family("diagonal"), KEY)
    assert fit.status != "converged"
    (note,) = fit.notes
    assert "were not finite and were skipped" in note
    assert "'log_density'" in note
    assert int(note.split()[0].replace(",", "")) > 0
