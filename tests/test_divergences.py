"""Divergences against closed forms: every generator meets every law."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from vi_demo.divergences import estimators
from vi_demo.divergences.estimators import Draws, equal_weights, expectation
from vi_demo.divergences.generators import (
    F_DIVERGENCES,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    total_variation,
)

UNITS = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1])


def discrete(f, p, q):
    """E_m[h(r)] by its definition, on probabilities without zeros."""
    return float(np.sum(0.5 * (p + q) * np.asarray(f(jnp.log(p) - jnp.log(q)))))


KNOWN = {
    forward_kl: lambda p, q: np.sum(p * np.log(p / q)),
    reverse_kl: lambda p, q: np.sum(q * np.log(q / p)),
    jensen_shannon: lambda p, q: (
        0.5 * np.sum(p * np.log(2 * p / (p + q))) + 0.5 * np.sum(q * np.log(2 * q / (p + q)))
    ),
    total_variation: lambda p, q: 0.5 * np.sum(np.abs(p - q)),
}


@pytest.mark.parametrize("f", F_DIVERGENCES)
def test_discrete_value(f):
    p, q = UNITS
    assert discrete(f, p, q) == pytest.approx(KNOWN[f](p, q), rel=1e-12)


@pytest.mark.parametrize("f", F_DIVERGENCES)
def test_nonnegative_and_zero_at_equality(f):
    r = jnp.linspace(-50.0, 50.0, 1001)
    assert float(jnp.min(f(r))) >= -1e-15
    assert float(f(jnp.zeros(()))) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("f", F_DIVERGENCES)
def test_far_ratios_do_not_overflow(f):
    """Where p/q is e^±10000 the KLs are linear in r and the bounded ones at their bounds."""
    limits = {
        reverse_kl: (-2 + 2e4, 2.0),
        forward_kl: (2.0, 2e4 - 2),
        jensen_shannon: (np.log(2), np.log(2)),
        total_variation: (1.0, 1.0),
    }
    values = [float(f(jnp.array(r))) for r in (-1e4, 1e4)]
    assert values == pytest.approx(limits[f], rel=1e-9)


def test_where_one_has_no_mass_at_all():
    """At r = ±∞ every generator has its limit, infinite or not, and never NaN."""
    limits = {
        reverse_kl: (np.inf, 2.0),
        forward_kl: (2.0, np.inf),
        jensen_shannon: (np.log(2), np.log(2)),
        total_variation: (1.0, 1.0),
    }
    for f, expected in limits.items():
        assert [float(f(jnp.array(r))) for r in (-jnp.inf, jnp.inf)] == pytest.approx(expected)


def gaussian_pair(mean, sd):
    """The target N(0, 1) and the guide N(mean, sd²)."""
    return stats.norm(0, 1), stats.norm(mean, sd)


@pytest.mark.parametrize("f", F_DIVERGENCES)
@pytest.mark.parametrize(("mean", "sd"), [(0.5, 1.2), (2.0, 0.6), (6.0, 1.0)])
def test_estimate_from_draws_of_both(f, mean, sd):
    """Within four of its own standard errors of the integral, which is not estimated by it."""
    p, q = gaussian_pair(mean, sd)

    def integrand(x):
        a, b = p.pdf(x), q.pdf(x)
        return {
            forward_kl: a * (p.logpdf(x) - q.logpdf(x)),
            reverse_kl: b * (q.logpdf(x) - p.logpdf(x)),
            total_variation: 0.5 * abs(a - b),
            jensen_shannon: 0.5
            * a
            * (np.log(2) + p.logpdf(x) - np.logaddexp(p.logpdf(x), q.logpdf(x)))
            + 0.5 * b * (np.log(2) + q.logpdf(x) - np.logaddexp(p.logpdf(x), q.logpdf(x))),
        }[f]

    exact, _ = integrate.quad(integrand, -12, 14, points=[0, mean], limit=500, epsabs=1e-10)
    rng = np.random.default_rng(0)
    from_p, from_q = (d.rvs(20_000, random_state=rng)[:, None] for d in (p, q))
    ratio = lambda x: (p.logpdf(x) - q.logpdf(x))[:, 0]  # noqa: E731
    found = estimators.divergence(
        *(f, ratio(from_p), equal_weights(from_p), ratio(from_q), equal_weights(from_q))
    )
    assert abs(found.value - exact) < 4 * found.mcse
    assert found.mcse < 0.03 * exact + 0.003


def test_error_of_the_evidence_is_carried():
    """KL(q‖p) moves one to one with log Z, so its error is at least that of log Z."""
    draws = equal_weights(np.zeros((100, 1)))
    r = np.full(100, -3.0)
    found = estimators.divergence(reverse_kl, r, draws, r, draws, log_ratio_mcse=0.1)
    assert found.mcse == pytest.approx(0.1 * abs(float(reverse_kl(-2.9) - reverse_kl(-3.1))) / 0.2)


def test_blocks_show_dependence():
    """Two runs that disagree have a larger error than their draws alone would tell."""
    values = np.repeat([0.0, 1.0], 500) + np.random.default_rng(0).normal(0, 0.01, 1000)
    blocks = np.repeat([0, 1], 500)
    alone = expectation(values, equal_weights(values[:, None]))
    together = expectation(values, equal_weights(values[:, None], blocks))
    assert alone.mcse == pytest.approx(0.5 / np.sqrt(1000), rel=0.01)
    assert together.mcse == pytest.approx(0.5, rel=0.02)


def test_effective_sample_size():
    assert estimators.effective_sample_size(np.zeros(50)) == pytest.approx(50)
    assert estimators.effective_sample_size(np.log([1.0, 1.0, 1e-300])) == pytest.approx(2)


def test_resampling_follows_the_weights():
    draws = Draws(np.array([[0.0], [1.0], [2.0]]), np.array([0.2, 0.3, 0.5]))
    points = estimators.resample(draws, 1000, seed=0)
    assert [np.mean(points == k) for k in range(3)] == pytest.approx([0.2, 0.3, 0.5], abs=1e-3)
