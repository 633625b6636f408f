"""Climbs to where a target is, and the Gaussian there: damped Newton that keeps the best ELBO.

A climb is the same on any linear scale, so data in raw units and sites whose scales differ by
orders of magnitude cost it nothing. At each point on the way there is a Gaussian, centred there
with the inverse curvature as its covariance; the one of greatest ELBO is kept (as in
Pathfinder, Zhang et al. 2022, JMLR 23(306)), since the summit of a hierarchy's density may be a
spike without any mass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vi_demo import mesh
from vi_demo.batching import in_slices
from vi_demo.frames import Frame
from vi_demo.target import Target, finite_or_minus_inf

STEPS = 80
LEAST_CURVATURE = 1e-6  # relative to the coordinates' own
PATIENCE = 12  # steps without a greater ELBO after which a climb ends
GAIN = 0.01  # nats that count
DRAWS = 64  # for the ELBO of each point on the way
FEW = 4  # of them, for the mean density that is climbed
SPREADS = 0.0, 1.0, 0.5, 1.0  # of these, in sds
DAMPING = 10.0 ** np.arange(-2, 9)  # tried at each step, times the last that was best
STRETCHES = 4.0 ** np.arange(1, 6)  # of Newton's step: down from exp(600) it takes 600 of them
ROUNDING = 0.1  # nats that a log density may change by over next to no distance
SECONDS = 20.0  # after which no more climbs are begun, two aside
LONGEST = 30.0  # after which those on their way end where they are
BETWEEN = 4  # steps between looks at the clock


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


def upward(target: Target, begin: Array) -> tuple[Climbs, dict[str, int]]:
    """The climbs from some points (n, d), and what they looked at.

    They are climbed again by differences where the best one's curvature is not finite: second
    derivatives may be NaN where first ones are not, of sums over masked states.
    """
    if "climber" not in target.programs:
        target.programs["climber"] = mesh.program(climber(target, curvature_of(target)))
    found = from_each(target.programs["climber"], begin)
    steps = int(found.steps.sum())
    if not found.whole[np.argmax(found.elbos)]:
        rough = partial(curvature, target, differences, target.batch)
        found = from_each(mesh.program(climber(target, rough)), begin)
        steps += int(found.steps.sum())
    # A row of the curvature is a gradient.
    gradients = target.dim + FEW * (1 + len(DAMPING) + 1 + len(STRETCHES))
    return found, {"log_density": steps * (DRAWS + 2), "gradient": steps * gradients}


def from_each(go: Callable, begin: Array) -> Climbs:
    """The climbs from all of these points (n, d), or from some where they take too long.

    By turns they climb the density itself and its mean over draws, spread as `SPREADS` says.
    """
    found, began = [], None
    for i, z in enumerate(begin):
        at = at_foot(z)
        while int(at.step) < STEPS and int(at.stale) < PATIENCE:
            at = jax.block_until_ready(go(at, SPREADS[i % len(SPREADS)]))
            began = began or mesh.now()  # compiling does not count
            if mesh.now() - began > LONGEST and np.isfinite(at.best.elbos):
                break
        found.append(jax.device_get(at.best._replace(steps=at.step)))
        if i and mesh.now() - began > SECONDS:
            break
    return jax.tree.map(lambda *x: np.stack(x), *found)


def apart(found: Climbs) -> Climbs:
    """The climbs that did not lead to where a better one did."""
    kept: list[int] = []
    for i in np.argsort(-found.elbos):
        ways = [
            np.linalg.solve(found.factors[j], found.centres[i] - found.centres[j]) for j in kept
        ]
        with np.errstate(over="ignore"):  # without bounds, where the posterior is improper
            inside = [np.linalg.norm(way) for way in ways]
        if min(inside, default=np.inf) > 1.0:
            kept.append(int(i))
    return jax.tree.map(lambda x: x[np.array(kept)], found)


class Climb(NamedTuple):
    """A climb on its way: where it stands, its damping, the best Gaussian so far, its patience."""

    z: Array
    damping: Array
    best: Climbs
    stale: Array
    step: Array


def to_the_end(go: Callable, z: Array, spread: float) -> Climbs:
    """The Gaussian that a whole climb leads to, with no look at the clock: for other programs."""
    going = lambda at: (at.step < STEPS) & (at.stale < PATIENCE)  # noqa: E731
    return jax.lax.while_loop(going, lambda at: go(at, spread), at_foot(z)).best


def at_foot(z: Array) -> Climb:
    """A climb that begins at a point (d,)."""
    d, kind, zero = len(z), z.dtype, np.zeros((), int)
    nothing = Climbs(
        z, np.eye(d, dtype=kind), np.ones(d, kind), kind.type(-np.inf), np.True_, zero
    )
    return Climb(z, np.ones((), kind), nothing, zero, zero)


def climber(target: Target, curvature: Callable):
    """A few steps of one climb, (climb, spread) -> climb, which keeps the best Gaussian yet.

    With `spread` 0 it is the density that is climbed; else it is its mean over a few draws of the
    Gaussian at each point, the part of the ELBO that a shift of it changes. The one finds its way
    down from where draws overflow. The other keeps out of a hierarchy's spike, where scales
    go to 0 and the density without end to infinity, before the data are fitted at all.
    """
    half = jnp.asarray(np.random.default_rng([0, 1]).standard_normal((DRAWS // 2, target.dim)))
    spread_out = jnp.concatenate([half, -half])
    few = jnp.concatenate([half[: FEW // 2], -half[: FEW // 2]])

    def mean_density(z, factor):
        return in_slices(target.log_density, z + few @ factor.T, target.batch).mean()

    value_and_grad = jax.value_and_grad(mean_density)

    def gaussian(z, height, scale, values, vectors, whole):
        factor = scale[:, None] * vectors / jnp.sqrt(values)
        # Where terms so large cancel that only rounding is left, as of a Beta(1e18, 1e18), a
        # density is whatever comes out: a shift of next to nothing changes it.
        eps = jnp.finfo(z.dtype).eps
        shift = eps**0.5 * factor @ spread_out[0] + 8 * eps * jnp.abs(z)
        tried = jnp.concatenate([z + spread_out @ factor.T, (z + shift)[None]])
        log_p = in_slices(target.log_density, tried, target.batch)
        entropy = jnp.log(scale).sum() - 0.5 * jnp.log(values).sum()
        entropy += 0.5 * target.dim * (1 + jnp.log(2 * jnp.pi))
        elbo = finite_or_minus_inf(log_p[:-1]).mean() + entropy
        usable = jnp.abs(log_p[-1] - height) < ROUNDING
        elbo = jnp.where(usable, elbo, -jnp.inf)
        return Climbs(z, factor, scale, elbo, whole, jnp.zeros((), int))

    def advance(spread, at):
        scale, values, vectors, whole = curvature(at.z)
        values = jnp.maximum(jnp.abs(values), LEAST_CURVATURE)  # which leaves saddles too
        here = gaussian(at.z, target.log_density(at.z), scale, values, vectors, whole)
        better = here.elbos > at.best.elbos
        rises_enough = here.elbos > at.best.elbos + GAIN
        factor = jnp.where(spread > 0, spread * here.factors, 0.0)
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

    def go(at, spread):
        until = jnp.minimum(at.step + BETWEEN, STEPS)
        going = lambda at: (at.step < until) & (at.stale < PATIENCE)  # noqa: E731
        return jax.lax.while_loop(going, partial(advance, spread), at)

    return go


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


def curvature_where_finite(target: Target, z: Array) -> Callable:
    """The curvature by a derivative that is finite at z: by differences where no other is."""
    usual = curvature_of(target)
    if mesh.program(usual)(z)[-1]:
        return usual
    return partial(curvature, target, differences, target.batch)


def curvature(target: Target, along: Callable, batch: int | None, z: Array) -> tuple:
    """Scales (d,), eigenvalues and vectors of −∇²log p on them, and whether all is finite.

    Scales are 1 / √|∂²|.
    """
    slope = jax.grad(target.log_density)
    rows = jax.lax.map(lambda e: along(slope, z, e), jnp.eye(target.dim), batch_size=batch)
    finite = jnp.isfinite(rows)
    hessian = -jnp.where(finite, rows, 0.0)
    size = jnp.abs(jnp.diagonal(hessian))
    scale = jnp.where(size > 0, 1 / jnp.sqrt(jnp.where(size > 0, size, 1.0)), 1.0)
    scaled = scale[:, None] * hessian * scale
    values, vectors = jnp.linalg.eigh((scaled + scaled.T) / 2)
    return scale, values, vectors, finite.all()


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
