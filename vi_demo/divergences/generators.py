"""Every f-divergence, once: a function h of r = log p − log q.

A divergence D(p, q) = E_q[f(p/q)] is written here against the midpoint m = ½(p + q),

    D(p, q) = E_m[h(r)],   h(r) = f(eʳ) / (½(1 + eʳ)),

because h neither overflows where p ≫ q nor loses its value where q ≫ p: p/m = 2σ(r) and
q/m = 2σ(−r) lie in (0, 2) for every r. The usual forms follow, E_q[½(1 + eʳ) h(r)] from draws
of q and E_p[½(1 + e⁻ʳ) h(r)] from draws of p. To each f a multiple of u − 1 is added, which
changes no divergence, such that h ≥ 0 everywhere: estimates are then never negative and vary
little where p ≈ q.

All values are in nats. A new divergence is one function and its name in `F_DIVERGENCES`.
Source: Csiszár (1967); Liese & Vajda (2006), doi:10.1109/TIT.2006.881731.
"""

import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid, softplus

LOG_2 = 0.6931471805599453


def times(weight: Array, value: Array) -> Array:
    """The product, 0 where the weight is: where one of p and q is zero, 0 · log 0 = 0."""
    return jnp.where(weight == 0, 0.0, weight * jnp.where(weight == 0, 0.0, value))


def reverse_kl(r: Array) -> Array:
    """KL(q‖p) = E_q[−r], exclusive: +∞ where q has mass that p lacks; what the ELBO minimises."""
    return 2 * jnp.tanh(r / 2) - 2 * times(sigmoid(-r), r)


def forward_kl(r: Array) -> Array:
    """KL(p‖q) = E_p[r], inclusive: +∞ where p has mass that q lacks; maximum likelihood."""
    return reverse_kl(-r)


def jensen_shannon(r: Array) -> Array:
    """½ KL(p‖m) + ½ KL(q‖m) with m = ½(p + q), at most log 2 (Lin 1991)."""
    return LOG_2 - times(sigmoid(r), softplus(-r)) - times(sigmoid(-r), softplus(r))


def total_variation(r: Array) -> Array:
    """½ ∫ |p − q|, at most 1: the largest error in the probability of any event."""
    return jnp.abs(jnp.tanh(r / 2))


F_DIVERGENCES = (reverse_kl, forward_kl, jensen_shannon, total_variation)
