"""Fits against closed forms, and what a fitter says of steps that went wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import optimize, special, stats

from vi_demo import Target, fitting, guides
from vi_demo.divergences.generators import (
    F_DIVERGENCES,
    alpha,
    forward_kl,
    renyi,
    reverse_kl,
    total_variation,
)
from vi_demo.errors import InputError
from vi_demo.fitting import moment_matching, objectives, svi
from vi_demo.fitting.path import follow
from vi_demo.reference import smc

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
            family = guides.family(guide)
            fits[divergence, guide] = fitting.fit(divergence, correlated, family, KEY)
        return fits[divergence, guide]

    return fit


FAMILIES = [f"{name}:2" if name in guides.WITH_NUMBER else name for name in guides.FAMILIES]


@pytest.mark.parametrize("name", FAMILIES)
class TestFamilies:
    """Every family keeps the same laws."""

    def test_starts_where_it_is_told(self, name):
        family = guides.family(name)
        loc = jnp.array([1.0, -2.0, 3.0])
        guide = family.distribution(family.init(loc, 0.1))
        np.testing.assert_allclose(guide.mean, loc, rtol=1e-12)
        widest = 0.01 if family.components == 1 else 0.1
        assert np.all(guide.variance >= 0.01 - 1e-12) and np.all(guide.variance <= widest + 1e-12)

    def test_draws_are_of_the_guide(self, name):
        """Their means are expectations under it, and gradients pass through every parameter."""
        family = guides.family(name)
        params = family.init(jnp.array([1.0, -2.0]), 0.5)
        points, log_masses = family.draw(params, objectives.normal_noise(KEY, 2048, 2))
        masses = np.exp(log_masses)
        guide = family.distribution(params)
        assert masses.sum() == pytest.approx(1)
        np.testing.assert_allclose(masses @ points, guide.mean, atol=1e-3)
        np.testing.assert_allclose(masses @ (points - guide.mean) ** 2, guide.variance, rtol=0.02)

    def test_closed_form_fit_is_the_most_likely(self, name):
        """No step away from the fit raises the weighted likelihood."""
        family = guides.family(name)
        if family.judged:
            pytest.skip("its fit ends before that, where held-out draws say")
        rng = np.random.default_rng(0)
        draws = jnp.asarray(rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)))
        weights = jnp.asarray(rng.dirichlet(np.ones(500)))
        slope = jax.grad(lambda p: weights @ family.distribution(p).log_prob(draws))
        exact = (
            family.components == 1
        )  # two components of one Gaussian are found step by small step
        for leaf in jax.tree.leaves(slope(family.fit(draws, weights))):
            np.testing.assert_allclose(leaf, 0.0, atol=1e-10 if exact else 0.05)

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


@pytest.mark.parametrize(
    ("divergence", "guide"),
    [("reverse_kl", "full_rank"), ("forward_kl", "full_rank"), ("reverse_kl", "low_rank:1")],
)
def test_the_correlation_is_found(fitted, divergence, guide):
    covariance = fitted(divergence, guide).guide.covariance_matrix
    np.testing.assert_allclose(covariance, CORRELATED, atol=0.04)


def test_reverse_kl_keeps_all_starts_and_reports_the_best(fitted):
    fit = fitted("reverse_kl", "diagonal")
    elbos = fit.restarts["elbo"]
    assert elbos.shape == (2,)  # all climbs led to the one place
    assert fit.best == elbos.argmax()
    # KL of the best factorised guide is −½ log(1 − ρ²), and the log evidence 5; 1,024 draws.
    assert elbos.max() == pytest.approx(5 + 0.5 * np.log(1 - RHO**2), abs=0.06)
    np.testing.assert_array_equal(fit.params["loc"], fit.restarts["loc"][fit.best])


def test_work_is_counted(correlated, fitted):
    fit = fitted("reverse_kl", "diagonal")
    steps = fit.restarts["steps"]
    assert (steps < 10).all()  # of 64 draws each
    # Of 8 climbs from the best of 4 x 16 points each, whose steps look at 2 rows of the curvature
    # and by 4 draws at 18 places, and end 12 steps after a Gaussian's top, reached soon; of the
    # search for more, 8,192 points that climb 40 steps.
    climbs = fit.evaluations["gradient"] - 64 * steps.sum() - 8 * 4 - 8192 * 40
    assert climbs % (2 + 4 * 18) == 0
    assert 8 * 12 <= climbs // (2 + 4 * 18) <= 8 * 20
    assert fit.history["elbo"].shape == (steps.max(), 2)
    by_adam = svi.fit(correlated, guides.family("diagonal"), KEY)
    assert by_adam.evaluations["gradient"] - fit.evaluations["gradient"] > 1000
    assert by_adam.history["elbo"].shape == (by_adam.restarts["steps"].max() / 10, 2)
    assert fit.seconds["compile"] > 0
    assert fit.seconds["run"] > 0


def test_forward_kl_reports_its_draws(fitted):
    fit = fitted("forward_kl", "full_rank")
    assert fit.measured["ess"] >= 20_000
    assert fit.measured.get("khat", -np.inf) < 0.7
    assert fit.evaluations["log_density"] > fit.measured["ess"]
    # The draws it leaves for other divergences are normalised: the log evidence is 5.
    assert fit.draws.log_evidence == pytest.approx(5, abs=0.002)
    assert float(jnp.exp(fit.draws.log_weights).sum()) == pytest.approx(1)
    exact = dist.MultivariateNormal(jnp.array([3.0, -2.0]), CORRELATED)
    np.testing.assert_allclose(fit.draws.log_p, exact.log_prob(fit.draws.points), atol=0.002)


def test_draws_that_lie_in_a_plane_fail_the_fit(monkeypatch):
    """They have no covariance: the guide is left as the climb's, and a line says why."""
    line = np.random.default_rng(0).normal(size=(4, 500, 1)) * np.ones(2)
    where_it_was = (np.zeros(4), np.full(4, 0.01), 9, 0.8, {"log_density": 1, "gradient": 1}, True)
    monkeypatch.setattr(smc, "temper", lambda *_, **__: smc.Tempered(line, *where_it_was))
    target = Target.from_log_density(lambda z: -0.5 * z @ z, 2)
    fit = fitting.fit("forward_kl", target, guides.family("full_rank"), KEY)
    assert fit.status == "failed"
    assert "lie on a point, or in a plane" in fit.notes[0]
    np.testing.assert_allclose(fit.guide.covariance_matrix, np.eye(2), atol=1e-6)


def test_a_guide_whose_weights_fail_is_not_called_settled():
    """Student-t tails of 2.5 degrees: k-hat refuses the guide's draws, and SMC takes over."""
    p = dist.StudentT(2.5, jnp.zeros(3), 1.0).to_event(1)
    target = Target.from_log_density(p.log_prob, 3)
    fit = fitting.fit("forward_kl", target, guides.family("diagonal"), KEY)
    refused = fit.history["khat"] >= 0.7
    assert refused.any()
    after = fit.history["ess"][np.argmax(refused) :]
    assert len(after) > 1  # a refused round is never the last
    assert "khat" not in fit.measured or fit.measured["khat"] >= 0.7


def test_supports_that_depend_on_other_sites():
    """The ELBO that the fit climbs is that of the target's own density."""

    def model():
        a = numpyro.sample("a", dist.Gamma(5.0, 2.0))
        numpyro.sample("b", dist.Uniform(0.0, a))

    target = Target.from_numpyro(model)
    fit = fitting.fit("reverse_kl", target, guides.family("full_rank"), KEY)
    draws = fit.guide.sample(KEY, (20_000,))
    elbo = float(jnp.mean(target.log_densities(draws) - fit.guide.log_prob(draws)))
    assert fit.history["elbo"][-1, fit.best] == pytest.approx(elbo, abs=0.05)
    assert -0.2 < elbo < 0  # the log evidence is 0


def test_forward_kl_takes_as_many_draws_as_the_wanted_error_needs(correlated):
    """KL(q*‖q) is below the error asked for; to ask for less costs less."""
    family = guides.family("full_rank")
    fine, coarse = (
        moment_matching.fit(correlated, family, KEY, tolerance=error) for error in (0.001, 0.05)
    )
    p = dist.MultivariateNormal(jnp.array([3.0, -2.0]), CORRELATED)
    for fit, error in ((fine, 0.001), (coarse, 0.05)):
        assert fit.status == "converged"
        assert dist.kl_divergence(p, fit.guide) < error
        assert fit.measured["error"] < error
    assert coarse.evaluations["log_density"] < 0.5 * fine.evaluations["log_density"]


def test_forward_kl_holds_no_more_draws_than_memory_takes(correlated, monkeypatch):
    drawn = []

    def spy(key, number, dim, whiten):
        drawn.append(number)
        return objectives.normal_noise(key, number, dim, whiten=whiten)

    monkeypatch.setattr(moment_matching, "normal_noise", spy)
    monkeypatch.setattr(moment_matching, "HELD", 2 * 5000)
    family = guides.family("full_rank")
    fit = moment_matching.fit(correlated, family, KEY, tolerance=0.001)
    assert drawn and max(drawn) == 4096
    p = dist.MultivariateNormal(jnp.array([3.0, -2.0]), CORRELATED)
    assert dist.kl_divergence(p, fit.guide) < 0.005


def test_noise_of_more_dimensions_than_sobol_sequences_have():
    noise = objectives.normal_noise(KEY, 64, 21_300)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(noise.std(0), 1, atol=0.15)
    assert abs(np.corrcoef(noise[:, :50].T) - np.eye(50)).max() < 0.6


def test_forward_kl_on_draws_is_maximum_likelihood():
    draws = np.random.default_rng(0).normal(size=(500, 2)) * [1.0, 3.0] + 1
    target = Target.from_draws(draws)
    fit = fitting.fit("forward_kl", target, guides.family("full_rank"), KEY)
    np.testing.assert_allclose(fit.guide.mean, draws.mean(0), rtol=1e-10)
    np.testing.assert_allclose(fit.guide.covariance_matrix, np.cov(draws.T, ddof=0), rtol=1e-10)


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "alpha:0.5"])
def test_draws_alone_leave_forward_kl(name):
    target = Target.from_draws(np.random.default_rng(0).normal(size=(10, 2)))
    with pytest.raises(InputError, match=rf"{name} needs a log density.*fit forward_kl"):
        fitting.fit(name, target, guides.family("diagonal"), KEY)


def test_rule_of_thumb():
    rule = objectives.rule_of_thumb
    assert rule(False, True).startswith("draws and no density: forward_kl")
    assert rule(True, False).startswith("a density and no draws: reverse_kl at once")
    assert rule(True, True).startswith("density and draws: forward_kl, reverse_kl, jeffreys")
    assert rule(False, False).startswith("neither density nor draws: nothing can be fitted")
    assert objectives.needs("reverse_kl") == ("density",)
    assert objectives.needs("forward_kl") == ("draws",)
    assert objectives.needs("renyi:2") == ("density", "draws")


# Objectives: on a target that the family holds, each is least at the target itself.

EVERY = (*F_DIVERGENCES, alpha(-0.5), alpha(0.4), alpha(2.0), renyi(0.5), renyi(2.0))


@pytest.mark.parametrize("f", EVERY, ids=lambda f: f.__name__)
def test_every_objective_is_least_at_the_target(correlated, f):
    family = guides.family("full_rank")
    truth = guides.from_moments(jnp.array([3.0, -2.0]), CORRELATED)
    proposal = dist.MultivariateNormal(jnp.array([3.0, -2.0]), 1.5 * CORRELATED)
    points = family.draw(
        guides.from_moments(proposal.loc, proposal.covariance_matrix),
        objectives.normal_noise(KEY, 4096, 2, whiten=False),
    )[0]
    log_p = jax.vmap(correlated.log_density)(points)
    weights = jnp.exp(log_p - 5.0 - proposal.log_prob(points)) / 4096
    draws = objectives.draws_of_target(points, weights / weights.sum(), log_p, 5.0)
    loss = objectives.loss_of(f, correlated, family)
    noise = objectives.normal_noise(jax.random.key(1), 2048, 2)
    at_truth, slope = jax.value_and_grad(loss)(truth, noise, draws)
    if f is not total_variation:  # which has an edge there
        for leaf in jax.tree.leaves(slope):
            np.testing.assert_allclose(leaf, 0.0, atol=5e-3)
    if f not in (reverse_kl, forward_kl):  # known up to a constant alone
        assert float(at_truth) == pytest.approx(0, abs=1e-12)
    for k, size in {"loc": 0.3, "log_scale": 0.2, "lower": 0.3}.items():
        for sign in (1, -1):
            moved = truth | {k: truth[k] + sign * size}
            assert float(loss(moved, noise, draws)) > float(at_truth) + 0.003


@pytest.mark.parametrize("name", ["pearson_chi_square", "renyi:0.5"])
def test_descent_finds_a_target_that_the_family_holds(correlated, name):
    fit = fitting.fit(name, correlated, guides.family("full_rank"), KEY)
    assert fit.status == "converged"
    np.testing.assert_allclose(fit.guide.mean, [3, -2], atol=0.005)
    np.testing.assert_allclose(fit.guide.covariance_matrix, CORRELATED, atol=0.01)
    assert fit.evaluations["gradient"] > 0
    assert fit.history["loss"].shape[1:] == fit.restarts["loss"].shape == (3,)


def test_noise_is_standard_and_its_score_vanishes(correlated):
    """Whitened, mean and covariance are exact, so reverse KL has no score left to add noise."""
    noise = objectives.normal_noise(KEY, 512, 2)
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=1e-14)
    np.testing.assert_allclose(noise.T @ noise / 512, np.eye(2), atol=1e-13)
    family = guides.family("full_rank")
    params = family.init(jnp.array([1.0, 2.0]), 0.7)
    points, _ = family.draw(params, noise)
    score = jax.grad(lambda p: family.distribution(p).log_prob(points).mean())(params)
    for leaf in jax.tree.leaves(score):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-12)


# Mixtures.


def test_mixture_draws_carry_the_gradient_of_the_weights():
    """d/dlogit of E_q[x²] = w(1 − w)(E₁[x²] − E₂[x²]), which draws of the mixture miss."""
    family = guides.family("mixture:2")
    params = family.init(jnp.zeros(1), 1.0)
    params |= {"logits": jnp.array([0.4, -0.3]), "loc": jnp.array([[-1.0], [2.0]])}
    noise = objectives.normal_noise(KEY, 4096, 1)

    def second_moment(params):
        points, log_masses = family.draw(params, noise)
        return jnp.sum(jnp.exp(log_masses) * points[:, 0] ** 2)

    share = float(jax.nn.sigmoid(0.7))
    expected = share * (1 - share) * ((1 + 1) - (4 + 1))
    slope = jax.grad(second_moment)(params)["logits"]
    np.testing.assert_allclose(slope, [expected, -expected], rtol=2e-3)
    assert float(second_moment(params)) == pytest.approx(share * 2 + (1 - share) * 5, rel=2e-3)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
def test_a_mixture_fits_two_modes(name):
    """Both directions find weights 0.7 and 0.3, modes at −3 and 2, sds 1 and 0.5."""

    def log_density(z):
        log_p = jnp.array([0.7, 0.3]), jnp.array([-3.0, 2.0]), jnp.array([1.0, 0.5])
        return jax.nn.logsumexp(jnp.log(log_p[0]) + dist.Normal(*log_p[1:]).log_prob(z[0]))

    target = Target.from_log_density(log_density, 1)
    fit = fitting.fit(name, target, guides.family("mixture:2"), KEY)
    order = np.argsort(fit.params["loc"][:, 0])
    assert fit.status == "converged"
    np.testing.assert_allclose(jax.nn.softmax(fit.params["logits"])[order], [0.7, 0.3], atol=0.01)
    np.testing.assert_allclose(fit.params["loc"][order, 0], [-3, 2], atol=0.02)
    np.testing.assert_allclose(np.exp(fit.params["log_scale"])[order, 0], [1, 0.5], rtol=0.02)


# The path along alpha.


def least(log_p, x, a, start):
    """The local optimum of alpha's divergence near a start, by SciPy on a fine grid."""

    def value(params):
        log_q = stats.norm.logpdf(x, params[0], np.exp(params[1]))
        power = np.exp(a * log_p + (1 - a) * log_q)
        return (np.trapezoid(power, x) - 1) / (a * (a - 1))

    found = optimize.minimize(value, start, method="Nelder-Mead", options={"xatol": 1e-6})
    return found.fun, found.x


def test_the_path_along_alpha_jumps_where_branches_cross():
    """Modes ±3 of sd 0.8 and weights .55/.45: between 0.4 and 0.5, as an independent search."""

    def log_density(z):
        parts = dist.Normal(jnp.array([-3.0, 3.0]), 0.8).log_prob(z[0])
        return jax.nn.logsumexp(parts + jnp.log(jnp.array([0.55, 0.45])))

    target = Target.from_log_density(log_density, 1)
    family = guides.family("full_rank")
    ends = [fitting.fit(name, target, family, KEY) for name in fitting.DEFAULT]
    path = follow(target, family, *ends, KEY, 11)
    (jump,) = path.jumps
    x = np.linspace(-30, 30, 20_001)
    log_p = special.logsumexp(stats.norm.logpdf(x[:, None], [-3, 3], 0.8), b=[0.55, 0.45], axis=1)
    for a, k in ((0.3, 3), (0.6, 6)):
        narrow, at_narrow = least(log_p, x, a, [-3.0, np.log(0.8)])
        wide, at_wide = least(log_p, x, a, [-0.3, np.log(3.0)])
        assert (narrow < wide) == (a < jump)
        best = path.best[k]
        expected = (narrow, at_narrow) if a < jump else (wide, at_wide)
        assert path.divergence[best, k] == pytest.approx(expected[0], abs=0.002)
        assert path.mean[best, k, 0] == pytest.approx(expected[1][0], abs=0.02)
        assert path.sd[best, k, 0] == pytest.approx(np.exp(expected[1][1]), abs=0.02)
    crossing = optimize.brentq(
        lambda a: least(log_p, x, a, [-3, -0.2])[0] - least(log_p, x, a, [-0.3, 1.1])[0], 0.3, 0.6
    )
    assert jump == pytest.approx(crossing, abs=0.01)
    # Followed from either end, branches stay apart well past the jump.
    from_reverse, from_forward = path.mean[0, :, 0], path.mean[-1, :, 0]
    assert from_reverse[:7] == pytest.approx(-3, abs=0.05)
    assert from_forward == pytest.approx(-0.27, abs=0.08)
    assert set(path.begins) == {0.0, 1.0}


@pytest.mark.parametrize("optimizer", fitting.OPTIMIZERS)
def test_steps_that_are_not_finite_are_counted_and_named(optimizer):
    """NumPyro's stable_update skips them in silence; the fit must not."""

    def log_density(z):
        return jnp.where(z[0] > 0.5, jnp.nan, -0.5 * jnp.sum(z**2))

    target = Target.from_log_density(log_density, 2)
    family = guides.family("diagonal")
    fit = fitting.fit("reverse_kl", target, family, KEY, optimizer=optimizer)
    assert fit.status != "converged"
    (note,) = fit.notes
    assert "were not finite and were skipped" in note
    assert "'log_density'" in note
    assert int(note.split()[0].replace(",", "")) > 0


def test_learning_takes_fewer_steps_where_the_density_is_slow_and_says_what_that_leaves():
    def model(y):
        at = numpyro.sample("at", dist.Normal(numpyro.param("shift", 0.0), 1))
        numpyro.sample("y", dist.Normal(at, 1), obs=y)

    target = Target.from_numpyro(model, {"y": 1e4})
    target.__dict__["seconds_each"] = 0.1  # as a network's might take
    learned = svi.learn(target, guides.diagonal(), KEY)
    (remark,) = learned.remarks
    assert remark.endswith(f"settled when learning them stopped, at {svi.LEAST_STEPS} steps")


def test_a_guide_of_the_users_own_is_fitted_and_measured():
    """It holds the conjugate posterior: mean 4/5, sd 1/√5."""

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mean, 1).expand([4]).to_event(1), obs=y)

    def guide(y):
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("mean", dist.Normal(numpyro.param("at", 0.0), scale))

    target = Target.from_numpyro(model, {"y": np.array([1.0, 2.0, 0.0, 1.0])})
    fit, _ = svi.fit_own(target, target.own_guide(guide), KEY)
    assert fit.status == "converged"
    assert float(fit.params["at"]) == pytest.approx(0.8, abs=0.03)
    assert float(jnp.exp(fit.params["scale"])) == pytest.approx(5**-0.5, rel=0.05)
    point = jnp.array([[0.3]])
    expected = stats.norm(fit.params["at"], np.exp(fit.params["scale"])).logpdf(0.3)
    assert float(fit.guide.log_prob(point)[0]) == pytest.approx(expected)
