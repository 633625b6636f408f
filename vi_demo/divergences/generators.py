"""Every f-divergence, once: a function h of r = log p − log q.

A divergence D(p, q) = E_q[f(p/q)] is written here against the midpoint m = ½(p + q),

    D(p, q) = E_m[h(r)],   h(r) = f(eʳ) / (½(1 + eʳ)),

because h neither overflows where p ≫ q nor loses its value where q ≫ p: p/m = 2σ(r) and
q/m = 2σ(−r) lie in (0, 2) for every r. The usual forms follow, E_q[½(1 + eʳ) h(r)] from draws
of q and E_p[½(1 + e⁻ʳ) h(r)] from draws of p. To each f a multiple of u − 1 is added, which
changes no divergence, such that h ≥ 0 everywhere: estimates are then never negative and vary
little where p ≈ q. Where p and q change places, r changes its sign.

All values are in nats. A new divergence is one function and its name in `F_DIVERGENCES`, its
docstring's first line being what `vi-demo run --help` says of it; `mean` makes a value of any.
Source: Csiszár (1967); Liese & Vajda (2006), doi:10.1109/TIT.2006.881731.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import logsumexp, sigmoid, softplus

from vi_demo.errors import InputError

LOG_2 = 0.6931471805599453
NEAR = 0.5  # |r| below which series keep the digits that differences would lose


def times(weight: Array, value: Array) -> Array:
    """The product, 0 where the weight is: where one of p and q is zero, 0 · log 0 = 0."""
    return jnp.where(weight == 0, 0.0, weight * jnp.where(weight == 0, 0.0, value))


def excess(r: Array) -> Array:
    """eʳ − 1 − r to full relative precision near 0."""
    near = jnp.where(jnp.abs(r) < NEAR, r, 0.0)
    series = jnp.ones_like(near)
    for n in range(16, 2, -1):
        series = 1 + near / n * series
    return jnp.where(jnp.abs(r) < NEAR, 0.5 * near**2 * series, jnp.expm1(r) - r)


def forward_kl(r: Array) -> Array:
    """KL(p‖q) = E_p[r], inclusive: what maximum likelihood minimises.

    At least 0, without upper bound; +∞ where p has mass that q lacks. Covers all of p: a guide
    pays for each draw of p that it leaves out. Kullback & Leibler (1951).
    """
    return reverse_kl(-r)


def reverse_kl(r: Array) -> Array:
    """KL(q‖p) = E_q[−r], exclusive: what maximising the ELBO minimises.

    At least 0, without upper bound; +∞ where q has mass that p lacks. Seeks what of p it can
    match: a guide pays for lying where p does not. Kullback & Leibler (1951).
    """
    near = 2 * sigmoid(-r) * excess(jnp.clip(r, -NEAR, NEAR))
    far = 2 * sigmoid(r) - 2 * times(sigmoid(-r), 1 + r)
    return jnp.where(jnp.abs(r) < NEAR, near, far)


def jeffreys(r: Array) -> Array:
    """KL(p‖q) + KL(q‖p) = ∫ (p − q) r: EUBO − ELBO.

    At least 0, without upper bound; +∞ where either has mass that the other lacks. Jeffreys
    (1946), doi:10.1098/rspa.1946.0056.
    """
    return 2 * jnp.tanh(r / 2) * r


def jensen_shannon(r: Array) -> Array:
    """½ KL(p‖m) + ½ KL(q‖m), m = ½(p + q): what one draw says of its source.

    Between 0 and log 2, which disjoint supports reach; never infinite; its root is a metric.
    Lin (1991), doi:10.1109/18.61115; Endres & Schindelin (2003), doi:10.1109/TIT.2003.813506.
    """
    # With t = tanh(r/2): ½(t r − 2 log cosh(r/2)), whose terms do not cancel near 0.
    near = jnp.clip(r, -1.0, 1.0)
    series = 0.5 * jnp.tanh(near / 2) * near - jnp.log1p(2 * jnp.sinh(near / 4) ** 2)
    far = LOG_2 - times(sigmoid(r), softplus(-r)) - times(sigmoid(-r), softplus(r))
    return jnp.where(jnp.abs(r) < 1.0, series, far)


def total_variation(r: Array) -> Array:
    """½ ∫ |p − q|: the largest error in the probability of any event.

    Between 0 and 1, which disjoint supports reach; never infinite; a metric. Gibbs & Su (2002),
    doi:10.1111/j.1751-5823.2002.tb00178.x.
    """
    return jnp.abs(jnp.tanh(r / 2))


def squared_hellinger(r: Array) -> Array:
    """½ ∫ (√p − √q)² = 1 − ∫ √(p q).

    Between 0 and 1, which disjoint supports reach; never infinite; its root is a metric.
    Hellinger (1909), doi:10.1515/crll.1909.136.210.
    """
    return jnp.tanh(r / 2) * jnp.tanh(r / 4)


def pearson_chi_square(r: Array) -> Array:
    """∫ (p − q)² / q: the relative variance of the importance weights p/q.

    At least 0, without upper bound; +∞ where p has mass that q lacks, and where q's tails are
    too light: ESS/S → 1 / (1 + χ²). Pearson (1900), doi:10.1080/14786440009463897.
    """
    return 2 * jnp.tanh(r / 2) * jnp.expm1(r)


def neyman_chi_square(r: Array) -> Array:
    """∫ (p − q)² / p: Pearson's, with p and q in each other's place.

    At least 0, without upper bound; +∞ where q has mass that p lacks, and where p's tails are
    too light. Neyman (1949).
    """
    return pearson_chi_square(-r)


F_DIVERGENCES = (
    reverse_kl,
    forward_kl,
    jeffreys,
    jensen_shannon,
    total_variation,
    squared_hellinger,
    pearson_chi_square,
    neyman_chi_square,
)


def amari(r: Array, a: Array | float) -> Array:
    """The generator of `alpha(a)`; `a` may be traced."""
    # f_a(u) = u f_{1−a}(1/u): the half a ≤ ½ serves both.
    upper = a > 0.5
    return _lower_amari(jnp.where(upper, -r, r), jnp.where(upper, 1.0 - a, a))


def _lower_amari(r: Array, a: Array) -> Array:
    """(excess(r) − excess(a r) / a) / (1 − a), over ½(1 + eʳ), for a ≤ ½."""
    no_a = a == 0
    some = jnp.where(no_a, 1.0, a)
    near = jnp.clip(r, -NEAR, NEAR)
    close = 2 * sigmoid(-r) * (excess(near) - jnp.where(no_a, 0.0, excess(a * near) / some))
    # Far out: φ = σ(−r) (eᵃʳ − 1) / a, of which σ(−r) eᵃʳ is one exponential.
    finite = jnp.where(jnp.abs(a * r) < 1, r, 0.0)
    small = sigmoid(-r) * jnp.where(no_a, finite, jnp.expm1(a * finite) / some)
    power = jnp.exp(log_power(r, some)) - sigmoid(-r)
    phi = jnp.where(jnp.abs(a * r) < 1, small, power / some)
    phi = jnp.where(no_a, times(sigmoid(-r), r), phi)
    far = 2 * (sigmoid(r) - sigmoid(-r) - phi)
    return jnp.where(jnp.abs(r) < NEAR, close, far) / (1 - a)


def log_power(r: Array, a: Array | float) -> Array:
    """Log of uᵃ / (1 + u) at u = eʳ, also at r = ±∞."""
    up, down = jnp.maximum(r, 0.0), jnp.minimum(r, 0.0)
    # times: at a = 0 and a = 1 one of the factors is 0 where r is not finite.
    return times(a - 1.0, up) + times(a, down) - softplus(-jnp.abs(r))


@dataclass(frozen=True)
class Alpha:
    """Amari's divergence of one `a`: see `alpha`. While it is traced, `a` lies in [0, 1]."""

    a: float

    @property
    def __name__(self) -> str:
        return f"alpha:{self.a:g}"

    def __call__(self, r: Array) -> Array:
        """The generator h(r)."""
        return amari(r, self.a)


@dataclass(frozen=True)
class Renyi:
    """Rényi's divergence of one order: see `renyi`. Not a mean of h, but of its logarithm."""

    order: float

    @property
    def __name__(self) -> str:
        return f"renyi:{self.order:g}"

    def __call__(self, r: Array) -> Array:
        """The generator of the f-divergence of which this is a function."""
        return amari(r, self.order)

    def of_mean(self, mean: Array) -> Array:
        """The divergence, given E_m[h(r)]: log(1 + a(a − 1) mean) / (a − 1)."""
        share = self.order * (self.order - 1.0)
        return jnp.log1p(jnp.maximum(share * mean, -1.0)) / (self.order - 1.0)


def alpha(a: float) -> Callable[[Array], Array]:
    """(∫ pᵃ q¹⁻ᵃ − 1) / (a(a − 1)): KL(q‖p) at a = 0, KL(p‖q) at 1.

    Half of Neyman's χ² at −1, four times squared Hellinger at ½, half of Pearson's χ² at 2.
    At least 0; at most 1 / (a(1 − a)) for 0 < a < 1; +∞ for a ≥ 1 where p has mass that q
    lacks, for a ≤ 0 where q has mass that p lacks, and outside [0, 1] where tails are too
    light. Amari (1985), doi:10.1007/978-1-4612-5056-2; Minka (2005), MSR-TR-2005-173.
    """
    a = _number("alpha", a)
    return {0.0: reverse_kl, 1.0: forward_kl}.get(a) or Alpha(a)


def renyi(order: float) -> Callable[[Array], Array]:
    """(log ∫ pᵃ q¹⁻ᵃ) / (a − 1) at order a > 0, whose limit at a = 1 is KL(p‖q).

    At least 0 and non-decreasing in its order, without upper bound; +∞ for a ≥ 1 where p has
    mass that q lacks, and for any order where supports are disjoint. Rényi (1961); van Erven &
    Harremoës (2014), doi:10.1109/TIT.2014.2320500.
    """
    order = _number("renyi", order)
    if order <= 0:
        raise InputError(f"renyi: its order must be above 0, not {order:g}.")
    return forward_kl if order == 1 else Renyi(order)


WITH_PARAMETER = (alpha, renyi)
LOGARITHMIC = (reverse_kl, forward_kl, jeffreys, jensen_shannon)  # measured in nats, or in bits


def _number(name: str, value: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise InputError(f"{name}: needs a number, as in {name}:0.5, not '{value}'.")
    return number


def named(name: str, beside: Iterable[str] = ()) -> Callable[[Array], Array]:
    """The generator of that name, such as `jensen_shannon`, `alpha:0.5` or `renyi:2`.

    Raises `InputError` for a name that is not one, with what else might be meant `beside` them.
    """
    plain = {f.__name__: f for f in F_DIVERGENCES}
    if name in plain:
        return plain[name]
    makers = {f.__name__: f for f in WITH_PARAMETER}
    base, _, parameter = name.partition(":")
    if base in makers:
        return makers[base](parameter)
    choices = ", ".join([*plain, *(f"{k}:A" for k in makers), *beside])
    raise InputError(f"no divergence named '{name}'; choose from {choices}.")


def log_height(f: Callable, r: Array) -> Array:
    """The logarithm of h(r), also where h overflows: there it is exponential, and continued."""
    dtype = jnp.result_type(r, float)
    low, high = anchors(f, jnp.dtype(dtype).name) if overflows(f) else (-jnp.inf, jnp.inf)
    r = jnp.asarray(r, dtype)
    lost = jnp.isinf(f(r)) & ((r < low) | (r > high)) & jnp.isfinite(r)
    within = jnp.where(lost, jnp.where(r < 0, low, high), r)
    height, slope = jax.jvp(f, (within,), (jnp.ones_like(within),))
    growth = jnp.where(lost, slope, 0.0) / jnp.where(lost, height, 1.0)
    return jnp.log(height) + growth * jnp.where(lost, r - within, 0.0)


@functools.lru_cache(maxsize=64)
def anchors(f: Callable, dtype: str) -> tuple[float, float]:
    """The least and the largest r from which h is continued: far out, but no overflow yet."""
    sizes = np.log(float(jnp.finfo(dtype).max)) * 0.5 ** np.arange(12)
    with jax.ensure_compile_time_eval():
        finite = [
            np.isfinite(np.asarray(f(jnp.asarray(1.1 * side * sizes, dtype)))) for side in (-1, 1)
        ]
    low, high = (float(0.9 * sizes[np.argmax(found)]) for found in finite)
    return -low, high


def overflows(f: Callable) -> bool:
    """Whether h(r) is too large a number for some finite r."""
    if isinstance(f, Alpha | Renyi):
        a = f.a if isinstance(f, Alpha) else f.order
        return not (isinstance(a, jax.core.Tracer) or 0 <= a <= 1)
    with jax.ensure_compile_time_eval():
        return bool(jnp.isinf(f(jnp.array([-1e6, 1e6]))).any())


def weigh(f: Callable, log_weight: Array, r: Array) -> Array:
    """e^log_weight · h(r), also where one factor overflows and the other vanishes."""
    if not overflows(f):
        return times(jnp.exp(log_weight), f(r))
    lost = jnp.isinf(jax.lax.stop_gradient(f(r))) & jnp.isfinite(r)
    within = times(jnp.exp(log_weight), f(jnp.where(lost, 0.0, r)))
    far = log_height(f, jnp.where(lost, r, jnp.ones_like(r)))
    return jnp.where(lost, jnp.exp(jnp.where(lost, log_weight, 0.0) + far), within)


def mean(f: Callable, log_weights: Array, r: Array, axis: int = -1) -> Array:
    """D = E_m[h(r)] over an axis, from log masses of the midpoint m and r = log p − log q."""
    total = weigh(f, log_weights, r).sum(axis, keepdims=True)
    if not isinstance(f, Renyi):
        return total.squeeze(axis)
    # ∫ pᵃ q¹⁻ᵃ itself where it is far from 1, its difference from 1 where it is near.
    near = jax.lax.stop_gradient(jnp.abs(f.order * (f.order - 1.0) * total) < 0.5)
    close = f.of_mean(weigh(f, log_weights, jnp.where(near, r, 0.0)).sum(axis))
    far = logsumexp(log_weights + LOG_2 + log_power(r, f.order), axis) / (f.order - 1.0)
    return jnp.where(near.squeeze(axis), close, far)
