"""Divergences and expectations from draws, each with its Monte Carlo error.

p is the target, q the guide and r = log p − log q. What each estimator assumes stands in its
docstring; how often its stated error holds is measured in docs/estimators.md. A mean that is
infinite has error 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_softmax, logsumexp, softplus
from scipy.spatial import KDTree

from vi_demo.divergences.generators import LOG_2, Renyi, mean
from vi_demo.errors import InputError

LEAST_TERMS = 25
LIGHT = 1e-12  # of the heaviest node
BATCHES = 10  # of draws, whose spread tells the error of nearest neighbours


class Estimate(NamedTuple):
    """A value and its Monte Carlo standard error, in the value's own units."""

    value: float
    mcse: float


class Draws(NamedTuple):
    """Weighted points of one distribution: `points` (n, d), `weights` (n,) adding up to one.

    `blocks` (n,) numbers the independent runs the points come from, where points within a run
    depend on each other. Nodes of a quadrature are `exact`: their sums have no Monte Carlo
    error; `boxes` (n, 2, d) are the lower and upper corners of what each node stands for.
    """

    points: np.ndarray
    weights: np.ndarray
    blocks: np.ndarray | None = None
    boxes: np.ndarray | None = None

    @property
    def exact(self) -> bool:
        """Whether sums over these points have no Monte Carlo error."""
        return self.boxes is not None


def equal_weights(points: np.ndarray, blocks: np.ndarray | None = None) -> Draws:
    """Draws of equal weight."""
    return Draws(points, np.full(len(points), 1 / len(points)), blocks)


def resample(draws: Draws, number: int, seed: int) -> np.ndarray:
    """Points (number, d) of equal weight, by systematic resampling in random order.

    A node of a quadrature gives points spread over what it stands for.
    """
    rng = np.random.default_rng(seed)
    grid = (np.arange(number) + rng.random()) / number
    index = np.minimum(np.searchsorted(np.cumsum(draws.weights), grid), len(draws.points) - 1)
    index = rng.permutation(index)
    if draws.boxes is None:
        return draws.points[index]
    lower, upper = draws.boxes[index, 0], draws.boxes[index, 1]
    return lower + rng.random(lower.shape) * (upper - lower)


def expectation(values: np.ndarray, draws: Draws) -> Estimate:
    """Σ wᵢ vᵢ with its standard error √(Σ wᵢ² (vᵢ − v̄)²), or 0 on quadrature nodes.

    Where the draws come in blocks, the error is at least the spread of the blocks' own means:
    dependence within a run is invisible from inside it. Values of infinite size give an
    infinite mean, with no error.
    """
    w = draws.weights
    with np.errstate(invalid="ignore"):
        values = np.where(w > 0, values, 0.0)
        mean = float(np.sum(w * values))
    if draws.exact or not np.isfinite(mean):
        return Estimate(mean, 0.0)
    # In units of the farthest value, whose square could be too large for a number.
    unit = np.max(np.abs(values - mean)) or 1.0
    variance = float(np.sum((w * ((values - mean) / unit)) ** 2))
    if draws.blocks is not None:
        masses = np.bincount(draws.blocks, w)
        means = np.bincount(draws.blocks, w * values) / masses
        shares = masses / masses.sum()
        count = len(masses)
        between = np.sum((shares * ((means - mean) / unit)) ** 2) * count / max(count - 1, 1)
        variance = max(variance, float(between))
    return Estimate(mean, float(unit * np.sqrt(variance)))


def effective_sample_size(log_weights: np.ndarray) -> float:
    """(Σ w)² / Σ w² from unnormalised log weights (Kish 1965)."""
    w = np.exp(log_weights - np.max(log_weights))
    return float(w.sum() ** 2 / np.sum(w**2))


def divergence(
    f: Callable,
    log_ratio_p: np.ndarray,
    draws_p: Draws,
    log_ratio_q: np.ndarray,
    draws_q: Draws,
    log_ratio_mcse: float = 0.0,
) -> Estimate:
    """D(p, q) of one generator from draws of both p and q, in nats.

    ½ E_p[h(r)] + ½ E_q[h(r)], which is E_m[h(r)] for the midpoint m: each region is seen by the
    distribution that has mass there, so neither p ≫ q nor q ≫ p is missed. `log_ratio_p` and
    `log_ratio_q` are r = log p − log q, both normalised, at the draws of each. The error of the
    log evidence, `log_ratio_mcse`, shifts every r alike and is carried through by differences.
    """

    def at(shift):
        from_p = expectation(np.asarray(f(log_ratio_p + shift)), draws_p)
        from_q = expectation(np.asarray(f(log_ratio_q + shift)), draws_q)
        return 0.5 * (from_p.value + from_q.value), 0.5 * np.hypot(from_p.mcse, from_q.mcse)

    value, mcse = at(0.0)
    if log_ratio_mcse > 0 and np.isfinite(value):
        slope = 0.5 * (at(log_ratio_mcse)[0] - at(-log_ratio_mcse)[0])
        mcse = float(np.hypot(mcse, slope))
    return Estimate(float(value), float(mcse))


def finished(f: Callable, mean_of_h: Estimate) -> Estimate:
    """The divergence of which E_m[h] is the mean: itself, unless it is Rényi's."""
    if not isinstance(f, Renyi):
        return mean_of_h
    value, error = mean_of_h
    slope = abs(float(jax.grad(f.of_mean)(value)))
    return Estimate(float(f.of_mean(value)), slope * error)


def seen_whole(
    f: Callable,
    log_ratio_p: np.ndarray,
    draws_p: Draws,
    log_ratio_q: np.ndarray,
    draws_q: Draws,
) -> bool:
    """Whether E_m[h] is a mean of many terms, not what a few in the tails make of it.

    Of Monte Carlo draws at least `LEAST_TERMS` have to carry it. Nodes of a quadrature end where
    their own density does: what those of next to no weight carry shows what lies beyond.
    """
    total, light, norm = 0.0, 0.0, 0.0
    for r, draws in ((log_ratio_p, draws_p), (log_ratio_q, draws_q)):
        with np.errstate(invalid="ignore", over="ignore"):
            terms = np.where(draws.weights > 0, draws.weights * np.asarray(f(r)), 0.0)
        total += terms.sum()
        if draws.exact:
            light += terms[draws.weights < LIGHT * draws.weights.max()].sum()
        else:
            with np.errstate(over="ignore"):
                norm = np.hypot(norm, np.linalg.norm(terms))
    return bool(total == 0 or (light < 0.01 * total and norm < total / LEAST_TERMS**0.5))


# From draws of one side.


def k1(r: np.ndarray) -> Estimate:
    """KL(q‖p) as the mean of −r over draws of q.

    mean −rᵢ, with Var −r = Var_q(r). `r` (n,) is log p − log q at draws of q; nats. Unbiased
    for any n; single draws are often negative, and with few draws so is the mean. Where p lacks
    its normaliser Z it is off by −log Z. From draws of p, `k1(-r)` is KL(p‖q), and likewise
    `k2(-r)` and `k3(-r)`. Assumes independent draws and a finite variance of r.
    Raises `InputError` for fewer than 2 draws, and for r = NaN or +∞, where q would have drawn
    what it has no density for. Source: Schulman (2020), "Approximating KL divergence",
    joschu.net/blog/kl-approx.html.
    """
    return average(-_log_ratios(r, np.inf))


def k2(r: np.ndarray) -> Estimate:
    """KL(q‖p) as the mean of ½ r² over draws of q, biased: for p near q only.

    mean ½ rᵢ², with Var ½ r² = ¼ Var_q(r²). Its own target is E_q[½ r²], away from KL(q‖p) by
    E_q[1 + r + ½ r² − eʳ] = −Σ_{k≥3} E_q[rᵏ] / k!, which no number of draws removes: for two
    Gaussians of one covariance it is ½ KL². Never negative, and never cancelled by signs.
    `r` (n,) as in `k1`, nats. Assumes independent draws, |r| ≪ 1 and normalised p and q.
    Raises `InputError` as in `k1`. Source: Schulman (2020), as there.
    """
    with np.errstate(over="ignore"):
        return average(0.5 * _log_ratios(r, np.inf) ** 2)


def k3(r: np.ndarray) -> Estimate:
    """KL(q‖p) as the mean of eʳ − 1 − r over draws of q: never negative.

    mean e^rᵢ − 1 − rᵢ, k1 with the control variate eʳ − 1 of mean 0. Unbiased where p and q are
    normalised (with a normaliser Z left out of p it is off by Z − 1 − log Z), and

        Var k3 = χ²(p‖q) + Var_q(r) − 2 (KL(p‖q) + KL(q‖p)),   χ² = E_q[(p/q)²] − 1:

    below that of k1 where χ² < 2 (KL(p‖q) + KL(q‖p)), infinite where E_q[(p/q)²] is. Then the
    value is mostly too low, the missing part waits in rare draws, and the error says nothing.
    `r` (n,) as in `k1`, nats. Assumes independent draws and a finite E_q[(p/q)²].
    Raises `InputError` as in `k1`. Source: Schulman (2020), as there.
    """
    r = _log_ratios(r, np.inf)
    with np.errstate(over="ignore"):
        return average(np.expm1(r) - r)


def from_guide(f: Callable, r: np.ndarray) -> Estimate:
    """D(p, q) of any generator from draws of q alone.

    E_q[½(1 + eʳ) h(r)]. `f` is a generator of `vi_demo.divergences.generators`, h in its
    terms, Rényi's among them; `r` (n,) = log p − log q, both normalised, at draws of q; nats
    where the divergence has them. Of KL(q‖p) it is `k3`. What p has outside the draws is not
    seen. Assumes independent draws and a finite variance of ½(1 + eʳ) h(r): finite means of
    (p/q)² r² for KL(p‖q), and of (p/q)⁴ for χ²(p‖q).
    Raises `InputError` as in `k1`. Source: Csiszár (1967); Liese & Vajda (2006),
    doi:10.1109/TIT.2006.881731.
    """
    return _by_influence(_over_guide, f, _log_ratios(r, np.inf))


def from_target(f: Callable, r: np.ndarray) -> Estimate:
    """D(p, q) of any generator from draws of p alone.

    E_p[½(1 + e⁻ʳ) h(r)]. `f`, `r` and units as in `from_guide`, the draws (n,) being of p.
    Assumes independent draws of p, normalised p and q, and a finite variance of
    ½(1 + e⁻ʳ) h(r), which for KL(q‖p) needs a finite E_p[(q/p)² r²].
    Raises `InputError` as in `k1`, for −∞ instead of +∞. Source: as in `from_guide`.
    """
    return _by_influence(_over_target, f, _log_ratios(r, -np.inf))


def self_normalised(f: Callable, log_weights: np.ndarray) -> Estimate:
    """D(p, q) of any generator from draws of q, the normaliser of p being unknown.

    `from_guide` at rᵢ = ℓᵢ − log Ẑ, Ẑ = mean exp(ℓᵢ), the same draws giving Ẑ and the mean.
    `log_weights` (n,) are ℓ = log p̃ − log q with any constant; q is normalised. Its error is
    that of the delta method, by influence functions, with Ẑ's part in it; its bias is O(1/n).
    Assumes independent draws of q that reach all of p, with E_q[(p/q)²] finite: where few
    weights carry the sum, value and error are both too small (KL(p‖q) stays below log n).
    Raises `InputError` as in `k1`, and where no draw has any weight.
    Source: Owen (2013), "Monte Carlo theory, methods and examples", ch. 9.
    """
    log_weights = _log_ratios(log_weights, np.inf)
    if np.isneginf(log_weights).all():
        raise InputError("all log weights are -inf: p has no density at any draw; check log p.")
    return _by_influence(_over_normalised, f, log_weights)


def average(values: np.ndarray) -> Estimate:
    """The mean of independent values (n,) and its standard error, sd / √n."""
    with np.errstate(over="ignore"):
        return expectation(values, equal_weights(values))


def _over_guide(f: Callable, log_masses: Array, r: Array) -> Array:
    return mean(f, log_masses + softplus(r) - LOG_2, r)


def _over_target(f: Callable, log_masses: Array, r: Array) -> Array:
    return mean(f, log_masses + softplus(-r) - LOG_2, r)


def _over_normalised(f: Callable, log_masses: Array, log_weights: Array) -> Array:
    r = log_weights - logsumexp(log_masses + log_weights)
    # The normaliser does not move r = −∞, where the chain rule would be 0 · ∞.
    return _over_guide(f, log_masses, jnp.where(jnp.isneginf(log_weights), -jnp.inf, r))


def _by_influence(functional: Callable, f: Callable, r: np.ndarray) -> Estimate:
    """A functional of the draws' masses, at 1/n each, with its standard error."""
    value, error = _with_error(functional, f, jnp.asarray(r))
    return Estimate(float(value), float(error))


@partial(jax.jit, static_argnums=(0, 1))
def _with_error(functional: Callable, f: Callable, r: Array) -> tuple[Array, Array]:
    # n ∂/∂(log mass of a draw) is the influence function at that draw, its mean being zero.
    value, slopes = jax.value_and_grad(lambda t: functional(f, log_softmax(t), r))(
        jnp.zeros(len(r))
    )
    return value, jnp.where(jnp.isfinite(value), jnp.sqrt(jnp.sum(slopes**2)), 0.0)


def _log_ratios(r: np.ndarray, impossible: float) -> np.ndarray:
    """Log ratios (n,) that are numbers, `impossible` being the infinity no draw can have."""
    r = np.asarray(r, dtype=float)
    if r.ndim != 1 or len(r) < 2:
        raise InputError(f"log ratios of shape {r.shape}: give one per draw, for 2 or more draws.")
    wrong = np.flatnonzero(np.isnan(r) | (r == impossible))
    if wrong.size:
        raise InputError(
            f"log ratio {r[wrong[0]]:g} at draw {wrong[0]} ({wrong.size} such of {len(r)}): "
            "what was drawn has density where it was drawn from; check both log densities there."
        )
    return r


# From draws of both sides, without densities.


def nearest_neighbour(x: np.ndarray, y: np.ndarray, k: int = 5) -> Estimate:
    """KL(p‖q) from the distances of p's draws to their neighbours in both samples.

    d/n Σ log(νₖ(xᵢ) / ρₖ(xᵢ)) + log(m / (n − 1)), where ρₖ(xᵢ) is the distance of xᵢ to its
    k-th neighbour among the other x, and νₖ(xᵢ) to its k-th among the y. `x` (n, d) are draws of
    p, `y` (m, d) of q; nats. The error is the spread over ten batches, the terms of one sample
    sharing their neighbours. It does not contain the bias, which falls ever more slowly with n
    as d grows and is several times the error at d = 10 (docs/estimators.md). Assumes
    independent draws of densities, none repeated, on coordinates of like scale.
    Raises `InputError` for repeated draws and for fewer than 10 (k + 1) of either.
    Source: Wang, Kulkarni & Verdú (2009), doi:10.1109/TIT.2009.2016060.
    """
    if k < 1:
        raise InputError(f"nearest_neighbour: k is a number of neighbours from 1 on, not {k}.")
    x, y = two_samples(x, y, least=BATCHES * (k + 1))
    spread = [_neighbours(*pair, k) for pair in zip(_batches(x), _batches(y), strict=True)]
    return Estimate(_neighbours(x, y, k), float(np.std(spread, ddof=1) / np.sqrt(BATCHES)))


def _neighbours(x: np.ndarray, y: np.ndarray, k: int) -> float:
    among_x, _ = KDTree(x).query(x, [2, k + 1])  # the first is the point itself
    among_y, _ = KDTree(y).query(x, [1, k])
    if not (among_x[:, 0].all() and among_y[:, 0].all()):
        raise InputError("repeated draws, at distance zero: remove them, or thin the chains.")
    ratios = np.log(among_y[:, 1] / among_x[:, 1])
    return float(x.shape[1] * ratios.mean() + np.log(len(y) / (len(x) - 1)))


def _batches(draws: np.ndarray) -> list[np.ndarray]:
    """Ten random batches: draws may come in some order."""
    shuffled = np.random.default_rng(0).permutation(draws)
    return [shuffled[b::BATCHES] for b in range(BATCHES)]


def two_samples(x: np.ndarray, y: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws (n, d) and (m, d) of two distributions; raises `InputError` for what is not."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(f"draws of shapes {x.shape} and {y.shape}: give (n, d) and (m, d).")
    if min(len(x), len(y)) < least:
        raise InputError(f"{len(x)} and {len(y)} draws: this needs at least {least} of each.")
    for name, draws in (("first", x), ("second", y)):
        if not np.isfinite(draws).all():
            raise InputError(f"the {name} draws have NaN or infinite entries: remove those rows.")
    return x, y
