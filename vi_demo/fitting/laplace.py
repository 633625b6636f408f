"""Laplace's approximation: a Gaussian at the best mode, as wide as the curvature there says.

Newton's method goes on from where the climbs led, to the modes themselves. At each mode ẑ, with
H = −∇² log p(ẑ), there is N(ẑ, H⁻¹) and its estimate of the log evidence,
log p(ẑ) + ½ d log 2π − ½ log |H|, by which the best of them is chosen. Where the density has no
mode, or one without curvature in some direction, as at the end of a ridge, there is no such
Gaussian, and the fit has failed. Tierney & Kadane (1986), doi:10.1080/01621459.1986.10478240.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vi_demo import climbs, mesh, starts
from vi_demo.batching import in_slices
from vi_demo.errors import InputError
from vi_demo.fitting.runner import Assessment, Fit, Fitter, Report, run, silent
from vi_demo.guides import Family, nearest
from vi_demo.target import Target, finite_or_minus_inf

MAX_STEPS = 100
DAMPING = 10.0 ** np.arange(-2, 7)  # tried at each step, times the last that was best
NEAR = 0.1  # sds from the mode, where Newton's own step is taken
MARGINAL = "a diagonal guide has the marginal widths of a Gaussian with correlations"


class Place(NamedTuple):
    """Where Newton's method stands: the point (d,), log p and its slope there, scales with the
    eigenvalues and vectors of −∇² log p on them, whether it is finite; the damping, the steps so
    far, and the coordinate that the last one was longest in.
    """

    z: Array
    height: Array
    slope: Array
    scale: Array
    values: Array
    vectors: Array
    finite: Array
    damping: Array
    steps: Array
    led: Array

    @property
    def sizes(self) -> Array:
        """The eigenvalues, made positive."""
        return jnp.maximum(jnp.abs(self.values), climbs.LEAST_CURVATURE)

    @property
    def along(self) -> Array:
        """The slope along each eigenvector."""
        return jnp.einsum("...ij,...i->...j", self.vectors, self.scale * self.slope)

    @property
    def distance(self) -> Array:
        """How far the mode is, in sds, as the curvature has it."""
        return jnp.sqrt((self.along**2 / self.sizes).sum(-1))

    @property
    def settled(self) -> Array:
        """Whether this is the mode, as far as rounding lets one see."""
        return self.distance < jnp.finfo(self.z.dtype).eps ** 0.5

    @property
    def curved(self) -> Array:
        """Whether the density falls in every direction."""
        flat = jnp.finfo(self.z.dtype).eps ** (2 / 3)
        return self.finite & (self.values > flat).all(-1)


def refuse(target: Target) -> None:
    """Raise `InputError` where there are too many dimensions for a curvature."""
    if target.dim > starts.MOST_CURVATURE:
        raise InputError(
            f"{target.name}: the whole curvature is looked at in up to {starts.MOST_CURVATURE} "
            f"dimensions, and there are {target.dim:,}; fit pathfinder or reverse_kl."
        )


def fit(target: Target, family: Family, key: Array, report: Report = silent) -> Fit:
    """The Gaussian N(ẑ, H⁻¹) at the best of the modes that Newton's method finds.

    `restarts` holds each mode once, with its `log_evidence` in nats. Without a mode the status is
    `failed`, and a note names the coordinate at fault.
    """
    return run(fitter(target, family), key, "laplace", family, report)


def fitter(target: Target, family: Family) -> Fitter:
    """Newton's method from where every climb led, all in one program."""
    step, begin = newton(target)

    def init(key):
        return begin()

    def advance(every):
        every = step(every)
        return every, {"distance": every.distance[None]}

    def assess(every):
        steps, distance = int(every.steps.max()), float(every.distance.min())
        text = f"step {steps}, {distance:.1e} sds from a mode"
        if not every.settled.all() and steps < MAX_STEPS:
            return Assessment(None, steps / MAX_STEPS, text)
        found = (every.settled & every.curved).any()
        return Assessment("converged" if found else "failed", 1.0, text)

    def finish(every):
        good = np.asarray(every.settled & every.curved)
        spent, looks = starts.evaluations(target), int(every.steps.sum()) + len(every.z)
        fields = {
            "steps": int(every.steps.max()),
            "evaluations": {
                "log_density": spent["log_density"] + looks * (len(DAMPING) + 1),
                "gradient": spent["gradient"] + looks * (target.dim + 1),
            },
            "notes": () if family.turns else (MARGINAL,),
        }
        if not good.any():
            params = nearest(family, *starts.frame(target, whole=True))
            why = without_a_mode(target, every)
            return fields | {"params": params, "notes": (*fields["notes"], why)}
        found = modes(every, good)
        params = jax.vmap(partial(nearest, family))(found.centres, found.factors)
        return fields | {
            "params": jax.tree.map(lambda x: x[0], params),
            "restarts": jax.device_get({"log_evidence": found.elbos, **params}),
            "measured": {"log_evidence": float(found.elbos[0])},
        }

    return Fitter("newton", init, advance, assess, finish)


def newton(target: Target) -> tuple[Callable, Callable]:
    """One step from all places, (places) -> places, and the places to begin at."""
    found = starts.climbs(target)
    key = jax.random.key(0)
    points = starts.points(target, key, starts.CLIMBS) if found is None else found.centres
    curvature = climbs.curvature_where_finite(target, points[0])
    value_and_grad = jax.value_and_grad(target.log_density)

    def look(z, damping, steps, led):
        return Place(z, *value_and_grad(z), *curvature(z), damping, steps, led)

    def step(at):
        dampings = jnp.append(at.damping * DAMPING, 0.0)  # the last is Newton's own step
        shares = at.along / (at.sizes + dampings[:, None])
        tried = at.z + at.scale * (shares @ at.vectors.T)
        heights = finite_or_minus_inf(in_slices(target.log_density, tried, target.batch))
        near = (at.values > 0).all() & (at.distance < NEAR)
        i = jnp.where(near, len(dampings) - 1, jnp.argmax(heights))
        moves = near | (heights[i] > finite_or_minus_inf(at.height))
        damping = jnp.where(moves, jnp.maximum(dampings[i], 1e-6), 1e3 * at.damping)
        z = jnp.where(moves, tried[i], at.z)
        led = jnp.where(moves, jnp.abs((z - at.z) / at.scale).argmax(), at.led)
        return look(z, jnp.clip(damping, 1e-6, 1e8), at.steps + 1, led)

    def one(at):
        return jax.lax.cond(at.settled, lambda at: at, step, at)

    zero = jnp.zeros((), int)
    begin = lambda z: look(z, jnp.ones(()), zero, zero)  # noqa: E731
    all_of = lambda fn: mesh.program(partial(jax.lax.map, fn))  # noqa: E731
    return all_of(one), lambda: all_of(begin)(points)


def modes(every: Place, good: np.ndarray) -> climbs.Climbs:
    """The Gaussian at each good place, once, the greatest log evidence first, as its `elbos`."""
    at = jax.tree.map(lambda x: x[np.flatnonzero(good)], every)
    factors = at.scale[:, :, None] * at.vectors / jnp.sqrt(at.values)[:, None]
    log_volumes = jnp.log(at.scale).sum(-1) - 0.5 * jnp.log(at.values).sum(-1)
    log_z = at.height + 0.5 * at.z.shape[1] * jnp.log(2 * jnp.pi) + log_volumes
    return climbs.apart(climbs.Climbs(at.z, factors, at.scale, log_z, at.finite, at.steps))


def without_a_mode(target: Target, every: Place) -> str:
    """Along which coordinate the density has no mode, or none with a width."""
    at = jax.tree.map(lambda x: x[np.argmax(np.nan_to_num(every.height, nan=-np.inf))], every)
    if at.settled and at.finite:
        name = target.coordinates[int(jnp.abs(at.vectors[:, 0]).argmax())]
        what = f"along {name} the density does not fall where it is greatest"
    else:
        what = f"after {int(at.steps)} steps the density still rises along "
        what += target.coordinates[int(at.led)]
    return f"no mode was found: {what}; the guide is the Gaussian that fits begin at"
