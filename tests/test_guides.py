"""Low-rank Gaussians and flows against closed forms, and against other ways to compute them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import vi_demo
from vi_demo import Target, fitting, flows, guides, loading
from vi_demo.fitting import objectives

KEY = jax.random.key(0)


def some(name, dim, spread=2.0):
    """A member of a family whose parameters are anything."""
    shapes = guides.family(name).init(jnp.zeros(dim), 1.0)
    keys = iter(jax.random.split(jax.random.key(1), len(shapes)))
    return {k: v + spread * jax.random.normal(next(keys), v.shape) for k, v in shapes.items()}


# Low rank.


def correlated_draws(dim):
    """Draws (400, dim) that no few directions explain, and weights."""
    rng = np.random.default_rng(3)
    draws = rng.normal(size=(400, dim)) @ rng.normal(size=(dim, dim)) + 5.0
    return jnp.asarray(draws), jnp.asarray(rng.dirichlet(np.ones(400)))


@pytest.mark.parametrize("factors", [2, 3])
def test_enough_directions_make_every_covariance(factors):
    draws, weights = correlated_draws(3)
    ours = guides.family(f"low_rank:{factors}")
    q = ours.distribution(ours.fit(draws, weights))
    mean, covariance = guides.moments(draws, weights)
    np.testing.assert_allclose(q.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(q.covariance_matrix, covariance, rtol=1e-8)


def test_the_weighted_fit_is_factor_analysis():
    """Jöreskog's (1967) likelihood in the own variances alone, climbed by SciPy."""
    rng = np.random.default_rng(0)
    of_two = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6))
    draws = jnp.asarray(of_two + rng.normal(size=(400, 6)) * np.linspace(0.5, 2.0, 6))
    weights = jnp.asarray(rng.dirichlet(np.ones(400)))
    family = guides.family("low_rank:2")
    ours = float(weights @ family.distribution(family.fit(draws, weights)).log_prob(draws))
    covariance = np.asarray(guides.moments(draws, weights)[1])

    def loss(log_own):
        scale = np.exp(log_own / 2)
        values = np.linalg.eigvalsh(covariance / np.outer(scale, scale))
        top = np.maximum(values[-2:], 1)
        fit = np.log(top).sum() + (values[-2:] / top).sum() + values[:-2].sum()
        return 0.5 * (log_own.sum() + fit + 6 * np.log(2 * np.pi))

    starts = np.log(np.diag(covariance)) + rng.normal(size=(8, 6)) - 1
    best = min(optimize.minimize(loss, start, method="BFGS").fun for start in starts)
    assert ours == pytest.approx(-best, abs=1e-6)


def test_low_rank_draws_have_the_covariance():
    family, params = guides.family("low_rank:3"), some("low_rank:3", 5)
    root = jax.jacfwd(lambda noise: family.draw(params, noise[None])[0][0])(jnp.zeros(5))
    expected = family.distribution(params).covariance_matrix
    np.testing.assert_allclose(root @ root.T, expected, rtol=1e-9)


# Mixtures.


@pytest.mark.parametrize("seed", [1, 4])
def test_a_mixture_is_fitted_to_its_own_draws(seed):
    """They come a component at a time: the first thousands alone know nothing of the other."""
    family = guides.family("mixture:2")
    apart = {"loc": jnp.array([[4.0, 0.0], [-4.0, 0.0]])}
    params = family.init(jnp.zeros(2), 1.0) | apart
    noise = objectives.normal_noise(jax.random.key(seed), 16_384, 2, whiten=False)
    draws, log_masses = family.draw(params, noise)
    found = family.fit(draws, jnp.exp(log_masses))
    np.testing.assert_allclose(np.sort(found["loc"][:, 0]), [-4, 4], atol=0.1)


# What both are under a linear map.

TURN = jnp.array([[2.0, -1.0, 0.3], [0.5, -0.2, 1.0], [1.0, 4.0, -1.0]])


@pytest.mark.parametrize(
    ("name", "factor"),
    [("low_rank:2", TURN[0]), ("flow", TURN[0]), ("flow", TURN)],
    ids=["low_rank by widths", "flow by widths", "flow turned"],
)
def test_the_image_under_a_linear_map(name, factor):
    """Log q'(shift + F z) = log q(z) − log |det F|."""
    family, params = guides.family(name), some(name, 3)
    z = jax.random.normal(KEY, (50, 3))
    matrix = factor if factor.ndim == 2 else jnp.diag(factor)
    image = family.distribution(family.moved(params, jnp.arange(3.0), factor))
    expected = family.distribution(params).log_prob(z) - jnp.linalg.slogdet(matrix)[1]
    np.testing.assert_allclose(image.log_prob(z @ matrix.T + jnp.arange(3.0)), expected, rtol=1e-8)


# Flows.


@pytest.mark.parametrize("dim", [1, 2])
def test_a_flows_density_integrates_to_one(dim):
    params = some("flow", dim) | {"log_scale": jnp.zeros(dim), "mixing": jnp.eye(dim)}
    q = guides.Flow(params)
    draws = q.sample(KEY, (20_000,))
    low, high = draws.min(0), draws.max(0)
    margin = 0.5 * (high - low)
    axes = jnp.linspace(low - margin, high + margin, 1001, axis=1)
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)
    cell = float(jnp.prod(axes[:, 1] - axes[:, 0]))
    assert float(jnp.exp(q.log_prob(grid)).sum()) * cell == pytest.approx(1, abs=2e-3)


def test_a_flows_density_is_that_of_its_draws():
    """Log q(x) = log N(ε) − log |det ∂x/∂ε|, derivatives by JAX."""
    family, params = guides.family("flow"), some("flow", 3)
    noise = 2 * jax.random.normal(KEY, (30, 3))
    points, log_masses = family.draw(params, noise)
    jacobian = jax.vmap(jax.jacfwd(lambda e: family.draw(params, e[None])[0][0]))(noise)
    expected = stats.norm.logpdf(noise).sum(1) - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(family.distribution(params).log_prob(points), expected, rtol=1e-9)
    assert float(jnp.exp(log_masses).sum()) == pytest.approx(1)


def test_few_draws_are_not_learned_by_heart():
    """300 parameters and 200 draws of a Gaussian: hardly worse than the Gaussian fit to them."""
    draws = jax.random.normal(KEY, (200, 2))
    weights = jnp.full(200, 1 / 200)
    fresh = jax.random.normal(jax.random.key(1), (20_000, 2))
    score = {}
    for name in ("flow", "full_rank"):
        family = guides.family(name)
        score[name] = family.distribution(family.fit(draws, weights)).log_prob(fresh).mean()
    assert score["flow"] > score["full_rank"] - 0.05


def test_a_flow_of_one_dimension_fits_two_modes():
    rng = np.random.default_rng(0)
    first = rng.random(20_000) < 0.7
    draws = np.where(first, rng.normal(-3, 1, 20_000), rng.normal(2, 0.5, 20_000))
    q = guides.Flow(guides.family("flow").fit(jnp.asarray(draws)[:, None], jnp.full(20_000, 5e-5)))
    x = np.linspace(-9, 6, 4001)
    p = 0.7 * stats.norm.pdf(x, -3, 1) + 0.3 * stats.norm.pdf(x, 2, 0.5)
    divergence = np.trapezoid(p * (np.log(p) - np.asarray(q.log_prob(x[:, None]))), x)
    assert 0 < divergence < 0.02  # that of the best Gaussian is 0.53


def test_a_flow_sees_any_coordinate_by_any_other():
    for dim in (2, 3, 4, 8, 16):
        places = np.argsort(flows.orders(dim), 1) >= dim - dim // 2
        by = np.einsum("li,lj->ij", ~places, places.astype(int))
        assert (by + np.eye(dim) > 0).all()


def test_a_flow_bends_to_draws_where_a_gaussian_cannot():
    """Forward KL on the banana, on which the best Gaussian has 1.75 nats."""
    x, y, fresh_x, fresh_y = np.random.default_rng(0).normal(size=(4, 20_000))
    bent = lambda x, y: np.stack([x, 2 * (x**2 - 1) + 0.5 * y], -1)  # noqa: E731
    family = guides.family("flow")
    fit = fitting.fit("forward_kl", Target.from_draws(bent(x, y)), family, KEY)
    assert fit.status == "converged"
    assert "error" not in fit.measured  # no count of parameters tells it
    log_p = stats.norm.logpdf(fresh_x) + stats.norm.logpdf(fresh_y) - np.log(0.5)
    divergence = np.mean(log_p - fit.guide.log_prob(bent(fresh_x, fresh_y)))
    assert 0 < divergence < 0.1


def test_a_flow_bends_to_a_density_and_is_saved_and_drawn_again(tmp_path):
    """Reverse KL on the banana, on which the best Gaussian has 0.85 nats."""
    model, settings = loading.load("banana").model, {"reference": "none", "draws": 500}
    run = vi_demo.run(model, guide="flow", fits="reverse_kl", **settings)
    summary = vi_demo.summary(run)["fits"]["reverse_kl"]
    assert summary["status"] == "converged"
    assert -0.1 < summary["elbo"]["value"] < 0
    vi_demo.save(run, tmp_path / "run")
    drawn = vi_demo.draw(tmp_path / "run", "reverse_kl", 2000)
    x, y = (drawn["posterior"][k].values[0] for k in ("x", "y"))
    exact = stats.norm.logpdf(x) + stats.norm.logpdf(y, 2 * (x**2 - 1), 0.5)
    assert -0.1 < np.mean(exact - drawn["sample_stats"]["log_q"].values[0]) < 0
    guide = run["reverse_kl/guide"]
    np.testing.assert_allclose([x.mean(), y.mean()], guide["mean"].values, atol=0.2)
    spread = np.sqrt(np.diag(guide["covariance"].values))
    np.testing.assert_allclose([x.std(), y.std()], spread, rtol=0.1)
