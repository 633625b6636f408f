"""Where to begin: dispersed points, and the Gaussians that climbs from them lead to.

Fits begin at these Gaussians and step on their scale; tempering begins half from them, wide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from scipy.special import ndtr

from vi_demo import mesh, noise
from vi_demo.batching import in_slices
from vi_demo.climbs import Climbs, apart, upward
from vi_demo.errors import InputError
from vi_demo.frames import Frame, seen_from
from vi_demo.guides import Family, full_rank
from vi_demo.model import CHUNK
from vi_demo.search import AGREEING, elsewhere
from vi_demo.target import Target, finite_or_minus_inf

CLIMBS = 8
MOST_CURVATURE = 400  # dimensions up to which the whole curvature is looked at
CANDIDATES = 16
RADII = (2.0, 0.2, 0.02, 0.0)  # uniform starts: NumPyro's own first, nearer where that fails
HOPELESS = 1e4  # times lower a log density than elsewhere
CENTRING = 30  # looks at all rows at most, to find where their slope is zero
SETTLED = 0.02  # sds from there
LEARNED = "learned"  # with the parameters: means and sds of the guide
NARROW = 0.1
WIDE = 4.0
INFLATED = 3.0
TAILS = 5  # degrees of freedom, a whole number


def points(target: Target, key: Array, number: int) -> np.ndarray:
    """Dispersed points (number, d) to begin from, each the likeliest of a few candidates.

    Candidates come half from the prior, where there is one, and half uniformly from
    (-2, 2)^d, NumPyro's own habit, or from nearer to 0 where the density is next to nothing at
    all of these; taking the likeliest of each handful keeps starts apart while sparing a fit the
    far tails. Raises `InputError` where nothing is finite.
    """
    near = from_some_rows(target)

    def likeliest(key, radius):
        uniform_key, prior_key = jax.random.split(key)
        shape = (CANDIDATES, target.dim)
        tried = radius * jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)
        if target.prior is not None:
            keys = jax.random.split(prior_key, CANDIDATES // 2)
            tried = tried.at[::2].set(jax.vmap(target.prior.draw)(keys))
        log_p = finite_or_minus_inf(in_slices(near.log_density, tried, target.batch))
        log_p = jnp.where(jnp.isfinite(tried).all(-1), log_p, -jnp.inf)
        best = jnp.argmax(log_p)
        smooth = jnp.isfinite(jax.grad(near.log_density)(tried[best])).all()
        return tried[best], jnp.where(smooth, log_p[best], -jnp.inf)

    def one(key):
        tried, log_p = jax.lax.map(lambda radius: likeliest(key, radius), jnp.array(RADII))
        # The widest whose density is of a size with the others': exp(800) observations are not.
        sane = log_p >= -HOPELESS * (jnp.abs(log_p.max()) + 1)
        chosen = jnp.argmax(sane & jnp.isfinite(log_p))
        return tried[chosen], log_p[chosen]

    if "points" not in target.programs:
        target.programs["points"] = mesh.program(lambda keys: jax.lax.map(one, keys))
    found, log_p = map(np.asarray, target.programs["points"](jax.random.split(key, number)))
    if np.isfinite(log_p).any():
        # A start without density gives way to the likeliest.
        return np.where(np.isfinite(log_p)[:, None], found, found[np.argmax(log_p)])
    at = target.not_finite_at(found)
    tried = number * CANDIDATES * len(RADII)
    raise InputError(
        f"{target.name}: the log density or its gradient is finite at none of {tried:,} "
        f"starting points{f', not at site {at}' if at else ''}; check its priors, its data and "
        "its transformations."
    )


def climbs(target: Target) -> Climbs | None:
    """Where climbs from dispersed points lead; None in too many dimensions for a curvature.

    They belong to the target as its density does: the same whoever asks.
    """
    if target.dim > MOST_CURVATURE or target.log_density is None or target.parameters:
        return None
    if "climbs" not in target.programs:
        near = from_some_rows(target)
        found, spent = upward(near, points(target, jax.random.key(0), CLIMBS))
        if near is target:
            more, searching = elsewhere(target, found)
            if more is not None:
                found = jax.tree.map(lambda *x: np.concatenate(x), found, more)
            spent = {name: spent[name] + searching[name] for name in spent}
        starting = CLIMBS * len(RADII)
        target.programs["evaluations"] = {
            "log_density": starting * CANDIDATES + spent["log_density"],
            "gradient": starting + spent["gradient"],
        }
        usable = np.isfinite(found.elbos)
        agreeing = not usable.any() or np.ptp(found.elbos[usable]) < AGREEING
        if near.believable is not None and not agreeing:
            usable &= np.asarray(near.batched(near.believable)(found.centres))
        found = jax.tree.map(lambda x: x[np.flatnonzero(usable)], found) if usable.any() else None
        target.programs["climbs"] = (
            found if near is target or not found else centred(target, found)
        )
    return target.programs["climbs"]


def evaluations(target: Target) -> dict[str, int]:
    """What the places that fits and tempering begin at have cost, which each would pay alone."""
    return target.programs.get("evaluations", {"log_density": 0, "gradient": 0})


def from_some_rows(target: Target) -> Target:
    """The target as some of its rows show it, where it has so many that they are chunked."""
    if not target.chunked:
        return target

    def log_density(z):
        return target.estimate(z, jax.random.key(0), None, CHUNK)

    return replace(target, log_density=log_density, programs={})


def centred(target: Target, found: Climbs) -> Climbs:
    """The best climb on some of the rows, brought to where the slope on all of them is zero."""
    best = jax.tree.map(lambda x: x[np.argmax(found.elbos)], found)
    value_and_grad = mesh.program(jax.value_and_grad(target.log_density))
    z, size = best.centres, 1.0
    height, slope = value_and_grad(z)
    for _ in range(CENTRING):
        whitened = best.factors.T @ slope
        if jnp.linalg.norm(whitened) < SETTLED:
            break
        tried = z + size * best.factors @ whitened
        new_height, new_slope = value_and_grad(tried)
        if new_height > height:
            z, height, slope = tried, new_height, new_slope
        else:
            size /= 2
    return jax.tree.map(lambda x: x[None], best._replace(centres=z))


def frame(target: Target, whole: bool) -> Frame:
    """The scale of the best climb; where there was none, of the guide that parameters were learned
    with, else R^d's own.
    """
    found = climbs(target)
    if found is not None:
        return jax.tree.map(lambda x: x[np.argmax(found.elbos)], found.frames(whole))
    if LEARNED in target.programs:
        return jax.tree.map(lambda x: x[0], learned(target, whole))
    return Frame(jnp.zeros(target.dim), jnp.ones(target.dim))


def to_scale(target: Target, whole: bool) -> tuple[Frame, Target]:
    """The scale of the best climb and the target seen from it, one for all that step on it."""
    if ("to scale", whole) not in target.programs:
        scale = frame(target, whole)
        target.programs["to scale", whole] = scale, seen_from(target, scale)
    return target.programs["to scale", whole]


def places(target: Target, whole: bool, key: Array, number: int) -> Frame:
    """At most `number` local scales to start from, a leading axis of them.

    They are the Gaussians that climbs ended at, each place once but two starts at least. Where
    there was no climb, it is the guide that parameters were learned with, else narrow ones at
    dispersed points.
    """
    found = climbs(target)
    if found is None and LEARNED in target.programs:
        return learned(target, whole)
    if found is None:
        return narrow(points(target, key, number), whole)
    frames = apart(found).frames(whole)
    places = len(frames.shift)
    order = np.arange(np.clip(places, 2, number)) % places
    return jax.tree.map(lambda x: np.asarray(x)[order], frames)


def learned(target: Target, whole: bool) -> Frame:
    """Means and sds of the guide that the parameters were learned with, as one place."""
    mean, sd = target.programs[LEARNED]
    return Frame(mean[None], (jnp.diag(sd) if whole else sd)[None])


def narrow(at: Array, whole: bool) -> Frame:
    """Narrow scales at points (n, d)."""
    factors = np.full(at.shape, NARROW)
    return Frame(at, factors[:, None, :] * np.eye(at.shape[1]) if whole else factors)


def guides(target: Target, family: Family, frame: Frame, key: Array, number: int) -> dict:
    """Parameters of at most `number` guides to start from in u, z = shift + factor u, stacked.

    Of one component, they are at the `places` to start from; of several, each has one at some
    climb's end. Where there was no climb, they are narrow ones at dispersed points.
    """
    found = climbs(target)
    if found is None:
        return jax.vmap(lambda z: family.init(z, NARROW))(points(target, key, number))
    if family.components == 1:
        each = places(target, family.turns, key, number)
    else:
        found, shape = apart(found), (number, family.components)
        order = np.array(jax.random.randint(key, shape, 0, len(found.elbos)))
        order[:, 0] = np.arange(number) % len(found.elbos)
        each = jax.tree.map(lambda x: x[order], found.frames(family.turns))
    around = noise.normal(key, each.shift.shape) * (family.components > 1)
    if ("start", family.name) not in target.programs:
        begin = jax.jit(jax.vmap(partial(start_at, family), in_axes=(None, 0, 0)))
        target.programs["start", family.name] = begin
    return target.programs["start", family.name](frame.inverse(), each, around)


def start_at(family: Family, back: Frame, at: Frame, u: Array) -> dict:
    """The member of the family that is this Gaussian, or whose components are these."""
    unit = family.init(jnp.zeros(back.shift.shape), 1.0)
    if family.components == 1:
        return family.moved(family.moved(unit, *at), *back)
    one = full_rank()
    begin = jax.vmap(lambda f, u: one.moved(one.moved(one.init(u, 1.0), *f), *back))
    return unit | begin(at, u)


class Wide(NamedTuple):
    """Where tempering starts: many draws, (key, number) -> (number, d), and one's log density."""

    draws: Callable[[Array, int], np.ndarray]
    log_density: Callable[[Array], Array]


def wide(target: Target, scale: float = WIDE) -> Wide:
    """Where tempering starts: half from the prior, half around the climbs' ends.

    In place of a prior that is improper there is N(0, scale² I). Around each end there is a
    Student-t of the local covariance, inflated. The one half does for most models, but not for
    those in raw units, whose posterior may be far away and a billionth as wide; the other for
    most, but not for funnels, nor for modes that no climb led to.
    """
    broad = broadly(target, scale)
    found = climbs(target)
    if found is None:
        return broad
    found = apart(found)
    return halves(broad, around(found.centres, found.factors))


def broadly(target: Target, scale: float) -> Wide:
    """The prior, or N(0, scale² I) where that is improper."""
    if target.prior is not None:
        return Wide(target.prior_draws, target.prior.log_density)
    normal = dist.Normal(jnp.zeros(target.dim), scale).to_event(1)
    return Wide(lambda key, n: scale * noise.normal(key, (n, target.dim)), normal.log_prob)


def around(centres: Array, factors: Array) -> Wide:
    """An even mixture of inflated Student-t around points (k, d), of these roots (k, d, d)."""
    factors, mixture = jax.jit(students_t)(centres, factors)
    return Wide(partial(students, centres, factors), mixture.log_prob)


def halves(one: Wide, other: Wide) -> Wide:
    """Half of the one, half of the other."""

    def draws(key, number):
        keys = jax.random.split(key, 3)
        first = noise.normal(keys[0], (number, 1)) > 0
        return np.where(first, one.draws(keys[1], number), other.draws(keys[2], number))

    def log_density(z):
        both = jnp.logaddexp(finite_or_minus_inf(one.log_density(z)), other.log_density(z))
        return both - jnp.log(2.0)

    return Wide(draws, log_density)


def students(centres: Array, factors: Array, key: Array, number: int) -> np.ndarray:
    """Draws (number, d) of such a mixture.

    On the host: a gamma's rejections take long to compile; and χ² is a sum of squares.
    """
    k, dim = centres.shape
    which, tail, normal = np.split(noise.normal(key, (number, 1 + TAILS + dim)), (1, 1 + TAILS), 1)
    i = np.minimum((k * ndtr(which[:, 0])).astype(int), k - 1)
    t = normal / np.sqrt((tail**2).mean(1, keepdims=True))
    stretched = np.einsum("nij,nj->ni", np.asarray(factors)[i], t)
    return np.asarray(centres)[i] + INFLATED * stretched


def students_t(centres: Array, factors: Array) -> tuple[Array, dist.Distribution]:
    """Triangular square roots of the same covariances, and the even mixture around them."""
    factors = jnp.linalg.cholesky(factors @ jnp.swapaxes(factors, -1, -2))
    each = dist.MultivariateStudentT(TAILS, centres, INFLATED * factors)
    even = jnp.full(len(centres), 1 / len(centres))
    return factors, dist.MixtureSameFamily(dist.Categorical(probs=even), each)
