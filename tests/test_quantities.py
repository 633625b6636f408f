"""Errors of single quantities, against normal distributions' own."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from vi_demo import Target, quantities
from vi_demo import reference as references
from vi_demo.divergences.estimators import Draws, equal_weights
from vi_demo.errors import InputError
from vi_demo.reference import Reference
from vi_demo.weights import khat_of, khat_spread, smoothed

NUMBER = 40_000


def normal(mean, sd, seed):
    return mean + sd * np.random.default_rng(seed).normal(size=(NUMBER, 1))


def doubled():
    x = numpyro.sample("x", dist.Normal(1, 1))
    numpyro.deterministic("twice", 2 * x)


TARGET = Target.from_numpyro(doubled)
REFERENCE = Reference("draws", True, draws=equal_weights(normal(1.0, 1.0, 0)))


@pytest.fixture(scope="module")
def shifted():
    """N(0, 1) as the guide of N(1, 1), and its weights."""
    points = normal(0.0, 1.0, 1)
    log_weights = stats.norm.logpdf(points[:, 0], 1) - stats.norm.logpdf(points[:, 0])
    return points, quantities.Weighted(points, log_weights, smoothed(log_weights))


def test_how_far_a_site_is_off(shifted):
    found = quantities.of_sites(TARGET, *shifted, REFERENCE, {})["x"]
    assert found["mean_error_in_sd"] == pytest.approx(1.0, abs=0.02)
    assert found["sd_ratio"] == pytest.approx(1.0, abs=0.02)
    assert found["corrected_mean_error_in_sd"] == pytest.approx(0.0, abs=0.05)
    assert found["corrected_sd_ratio"] == pytest.approx(1.0, abs=0.05)
    assert found["rank_distance"] == pytest.approx(2 * stats.norm.cdf(0.5) - 1, abs=0.01)
    inside = np.diff(stats.norm.cdf([-1.96, 1.96], loc=1))[0]
    assert found["covered_95"] == pytest.approx(inside, abs=0.01)


def test_means_sds_and_quantiles_of_weighted_draws(shifted):
    points, weighted = shifted
    found = quantities.statistics(points[:, 0], Draws(points, weighted.weights))
    wanted = {"mean": 1.0, "sd": 1.0} | {
        f"{100 * level:g}%": stats.norm.ppf(level, 1) for level in quantities.QUANTILES
    }
    assert found.keys() == wanted.keys()
    for name, (value, error) in found.items():
        assert abs(value - wanted[name]) < 4 * error < 0.5, name


def test_errors_of_statistics_are_as_large_as_they_say():
    rng = np.random.default_rng(3)
    several = [quantities.statistics(x, equal_weights(x)) for x in rng.normal(size=(200, 1_000))]
    for name in several[0]:
        values, errors = np.array([each[name] for each in several]).T
        assert values.std() == pytest.approx(errors.mean(), rel=0.2), name


def test_a_deterministic_site_is_told_of_when_it_is_named(shifted):
    points, weighted = shifted
    assert "twice" not in quantities.of_entries(TARGET, (), points, weighted, REFERENCE)
    found = quantities.of_entries(TARGET, ("twice",), points, weighted, REFERENCE)["twice"]
    assert found["mean"]["guide"]["value"] == pytest.approx(0.0, abs=0.03)
    assert found["mean"]["reference"]["value"] == pytest.approx(2.0, abs=0.03)
    assert found["mean"]["error"] == pytest.approx(1.0, abs=0.02)
    assert found["mean"]["corrected_error"] < 0.05
    assert found["sd"]["error"] < 0.02
    assert found["sd"]["khat"] > khat_of(weighted.log_weights)  # x² e^x is heavier than e^x


def test_a_variance_may_lack_what_a_mean_has():
    """Of a tail of index 0.4: the mean's k-hat is fine, the variance's not."""
    x = 1 / np.random.default_rng(4).uniform(size=NUMBER) ** 0.4  # a tail of index 0.4
    constant = np.zeros(NUMBER)
    mean, sd = (khat_of(constant + quantities.log_size(x, name)) for name in ("mean", "sd"))
    assert mean == pytest.approx(0.4, abs=0.1)
    assert sd == pytest.approx(0.8, abs=0.15)


def test_a_name_that_is_no_site_is_refused():
    with pytest.raises(InputError, match="no site 'y' to measure; choose from x, twice"):
        quantities.known(TARGET, ("twice", "y"))


def test_an_entry_that_the_support_fixes_has_no_error():
    def model():
        numpyro.sample("corner", dist.LKJCholesky(2, 1.0))

    target = Target.from_numpyro(model)
    points = np.random.default_rng(0).normal(size=(2_000, 1))
    reasons = {}
    reference = Reference("draws", True, draws=equal_weights(points))
    found = quantities.of_sites(target, points, None, reference, reasons)["corner"]
    assert np.isnan(found["sd_ratio"][0, 1])
    assert np.isnan(found["rank_distance"][0, 1])
    assert found["sd_ratio"][1, 0] == pytest.approx(1.0)
    assert "constant" in reasons["sites"]


def test_spread_of_khat():
    """As large as over fresh draws, of 10,000 weights of a Pareto tail of 0.5."""
    rng = np.random.default_rng(5)
    fresh = [-0.5 * np.log(rng.uniform(size=10_000)) for _ in range(20)]
    over_fresh = np.std([khat_of(w) for w in fresh], ddof=1)
    assert np.median([khat_spread(w) for w in fresh[:3]]) == pytest.approx(over_fresh, rel=0.5)


def test_nodes_of_a_quadrature_are_spread_for_ranks():
    target = Target.from_log_density(lambda z: dist.Normal().log_prob(z[0]), 1)

    truth = references.build(target, "quadrature", jax.random.key(0), 5.0, lambda *_: None)
    points = np.asarray(jax.random.normal(jax.random.key(1), (NUMBER, 1)))
    found = quantities.of_sites(target, points, None, truth, {})["x"]
    assert found["rank_distance"] < 0.015
    entry = quantities.of_entries(target, ("x",), points, None, truth)["x[0]"]
    assert entry["5%"]["reference"]["value"] == pytest.approx(stats.norm.ppf(0.05), abs=0.03)
    assert entry["5%"]["error"] < 0.03
