"""The way down from the same few starts under every divergence: what there is to watch.

The fits begin where climbs have ended and arrive in a few steps, which is no sight. Here each
divergence is descended by plain Adam from narrow guides at dispersed points, as SVI is usually
run, on draws that stay the same: whatever differs between two ways is the divergence's doing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jax import Array

from vi_demo import mesh, starts
from vi_demo.divergences.estimators import Draws, resample
from vi_demo.divergences.generators import Renyi, forward_kl, named, reverse_kl
from vi_demo.errors import InputError
from vi_demo.fitting.objectives import TargetDraws, draws_of_target, loss_of, normal_noise, sobol
from vi_demo.frames import Frame, seen_from
from vi_demo.guides import Family, covariance_of
from vi_demo.target import Target

STARTS = 4
FRAMES = 200  # recorded, the start not counted
STEPS = 3  # from one to the next
RATE = 0.02  # at first; it falls to nothing
MEMORY = 0.9  # of squares: slopes far out are thousands of times those near by
NARROW = 0.1  # sds of a start, on the target's own scale
REACH = 2.0  # sds from the target's mean that a start lies away at most, along each axis
NOISE = 128  # draws of the guide, at least
TARGET_DRAWS = 2048
MOST_NUMBERS = 500_000  # of all covariances of a way
MOST_SECONDS = 10.0  # for the target's density, in all of a way
GRADIENT = 3  # densities that a gradient costs


class Descent(NamedTuple):
    """The guides on the way, each a mixture of k Gaussians, k mostly 1, and how far off they are.

    `steps` (f,); `mean` (f, starts, k, d), `covariance` (f, starts, k, d, d), `mass`
    (f, starts, k); `divergence` (f, starts), in nats.
    """

    steps: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    mass: np.ndarray
    divergence: np.ndarray


class Course(NamedTuple):
    """What all ways down a target have in common.

    `least` is E_p[log p], normalised and in u: nan where the target has no density. `seen` gives
    the moments of the guides of parameters (f, starts, ...), as they are in z.
    """

    target: Target  # in u
    family: Family
    begin: dict
    noise: Array
    draws: TargetDraws
    least: float
    seen: Callable[[dict], tuple[Array, Array, Array]]


def refuse(target: Target, guide: str) -> None:
    """Raise `InputError` where the guides on the way cannot be recorded, before all work."""
    if guide in ("own", "flow"):
        raise InputError(f"a film shows Gaussians and no {guide} guide; leave --film out.")
    if FRAMES * target.dim**2 > MOST_NUMBERS:
        most = int((MOST_NUMBERS / FRAMES) ** 0.5)
        raise InputError(
            f"{target.name}: a film takes at most {most} dimensions, and there are {target.dim}; "
            "leave --film out."
        )


def course(target: Target, family: Family, key: Array, draws: TargetDraws) -> Course | None:
    """Where all begin, and what they look at: a few of the target's weighted draws.

    None where there is too much to record, or a guide that is no mixture of Gaussians.
    """
    number = affordable(target)
    if not number or family.judged:
        return None
    weights, points = np.exp(draws.log_weights), np.asarray(draws.points)
    mean, factor = mean_and_factor(points, weights)
    if not family.turns:
        factor = np.diag(np.linalg.norm(factor, axis=1))
    start_key, noise_key = jax.random.split(key)
    u = begin_at(target, start_key, number, mean, factor)
    begin = jax.jit(jax.vmap(lambda u: family.init(u, NARROW)))(u)
    noise = normal_noise(noise_key, number_of_noise(target), target.dim)
    frame = Frame(mean, factor if family.turns else np.diag(factor))
    volume = np.linalg.slogdet(factor)[1]
    some = few(target, draws, mean, factor, volume)
    least = float(weights @ draws.log_p + volume)

    @jax.jit
    @jax.vmap
    @jax.vmap
    def seen(params):
        return gaussians(family.distribution(family.moved(params, *frame)))

    return Course(seen_from(target, frame), family, begin, noise, some, least, seen)


def number_of_noise(target: Target) -> int:
    """Draws of the guide, so many that each direction is seen by some."""
    return max(NOISE, 2 ** int(np.ceil(np.log2(4 * target.dim))))


def affordable(target: Target) -> int:
    """How many starts can be followed: in memory, and in time."""
    most = MOST_NUMBERS // (FRAMES * target.dim**2)
    if target.log_density is not None:
        one = GRADIENT * FRAMES * STEPS * number_of_noise(target)
        most = min(most, int(MOST_SECONDS / max(target.seconds(one), 1e-9)))
    return min(most, STARTS)


def begin_at(
    target: Target, key: Array, number: int, mean: np.ndarray, factor: np.ndarray
) -> np.ndarray:
    """Points (number, d) in u to begin from, spread within `REACH` sds; the innermost first.

    Where the density is zero at some of them, the starts of fits serve instead.
    """
    u = REACH * (2 * sobol(key, target.dim).random(2 ** int(np.ceil(np.log2(number)))) - 1)
    u = u[np.argsort(np.linalg.norm(u, axis=1))][:number]
    known = target.log_density is not None
    if known and not np.isfinite(target.log_densities(mean + u @ factor.T)).all():
        u = np.linalg.solve(factor, (np.asarray(starts.points(target, key, number)) - mean).T).T
    return u * np.minimum(1.0, REACH / np.maximum(np.abs(u).max(1), 1e-9))[:, None]


def few(
    target: Target, draws: TargetDraws, mean: np.ndarray, factor: np.ndarray, volume: float
) -> TargetDraws:
    """Some of the draws as they are in u, moved to have the mean and covariance of all of them."""
    z = resample(Draws(np.asarray(draws.points), np.exp(draws.log_weights)), TARGET_DRAWS, 0)
    own_mean, own = mean_and_factor(z, np.full(len(z), 1 / len(z)))
    u = np.linalg.solve(own, (z - own_mean).T).T
    even = np.full(len(u), 1 / len(u))
    known = target.log_density is not None
    log_p = target.log_densities(mean + u @ factor.T) + volume if known else np.nan * even
    return draws_of_target(u, even, log_p, draws.log_evidence)


def mean_and_factor(points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean (d,) and the triangular root (d, d) of the covariance of points (n, d)."""
    mean = weights @ points
    centred = points - mean
    covariance = (weights[:, None] * centred).T @ centred
    return mean, np.linalg.cholesky(covariance)


def descend(course: Course, name: str) -> Descent:
    """The way down the divergence of that name."""
    f = named(name)
    value_and_grad = jax.value_and_grad(loss_of(f, course.target, course.family))
    adam = optax.adam(optax.cosine_decay_schedule(RATE, FRAMES * STEPS), b2=MEMORY)

    def way(begin, noise, draws):
        def step(carry, _):
            params, state = carry
            value, slope = value_and_grad(params, noise, draws)
            updates, state = adam.update(jax.tree.map(jnp.nan_to_num, slope), state)
            return (optax.apply_updates(params, updates), state), value

        def some(carry, _):
            after, values = jax.lax.scan(step, carry, length=STEPS)
            return after, (carry[0], values[0])

        return jax.lax.scan(some, (begin, adam.init(begin)), length=FRAMES + 1)[1]

    every = mesh.program(jax.vmap(way, in_axes=(0, None, None), out_axes=1))
    params, losses = every(course.begin, course.noise, course.draws)
    moments = map(np.asarray, course.seen(params))
    steps = STEPS * np.arange(FRAMES + 1)
    return Descent(steps, *moments, in_nats(f, course, np.asarray(losses)))


def in_nats(f: Callable, course: Course, losses: np.ndarray) -> np.ndarray:
    """The divergence from what was minimised: what no guide can change is added.

    Of draws alone it stays what it is, −E_p[log q].
    """
    if f is reverse_kl:
        return losses + course.draws.log_evidence
    if f is forward_kl:
        return losses + np.nan_to_num(course.least)
    return losses if isinstance(f, Renyi) else np.expm1(losses)


def gaussians(q: dist.Distribution) -> tuple[Array, Array, Array]:
    """Means (k, d), covariances (k, d, d) and masses (k,) of a guide's components."""
    if isinstance(q, dist.MixtureSameFamily):
        each = q.component_distribution
        return each.mean, each.covariance_matrix, q.mixing_distribution.probs
    return q.mean[None], covariance_of(q)[None], jnp.ones(1)
