"""Where to begin: dispersed points, and the curvature where climbs from them lead.

A climb is damped Newton on the log density. It is the same on any linear scale, so data in raw
units and sites whose scales differ by orders of magnitude cost it nothing. At each point on
the way there is a Gaussian, centred there with the inverse curvature as its covariance; the one
of greatest ELBO is kept (as in Pathfinder, Zhang et al. 2022, JMLR 23(306)), since the summit of
a hierarchy's density may be a spike without any mass. Fits begin at these Gaussians and step
on their scale; tempering begins half from them, wide.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from vi_demo.errors import InputError
from vi_demo.guides import Family, full_rank
from vi_demo.model import CHUNK
from vi_demo.target import Start, Target, finite_or_minus_inf, in_slices

CLIMBS = 8
MOST_CURVATURE = 400  # dimensions up to which the whole curvature is looked at
STEPS = 80
LEAST_CURVATURE = 1e-6  # relative to the coordinates' own
PATIENCE = 12  # steps without a greater ELBO after which a climb ends
GAIN = 0.01  # nats that count
DRAWS = 64  # for the ELBO of each point on the way
FEW = 4  # of them, for the mean density that is climbed
SPREADS = 0.0, 1.0, 0.5, 1.0  # of these, in sds
DAMPING = 10.0 ** jnp.arange(-2, 9)  # tried at each step, times the last that was best
STRETCHES = 4.0 ** jnp.arange(1, 6)  # of Newton's step: down from exp(600) it takes 600 of them
CANDIDATES = 16
RADII = (2.0, 0.2, 0.02, 0.0)  # uniform starts: NumPyro's own first, nearer where that fails
ROUNDING = 0.1  # nats that a log density may change by over next to no distance
HOPELESS = 1e4  # times lower a log density than elsewhere
CENTRING = 30  # looks at all rows at most, to find where their slope is zero
SETTLED = 0.02  # sds from there
SECONDS = 20.0  # after which no more climbs are begun, two aside
NARROW = 0.1
WIDE = 4.0
INFLATED = 3.0
TAILS = 5  # degrees of freedom, a whole number


class Frame(NamedTuple):
    """A local scale: z = shift + factor u, factor (d, d), or (d,) for one scale a coordinate."""

    shift: Array
    factor: Array

    def out(self, u: Array) -> Array:
        """The point z of a point u."""
        return self.shift + (self.factor * u if self.factor.ndim == 1 else self.factor @ u)

    def inverse(self) -> Frame:
        """The scale that leads back: u = F⁻¹ (z − shift)."""
        if self.factor.ndim == 1:
            return Frame(-self.shift / self.factor, 1 / self.factor)
        back = jnp.linalg.inv(self.factor)
        return Frame(-back @ self.shift, back)

    def log_volume(self) -> Array:
        """Log |det factor|."""
        if self.factor.ndim == 1:
            return jnp.log(jnp.abs(self.factor)).sum()
        return jnp.linalg.slogdet(self.factor)[1]


def points(target: Target, key: Array, number: int) -> Array:
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
        target.programs["points"] = jax.jit(lambda keys: jax.lax.map(one, keys))
    found, log_p = target.programs["points"](jax.random.split(key, number))
    if jnp.isfinite(log_p).any():
        # A start without density gives way to the likeliest.
        return jnp.where(jnp.isfinite(log_p)[:, None], found, found[jnp.argmax(log_p)])
    at = target.not_finite_at(found)
    tried = number * CANDIDATES * len(RADII)
    raise InputError(
        f"{target.name}: the log density or its gradient is finite at none of {tried:,} "
        f"starting points{f', not at site {at}' if at else ''}; check its priors, its data and "
        "its transformations."
    )


class Climbs(NamedTuple):
    """A Gaussian for each climb: centre (n, d), a square root of its covariance (n, d, d), the
    sds (n, d) that the curvature along each coordinate alone would give, its ELBO (n,), whether
    that curvature was finite, and the steps that the climb took.
    """

    centres: Array
    factors: Array
    scales: Array
    elbos: Array
    whole: Array
    steps: Array

    def frames(self, whole: bool) -> Frame:
        """Their local scales, a leading axis of climbs: the whole covariance, or each sd alone."""
        return Frame(self.centres, self.factors if whole else self.scales)


def climbs(target: Target) -> Climbs | None:
    """Where climbs from dispersed points lead; None in too many dimensions for a curvature.

    They belong to the target as its density does: the same whoever asks.
    """
    if target.dim > MOST_CURVATURE or target.log_density is None or target.parameters:
        return None
    if "climbs" not in target.programs:
        near = from_some_rows(target)
        begin = points(target, jax.random.key(0), CLIMBS)
        found = from_each(climber(near, curvature_of(near)), begin)
        if not found.whole[jnp.argmax(found.elbos)]:
            # Second derivatives may be NaN where first ones are not: of sums over masked states.
            rough = partial(curvature, near, differences, near.batch)
            found = from_each(climber(near, rough), begin)
        target.programs["evaluations"] = spent(found, target.dim)
        finite = np.flatnonzero(np.isfinite(found.elbos))
        found = jax.tree.map(lambda x: x[finite], found) if len(finite) else None
        target.programs["climbs"] = (
            found if near is target or not found else centred(target, found)
        )
    return target.programs["climbs"]


def from_each(climb: Callable, begin: Array) -> Climbs:
    """The climbs from all of these points (n, d), or from some where they take too long.

    By turns they climb the density itself and its mean over draws, spread as `SPREADS` says.
    """
    climb, found = jax.jit(climb), []
    for i, z in enumerate(begin):
        found.append(jax.block_until_ready(climb(z, SPREADS[i % len(SPREADS)])))
        if len(found) == 1:
            began = time.perf_counter()  # compiling does not count
        elif time.perf_counter() - began > SECONDS:
            break
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


def spent(found: Climbs, dim: int) -> dict[str, int]:
    """What climbs and their starting points cost, a row of the curvature being a gradient."""
    steps = int(found.steps.sum())
    started = CLIMBS * len(RADII)
    gradients = dim + FEW * (1 + len(DAMPING) + 1 + len(STRETCHES))
    return {
        "log_density": started * CANDIDATES + steps * (DRAWS + 2),
        "gradient": started + steps * gradients,
    }


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
    best = jax.tree.map(lambda x: x[jnp.argmax(found.elbos)], found)
    value_and_grad = jax.jit(jax.value_and_grad(target.log_density))
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


class Climb(NamedTuple):
    """A climb on its way: where it stands, its damping, the best Gaussian so far, its patience."""

    z: Array
    damping: Array
    best: Climbs
    stale: Array
    step: Array


def climber(target: Target, curvature: Callable):
    """The climb from one point (d,): a function z -> the Gaussian of greatest ELBO on the way.

    With `spread` 0 it is the density that is climbed; else it is its mean over a few draws of the
    Gaussian at each point, the part of the ELBO that a shift of it changes. The one finds its way
    down from where draws overflow. The other keeps out of a hierarchy's spike, where scales
    go to 0 and the density without end to infinity, before the data are fitted at all.
    """
    half = jax.random.normal(jax.random.key(1), (DRAWS // 2, target.dim))
    noise = jnp.concatenate([half, -half])
    few = jnp.concatenate([half[: FEW // 2], -half[: FEW // 2]])

    def mean_density(z, factor):
        return in_slices(target.log_density, z + few @ factor.T, target.batch).mean()

    value_and_grad = jax.value_and_grad(mean_density)

    def gaussian(z, height, scale, values, vectors, whole):
        factor = scale[:, None] * vectors / jnp.sqrt(values)
        # Where terms so large cancel that only rounding is left, as of a Beta(1e18, 1e18), a
        # density is whatever comes out: a shift of next to nothing changes it.
        eps = jnp.finfo(z.dtype).eps
        shift = eps**0.5 * factor @ noise[0] + 8 * eps * jnp.abs(z)
        tried = jnp.concatenate([z + noise @ factor.T, (z + shift)[None]])
        log_p = in_slices(target.log_density, tried, target.batch)
        entropy = jnp.log(scale).sum() - 0.5 * jnp.log(values).sum()
        entropy += 0.5 * target.dim * (1 + jnp.log(2 * jnp.pi))
        elbo = finite_or_minus_inf(log_p[:-1]).mean() + entropy
        usable = jnp.abs(log_p[-1] - height) < ROUNDING
        elbo = jnp.where(usable, elbo, -jnp.inf)
        return Climbs(z, factor, scale, elbo, whole, jnp.zeros((), int))

    def advance(spread, at):
        scale, values, vectors, whole = curvature(at.z)
        here = gaussian(at.z, target.log_density(at.z), scale, values, vectors, whole)
        better = here.elbos > at.best.elbos
        rises_enough = here.elbos > at.best.elbos + GAIN
        factor = spread * here.factors
        height, slope = value_and_grad(at.z, factor)
        along = vectors.T @ (scale * jnp.nan_to_num(slope))
        dampings = jnp.append(at.damping * DAMPING, 0.0)  # the last is Newton's own step
        steps = jax.vmap(lambda m: scale * (vectors @ (along / (values + m))))(dampings)
        tried = at.z + jnp.concatenate([steps, STRETCHES[:, None] * steps[-1]])
        some = max(1, target.batch // FEW)
        heights, slopes = in_slices(lambda z: value_and_grad(z, factor), tried, some)
        usable = jnp.isfinite(heights) & jnp.isfinite(slopes).all(-1)
        heights = jnp.where(usable, heights, -jnp.inf)
        i = jnp.argmax(heights)
        rises = heights[i] > finite_or_minus_inf(height)
        pick = lambda a, b: jnp.where(rises, a, b)  # noqa: E731
        return Climb(
            pick(tried[i], at.z),
            jnp.clip(pick(jnp.append(dampings, 0 * STRETCHES)[i], 1e3 * at.damping), 1e-6, 1e8),
            jax.tree.map(lambda a, b: jnp.where(better, a, b), here, at.best),
            jnp.where(rises_enough | jnp.isneginf(at.best.elbos), 0, at.stale + 1),
            at.step + 1,
        )

    def climb(z, spread):
        lowest, whole, zero = jnp.array(-jnp.inf), jnp.array(True), jnp.zeros((), int)
        nothing = Climbs(z, jnp.eye(target.dim), jnp.ones_like(z), lowest, whole, zero)
        begin = Climb(z, jnp.ones(()), nothing, zero, zero)
        going = lambda at: (at.step < STEPS) & (at.stale < PATIENCE)  # noqa: E731
        end = jax.lax.while_loop(going, partial(advance, spread), begin)
        return end.best._replace(steps=end.step)

    return climb


def curvature_of(target: Target) -> Callable:
    """The curvature at a point by whichever derivative the density has; see `curvature`.

    An ODE solver's own has no forward mode, a gamma distribution's cdf no second one.
    """
    for along in (forward, reverse, differences):
        program = partial(curvature, target, along, target.batch)
        with contextlib.suppress(TypeError, NotImplementedError):
            written = jax.make_jaxpr(program)(jnp.zeros(target.dim))
            # XLA (JAX 0.12) lays FFTs in a batch out as eigh likes it; on a CPU it refuses then.
            return partial(curvature, target, along, None) if " fft[" in str(written) else program
    raise AssertionError("a density that has a slope has differences of it")


def curvature(target: Target, along: Callable, batch: int | None, z: Array) -> tuple:
    """Scales (d,), eigenvalues and vectors of −∇²log p on them, and whether all is finite.

    Scales are 1 / √|∂²| and eigenvalues are made positive, so that a climb leaves saddles too.
    """
    slope = jax.grad(target.log_density)
    rows = jax.lax.map(lambda e: along(slope, z, e), jnp.eye(target.dim), batch_size=batch)
    finite = jnp.isfinite(rows)
    hessian = -jnp.where(finite, rows, 0.0)
    size = jnp.abs(jnp.diagonal(hessian))
    scale = jnp.where(size > 0, 1 / jnp.sqrt(jnp.where(size > 0, size, 1.0)), 1.0)
    scaled = scale[:, None] * hessian * scale
    values, vectors = jnp.linalg.eigh((scaled + scaled.T) / 2)
    return scale, jnp.maximum(jnp.abs(values), LEAST_CURVATURE), vectors, finite.all()


def forward(slope: Callable, z: Array, basis: Array) -> Array:
    """The derivative of a slope along a vector, by forward mode."""
    return jax.jvp(slope, (z,), (basis,))[1]


def reverse(slope: Callable, z: Array, basis: Array) -> Array:
    """The derivative of a slope along a vector, by reverse mode."""
    return jax.grad(lambda x: slope(x) @ basis)(z)


def differences(slope: Callable, z: Array, basis: Array) -> Array:
    """The derivative of a slope along a unit vector, by central differences."""
    size = jnp.finfo(z.dtype).eps ** (1 / 3) * jnp.maximum(1.0, jnp.abs(z @ basis))
    return (slope(z + size * basis) - slope(z - size * basis)) / (2 * size)


def frame(target: Target, whole: bool) -> Frame:
    """The scale of the best climb, or R^d's own where there was none."""
    found = climbs(target)
    if found is None:
        return Frame(jnp.zeros(target.dim), jnp.ones(target.dim))
    return jax.tree.map(lambda x: x[jnp.argmax(found.elbos)], found.frames(whole))


def to_scale(target: Target, whole: bool) -> tuple[Frame, Target]:
    """The scale of the best climb and the target seen from it, one for all that step on it."""
    if ("to scale", whole) not in target.programs:
        scale = frame(target, whole)
        target.programs["to scale", whole] = scale, seen_from(target, scale)
    return target.programs["to scale", whole]


def seen_from(target: Target, frame: Frame) -> Target:
    """The same target in u, where z = shift + factor u."""
    volume = frame.log_volume()

    def estimate(u, key, parameters=None):
        return target.estimate(frame.out(u), key, parameters) + volume

    return replace(
        target,
        log_density=lambda u: target.log_density(frame.out(u)) + volume,
        estimate=target.estimate and estimate,
        joint=lambda u, parameters: target.joint(frame.out(u), parameters) + volume,
        unravel=lambda u: target.unravel(frame.out(u)),
        constrain=lambda u: target.constrain(frame.out(u)),
        site_log_probs=lambda u: target.site_log_probs(frame.out(u)),
        prior=None,
        programs={},
    )


def guides(target: Target, family: Family, frame: Frame, key: Array, number: int) -> dict:
    """Parameters of at most `number` guides to start from in u, z = shift + factor u, stacked.

    They are the Gaussians that climbs ended at, each place once but two starts at least. A family
    of several components has one at some climb's end each. Where there was no climb, they are
    narrow ones at dispersed points.
    """
    found = climbs(target)
    if found is None:
        return jax.vmap(lambda z: family.init(z, NARROW))(points(target, key, number))
    found, back = apart(found), frame.inverse()
    places = len(found.elbos)
    if family.components == 1:
        order = np.arange(np.clip(places, 2, number)) % places
    else:
        shape = (number, family.components)
        order = np.array(jax.random.randint(key, shape, 0, places))
        order[:, 0] = np.arange(number) % places
    each = jax.tree.map(lambda x: x[order], found.frames(family.turns))
    noise = jax.random.normal(key, each.shift.shape) * (family.components > 1)
    begin = jax.jit(jax.vmap(partial(start_at, family, back)))
    return begin(each, noise)


def start_at(family: Family, back: Frame, at: Frame, noise: Array) -> dict:
    """The member of the family that is this Gaussian, or whose components are these."""
    unit = family.init(jnp.zeros(back.shift.shape), 1.0)
    if family.components == 1:
        return family.moved(family.moved(unit, *at), *back)
    one = full_rank()
    begin = jax.vmap(lambda f, u: one.moved(one.moved(one.init(u, 1.0), *f), *back))
    return unit | begin(at, noise)


def wide(target: Target, scale: float = WIDE) -> Start:
    """Where tempering starts: half from the prior, half around the climbs' ends.

    In place of a prior that is improper there is N(0, scale² I). Around each end there is a
    Student-t of the local covariance, inflated. The one half does for most models, but not for
    those in raw units, whose posterior may be far away and a billionth as wide; the other for
    most, but not for funnels, nor for modes that no climb led to.
    """
    normal = dist.Normal(jnp.zeros(target.dim), scale).to_event(1)
    broad = target.prior or Start(normal.sample, normal.log_prob)
    found = climbs(target)
    if found is None:
        return broad
    around = around_climbs(apart(found))

    def draw(key):
        which, key = jax.random.split(key)
        first = jax.random.bernoulli(which)
        return jnp.where(first, broad.draw(key), around.draw(key))

    def log_density(z):
        both = jnp.logaddexp(finite_or_minus_inf(broad.log_density(z)), around.log_density(z))
        return both - jnp.log(2.0)

    return Start(draw, log_density)


def around_climbs(found: Climbs) -> Start:
    """An even mixture of inflated Student-t around the ends of climbs."""
    factors = jnp.linalg.cholesky(found.factors @ jnp.swapaxes(found.factors, -1, -2))
    each = dist.MultivariateStudentT(TAILS, found.centres, INFLATED * factors)
    number, dim = found.centres.shape
    mixture = dist.MixtureSameFamily(dist.Categorical(probs=jnp.full(number, 1 / number)), each)

    def draw(key):
        # All from one call: random numbers, and a gamma's rejections above all, take longer to
        # compile than anything else here. χ² is a sum of squares.
        which, tail, noise = jnp.split(jax.random.normal(key, (1 + TAILS + dim,)), (1, 1 + TAILS))
        i = (number * jax.scipy.special.ndtr(which[0])).astype(int)
        t = noise / jnp.sqrt((tail**2).mean())
        return found.centres[i] + INFLATED * factors[i] @ t

    return Start(draw, mixture.log_prob)


def apart(found: Climbs) -> Climbs:
    """The climbs that did not lead to where a better one did."""
    kept: list[int] = []
    for i in np.argsort(-np.asarray(found.elbos)):
        ways = [
            np.linalg.solve(found.factors[j], found.centres[i] - found.centres[j]) for j in kept
        ]
        with np.errstate(over="ignore"):  # without bounds, where the posterior is improper
            inside = [np.linalg.norm(way) for way in ways]
        if min(inside, default=np.inf) > 1.0:
            kept.append(int(i))
    return jax.tree.map(lambda x: x[np.array(kept)], found)
