"""From a divergence to what a fitter minimises, and which of them a target allows.

Three routes, each a function of a guide's parameters on draws that stay fixed while it is
minimised, so that a line search sees one smooth function (Giordano et al. 2024, arXiv
2304.05527):

- through the guide's own draws, for reverse KL: needs log p, up to its constant;
- through weighted draws of the target, for forward KL: needs draws of p alone;
- through both at the midpoint of p and q, for every other: needs draws and the normalised log p.

Draws of the guide are its transformed noise, stratified with masses for a mixture. In reverse KL
they stick the landing: log q passes its gradient through the draws alone, since the rest is zero
on average and nothing but noise (Roeder et al. 2017, arXiv 1703.09194).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import logsumexp, ndtri
from scipy.stats import qmc

from vi_demo.approximations import APPROXIMATIONS
from vi_demo.divergences.generators import (
    F_DIVERGENCES,
    LOG_2,
    Renyi,
    forward_kl,
    mean,
    reverse_kl,
)
from vi_demo.divergences.generators import named as divergence_named
from vi_demo.errors import InputError
from vi_demo.guides import Family
from vi_demo.target import Target, finite_or_minus_inf


class TargetDraws(NamedTuple):
    """Weighted draws of a target: points (n, d), log weights and normalised log p (n,)."""

    points: Array
    log_weights: Array
    log_p: Array
    log_evidence: float


Loss = Callable[[dict, Array, TargetDraws | None], Array]


def loss_of(f: Callable, target: Target, family: Family) -> Loss:
    """What is minimised for a divergence: (parameters, noise, draws of the target) -> nats."""
    if f is reverse_kl:
        return lambda params, noise, draws: through_guide(target, family, params, noise)
    if f is forward_kl:
        return lambda params, noise, draws: through_draws(family, params, draws)
    return lambda params, noise, draws: through_both(f, target, family, params, noise, draws)


def through_guide(target: Target, family: Family, params: dict, noise: Array) -> Array:
    """E_q[log q − log p]: KL(q‖p) less the log evidence."""
    points, log_masses = family.draw(params, noise)
    frozen = family.distribution(jax.lax.stop_gradient(params))
    log_p = jax.vmap(target.log_density)(points)
    return jnp.sum(jnp.exp(log_masses) * (frozen.log_prob(points) - log_p))


def through_draws(family: Family, params: dict, draws: TargetDraws) -> Array:
    """−E_p[log q]: KL(p‖q) less what no guide can change."""
    return -jnp.exp(draws.log_weights) @ family.distribution(params).log_prob(draws.points)


def through_both(
    f: Callable, target: Target, family: Family, params: dict, noise: Array, draws: TargetDraws
) -> Array:
    """log(1 + D), D = ½ E_p[h(r)] + ½ E_q[h(r)]: as D where it is small, and tame where not.

    Rényi's divergence, a logarithm already, is taken as it is.
    """
    q = family.distribution(params)
    points, log_masses = family.draw(params, noise)
    log_p = finite_or_minus_inf(jax.vmap(target.log_density)(points)) - draws.log_evidence
    r = [draws.log_p - q.log_prob(draws.points), log_p - q.log_prob(points)]
    log_weights = jnp.concatenate([draws.log_weights, log_masses]) - LOG_2
    value = mean(f, log_weights, jnp.concatenate(r))
    return value if isinstance(f, Renyi) else jnp.log1p(value)


def normal_noise(key: Array, number: int, dim: int, whiten: bool = True) -> Array:
    """Standard normal noise (number, dim) from a scrambled Sobol sequence (Owen 1998).

    Whitened, its mean is exactly 0 and its covariance exactly I: then nothing of reverse KL's
    score is left on Gaussian guides. Unwhitened it is unbiased, as a proposal has to be.
    """
    noise = normal_of(sobol(key, dim), number)
    if whiten and number > 2 * dim:
        noise -= noise.mean(0)
        factor = np.linalg.cholesky(noise.T @ noise / number)
        noise = np.linalg.solve(factor, noise.T).T
    return jnp.asarray(noise)


def sobol(key: Array, dim: int, drawn: int = 0) -> qmc.QMCEngine:
    """A scrambled Sobol sequence, the same for the same key of JAX's, after so many points."""
    seed = np.asarray(jax.random.key_data(key)).ravel()
    rng = np.random.default_rng(seed)
    # No Sobol sequence is known of more dimensions than that; each coordinate is still even.
    sequence = (qmc.Sobol if dim <= qmc.Sobol.MAXDIM else qmc.LatinHypercube)(dim, rng=rng)
    return sequence.fast_forward(drawn) if drawn else sequence


def normal_of(sequence: qmc.QMCEngine, number: int) -> np.ndarray:
    """The next (number, d) of a sequence as standard normal noise."""
    return ndtri(np.clip(sequence.random(number), 1e-16, 1 - 1e-16))


def draws_of_target(points, weights, log_p, log_evidence: float) -> TargetDraws:
    """Weighted draws with their normalised log densities; those without weight are left out."""
    # On the host: as many as they are, each step of it would be compiled for them alone.
    kept = np.asarray(weights) > 0
    log_weights = np.log(np.asarray(weights)[kept])
    return TargetDraws(
        jnp.array(np.asarray(points)[kept]),
        jnp.array(log_weights - logsumexp(log_weights)),
        jnp.array(np.asarray(log_p)[kept] - log_evidence),
        log_evidence,
    )


# What can be fitted to what.


def needs(name: str) -> tuple[str, ...]:
    """What a fit needs of the target: its density, draws of it, or both.

    Where there is a density, weighted draws are made from it.
    """
    if name in APPROXIMATIONS:
        return ("density",)
    known = {reverse_kl: ("density",), forward_kl: ("draws",)}
    return known.get(divergence_named(name), ("density", "draws"))


def rule_of_thumb(density: bool, draws: bool) -> str:
    """Which divergences suit a target that has a density, draws, both or neither, in a sentence.

    Draws alone: forward KL, which is maximum likelihood. A density alone: reverse KL, or any
    other once weighted draws have been made from it. Both: either. Neither: no fit.
    """
    others = ", ".join(f.__name__ for f in F_DIVERGENCES if f not in (reverse_kl, forward_kl))
    if density and draws:
        return f"density and draws: forward_kl, reverse_kl, {others}, alpha:A or renyi:A."
    if density:
        return (
            f"a density and no draws: reverse_kl at once; forward_kl, {others}, alpha:A and "
            "renyi:A by weighted draws made from the density; to compare with, "
            f"{', '.join(APPROXIMATIONS)}."
        )
    if draws:
        return "draws and no density: forward_kl, which is maximum likelihood, and no other."
    return "neither density nor draws: nothing can be fitted; give a log density or draws."


def refuse(name: str, target: Target) -> None:
    """Raise `InputError` where the target lacks what a fit needs, saying what works."""
    if target.log_density is None and "density" in needs(name):
        raise InputError(
            f"{target.name}: {name} needs a log density and this target is only draws; "
            "fit forward_kl, which is maximum likelihood on the draws."
        )
    if target.log_density is None and target.draws is None:
        raise InputError(f"{target.name}: {rule_of_thumb(False, False)}")
