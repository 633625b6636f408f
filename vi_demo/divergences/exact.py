"""Divergences without noise: sums over outcomes, Gaussian closed forms, quadrature.

Every value is in nats unless `base` says otherwise, and +∞ where it is: no epsilon is added to
anything. Smoothing, where it is wanted, is asked for by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.linalg import solve_triangular
from numpyro.distributions.kl import kl_divergence

from vi_demo.batching import in_sizes
from vi_demo.divergences import integration
from vi_demo.divergences.estimators import Estimate
from vi_demo.divergences.generators import (
    LOG_2,
    LOGARITHMIC,
    Renyi,
    excess,
    log_height,
    mean,
    times,
)
from vi_demo.errors import InputError

# Sums over outcomes.


def discrete(
    f: Callable, p, q, *, axis: int = -1, base: float = math.e, logits: bool = False
) -> Array:
    """D(p, q) = Σ m h(log p − log q), m = ½(p + q), of distributions over outcomes.

    `p` and `q` are probabilities that add up to one along `axis`, or with `logits` any real
    numbers; other axes are broadcast. In float32 or better, whatever comes in. `base` 2 gives
    bits for divergences that are logarithms. 0 · log 0 = 0, and the value is +∞ where it is.
    Gradients exist wherever the derivative does, at zeros from one side (where it is infinite
    there, that a hair inside is given: large and finite); with respect to probabilities they
    are along the simplex, so a constant added to all of them is nothing.
    Raises `InputError` for what is no distribution, or for a `base` of a number without unit.
    """
    unit = _unit(f, base)
    exact, inside = _log_probabilities(p, q, axis, logits)
    return (
        _with_slope(lambda log_p, log_q: _sum(f, log_p, log_q, axis), exact, inside, axis) / unit
    )


def _sum(f: Callable, log_p: Array, log_q: Array, axis: int) -> Array:
    impossible = jnp.isneginf(log_p) & jnp.isneginf(log_q)
    log_p, log_q = (jnp.where(impossible, 0.0, x) for x in (log_p, log_q))
    log_m = jnp.where(impossible, -jnp.inf, jnp.logaddexp(log_p, log_q) - LOG_2)
    return mean(f, log_m, log_p - log_q, axis)


def entropy(p, *, axis: int = -1, base: float = math.e, logits: bool = False) -> Array:
    """H(p) = −Σ p log p, from 0 to the logarithm of the number of outcomes."""
    return cross_entropy(p, p, axis=axis, base=base, logits=logits)


def cross_entropy(p, q, *, axis: int = -1, base: float = math.e, logits: bool = False) -> Array:
    """H(p, q) = −Σ p log q = H(p) + KL(p‖q): the mean length of a code made for q, used on p.

    Shapes, units and refusals as in `discrete`; +∞ where p has mass that q lacks.
    """
    exact, inside = _log_probabilities(p, q, axis, logits)

    def length(log_p, log_q):
        return -times(jnp.exp(log_p), log_q).sum(axis)

    return _with_slope(length, exact, inside, axis) / math.log(base)


def additive_smoothing(counts, amount: float = 1.0, *, axis: int = -1) -> Array:
    """(nᵢ + λ) / (N + λK): probabilities from counts, none of them zero (Laplace's at λ = 1)."""
    if not amount > 0:
        raise InputError(f"additive smoothing adds more than 0 to each count, not {amount:g}.")
    counts = jnp.asarray(counts, float)
    return (counts + amount) / (counts + amount).sum(axis, keepdims=True)


def label_smoothing(p, share: float = 0.1, *, axis: int = -1) -> Array:
    """(1 − ε) p + ε / K: mixed with the uniform (Szegedy et al. 2016, arXiv 1512.00567)."""
    p = jnp.asarray(p)
    return mixing(p, 1 / p.shape[axis], share)


def mixing(p, other, share: float) -> Array:
    """(1 − ε) p + ε · other: a mixture that has mass wherever either has."""
    if not 0 <= share <= 1:
        raise InputError(f"the share of a mixture is from 0 to 1, not {share:g}.")
    return (1 - share) * jnp.asarray(p) + share * jnp.asarray(other)


def _unit(f: Callable, base: float) -> float:
    """What a value in nats is divided by."""
    if base == math.e:
        return 1.0
    if not (base > 0 and base != 1):
        raise InputError(f"base {base:g}: a logarithm needs one above 0 that is not 1.")
    if f not in LOGARITHMIC and not isinstance(f, Renyi):
        raise InputError(f"{f.__name__} is a number without a unit; leave base out.")
    return math.log(base)


def _with_slope(fn: Callable, exact: tuple, inside: tuple, axis: int) -> Array:
    """The value of fn at `exact` with the derivatives it has at `inside`."""
    value = fn(*map(jax.lax.stop_gradient, exact))
    # Where the value is infinite there is no slope: 0, rather than what comes of ∞ · 0.
    finite = jnp.expand_dims(jnp.isfinite(value), axis)
    near = fn(*(jnp.where(finite, x, 0.0) for x in inside))
    return value + (near - jax.lax.stop_gradient(near))


def _log_probabilities(p, q, axis: int, logits: bool) -> tuple[tuple, tuple]:
    """Log p and log q, checked and broadcast: as they are, and a hair inside where one is zero.

    At r = ±∞ derivatives are 0 · ∞: they are taken where the smaller has e⁻ᵈ of the larger.
    """
    p, q = jnp.asarray(p), jnp.asarray(q)
    dtype = jnp.promote_types(jnp.result_type(p, q), jnp.float32)
    if p.ndim == 0 or q.ndim == 0 or p.shape[axis] != q.shape[axis]:
        raise InputError(
            f"p has shape {p.shape} and q {q.shape}: along axis {axis} both need one entry for "
            "each outcome."
        )
    refuse = _refuse_logits if logits else refuse_improbable
    refuse("p", p, axis), refuse("q", q, axis)
    p, q = jnp.broadcast_arrays(p.astype(dtype), q.astype(dtype))
    if logits:
        p, q = jax.nn.log_softmax(p, axis), jax.nn.log_softmax(q, axis)
        inside = _inside(p, q), _inside(q, p)
        exact = p, q
    else:
        inside = jnp.log(p + _hair(p, q)), jnp.log(q + _hair(q, p))
        exact = _log(p), _log(q)
    nowhere = jnp.isneginf(exact[0]) & jnp.isneginf(exact[1])
    return exact, tuple(jnp.where(nowhere, -jnp.inf, x) for x in inside)


def _log(x: Array) -> Array:
    """The logarithm, −∞ at 0, right for denormal numbers too, which XLA takes for 0."""
    info = np.finfo(x.dtype)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint64 if info.bits == 64 else jnp.uint32)
    denormal = (bits > 0) & (bits < 2**info.nmant)  # x is so many times the smallest number
    count = jnp.where(denormal, bits, 1).astype(x.dtype)
    least = (info.minexp - info.nmant) * LOG_2
    return jnp.where(denormal, jnp.log(count) + least, jnp.log(x))


def _hair(p: Array, q: Array) -> Array:
    """What is added to zeros of p where q has mass; 1 where neither has."""
    hair = jnp.maximum(q * jnp.exp(-_depth(q)), jnp.finfo(q.dtype).tiny)
    hair = jnp.where(p == 0, jnp.where(q == 0, 1.0, hair), 0.0)
    return jax.lax.stop_gradient(hair)


def _inside(log_p: Array, log_q: Array) -> Array:
    """The same of logarithms, 0 where neither has mass."""
    none = jnp.isneginf(log_p)
    hair = jnp.where(jnp.isneginf(log_q), 0.0, log_q - _depth(log_q))
    return jnp.where(none, jax.lax.stop_gradient(hair), jnp.where(none, 0.0, log_p))


def _depth(x: Array) -> Array:
    """d, in nats: e⁻ᵈ is what such a derivative is off by, and what rounding makes of it."""
    return -0.5 * jnp.log(jnp.finfo(x.dtype).eps)


def _refuse_logits(name: str, logits: Array, axis: int) -> None:
    """Logits without a largest one; nothing can be said of values that are being traced."""
    if isinstance(logits, jax.core.Tracer):
        return
    if not np.isfinite(np.asarray(logits, np.float64).max(axis)).all():
        raise InputError(
            f"{name}: logits need a finite largest one along axis {axis}, and no NaN."
        )


def refuse_improbable(name: str, x: Array, axis: int | tuple[int, ...]) -> None:
    """What are no probabilities; nothing can be said of values that are being traced."""
    if isinstance(x, jax.core.Tracer):
        return
    x = np.asarray(x, np.float64)
    if not (x >= 0).all():
        raise InputError(f"{name}: probabilities cannot be negative or NaN.")
    total = x.sum(axis)
    worst = total.flat[np.abs(total - 1).argmax()] if total.size else 1.0
    if abs(worst - 1) > 1e-2:  # as far as bfloat16 rounds
        raise InputError(
            f"{name}: its probabilities add up to {worst:.4g} along axis {axis}, not to 1; "
            "divide them by their sum."
        )


# Gaussian closed forms, through Cholesky factors.


def gaussian_kl(p: dist.Distribution, q: dist.Distribution) -> Array:
    """KL(p‖q) = ½ (‖M‖² + ‖z‖² − d) − Σ log Mᵢᵢ, with M = L_q⁻¹ L_p and z = L_q⁻¹ (μ_p − μ_q).

    Of diagonal (`Normal(...).to_event(1)`), full and low-rank Gaussians on R^d, mixed as they
    come; two of one kind go to NumPyro's own `kl_divergence` where it has them.
    """
    z, m = _whitened(p, q)
    if {type(p), type(q)} == {dist.Independent}:
        return kl_divergence(p, q)
    diagonal = jnp.diagonal(m)
    # Term by term, so that nothing cancels where p and q are close.
    off = (jnp.tril(m, -1) ** 2).sum()
    return 0.5 * (excess(2 * jnp.log(diagonal)).sum() + off + (z**2).sum())


def gaussian_renyi(p: dist.Distribution, q: dist.Distribution, order: float) -> Array:
    """Rényi's divergence: a/2 ‖S^-½ z‖² − (log |S| − 2(1 − a) Σ log Mᵢᵢ) / (2(a − 1)).

    S = a I + (1 − a) M Mᵀ in coordinates where q is standard; +∞ where S is not positive
    definite, which is where tails of q are too light. At order 1 the KL divergence. Gil,
    Alajaji & Linder (2013), doi:10.1016/j.ins.2013.06.018.
    """
    if not order > 0:
        raise InputError(f"Rényi's order must be above 0, not {order:g}.")
    if order == 1:
        return gaussian_kl(p, q)
    z, m = _whitened(p, q)
    s = order * jnp.eye(len(z)) + (1 - order) * m @ m.T
    factor = jnp.linalg.cholesky(s)
    shift = (solve_triangular(factor, z, lower=True) ** 2).sum()
    logs = 2 * (jnp.log(jnp.diagonal(factor)) - (1 - order) * jnp.log(jnp.diagonal(m))).sum()
    value = 0.5 * order * shift - 0.5 * logs / (order - 1)
    return jnp.where(jnp.isnan(factor).any(), jnp.inf, value)


def gaussian_bhattacharyya(p: dist.Distribution, q: dist.Distribution) -> Array:
    """−log ∫ √(p q), half of Rényi's divergence of order ½ (Bhattacharyya 1943)."""
    return 0.5 * gaussian_renyi(p, q, 0.5)


def gaussian_squared_hellinger(p: dist.Distribution, q: dist.Distribution) -> Array:
    """1 − ∫ √(p q), between 0 and 1."""
    return -jnp.expm1(-gaussian_bhattacharyya(p, q))


def gaussian_wasserstein(p: dist.Distribution, q: dist.Distribution) -> Array:
    """The 2-Wasserstein distance √(‖μ_p − μ_q‖² + min_U ‖L_p − L_q U‖²), in units of x.

    The minimum over rotations U, by one singular value decomposition, is Σ_p + Σ_q's trace less
    2 tr (Σ_p^½ Σ_q Σ_p^½)^½ without the difference. Dowson & Landau (1982),
    doi:10.1016/0047-259X(82)90077-X.
    """
    (mean_p, factor_p), (mean_q, factor_q) = _pair(p, q)
    left, _, right = jnp.linalg.svd(factor_q.T @ factor_p)
    # At its minimum the distance does not change with U, whose own slope may not exist.
    apart = factor_p - factor_q @ jax.lax.stop_gradient(left @ right)
    return jnp.sqrt(((mean_p - mean_q) ** 2).sum() + (apart**2).sum())


def _factored(gaussian: dist.Distribution) -> tuple[Array, Array]:
    """Mean (d,) and Cholesky factor (d, d) of a Gaussian on R^d."""
    if isinstance(gaussian, dist.MultivariateNormal):
        return gaussian.loc, gaussian.scale_tril
    if isinstance(gaussian, dist.LowRankMultivariateNormal):
        covariance = gaussian.cov_factor @ gaussian.cov_factor.mT
        covariance += jnp.diag(gaussian.cov_diag)
        return gaussian.loc, jnp.linalg.cholesky(covariance)
    base = gaussian
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if isinstance(base, dist.Normal) and gaussian.event_dim == 1:
        return gaussian.mean, jnp.diag(jnp.broadcast_to(base.scale, gaussian.mean.shape))
    raise InputError(
        f"{type(gaussian).__name__} is no Gaussian on R^d: use Normal(...).to_event(1), "
        "MultivariateNormal or LowRankMultivariateNormal."
    )


def _pair(p: dist.Distribution, q: dist.Distribution) -> tuple[tuple, tuple]:
    """Means and Cholesky factors of two Gaussians on one R^d."""
    for name, gaussian in (("p", p), ("q", q)):
        if gaussian.batch_shape:
            raise InputError(
                f"{name} is a batch of Gaussians, {gaussian.batch_shape}: take jax.vmap over it."
            )
    both = _factored(p), _factored(q)
    if p.event_shape != q.event_shape:
        raise InputError(f"p has dimensions {p.event_shape} and q {q.event_shape}: need one R^d.")
    return both


def _whitened(p: dist.Distribution, q: dist.Distribution) -> tuple[Array, Array]:
    """Z (d,) and M (d, d): the mean and the Cholesky factor of p where q is standard."""
    (mean_p, factor_p), (mean_q, factor_q) = _pair(p, q)
    z = solve_triangular(factor_q, mean_p - mean_q, lower=True)
    return z, solve_triangular(factor_q, factor_p, lower=True)


# Quadrature.

STARTS = {1: np.sinh(np.linspace(-14, 14, 225)), 2: np.sinh(np.linspace(-9, 9, 25))}
CLIMB = 60  # Newton steps at most: quadratic log densities take one
CUTS = {1: (-30, -10, -4, 0, 4, 10, 30), 2: (-8, 0, 8)}  # local sds around a mode
MOST_MODES = {1: 24, 2: 6}
FAR = 10.0 ** np.arange(1, 7)  # in extents of all modes, to see whether there is an end
LARGEST = math.log(np.finfo(float).max)
WHOLE = 1e-4  # how far an integral over p or q may be from 1


def quadrature(f: Callable, log_p: Callable, log_q: Callable, dim: int = 1) -> Estimate:
    """D(p, q) by adaptive cubature in log space, with its error bound in place of a mcse.

    `log_p` and `log_q` are normalised log densities of one point, a scalar in one dimension
    and (2,) in two, that JAX can differentiate. The integrand ½(p + q) h(r) is cut around every
    mode of either, which Newton steps from a wide grid find: so far and narrow guides are not
    stepped over. Raises `InputError` where p or q does not integrate to 1, for a mode may then
    have been missed, or it is not normalised.
    """
    if dim not in STARTS:
        raise InputError(f"quadrature works in 1 and 2 dimensions, not in {dim}.")

    def at(log_density):
        shape = () if dim == 1 else (dim,)
        fn = jax.jit(jax.vmap(lambda x: log_density(x.reshape(shape)).reshape(())))
        return in_sizes(lambda x: jnp.nan_to_num(fn(x), nan=-jnp.inf))

    logs = [at(g) for g in (log_p, log_q)]
    one = [lambda x, g=g: g(x if dim > 1 else x[0]) for g in (log_p, log_q)]
    around = np.concatenate([_cuts(*_peaks(g, dim), dim) for g in one])
    for name, log in zip(("p", "q"), logs, strict=True):
        total = math.exp(_integral(log, around, WHOLE / 10)[0])
        if abs(total - 1) > WHOLE:
            raise InputError(
                f"log_{name} integrates to {total:.4g}, not to 1: normalise it, or give one "
                "whose modes Newton steps can find."
            )

    def integral(log_term, more=None):
        term = jax.jit(log_term)
        cuts = around if more is None else np.concatenate([around, _cuts(*more, dim)])
        return _integral(lambda x: np.asarray(term(*(log(x) for log in logs))), cuts)

    def power(a, b):
        return times(f.order, a) + times(1 - f.order, b)

    log_mean, error = integral(lambda a, b: _log_term(f, a, b))
    value = math.exp(log_mean) if log_mean < LARGEST else math.inf
    if not isinstance(f, Renyi):
        return Estimate(value, value * error if value < math.inf else 0.0)
    share = f.order * (f.order - 1)
    if abs(share * value) < 0.5:
        return Estimate(float(f.of_mean(value)), f.order * value * error)
    # Its peak may be far from those of p and q: climb it, too.
    log_total, error = integral(power, _peaks(lambda x: power(*(g(x) for g in one)), dim))
    return Estimate(log_total / (f.order - 1), error / abs(f.order - 1))


def _log_term(f: Callable, log_p: Array, log_q: Array) -> Array:
    """Log of ½(p + q) h(r)."""
    log_m = jnp.logaddexp(log_p, log_q) - LOG_2
    nowhere = jnp.isneginf(log_m)
    r = jnp.where(nowhere, 1.0, log_p) - jnp.where(nowhere, 0.0, log_q)
    return jnp.where(nowhere, -jnp.inf, log_m + log_height(f, r))


def _integral(log_terms: Callable, cuts: np.ndarray, tolerance: float = 1e-10) -> tuple:
    """Log ∫ exp(log_terms) with its relative error, cells being cut through these points.

    Its own peak may be far from theirs, as that of p²/q: where one much higher comes up, cells
    are cut there too.
    """
    scale, axes = np.maximum(np.ptp(cuts, axis=0), 1e-300), np.eye(cuts.shape[1])
    rays = [cuts.mean(0) + side * FAR[:, None] * scale * axis for axis in axes for side in (1, -1)]
    seen = integration.Highest(cuts, log_terms(cuts))
    beyond = log_terms(np.concatenate(rays)).reshape(-1, len(FAR))
    if seen.value == np.inf or (beyond[:, -1] > np.maximum(beyond[:, 0], seen.value)).any():
        return math.inf, 0.0  # it grows for ever
    if seen.value == -np.inf:
        return -math.inf, 0.0

    def watched(points):
        heights = log_terms(points)
        seen.look(points, heights)
        return heights

    for _ in range(integration.RESTARTS):
        peak = seen.value
        _, value, error, _ = integration.divide(watched, cuts, scale, peak, tolerance)
        if seen.value < peak + integration.MISSED_PEAK:
            break
        cuts = np.concatenate([cuts, seen.point[None]])
    if not value > 0:
        raise InputError(
            "quadrature found no mass where Newton steps from a wide grid lead: it is too narrow, "
            "or has no slope to follow."
        )
    return peak + math.log(value), error / value


def _peaks(log_density: Callable, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Modes (k, d) of a log density, the highest first, and the local sd in each coordinate."""
    grid = np.stack(np.meshgrid(*[STARTS[dim]] * dim, indexing="ij"), -1).reshape(-1, dim)
    ends, heights, scales = map(np.asarray, _climb(log_density, jnp.asarray(grid)))
    good = np.isfinite(heights) & np.isfinite(ends).all(1) & np.isfinite(scales).all(1)
    order = np.argsort(-heights[good])
    ends, scales = ends[good][order], scales[good][order]
    kept = []
    for i, end in enumerate(ends):
        if all((np.abs(end - ends[j]) > 0.5 * scales[j]).any() for j in kept):
            kept.append(i)
    kept = kept[: MOST_MODES[dim]]
    return ends[kept], scales[kept]


def _climb(log_density: Callable, starts: Array) -> tuple[Array, Array, Array]:
    """Ends of Newton's ascent from many points, their log densities and local sds.

    Along each eigenvector the step is gradient / |curvature|, so that it leads uphill where the
    density is not concave too; the longest of its halvings that gains is taken.
    """
    sizes = 0.5 ** jnp.arange(-1.0, 11.0)
    reaches = 2.0 ** jnp.arange(-40.0, 41.0)

    def eigen(x):
        values, vectors = jnp.linalg.eigh(jax.hessian(log_density)(x))
        return jnp.maximum(jnp.abs(values), jnp.finfo(x.dtype).tiny), vectors

    def step(x, _):
        values, vectors = eigen(x)
        newton = vectors @ (vectors.T @ jax.grad(log_density)(x) / values)
        tried = jnp.concatenate([x[None], x + sizes[:, None] * newton])
        heights = jax.vmap(log_density)(tried)
        best = jnp.argmax(jnp.where(jnp.isfinite(heights), heights, -jnp.inf))
        return tried[best], None

    def widths(x):
        """How far the density falls by half a nat along each axis: one sd of a Gaussian."""

        def along(axis):
            here = log_density(x)
            fallen = [
                here - jax.vmap(log_density)(x + side * reaches[:, None] * axis)
                for side in (1, -1)
            ]
            drop = jnp.minimum(*(jnp.where(jnp.isnan(d), jnp.inf, d) for d in fallen))
            return reaches[jnp.argmax(drop >= 0.5)]

        return jax.vmap(along)(jnp.eye(x.size))

    def climb(x):
        x, _ = jax.lax.scan(step, x, length=CLIMB)
        return x, log_density(x), widths(x)

    return jax.jit(jax.vmap(climb))(starts)


def _cuts(ends: np.ndarray, scales: np.ndarray, dim: int) -> np.ndarray:
    """Points (n, d) at and around modes, where cells begin."""
    steps = np.array(CUTS[dim])[:, None]
    points = (ends[:, None] + steps * scales[:, None]).reshape(-1, dim)
    return points[np.isfinite(points).all(1)]
