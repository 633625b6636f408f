"""One natural step of a Gaussian towards reverse KL's optimum, and a start that takes many.

In the guide's own units, z = loc + F ε, a step needs two averages over its draws: of the slope
Fᵀ∇log p and, by Stein's identity, of the curvature −sym(ε (Fᵀ∇log p)ᵀ). The natural gradient
moves the precision towards that curvature, and the mean by a Newton step (Khan & Rue 2023, JMLR
24(281)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vi_demo.batching import in_slices
from vi_demo.fitting.runner import choose
from vi_demo.frames import Frame
from vi_demo.target import Target, finite_or_minus_inf

BATCHES = 256  # fresh ones that a round looks at, at most,
LEAST_HANDFULS = 16  # unless these are more
SETTLED = 1e-4  # nats, of the step that is left on the same draws
MISLED = 2.0  # nats by which fresh draws may disagree with those that stayed the same
MOST_STEPS = 300  # on the same draws
SHORTEST = 1e-3
CURVATURE = 0.05, 50.0  # between which a step believes it


class Seen(NamedTuple):
    """What draws of a guide show: mean log p, its slope and curvature in the guide's units."""

    height: Array
    slope: Array
    curvature: Array
    finite: Array

    @property
    def gap(self) -> Array:
        """Nats from here to where a whole natural step leads."""
        d = self.slope.size
        unit = jnp.eye(d) if self.curvature.ndim == 2 else jnp.ones(d)
        return 0.5 * jnp.sum(self.slope**2) + 0.25 * jnp.sum((self.curvature - unit) ** 2)


class State(NamedTuple):
    """One start on its way, in one round.

    `here` is the Gaussian that `seen` is of, as the scale on which it is N(0, I), and `volume`
    its log |det F|; `rate` the length of the next step from it, 0 where it has not been looked
    at, and `reach` the sds that it may move. `fresh` is 0 while draws stay the same, then 1 more
    than the handfuls of fresh ones that it was held against; `gaps` the sum of how far each of
    those was off; `since` is the guide that they began at; `used` counts the batches in hand that
    are not fresh any more.
    """

    here: Frame
    volume: Array
    seen: Seen
    rate: Array
    reach: Array
    fresh: Array
    gaps: Array
    since: Frame
    used: Array
    steps: Array
    skipped: Array  # steps to where the density is not finite at every draw
    first_skipped: Array
    skipped_at: Frame
    done: Array

    @property
    def elbo(self) -> Array:
        """The guide's ELBO by these draws, less a constant."""
        return self.seen.height + self.volume

    @property
    def error(self) -> Array:
        """Nats that the average of what was seen may be off."""
        told = self.fresh - 1
        return jnp.where(told > 0, self.gaps / jnp.maximum(told * self.fresh, 1), jnp.inf)

    def averaged(self) -> tuple[Frame, Array]:
        """The guide with the step that is still to be taken, and its volume."""
        return self.stepped(averaging(self.fresh))

    def stepped(self, rate: Array) -> tuple[Frame, Array]:
        """The guide that a natural step of that length leads to; of length 0, the guide itself."""
        end, wider = step(self.here, self.seen, rate, self.reach)
        return end, self.volume + wider


def averaging(fresh: Array) -> Array:
    """The length of a step that makes an average of all handfuls, the one that stayed too."""
    return jnp.where(fresh > 1, 1.0 / jnp.maximum(fresh, 1), 0.0)


def step(at: Frame, seen: Seen, rate: Array, reach: Array) -> tuple[Frame, Array]:
    """The guide that a natural step of that length leads to, and by how much its volume grows.

    The mean moves by so many sds at most.
    """
    low, high = CURVATURE
    if at.factor.ndim == 1:
        precision = 1 - rate + rate * jnp.clip(seen.curvature, low, high)
        move = within(reach, rate * seen.slope / precision)
        narrower = at.factor / jnp.sqrt(precision)
    else:
        values, vectors = jnp.linalg.eigh(seen.curvature)
        precision = 1 - rate + rate * jnp.clip(values, low, high)
        move = within(reach, rate * vectors @ (vectors.T @ seen.slope / precision))
        narrower = at.factor @ ((vectors / jnp.sqrt(precision)) @ vectors.T)
    return Frame(at.out(move), narrower), -0.5 * jnp.log(precision).sum()


def usual_reach(d: int) -> float:
    """Sds that a draw is from the mean, and one more."""
    return 1 + d**0.5


def within(reach: Array, move: Array) -> Array:
    """A move in sds (d,), no longer than that."""
    return move * jnp.minimum(1.0, reach / jnp.maximum(jnp.linalg.norm(move), 1e-12))


def looker(target: Target) -> Callable:
    """(guide, noise (batches, n, d), first batch, how many) -> what their draws show."""
    value_and_grad = jax.value_and_grad(target.log_density)

    def of_batch(at: Frame, noise: Array) -> Seen:
        log_p, slopes = in_slices(value_and_grad, at.out(noise), target.batch)
        slopes = slopes @ at.factor if at.factor.ndim == 2 else slopes * at.factor
        log_p = finite_or_minus_inf(log_p)
        finite = jnp.isfinite(log_p) & jnp.isfinite(slopes).all(1)
        slopes = jnp.where(finite[:, None], slopes, 0.0)
        if at.factor.ndim == 2:
            curvature = -noise.T @ slopes / len(noise)
            curvature = (curvature + curvature.T) / 2
        else:
            curvature = -(noise * slopes).mean(0)
        return Seen(log_p.mean(), slopes.mean(0), curvature, finite.all())

    def look(at: Frame, noise: Array, first: Array, number: Array) -> Seen:
        def add(i, total):
            one = of_batch(at, noise[first + i])
            both = jax.tree.map(jnp.add, total, one._replace(finite=total.finite))
            return both._replace(finite=total.finite & one.finite)

        zero = jnp.zeros((), noise.dtype)
        begin = Seen(zero, jnp.zeros_like(at.shift), jnp.zeros_like(at.factor), jnp.array(True))
        total = jax.lax.fori_loop(0, number, add, begin)
        mean = jax.tree.map(lambda x: x / number, total._replace(finite=zero))
        return mean._replace(finite=total.finite)

    return look


def stepper(target: Target) -> Callable:
    """One step of a start: (noise, handful, wanted error, state) -> state."""
    look = looker(target)

    def once(noise, handful, wanted, state):
        first, same, d = state.rate == 0, state.fresh == 0, target.dim
        length = jnp.where(same, state.rate, averaging(state.fresh))
        tried, volume = state.stepped(length)
        seen = look(tried, noise, jnp.where(same, 0, state.used), handful)
        usable = jnp.isfinite(seen.height) & seen.finite
        gain = seen.height + volume - state.elbo
        rises = usable & ~(gain < 0)
        accepted = first | jnp.where(same, rises, usable)
        never = ~usable & (state.skipped == 0)
        old = state.here, state.volume, state.seen
        here, volume, seen = choose(accepted, (tried, volume, seen), old)
        rate = jnp.where(rises, jnp.minimum(1.0, 2 * state.rate), 0.25 * state.rate)
        # A guide that has narrowed on its way has yet far to go, in its own sds.
        farther = jnp.where(rises, 2 * state.reach, 0.25 * state.reach)
        settled = (seen.gap < SETTLED) | (rate < SHORTEST) | (rises & (gain < SETTLED))
        settled = ~first & settled | (state.steps + 1 >= MOST_STEPS)
        state = state._replace(
            here=here,
            volume=volume,
            seen=seen,
            rate=jnp.where(first, 1.0, rate),
            reach=jnp.where(same & ~settled, farther, usual_reach(d)),
            fresh=jnp.where(same, settled.astype(int), state.fresh + 1),
            gaps=state.gaps + jnp.where(same, 0.0, seen.gap),
            since=choose(same, here, state.since),
            used=jnp.where(same, handful, state.used + handful),
            steps=state.steps + 1,
            skipped=state.skipped + ~usable,
            first_skipped=jnp.where(never, state.steps, state.first_skipped),
            skipped_at=choose(never, tried, state.skipped_at),
        )
        misled = (state.fresh == 2) & (seen.gap > MISLED)
        out = state.fresh > jnp.maximum(LEAST_HANDFULS, BATCHES // handful)
        return state._replace(done=(state.error < wanted) | misled | out)

    return once


def beginning(at: Frame, volume: np.ndarray | None = None) -> State:
    """Starts at Gaussians (n of them) that nothing is known of."""
    at = jax.tree.map(np.asarray, at)
    if volume is None and at.factor.ndim == 2:
        volume = np.log(np.abs(at.factor)).sum(1)
    elif volume is None:
        volume = np.linalg.slogdet(at.factor)[1]
    zero = np.zeros(len(at.shift), at.shift.dtype)
    none, no = np.zeros(len(zero), int), np.zeros(len(zero), bool)
    nothing = Seen(zero - np.inf, 0 * at.shift, 0 * at.factor, ~no)
    reach = zero + usual_reach(at.shift.shape[1])
    return State(at, volume, nothing, zero, reach, none, zero, at, *[none] * 4, at, no)
