"""Reverse KL by natural gradients: optima known in closed form, by quadrature or by Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import optimize, special

from vi_demo import Target, fitting, guides
from vi_demo.errors import InputError
from vi_demo.fitting import natural_gradient, svi
from vi_demo.fitting.objectives import normal_noise
from vi_demo.loading import load

KEY = jax.random.key(0)
FULL, DIAGONAL = guides.family("full_rank"), guides.family("diagonal")


def elbo(target, family, fit, number=2**14):
    """E_q[log p − log q] at quasi-random draws that no fit has seen."""
    points, _ = family.draw(fit.params, normal_noise(jax.random.key(99), number, target.dim))
    values = target.log_densities(points) - np.asarray(fit.guide.log_prob(points))
    return values.mean()


def gaussian(covariance, mean=0.0):
    p = dist.MultivariateNormal(mean * jnp.ones(len(covariance)), jnp.asarray(covariance))
    return Target.from_log_density(p.log_prob, len(covariance))


def ill_scaled(d):
    """Sds from a thousandth to a thousand, neighbours correlated 0.9."""
    sd, lag = np.logspace(-3, 3, d), np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
    return sd[:, None] * 0.9**lag * sd


@pytest.mark.parametrize("family", [FULL, DIAGONAL], ids=["full_rank", "diagonal"])
def test_a_gaussian_is_found_in_a_few_steps(family):
    """The best diagonal has the sds that each coordinate has given the others."""
    covariance = ill_scaled(12)
    fit = natural_gradient.fit(gaussian(covariance, 5.0), family, KEY)
    assert fit.status == "converged"
    found = guides.covariance_of(fit.guide)
    if family is FULL:
        assert fit.steps < 6
        np.testing.assert_allclose(found / covariance, 1.0, rtol=1e-6)
    else:
        right = 1 / np.diag(np.linalg.inv(covariance))
        np.testing.assert_allclose(np.diag(found), right, rtol=0.05)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((fit.guide.mean - 5.0) / sd, 0.0, atol=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_a_skewed_density_is_fitted_beyond_what_a_handful_of_draws_shows(seed):
    """D independent log Gamma(a): E_q[log p] is in closed form, and its optimum by SciPy."""
    a, d = 0.7, 5

    def loss(x):
        m, log_s = x
        entropy = log_s + 0.5 * np.log(2 * np.pi * np.e)
        return -(a * m - np.exp(m + 0.5 * np.exp(2 * log_s)) - special.gammaln(a) + entropy)

    best = optimize.minimize(loss, [0.0, 0.0], method="BFGS")
    target = Target.from_log_density(
        lambda z: (a * z - jnp.exp(z)).sum() - d * special.gammaln(a), d
    )
    fit = natural_gradient.fit(target, FULL, jax.random.key(seed))
    assert fit.status == "converged"
    assert -0.01 < elbo(target, FULL, fit) + d * best.fun < 0.003


def test_it_is_at_least_as_near_as_adam_where_scales_and_means_depend():
    loaded = load("eight_schools")
    target = Target.from_numpyro(loaded.model, loaded.data)
    fit = natural_gradient.fit(target, FULL, KEY)
    by_adam = svi.fit(target, FULL, KEY)
    assert elbo(target, FULL, fit) > elbo(target, FULL, by_adam) - 0.02


def test_independent_coordinates_need_few_draws():
    """In ten times more dimensions than a batch has draws: exact, and at once."""
    scales = jnp.geomspace(0.1, 10, 640)
    p = dist.Normal(jnp.ones(640), scales).to_event(1)
    target = Target.from_log_density(p.log_prob, 640)
    fit = fitting.fit("reverse_kl", target, guides.family("diagonal"), KEY)
    assert fit.status == "converged" and fit.steps <= 6
    np.testing.assert_allclose((fit.params["loc"] - 1.0) / scales, 0.0, atol=1e-6)
    np.testing.assert_allclose(jnp.exp(fit.params["log_scale"]), scales, rtol=1e-6)


def test_more_dimensions_than_draws():
    """A diagonal in d = 300 by 64 draws at a time."""
    lag = np.abs(np.subtract.outer(np.arange(300), np.arange(300)))
    target = gaussian(0.5**lag)
    fit = natural_gradient.fit(target, DIAGONAL, KEY)
    right = 1 / np.diag(np.linalg.inv(0.5**lag))
    np.testing.assert_allclose(fit.guide.variance / right, 1.0, atol=0.15)


def test_every_mode_has_a_start_and_the_best_is_kept():
    target = Target.from_log_density(
        lambda z: jnp.logaddexp(
            dist.Normal(-6, 1.0).log_prob(z).sum() + jnp.log(0.2),
            dist.Normal(6, 0.5).log_prob(z).sum() + jnp.log(0.8),
        ),
        2,
    )
    fit = natural_gradient.fit(target, FULL, KEY)
    np.testing.assert_allclose(np.sort(fit.restarts["elbo"]), np.log([0.2, 0.8]), atol=1e-3)
    np.testing.assert_allclose(fit.guide.mean, 6.0, atol=1e-3)
    assert len(fit.history["loc"]) >= fit.restarts["steps"].max()


def test_it_is_the_default_where_it_can_be_and_refused_where_not():
    target = gaussian(np.eye(2))
    one = lambda family, **options: fitting.fit("reverse_kl", target, family, KEY, **options)  # noqa: E731
    assert one(FULL).fitter == "natural_gradient"
    assert one(FULL, optimizer="adam").fitter == "svi"
    low_rank, mixture = guides.family("low_rank:1"), guides.family("mixture:2")
    assert one(low_rank).fitter == "svi"
    with pytest.raises(InputError, match=r"diagonal or a full_rank.*leave --optimizer out"):
        one(low_rank, optimizer="natural")
    with pytest.raises(InputError, match=r"Adam does not fit a mixture:2.*leave --optimizer out"):
        one(mixture, optimizer="adam")
    with pytest.raises(InputError, match="no optimizer named 'newton'; choose from natural, adam"):
        one(FULL, optimizer="newton")


def test_it_arrives_from_bad_starts():
    """On a bent ridge, from each of six points alone, whose climbs nobody made."""
    target = Target.from_log_density(
        lambda z: -0.5 * z[0] ** 2 - 2.0 * (z[1] - z[0] ** 2) ** 2, 2, name="banana"
    )
    points = np.random.default_rng(0).uniform(-4, 4, (6, 2))
    fits = [natural_gradient.fit(target, FULL, KEY, begin=point[None]) for point in points]
    elbos = np.array([elbo(target, FULL, fit) for fit in fits])
    assert {fit.status for fit in fits} == {"converged"}
    assert np.ptp(elbos) < 0.05
    assert "climbs" not in target.programs


def test_of_many_starts_those_that_met_go_on_as_one():
    target = gaussian(ill_scaled(4), 1.0)
    points = np.random.default_rng(0).uniform(-2, 2, (64, 4))
    one, many = (natural_gradient.fit(target, FULL, KEY, begin=points[:n]) for n in (1, 64))
    assert many.restarts["loc"].shape == (64, 4)
    np.testing.assert_allclose(many.restarts["elbo"], one.restarts["elbo"][0], atol=1e-6)
    assert many.restarts["steps"].min() >= 2
    np.testing.assert_allclose(guides.covariance_of(many.guide) / ill_scaled(4), 1.0, rtol=1e-4)
    assert many.evaluations["log_density"] == one.evaluations["log_density"]
