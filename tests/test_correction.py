"""Corrections that are right, and the rung that was needed."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import gamma

import vi_demo
from vi_demo import Target, correction, restarts
from vi_demo.errors import InputError
from vi_demo.quantities import Weighted


def two_modes(z):
    """0.7 N((-4, 0), I) + 0.3 N((4, 0), ¼ I), normalised."""
    each = dist.Normal(jnp.array([[-4.0, 0.0], [4.0, 0.0]]), jnp.array([[1.0], [0.5]]))
    log_weights = jnp.log(jnp.array([0.7, 0.3]))
    return jnp.logaddexp(*(each.to_event(1).log_prob(z) + log_weights))


def flat_topped(z):
    """exp(−(z₁/2)⁸) times N(0, 1): lighter tails than any Gaussian's."""
    return -((z[0] / 2) ** 8) - 0.5 * z[1] ** 2


def corrected(run):
    return run["corrected/posterior"]["x"].values[0]


@pytest.fixture(scope="module")
def modes():
    target = Target.from_log_density(two_modes, 2, "two modes")
    return vi_demo.run(target, fits="reverse_kl", correct=True)


def test_a_mixture_is_where_two_modes_end(modes):
    ladder = vi_demo.summary(modes)["correction"]
    assert (ladder["ends"], ladder["passes"]) == ("mixture:2", True)
    last = ladder["rungs"][-1]
    assert last["divergences"]["reverse_kl"]["value"] < 0.005
    assert last["worst_mean_error_in_sd"] < 0.05
    points = corrected(modes)
    assert points.shape == (4000, 2)
    assert (points[:, 0] > 0).mean() == pytest.approx(0.3, abs=0.03)
    assert points[points[:, 0] > 0].std(0) == pytest.approx([0.5, 0.5], abs=0.03)


def test_every_rung_says_why_and_at_what_cost(modes):
    rungs = vi_demo.summary(modes)["correction"]["rungs"]
    assert rungs[0]["name"] == "reverse_kl as it is"
    assert not rungs[0]["passes"]
    assert "misses a mode" in rungs[0]["why"]
    for rung in rungs:
        assert sum(rung["evaluations"].values()) > 1_000
        assert rung["why"]
    assert [r["name"] for r in rungs] == [
        "reverse_kl as it is",
        "reverse_kl, weighted",
        "mixture:2",
    ]


def test_starts_are_chains_and_their_stack_has_the_evidence(bundled_run):
    """Two places far apart: R-hat far above one, and together they are all there is."""
    starts = vi_demo.summary(bundled_run("bimodal"))["fits"]["reverse_kl"]["restarts"]
    assert starts["places"] == 2
    assert starts["rhat"] > 1.5
    assert starts["rhat_at"] == "x[0]"
    assert starts["elbos"] == sorted(starts["elbos"], reverse=True)
    assert starts["elbos"][0] == pytest.approx(-0.693053, abs=0.003)
    assert starts["stacked_elbo"]["value"] == pytest.approx(0.0, abs=0.003)


def test_gaussians_without_correlations_are_sds_alone():
    rng = np.random.default_rng(0)
    one = restarts.Gaussians(rng.normal(size=(2, 3)), rng.uniform(1, 2, (2, 3)), np.zeros(2))
    all_of_it, points = one.whole(), rng.normal(size=(5, 3))
    assert all_of_it.factors.shape == (2, 3, 3)
    np.testing.assert_allclose(one.log_prob(points), all_of_it.log_prob(points))
    np.testing.assert_allclose(one.sds, all_of_it.sds)
    for of in (slice(None), np.array([0, 2])):
        drawn = (g.draws(7, np.random.default_rng(1), of) for g in (one, all_of_it))
        np.testing.assert_allclose(*drawn)


def test_starts_are_compared_where_they_part_most(monkeypatch):
    monkeypatch.setattr(restarts, "COMPARED", 2)
    means, sds = np.zeros((2, 4)), np.ones((2, 4))
    means[1, 3], sds[1, 1] = 5.0, 3.0
    found = restarts.Gaussians(means, sds, np.zeros(2))
    assert restarts.parting(found).tolist() == [1, 3]
    assert restarts.parting(found.whole()).tolist() == [1, 3]


def test_no_whole_covariance_is_held_of_very_many_dimensions(monkeypatch):
    monkeypatch.setattr(correction, "MOST_WHOLE", 1)
    target = Target.from_log_density(two_modes, 2, "two modes")
    run = vi_demo.run(target, fits="reverse_kl", correct=True)
    rungs = [rung["name"] for rung in vi_demo.summary(run)["correction"]["rungs"]]
    assert rungs == ["reverse_kl as it is", "reverse_kl, weighted", "the reference, quadrature"]


def test_the_ladder_ends_at_once_where_the_fit_is_right():
    def model():
        numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    run = vi_demo.run(model, fits="reverse_kl", correct=True)
    ladder = vi_demo.summary(run)["correction"]
    assert (ladder["ends"], len(ladder["rungs"])) == ("reverse_kl as it is", 1)
    assert corrected(run).std(0) == pytest.approx([1, 1], abs=0.05)


def test_weights_are_enough_for_one_mode_of_light_tails():
    """Within what a correction promises: 0.1 sd and 5 %."""
    run = vi_demo.run(Target.from_log_density(flat_topped, 2), fits="forward_kl", correct=True)
    ladder = vi_demo.summary(run)["correction"]
    assert ladder["ends"] == "forward_kl, weighted"
    points, sd = corrected(run)[:, 0], 2 * np.sqrt(gamma(3 / 8) / gamma(1 / 8))
    assert points.mean() == pytest.approx(0.0, abs=0.1 * sd)
    assert points.std() == pytest.approx(sd, rel=0.05)


def test_without_a_reference_nobody_can_tell():
    target = Target.from_log_density(two_modes, 2, "two modes")
    run = vi_demo.run(target, fits="reverse_kl", reference="none", correct=True)
    ladder = vi_demo.summary(run)["correction"]
    assert ladder["passes"] is None
    assert run["corrected"].attrs["passes"] == "None"


def test_draws_alone_are_not_corrected():
    draws = Target.from_draws(np.random.default_rng(0).normal(size=(100, 2)), "mine")
    with pytest.raises(InputError, match="a correction needs a log density"):
        vi_demo.run(draws, correct=True)


def test_a_rare_component_has_its_share_of_the_draws():
    """1 % of 4,000 draws is 40, and an sd is right then; by chance it is 40 ± 6, and 4 % off."""
    locs, factors = jnp.array([[-4.0, 0.0], [4.0, 0.0]]), jnp.stack([jnp.eye(2)] * 2)
    each = dist.MultivariateNormal(locs, scale_tril=factors)
    q = dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.99, 0.01])), each)
    pool = np.asarray(q.sample(jax.random.key(0), (40_000,)))
    weighted = Weighted(pool, np.zeros(40_000), np.full(40_000, 1 / 40_000))
    judged = SimpleNamespace(
        fit=SimpleNamespace(guide=q), figures=SimpleNamespace(points=pool, weighted=weighted)
    )
    rare = (pool[:, 0] > 0).mean()
    own = correction.own_draws(judged)(4_000)
    assert (own[:, 0] > 0).sum() == 40
    np.testing.assert_allclose(own.std(0), [1 + 64 * 0.01 * 0.99, 1] ** np.array(0.5), rtol=0.03)
    picked = correction.weighted_draws(judged)(4_000)
    assert abs((picked[:, 0] > 0).sum() - 4_000 * rare) <= 1
