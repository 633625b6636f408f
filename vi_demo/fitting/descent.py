"""The way down from the same few starts under every divergence: what there is to watch.

The fits begin where climbs have ended and arrive in a few steps, which is no sight. Here each
divergence is descended by plain Adam from narrow guides at dispersed points, as SVI is usually
run, on draws that stay the same: whatever differs between two ways is the divergence's doing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from vi_demo.target import GRADIENT, Target

STARTS = 4
FRAMES = 200  # recorded, the start not counted
STEPS = 3  # from one to the next
RATE = 0.02  # at first; it falls to nothing
MEMORY = 0.9  # of squares: slopes far out are thousands of times those near by
NARROW = 0.1  # sds of a start, on the target's own scale
REACH = 2.0  # sds from the target's mean that a start lies away at most, along each axis
NOISE = 128  # draws of the guide, at least
TARGET_DRAWS = 2048
KEPT = 24  # coordinates that are recorded
MOST_NUMBERS = 30_000_000  # of all parameters of a way
SECONDS = 10.0  # for the target's density, on the ways of all starts
MOST_SECONDS = 60.0  # on that of one, if no more is to be had
MOST_PRODUCTS = 2e11  # of parameters and draws of the guide, in all of a way


class Descent(NamedTuple):
    """The guides on the way, each a mixture of k Gaussians, k mostly 1, and how far off they are.

    `coordinates` (c,) of R^d were recorded; `steps` (f,); `mean` (f, starts, k, c), `covariance`
    (f, starts, k, c, c), `mass` (f, starts, k); `divergence` (f, starts), in nats.
    """

    coordinates: np.ndarray
    steps: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    mass: np.ndarray
    divergence: np.ndarray


class Course(NamedTuple):
    """What all ways down a target have in common.

    `least` is E_p[log p], normalised and in u: nan where the target has no density. `seen` gives
    the moments of some coordinates of the guides of parameters (f, starts, ...), as they are in z;
    `sd` (d,) is how wide the target is there.
    """

    target: Target  # in u
    family: Family
    begin: dict
    noise: Array
    draws: TargetDraws
    least: float
    seen: Callable[[dict, Array], tuple[Array, Array, Array]]
    sd: np.ndarray


def refuse(target: Target, family: Family | None) -> None:
    """Raise `InputError` where the guides on the way cannot be recorded, before all work."""
    if family is None or family.judged:
        name = "own" if family is None else family.name
        raise InputError(f"a film shows Gaussians and no {name} guide; leave --film out.")
    if not most_starts(target, family):
        raise InputError(
            f"{target.name}: {number_of_parameters(target, family):,} parameters are too many for "
            f"a film of {family.name} in {target.dim} dimensions; leave --film out, or choose "
            "--guide diagonal."
        )


def course(target: Target, family: Family, key: Array, draws: TargetDraws) -> Course | None:
    """Where all begin, and what they look at: a few of the target's weighted draws.

    None where there is too much to record, or a guide that is no mixture of Gaussians.
    """
    number = 0 if family.judged else affordable(target, family)
    if not number:
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
    def seen(params, kept):
        def one(params):
            mean, covariance, mass = gaussians(family.distribution(family.moved(params, *frame)))
            return mean[:, kept], covariance[:, kept][..., kept], mass

        return jax.lax.map(jax.vmap(one), params)  # a frame at a time: covariances are large

    sd = np.linalg.norm(factor, axis=1)
    return Course(seen_from(target, frame), family, begin, noise, some, least, seen, sd)


def number_of_noise(target: Target) -> int:
    """Draws of the guide, so many that each direction is seen by some."""
    return max(NOISE, 2 ** int(np.ceil(np.log2(4 * target.dim))))


def number_of_parameters(target: Target, family: Family) -> int:
    """How many numbers a guide is."""
    shapes = jax.eval_shape(family.init, jnp.zeros(target.dim), 1.0)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def most_starts(target: Target, family: Family) -> int:
    """How many starts can be followed: in memory, and in a guide's own arithmetic."""
    numbers = FRAMES * number_of_parameters(target, family)
    products = STEPS * numbers * number_of_noise(target)
    return min(STARTS, MOST_NUMBERS // numbers, int(MOST_PRODUCTS / products))


def affordable(target: Target, family: Family) -> int:
    """How many starts can be followed, and in the time of the target's density too."""
    most = most_starts(target, family)
    if target.log_density is not None:
        one = target.seconds(GRADIENT * FRAMES * STEPS * number_of_noise(target))
        in_time = int(SECONDS / max(one, 1e-9)) or one < MOST_SECONDS
        most = min(most, in_time)
    return most


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


def ways(course: Course, names: Sequence[str], first: Sequence[int] = ()) -> dict[str, Descent]:
    """The ways down the divergences of these names, in the same coordinates.

    These are all where there are few; else those asked for `first`, and those that part most.
    """
    paths = {name: descend(course, name) for name in names}
    kept = chosen(course, [params for params, _ in paths.values()], first)
    steps = STEPS * np.arange(FRAMES + 1)
    return {
        name: Descent(kept, steps, *map(np.asarray, course.seen(params, kept)), divergence)
        for name, (params, divergence) in paths.items()
    }


def chosen(course: Course, paths: Sequence[dict], first: Sequence[int]) -> np.ndarray:
    """Which coordinates are recorded, in order."""
    every = np.arange(len(course.sd))
    if len(every) <= KEPT:
        return every
    ends = [course.seen(jax.tree.map(lambda a: a[-1:, :1], path), every) for path in paths]
    moments = [whole(*(np.asarray(m)[0, 0] for m in end)) for end in ends]
    means, sds = map(np.array, zip(*moments, strict=True))
    apart = np.ptp(means, axis=0) / course.sd + np.ptp(np.log(sds), axis=0)
    apart[list(first)] = np.inf
    return np.sort(np.argsort(-apart, kind="stable")[:KEPT])


def whole(mean: np.ndarray, covariance: np.ndarray, mass: np.ndarray) -> tuple:
    """Mean and sd (d,) of each coordinate of a mixture."""
    centre = mass @ mean
    variance = np.diagonal(covariance, axis1=1, axis2=2) + (mean - centre) ** 2
    return centre, np.sqrt(mass @ variance)


def descend(course: Course, name: str) -> tuple[dict, np.ndarray]:
    """The way down the divergence of that name: parameters, and how far off they are."""
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
    return params, in_nats(f, course, np.asarray(losses))


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
