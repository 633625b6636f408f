"""Estimators from draws against closed forms, and what they refuse."""

import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from vi_demo.divergences import critics, estimators, transport
from vi_demo.divergences.estimators import (
    from_guide,
    from_target,
    k1,
    k2,
    k3,
    nearest_neighbour,
    self_normalised,
)
from vi_demo.divergences.generators import (
    forward_kl,
    jensen_shannon,
    pearson_chi_square,
    renyi,
    reverse_kl,
    total_variation,
)
from vi_demo.errors import InputError

# Densities known: p = N(0, I), q = N(SHIFT, SD² I) in two dimensions.

SHIFT, SD = np.array([0.5, 0.3]), 1.3
P, Q = stats.norm(0.0, 1.0), stats.norm(SHIFT, SD)
KL_PQ = float(np.sum(np.log(SD) + (1 + SHIFT**2) / (2 * SD**2) - 0.5))
KL_QP = float(np.sum(-np.log(SD) + (SD**2 + SHIFT**2) / 2 - 0.5))
# ∫ p²/q = ∏ SD / √(2 − 1/SD²) · exp(SHIFT² / (2 SD² − 1)).
CHI_SQUARE = float(np.prod(SD / np.sqrt(2 - SD**-2) * np.exp(SHIFT**2 / (2 * SD**2 - 1))) - 1)
KLS = {forward_kl: KL_PQ, reverse_kl: KL_QP, pearson_chi_square: CHI_SQUARE}


def ratio(points):
    """Log p − log q at points (n, 2)."""
    return np.sum(P.logpdf(points) - Q.logpdf(points), axis=1)


@cache
def draws(n=2000, seed=0):
    """Draws (n, 2) of p and of q."""
    rng = np.random.default_rng(seed)
    return P.rvs((n, 2), random_state=rng), Q.rvs((n, 2), random_state=rng)


def close(found, exact, sds=4.0):
    """Whether an estimate is within some of its own standard errors of the exact value."""
    return abs(found.value - exact) < sds * found.mcse


def test_k1_k2_k3_of_given_ratios():
    r = np.array([-1.0, 0.5])
    assert k1(r).value == pytest.approx(0.25)
    assert k2(r).value == pytest.approx(0.3125)
    assert k3(r).value == pytest.approx((np.exp(-1) + np.exp(0.5) - 2 + 0.5) / 2)
    assert k1(r).mcse == pytest.approx(0.75 / np.sqrt(2))


@pytest.mark.parametrize("k", [k1, k3])
def test_k1_and_k3_both_ways(k):
    x, y = draws()
    assert close(k(ratio(y)), KL_QP)
    assert close(k(-ratio(x)), KL_PQ)


def test_variances_of_k1_and_k3():
    """Var k3 = χ² + Var r − 2 J, both from closed forms but for Var r."""
    r = ratio(draws(200_000)[1])
    var_k1, var_k3 = (len(r) * k(r).mcse ** 2 for k in (k1, k3))
    assert var_k1 == pytest.approx(np.var(r))
    assert var_k3 == pytest.approx(CHI_SQUARE + np.var(r) - 2 * (KL_PQ + KL_QP), rel=0.05)


def test_bias_of_k2():
    """Between Gaussians of one covariance its mean is KL + ½ KL²."""
    shift = 0.8
    z = np.random.default_rng(0).normal(shift, 1.0, 200_000)
    kl = shift**2 / 2
    found = k2(-shift * z + kl)
    assert close(found, kl + kl**2 / 2)
    assert not close(found, kl)


def test_k_where_ratios_are_infinite_or_overflow():
    lost = np.array([-np.inf, 0.0])
    assert [k(lost).value for k in (k1, k2, k3)] == [np.inf] * 3
    assert k3(np.array([800.0, 0.0])) == (np.inf, 0.0)
    assert k3(np.array([400.0, 0.0])) == (
        pytest.approx(np.exp(400.0) / 2),
        pytest.approx(np.exp(400.0) / 8**0.5),
    )


@pytest.mark.parametrize("estimator", [k1, k2, k3, lambda r: from_guide(reverse_kl, r)])
@pytest.mark.parametrize(
    ("r", "message"),
    [
        ([0.0, np.inf], r"log ratio inf at draw 1 \(1 such of 2\)"),
        ([np.nan, 0.0], "log ratio nan at draw 0"),
        ([0.0], r"shape \(1,\): give one per draw"),
        ([[0.0, 1.0]], r"shape \(1, 2\)"),
    ],
)
def test_refused_ratios(estimator, r, message):
    with pytest.raises(InputError, match=message):
        estimator(np.array(r))


def test_refused_ratios_of_the_target():
    with pytest.raises(InputError, match="log ratio -inf at draw 0"):
        from_target(reverse_kl, np.array([-np.inf, 0.0]))


# Draws in exact proportion to the probabilities: the estimate is the divergence itself.

COUNTS_P, COUNTS_Q = np.array([1, 2, 3, 4]), np.array([4, 3, 2, 1])
LOG_RATIO = np.log(COUNTS_P / COUNTS_Q)
ALL = [reverse_kl, forward_kl, jensen_shannon, total_variation, pearson_chi_square, renyi(2.0)]


def exact_discrete(f):
    """The midpoint's mean of the generator, and of Rényi's divergences its own formula."""
    p, q = COUNTS_P / 10, COUNTS_Q / 10
    if hasattr(f, "order"):
        return np.log(np.sum(p**f.order * q ** (1 - f.order))) / (f.order - 1)
    return float(np.sum(0.5 * (p + q) * np.asarray(f(jnp.log(p / q)))))


def name(f):
    return f.__name__


@pytest.mark.parametrize("f", ALL, ids=name)
def test_from_one_side_is_exact_on_exact_draws(f):
    exact = exact_discrete(f)
    of_q, of_p = np.repeat(LOG_RATIO, COUNTS_Q), np.repeat(LOG_RATIO, COUNTS_P)
    assert from_guide(f, of_q).value == pytest.approx(exact, rel=1e-12)
    assert from_target(f, of_p).value == pytest.approx(exact, rel=1e-12)
    assert self_normalised(f, of_q + 3.7).value == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("f", KLS, ids=name)
def test_from_one_side_of_gaussians(f):
    x, y = draws()
    assert close(from_target(f, ratio(x)), KLS[f])
    assert close(from_guide(f, ratio(y)), KLS[f])
    assert close(self_normalised(f, ratio(y) - 20.0), KLS[f])


def test_error_of_one_side_is_that_of_the_mean():
    r = ratio(draws()[1])
    u = np.exp(r)
    terms = u * r - u + 1
    assert from_guide(forward_kl, r).mcse == pytest.approx(np.std(terms) / np.sqrt(2000))


@pytest.mark.parametrize("f", [forward_kl, reverse_kl, jensen_shannon, renyi(2.0)], ids=name)
def test_error_of_self_normalised_against_the_bootstrap(f):
    """The normaliser's part is in it: without it the error is another one."""
    weights = ratio(draws()[1])
    rng = np.random.default_rng(1)
    again = [self_normalised(f, rng.choice(weights, 2000)).value for _ in range(150)]
    assert self_normalised(f, weights).mcse == pytest.approx(np.std(again), rel=0.2)


def test_normaliser_changes_the_error():
    """Of KL(q‖p) the influence is −r + eʳ and a constant, and not −r alone."""
    weights = ratio(draws()[1])
    u = np.exp(weights - np.log(np.mean(np.exp(weights))))
    expected = np.std(u - weights) / np.sqrt(2000)
    assert self_normalised(reverse_kl, weights).mcse == pytest.approx(expected)
    assert expected < 0.7 * k1(weights).mcse


@pytest.mark.parametrize("f", ALL, ids=name)
def test_one_side_where_p_has_no_mass(f):
    """Half the draws of q where p is 0, half where p = 2q: ½ f(0) + ½ f(2)."""
    p, q = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    with np.errstate(divide="ignore"):
        r = np.repeat(np.log(p) - np.log(q), 5)
    if hasattr(f, "order"):
        expected = np.log(0.5 * 2**f.order) / (f.order - 1)
    else:
        expected = float(0.25 * f(-jnp.inf) + 0.75 * f(jnp.log(2.0)))
    for found in (from_guide(f, r), self_normalised(f, r)):
        assert found.value == pytest.approx(expected)
        assert found.mcse == 0.0 if np.isinf(expected) else found.mcse >= 0.0


def test_one_side_where_q_has_no_mass():
    r = np.repeat([np.inf, np.log(0.5)], 5)
    assert from_target(forward_kl, r) == (np.inf, 0.0)
    assert from_target(total_variation, r).value == pytest.approx(0.5 * (0.5 + 0.5))


def test_one_side_at_ratios_that_overflow():
    """½(1 + eʳ) h(r) where eʳ is infinite, and where it is nothing."""
    far = np.repeat([800.0, 0.0], 5)
    assert from_guide(pearson_chi_square, far) == (np.inf, 0.0)
    assert from_guide(pearson_chi_square, -far).value == pytest.approx(0.5)
    assert from_guide(reverse_kl, -far).value == pytest.approx(0.5 * 799)
    assert from_target(forward_kl, far).value == pytest.approx(0.5 * 799)


def test_self_normalised_by_one_draw_is_log_n():
    weights = np.array([500.0, *np.zeros(9)])
    assert self_normalised(forward_kl, weights).value == pytest.approx(np.log(10))


def test_self_normalised_without_weight():
    with pytest.raises(InputError, match="all log weights are -inf"):
        self_normalised(forward_kl, np.full(5, -np.inf))


def test_equal_densities():
    r = np.zeros(10)
    for f in ALL:
        for found in (from_guide(f, r), from_target(f, r), self_normalised(f, r + 2.0)):
            assert found == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert [k(r) for k in (k1, k2, k3)] == [(0.0, 0.0)] * 3


# Nearest neighbours.


def test_nearest_neighbours_by_hand():
    x, y = draws(100)
    rho = np.sort(cdist(x, x), axis=1)[:, 3]
    nu = np.sort(cdist(x, y), axis=1)[:, 2]
    expected = 2 * np.mean(np.log(nu / rho)) + np.log(100 / 99)
    assert nearest_neighbour(x, y, k=3).value == pytest.approx(expected)


def test_nearest_neighbours_of_gaussians():
    x, y = draws(4000)
    found = nearest_neighbour(x, y)
    assert close(found, KL_PQ)
    assert found.mcse < 0.05


def test_nearest_neighbours_know_no_units():
    x, y = draws(200)
    assert nearest_neighbour(100 * x + 7, 100 * y + 7) == pytest.approx(nearest_neighbour(x, y))


def test_nearest_neighbours_in_order():
    """Sorted draws have the error of shuffled ones."""
    x, y = (np.sort(z[:, :1], axis=0) for z in draws())
    rng = np.random.default_rng(0)
    shuffled = nearest_neighbour(rng.permutation(x), rng.permutation(y))
    found = nearest_neighbour(x, y)
    assert found.value == pytest.approx(shuffled.value)
    assert found.mcse == pytest.approx(shuffled.mcse, rel=0.6)


def test_nearest_neighbours_refuse():
    x, y = draws(100)
    with pytest.raises(InputError, match="repeated draws, at distance zero"):
        nearest_neighbour(np.concatenate([x, x[:1]]), y)
    with pytest.raises(InputError, match="repeated draws, at distance zero"):
        nearest_neighbour(x, np.concatenate([y, x[:1]]))
    with pytest.raises(InputError, match="5 and 100 draws: this needs at least 60"):
        nearest_neighbour(x[:5], y)
    with pytest.raises(InputError, match=r"shapes \(100, 2\) and \(100, 1\)"):
        nearest_neighbour(x, y[:, :1])
    with pytest.raises(InputError, match="the second draws have NaN"):
        nearest_neighbour(x, np.where(y == y[0], np.nan, y))


# Critics.


def log_ratio_of_point(z):
    """The best critic, for one point, in JAX."""
    on_p = -0.5 * jnp.sum(z**2)
    return on_p + 0.5 * jnp.sum((z - SHIFT) ** 2) / SD**2 + 2 * jnp.log(SD)


def test_donsker_varadhan_at_the_best_critic():
    x, y = draws()
    found = critics.donsker_varadhan(x, y, log_ratio_of_point)
    assert close(found, KL_PQ)
    shifted = critics.donsker_varadhan(x, y, lambda z: log_ratio_of_point(z) + 1000.0)
    assert shifted == pytest.approx(found, rel=1e-9)


def test_donsker_varadhan_is_below_at_another_critic():
    """T = a·z between p and q has the closed form −log E_q e^T, far below."""
    x, y = draws()
    a = np.array([-0.3, 0.1])
    exact = -(a @ SHIFT + 0.5 * SD**2 * a @ a)
    assert close(critics.donsker_varadhan(x, y, lambda z: a @ z), exact)
    assert exact < KL_PQ
    assert critics.donsker_varadhan(x, y, lambda z: 0.0 * z[0]) == pytest.approx((0, 0))


def test_donsker_varadhan_at_infinite_critics():
    x, y = np.ones((5, 1)), -np.ones((5, 1))
    rules_out_q = critics.donsker_varadhan(x, y, lambda z: jnp.where(z[0] < 0, -jnp.inf, 0.0))
    rules_out_p = critics.donsker_varadhan(x, y, lambda z: jnp.where(z[0] > 0, -jnp.inf, 0.0))
    assert (rules_out_q, rules_out_p) == ((np.inf, 0.0), (-np.inf, 0.0))
    for wrong in (jnp.nan, jnp.inf):
        with pytest.raises(InputError, match="critic is NaN or"):
            critics.donsker_varadhan(x, y, lambda z, wrong=wrong: z[0] * wrong)


def test_mine_of_gaussians():
    x, y = draws()
    found = critics.mine(x, y, jax.random.key(0))
    assert 0.6 * KL_PQ < found.value < KL_PQ + 3 * found.mcse
    assert found.mcse < 0.05


def test_mine_of_one_distribution():
    x, y = draws()
    found = critics.mine(x, (y - SHIFT) / SD, jax.random.key(0))
    assert abs(found.value) < 0.01 + 3 * found.mcse


def test_mine_knows_no_units():
    x, y = draws(400)
    here, there = (
        critics.mine(a * x + b, a * y + b, jax.random.key(1), steps=200)
        for a, b in ((1.0, 0.0), (1e4, 1e7))
    )
    assert there == pytest.approx(here, rel=1e-3)


def test_mine_refuses_few_draws():
    x, y = draws(79)
    with pytest.raises(InputError, match="79 and 79 draws: this needs at least 80"):
        critics.mine(x, y, jax.random.key(0))


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_mutual_information_of_correlated_gaussians(rho):
    z = np.random.default_rng(0).normal(size=(2000, 2))
    x, y = z[:, :1], rho * z[:, :1] + np.sqrt(1 - rho**2) * z[:, 1:]
    exact = -0.5 * np.log(1 - rho**2)
    found = critics.mutual_information(x, y, jax.random.key(0))
    assert 0.8 * exact - 0.01 < found.value < exact + 3 * found.mcse + 0.01


def test_mutual_information_refuses_what_is_no_pairs():
    with pytest.raises(InputError, match=r"shapes \(90, 1\) and \(91, 1\)"):
        critics.mutual_information(np.zeros((90, 1)), np.zeros((91, 1)), jax.random.key(0))


def test_shuffled_pairs_are_all_others():
    pairs = np.column_stack([np.arange(5), np.arange(5)])
    shuffled = critics._shuffled(pairs, 1)
    every = {(i, j) for i in range(5) for j in range(5) if i != j}
    assert sorted(map(tuple, shuffled)) == sorted(every)


# Transport.


@pytest.mark.parametrize("weighted", [False, True])
def test_wasserstein_1d_against_scipy(weighted):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(1.0, 2.0, size=80)
    a, b = (rng.random(50), 3 * rng.random(80)) if weighted else (None, None)
    found = transport.wasserstein_1d(x, y, x_weights=a, y_weights=b)
    assert found.value == pytest.approx(stats.wasserstein_distance(x, y, a, b), rel=1e-12)


def test_wasserstein_1d_of_gaussians():
    """W₁ of a shift is the shift; W₂² is the shift² and the difference of the sds²."""
    x, y = draws()
    shifted = transport.wasserstein_1d(x[:, 0], x[:, 1] + 2.0)
    assert close(shifted, 2.0)
    assert shifted.mcse == pytest.approx(np.sqrt(2 / 2000), rel=0.4)
    second = transport.wasserstein_1d(x[:, 0], y[:, 0], order=2)
    assert close(second, np.hypot(SHIFT[0], SD - 1))


def test_wasserstein_1d_weights_are_repetitions():
    rng = np.random.default_rng(0)
    x, y, counts = rng.normal(size=40), rng.normal(size=30), rng.integers(0, 4, 40)
    weighted = transport.wasserstein_1d(x, y, order=2, x_weights=counts)
    repeated = transport.wasserstein_1d(np.repeat(x, counts), y, order=2)
    assert weighted.value == pytest.approx(repeated.value)


def test_error_of_wasserstein_1d():
    """The stated error is the spread over samples."""
    rng = np.random.default_rng(0)
    found = [
        transport.wasserstein_1d(rng.normal(size=200), rng.normal(0.5, 1.3, 300))
        for _ in range(150)
    ]
    values, errors = np.array(found).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(np.std(values), rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(19), np.zeros(30)), "first sample: 19 draws of positive weight"),
        ((np.zeros(30), np.zeros((30, 1))), r"second sample: draws \(30, 1\)"),
        ((np.zeros(30), np.full(30, np.nan)), "second sample: give finite"),
        ((np.zeros(30), np.zeros(30), 0.5), "order of 1 or above, not 0.5"),
        ((np.zeros(30), np.zeros(30), 1, -np.ones(30)), "first sample: give finite"),
    ],
)
def test_wasserstein_1d_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        transport.wasserstein_1d(*arguments)


def test_transport_of_equal_samples():
    x, _ = draws(100)
    assert transport.wasserstein_1d(x[:, 0], x[:, 0]).value == 0.0
    assert transport.sliced_wasserstein(x, x).value == 0.0
    assert transport.sinkhorn(x, x, 1.0) == pytest.approx((0.0, 0.0), abs=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_sliced_in_one_dimension(order):
    x, y = (z[:, :1] for z in draws(100))
    exact = transport.wasserstein_1d(x[:, 0], y[:, 0], order)
    found = transport.sliced_wasserstein(x, y, order)
    assert found.value == pytest.approx(exact.value)
    assert found.mcse == pytest.approx(exact.mcse)


def test_sliced_of_a_shift():
    """Of the same draws, moved: only directions are random, E (θ·s)² = |s|² / d."""
    x = np.random.default_rng(0).normal(size=(50, 4))
    shift = np.array([1.0, 2.0, 0.0, 0.0])
    found = transport.sliced_wasserstein(x, x + shift, projections=500)
    assert close(found, np.sqrt(5 / 4))
    assert transport.sliced_wasserstein(x, x + shift, projections=500) == found


def test_sliced_refuses():
    x, y = draws(30)
    with pytest.raises(InputError, match=r"order 0\.5, 200 projections"):
        transport.sliced_wasserstein(x, y, order=0.5)
    with pytest.raises(InputError, match="19 and 30 draws: this needs at least 20"):
        transport.sliced_wasserstein(x[:19], y)


def blurred(shift, sd_x, sd_y, e):
    """Regularised transport between two isotropic Gaussians, Janati et al. (2020), 2006.02572."""
    d, s = len(shift), e / 2
    root = np.sqrt(4 * sd_x**2 * sd_y**2 + s**2)
    own = sd_x**2 + sd_y**2 - root + s * (1 - np.log(2 * s)) + s * np.log(root + s)
    return shift @ shift + d * own


@pytest.mark.parametrize("e", [1.0, 10.0])
def test_sinkhorn_of_gaussians(e):
    x, y = draws()
    still = np.zeros(2)
    exact = blurred(SHIFT, 1.0, SD, e)
    exact -= (blurred(still, 1.0, 1.0, e) + blurred(still, SD, SD, e)) / 2
    found = transport.sinkhorn(x, y, e)
    assert close(found, exact)
    assert found.mcse < 0.1


def test_sinkhorn_at_its_ends():
    """ε → 0 is W₂², here in log space; ε → ∞ the squared distance of the means."""
    x = np.linspace(0, 100, 6)[:, None]
    y = x + np.linspace(1, 3, 6)[:, None]
    small = transport.sinkhorn(x, y, 1.0)
    assert small.value == pytest.approx(np.mean((x - y) ** 2), rel=1e-9)
    large = transport.sinkhorn(x, y, 1e7)
    assert large.value == pytest.approx((x.mean() - y.mean()) ** 2, rel=1e-4)


def test_sinkhorn_refuses():
    x, y = draws(30)
    with pytest.raises(InputError, match="regularisation above 0, not 0"):
        transport.sinkhorn(x, y, 0)
    with pytest.raises(InputError, match=r"not settled in 5 .* of 0\.1: raise either"):
        transport.sinkhorn(x, y, 0.1, iterations=5)


@pytest.mark.parametrize("caller", ["sliced_wasserstein", "sinkhorn"])
def test_missing_library(monkeypatch, caller):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(InputError) as refusal:
        getattr(transport, caller)(np.zeros((30, 1)), np.zeros((30, 1)), 1.0)
    told = f"{caller} needs the library POT: pip install 'vi-demo[transport]'."
    assert str(refusal.value) == told


def test_average_has_the_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=1000)
    found = estimators.average(values)
    assert found == (pytest.approx(values.mean()), pytest.approx(values.std() / np.sqrt(1000)))
