"""References against evidence, modes and masses that are known exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from vi_demo import Target, climbs, starts
from vi_demo import reference as references
from vi_demo.divergences.estimators import Draws, Estimate, equal_weights, resample
from vi_demo.errors import InputError
from vi_demo.reference import agreement, evidence, modes, nuts, propriety, smc

KEY = jax.random.key(1)


def build(target, method="auto", budget=20.0):
    return references.build(target, method, KEY, budget, lambda *_: None)


def mixture(means, sds, weights):
    """Isotropic Gaussians of given means (k, d), sds (k,) and weights (k,); log evidence 0."""
    means, sds = jnp.asarray(means, float), jnp.asarray(sds, float)[:, None]

    def log_density(z):
        parts = dist.Normal(means, sds).to_event(1).log_prob(z)
        return jax.nn.logsumexp(parts + jnp.log(jnp.asarray(weights)))

    return Target.from_log_density(log_density, means.shape[1])


DENSITIES = {
    "standard normal": (mixture([[0.0]], [1.0], [1.0]), 1),
    "narrow and far": (mixture([[30.0, -20.0]], [0.01], [1.0]), 1),
    "two widths": (mixture([[-3.0, 0.0], [3.0, 0.0]], [0.05, 1.0], [0.3, 0.7]), 2),
    "three needles": (
        mixture([[3.0, 0.0], [-2.0, 2.5], [0.0, -3.0]], [0.05] * 3, [0.5, 0.3, 0.2]),
        3,
    ),
    "three modes": (mixture([[-5.0], [0.0], [6.0]], [0.5, 0.5, 0.5], [0.2, 0.5, 0.3]), 3),
    "Cauchy": (Target.from_log_density(lambda z: dist.Cauchy(0, 1).log_prob(z[0]), 1), 1),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_quadrature_integrates(name):
    target, number = DENSITIES[name]
    reference = build(target)
    assert reference.method == "quadrature"
    assert reference.trusted, reference.reasons
    assert reference.log_evidence.value == pytest.approx(0.0, abs=1e-6)
    assert len(reference.modes.masses) == number


def test_quadrature_weighs_modes():
    reference = build(DENSITIES["three modes"][0])
    locations, _, masses, *_ = reference.modes
    found = {round(float(z[0])): m.value for z, m in zip(locations, masses, strict=True)}
    assert found == pytest.approx({0: 0.5, 6: 0.3, -5: 0.2}, abs=1e-3)


def test_quadrature_gives_draws():
    points = resample(build(DENSITIES["three modes"][0]).draws, 4000, seed=0)[:, 0]
    p = stats.norm.cdf
    cdf = lambda x: 0.2 * p(x, -5, 0.5) + 0.5 * p(x, 0, 0.5) + 0.3 * p(x, 6, 0.5)  # noqa: E731
    assert stats.kstest(points, cdf).statistic < 0.01
    assert len(np.unique(points)) == len(points)


def test_quadrature_is_for_two_dimensions_at_most():
    target = mixture([[0.0] * 3], [1.0], [1.0])
    with pytest.raises(InputError, match=r"up to 2 dimensions.*3.*smc"):
        build(target, "quadrature")


def test_unknown_reference():
    with pytest.raises(InputError, match=r"'exact'.*quadrature, smc, nuts, none"):
        build(mixture([[0.0]], [1.0], [1.0]), "exact")


@pytest.fixture(scope="module")
def conjugate():
    """A Gaussian regression with d = 4 and its reference by SMC."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(30, 4)), 0.5
    y = x @ [1.0, -2.0, 0.0, 3.0] + noise * rng.normal(size=30)

    def model(x, y):
        beta = numpyro.sample("beta", dist.Normal(0, 2).expand([4]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ beta, noise), obs=y)

    precision = x.T @ x / noise**2 + np.eye(4) / 4
    mean = np.linalg.solve(precision, x.T @ y / noise**2)
    evidence = stats.multivariate_normal(np.zeros(30), 4 * x @ x.T + noise**2 * np.eye(30))
    target = Target.from_numpyro(model, {"x": x, "y": y})
    return build(target), mean, np.linalg.inv(precision), evidence.logpdf(y)


def test_smc_gets_a_conjugate_posterior(conjugate):
    reference, mean, covariance, log_evidence = conjugate
    assert reference.method == "smc"
    assert reference.trusted, reference.reasons
    value, mcse = reference.log_evidence
    assert abs(value - log_evidence) < 4 * mcse
    assert mcse < 0.1
    points = resample(reference.draws, 4000, seed=0)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((points.mean(0) - mean) / sd, 0, atol=0.08)
    np.testing.assert_allclose(points.std(0) / sd, 1, atol=0.06)
    assert len(reference.modes.masses) == 1


def test_smc_where_most_of_the_prior_has_no_density():
    """N(0, 1)³ cut to x₁ > 1.5, which 93% of the prior's draws are not."""

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.factor("cut", jnp.where(x[0] > 1.5, 0.0, -jnp.inf))

    reference = build(Target.from_numpyro(model))
    value, mcse = reference.log_evidence
    assert abs(value - stats.norm.logsf(1.5)) < 4 * mcse
    assert reference.draws.points[:, 0].min() > 1.5


def test_smc_weighs_unequal_modes():
    target = mixture([[-6.0] * 4, [3.0] * 4], [1.0, 0.6], [0.1, 0.9])
    reference = build(target)
    (heavy, light) = reference.modes.masses
    assert heavy.value == pytest.approx(0.9, abs=0.04)
    assert abs(light.value - 0.1) < 4 * light.mcse
    assert abs(reference.log_evidence.value) < 0.15


def test_smc_where_particles_are_few_for_the_dimension():
    """512 particles in d = 80: moved by their own covariance they find 3 nats too much."""
    lag = np.abs(np.subtract.outer(np.arange(80), np.arange(80)))
    p = dist.MultivariateNormal(jnp.zeros(80), 0.9**lag)
    tempered = smc.temper(Target.from_log_density(p.log_prob, 80), KEY, 512, 4)
    assert abs(tempered.log_evidence.mean()) < 0.5


def test_smc_in_many_dimensions_moves_by_scales_alone(monkeypatch):
    """Scales from 0.02 to 50: evidence, means and sds as by the whole matrix, in O(d) memory."""
    monkeypatch.setattr(smc, "MOST_DENSE", 5)
    sds = jnp.geomspace(0.02, 50, 6)
    p = dist.Normal(jnp.arange(6.0), sds).to_event(1)
    tempered = smc.temper(Target.from_log_density(p.log_prob, 6), KEY, 1024, 4)
    assert tempered.finished and abs(tempered.log_evidence.mean()) < 0.1
    points = tempered.points.reshape(-1, 6)
    np.testing.assert_allclose((points.mean(0) - np.arange(6)) / sds, 0, atol=0.1)
    np.testing.assert_allclose(points.std(0) / sds, 1, atol=0.08)
    many = jax.ShapeDtypeStruct((1024, 20_000), float)
    assert jax.eval_shape(smc.local_covariance, many, many).shape == (20_000,)


def test_bridge_from_chains_whose_neighbours_are_alike():
    """Log evidence 0 of a Gaussian in d = 60; random halves of these chains say −0.3 ± 0.03."""
    rng = np.random.default_rng(0)
    at, chains = rng.normal(size=(4, 60)), []
    for _ in range(1000):
        at = -0.6 * at + 0.8 * rng.normal(size=(4, 60))
        chains.append(at)
    points = np.swapaxes(chains, 0, 1).reshape(4000, 60)
    draws = equal_weights(points, np.repeat(np.arange(4), 1000))
    p = dist.Normal(jnp.zeros(60), 1.0).to_event(1)
    target = Target.from_log_density(p.log_prob, 60)
    log_z = evidence.bridge(target, draws, np.zeros(4000, int), smc.effective_draws(draws))
    assert abs(log_z.value) < 3 * log_z.mcse < 0.3


def test_a_narrow_mode_in_many_dimensions_is_found():
    """Half of the mass is 0.3 wide in d = 10: no climb from dispersed starts ends there."""
    target = mixture([[4.0] + [0.0] * 9, [-4.0] + [0.0] * 9], [1.0, 0.3], [0.5, 0.5])
    found, *_ = climbs.upward(target, starts.points(target, jax.random.key(0), starts.CLIMBS))
    assert (found.centres[:, 0] > 3).all()
    reached = climbs.apart(starts.climbs(target))
    np.testing.assert_allclose(np.sort(reached.centres[:, 0]), [-4, 4], atol=0.05)


def test_nuts_gives_draws_and_a_bridge_their_evidence():
    target = mixture([[1.0, 2.0, 3.0]], [2.0], [1.0])
    reference = build(target, "nuts")
    assert abs(reference.log_evidence.value) < 4 * reference.log_evidence.mcse < 0.1
    assert reference.routes == {"bridge": reference.log_evidence}
    points = reference.draws.points
    np.testing.assert_allclose(points.mean(0), [1, 2, 3], atol=0.25)
    np.testing.assert_allclose(points.std(0), 2, atol=0.2)


@pytest.mark.parametrize("dim", [2, 30])
def test_a_bridge_from_draws_has_the_evidence_to_its_error(dim):
    """Of two modes of different widths, 0.9 and 0.1: 0, within four errors at every seed."""
    target = mixture([[-6.0] * dim, [3.0] * dim], [1.0, 0.6], [0.9, 0.1])
    for seed in range(5):
        rng = np.random.default_rng(seed)
        which = (rng.uniform(size=6_000) < 0.1).astype(int)
        means, sds = np.array([-6.0, 3.0])[which], np.array([1.0, 0.6])[which]
        points = means[:, None] + sds[:, None] * rng.normal(size=(6_000, dim))
        found = evidence.bridge(target, equal_weights(points), which, 6_000.0)
        assert abs(found.value) < 4 * found.mcse < 0.2


def test_a_bridge_has_nothing_to_say_of_too_few_draws():
    target = mixture([[0.0] * 30], [1.0], [1.0])
    points = np.random.default_rng(0).normal(size=(500, 30))
    assert evidence.bridge(target, equal_weights(points), np.zeros(500, int), 500.0) is None


def test_two_routes_that_differ_are_in_the_error_of_what_they_say_together():
    near, far = Estimate(0.0, 0.02), Estimate(1.0, 0.02)
    assert evidence.both(near, near) == (0.0, pytest.approx(0.02 / 2**0.5))
    assert evidence.both(near, far) == (pytest.approx(0.5), 0.5)
    assert evidence.both(near, Estimate(1.0, 0.5)) == near
    rough = evidence.both(Estimate(1.0, 2.0), near)
    assert rough == (pytest.approx(0.0, abs=1e-3), pytest.approx(0.02, rel=1e-3))
    assert evidence.both(near, None) == near


def test_trees_are_as_deep_as_there_is_time_for(monkeypatch):
    """As deep as can be where a density is fast, shallower where it is slow, and none at last."""
    target = mixture([[0.0]], [1.0], [1.0])
    assert nuts.affordable(target, np.inf) == (nuts.DEEPEST, 0.0)
    monkeypatch.setattr(Target, "seconds", lambda self, number: np.inf)
    monkeypatch.setattr(nuts, "clocked", lambda *_: 1e-3)  # a gradient: 1.5 s for all transitions
    assert nuts.affordable(target, 1.5 * 2**8)[0] == 8
    assert nuts.affordable(target, 1.5 * 2**7 - 1)[0] == 6
    assert nuts.affordable(target, 1.5 * 2**5 - 1) == (None, pytest.approx(48.0))


def test_smc_is_doubted_where_nuts_stays_elsewhere():
    """Chains in a mode that SMC's draws do not have speak against them."""
    target = mixture([[-10.0] * 3, [10.0] * 3], [1.0, 1.0], [0.5, 0.5])
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4, 1000, 3)) + np.array([-10, -10, 10, 10])[:, None, None]
    chains = nuts.Chains(points, divergent=0, gradients=0)
    draws = equal_weights(rng.normal(size=(4000, 3)) - 10)
    others = points[:, ::50].reshape(-1, 3)
    found = modes.find(target, draws, np.eye(3), seed=0, others=others)
    assert len(found.masses) == 1
    agreed = agreement.compare(target, draws, chains, found)
    assert agreed.against == ["2 of 4 NUTS chains stay where SMC saw next to nothing"]


def test_smc_and_nuts_that_differ_are_told_apart():
    """Equal draws pass; half a sd of shift, or a width of 0.6, does not."""
    rng = np.random.default_rng(0)
    chains, draws = rng.normal(size=(4, 1000)), rng.normal(size=4000)
    assert agreement.differs("x", chains, draws) is None
    assert "mean of x 0.6 sd from" in agreement.differs("x", chains + 0.6, draws).words
    assert "NUTS finds x 0.59 times as wide" in agreement.differs("x", 0.6 * chains, draws).words


def test_chains_that_do_not_mix_are_no_check():
    rng = np.random.default_rng(0)
    chains = rng.normal(size=(4, 1000))
    assert agreement.does_not_mix("x", chains) is None
    apart = agreement.does_not_mix("x", chains + np.arange(4)[:, None])
    slow = agreement.does_not_mix("y", np.cumsum(chains, axis=1) / 30)
    assert "R-hat" in apart.words and "ESS" in slow.words
    assert agreement.the_worst([]) == []
    assert agreement.the_worst([slow]) == [slow.words]
    assert agreement.the_worst([slow, apart]) == [f"{max(slow, apart).words}; 1 more like it"]


def test_bent_shapes_are_one_mode():
    """A ring and a banana have no valley, though straight lines across them do."""
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, 2000), rng.normal(8, 0.3, 2000)
    ring = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)

    def log_density(z):
        return -0.5 * ((jnp.sqrt(jnp.sum(z**2)) - 8.0) / 0.3) ** 2

    target = Target.from_log_density(log_density, 2)
    found = modes.find(target, equal_weights(ring), 0.3 * np.eye(2), seed=0)
    assert len(found.masses) == 1


def test_masses_follow_weights():
    target = mixture([[-5.0, 0.0], [5.0, 0.0]], [1.0, 1.0], [0.5, 0.5])
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2000, 2)) + np.repeat([[-5, 0], [5, 0]], 1000, axis=0)
    weights = np.repeat([0.2, 0.8], 1000) / 1000
    found = modes.find(target, Draws(points, weights), np.eye(2), seed=0)
    assert [m.value for m in found.masses] == pytest.approx([0.8, 0.2], abs=1e-3)
    np.testing.assert_allclose(found.locations[0], [5, 0], atol=1e-3)
    labels = modes.basins(target, found, np.array([[4.0, 1.0], [-7.0, 2.0]]))
    assert labels.tolist() == [0, 1]


def slow_as(target, seconds):
    """The same target, whose log density is taken to need so many seconds."""
    slow = dataclasses.replace(target, programs={})
    slow.__dict__["seconds_each"] = seconds
    return slow


def test_a_slow_density_gets_fewer_particles_and_climbers():
    """Masses and evidence stay right where most points go to the basin of the nearest climber."""
    target = mixture([[-5.0, 0, 0], [5.0, 0, 0]], [1.0, 1.0], [0.3, 0.7])
    assert smc.number_of_particles(slow_as(target, 1e-6), 4, 60.0) == 1024
    assert smc.number_of_particles(slow_as(target, 1e-4), 4, 60.0) == 256
    assert modes.affordable(slow_as(target, 1e-6), 4000) == 4000
    slow = slow_as(target, 1e-3)
    assert modes.affordable(slow, 4000) == 256
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4000, 3))
    points[:, 0] += np.where(rng.random(4000) < 0.3, -5.0, 5.0)
    right = (points[:, 0] > 0).mean()
    found = modes.find(slow, equal_weights(points), np.eye(3), seed=0)
    assert [m.value for m in found.masses] == pytest.approx([right, 1 - right], abs=1e-3)
    assert found.of_draws.tolist() == (points[:, 0] < 0).astype(int).tolist()


def flat(size):
    return dist.ImproperUniform(dist.constraints.real_vector, (), (size,))


def separated():
    """A logistic regression under a flat prior whose outcomes a line separates."""
    x = jnp.array([[1.0, -2.0], [1.0, -1.0], [1.0, 1.0], [1.0, 2.0]])
    beta = numpyro.sample("beta", flat(2))
    numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=jnp.array([0, 0, 1, 1]))


def clipped():
    """One whose likelihood NumPyro clips far out, where a sum of 40 logs no longer falls."""
    beta = numpyro.sample("beta", flat(1))
    p = jax.nn.sigmoid(beta[0] * jnp.ones(40))
    numpyro.sample("y", dist.Bernoulli(probs=p), obs=jnp.arange(40) % 2)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what has no bounds
def test_an_improper_posterior_is_told():
    found = build(Target.from_numpyro(separated))
    assert not found.trusted
    assert found.reasons[0].startswith("the posterior may be improper: ")
    assert propriety.does_not_fall(Target.from_numpyro(clipped)) == []
