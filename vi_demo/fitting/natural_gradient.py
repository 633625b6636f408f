"""Reverse KL of a Gaussian by natural gradients: tens of steps and no learning rate.

In the guide's own units, z = loc + F ε, a step needs two averages over its draws: of the slope
Fᵀ∇log p and, by Stein's identity, of the curvature −sym(ε (Fᵀ∇log p)ᵀ). The natural gradient
moves the precision towards that curvature, and the mean by a Newton step (Khan & Rue 2023, JMLR
24(281)).

First the draws stay the same: the ELBO is a smooth function of the guide then, and a step that
lowers it is tried again, shorter. Its summit is off by what the draws do not show. So there are
steps on fresh draws after it, the t-th of 1/(t + 1) the length: they average what all draws say,
each looked at once. How far a single handful is off, ½ ‖slope‖² + ¼ ‖curvature − I‖² nats by the
Fisher metric, says when the average is right to `TOLERANCE`. Where a handful is misled, or
averaging takes too long, it is made four times as large.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vi_demo import starts
from vi_demo.batching import in_slices
from vi_demo.fitting import svi
from vi_demo.fitting.objectives import normal_noise
from vi_demo.fitting.runner import Assessment, Fit, Fitter, Report, choose, run, silent
from vi_demo.frames import Frame
from vi_demo.guides import Family
from vi_demo.target import Target, finite_or_minus_inf

STARTS = 8
LEAST_DRAWS = 64  # of a batch
BATCHES = 256
MOST_NUMBERS = 2**23  # of all draws
HANDFULS = 1, 4, 16  # batches looked at in one step, in each round
TOLERANCE = 0.003  # nats
SETTLED = 1e-3  # nats, of the step that is left on the same draws
MISLED = 2.0  # nats by which fresh draws may disagree with those that stayed the same
MOST_STEPS = 100  # on the same draws
SHORTEST = 1e-3
CURVATURE = 0.05, 50.0  # between which a step believes it
BASE_DRAWS = 1024  # of the guide, for its ELBO
DOUBTED = 4096  # where a step was not finite, for the site
RECORDED = 128  # steps a round whose guides are kept
MOST_RECORDED = 20_000  # numbers of one guide, above which they are not


class Seen(NamedTuple):
    """What draws of a guide show: its ELBO, its slope and curvature in the guide's units."""

    elbo: Array
    slope: Array
    curvature: Array
    finite: Array

    @property
    def gap(self) -> Array:
        """Nats from here to where a whole natural step leads."""
        d = self.slope.size
        unit = jnp.eye(d) if self.curvature.ndim == 2 else jnp.ones(d)
        return 0.5 * jnp.sum(self.slope**2) + 0.25 * jnp.sum((self.curvature - unit) ** 2)


class Gaussian(NamedTuple):
    """N(loc, F Fᵀ): F (d, d) any square root of the covariance, or (d,) the sds."""

    loc: Array
    factor: Array

    @property
    def whole(self) -> bool:
        """Whether it has a whole matrix."""
        return self.factor.ndim == 2

    def at(self, noise: Array) -> Array:
        """The points that noise (n, d) leads to."""
        return self.loc + (noise @ self.factor.T if self.whole else noise * self.factor)

    def log_volume(self) -> Array:
        """Log |det F|."""
        if self.whole:
            return jnp.linalg.slogdet(self.factor)[1]
        return jnp.log(jnp.abs(self.factor)).sum()


class State(NamedTuple):
    """One start on its way, in one round.

    `here` is the guide that `seen` is of; `rate` the length of the next step from it, 0 where it
    has not been looked at. `fresh` is 0 while draws stay the same, then 1 more than the handfuls
    of fresh ones that it was held against; `gaps` the sum of how far each of those was off.
    `path` and `elbos` are of each step, the latter less a constant.
    """

    here: Gaussian
    seen: Seen
    rate: Array
    fresh: Array
    gaps: Array
    steps: Array
    skipped: Array  # steps to where the density is not finite at every draw
    first_skipped: Array
    skipped_at: Gaussian
    done: Array
    path: Gaussian | None
    elbos: Array

    @property
    def error(self) -> Array:
        """Nats that the average of what was seen may be off."""
        told = self.fresh - 1
        return jnp.where(told > 0, self.gaps / jnp.maximum(told * self.fresh, 1), jnp.inf)

    def averaged(self) -> Gaussian:
        """The guide, with the step that is still to be taken."""
        return step(self.here, self.seen, averaging(self.fresh))


def averaging(fresh: Array) -> Array:
    """The length of a step that makes an average of all handfuls, the one that stayed too."""
    return jnp.where(fresh > 1, 1.0 / jnp.maximum(fresh, 1), 0.0)


def step(at: Gaussian, seen: Seen, rate: Array) -> Gaussian:
    """The guide that a natural step of that length leads to; of length 0, the guide itself."""
    low, high = CURVATURE
    if not at.whole:
        precision = 1 - rate + rate * jnp.clip(seen.curvature, low, high)
        move = within_reach(rate * seen.slope / precision)
        return Gaussian(at.loc + at.factor * move, at.factor / jnp.sqrt(precision))
    values, vectors = jnp.linalg.eigh(seen.curvature)
    precision = 1 - rate + rate * jnp.clip(values, low, high)
    move = within_reach(rate * vectors @ (vectors.T @ seen.slope / precision))
    root = (vectors / jnp.sqrt(precision)) @ vectors.T
    return Gaussian(at.loc + at.factor @ move, at.factor @ root)


def within_reach(move: Array) -> Array:
    """A move in sds (d,), no longer than a draw of the guide is far."""
    length = jnp.linalg.norm(move)
    return move * jnp.minimum(1.0, (1 + move.size**0.5) / jnp.maximum(length, 1e-12))


def looker(target: Target) -> Callable:
    """(guide, noise (batches, n, d), first batch, how many) -> what their draws show."""
    value_and_grad = jax.value_and_grad(target.log_density)

    def of_batch(at: Gaussian, noise: Array) -> Seen:
        log_p, slopes = in_slices(value_and_grad, at.at(noise), target.batch)
        slopes = slopes @ at.factor if at.whole else slopes * at.factor
        log_p = finite_or_minus_inf(log_p)
        finite = jnp.isfinite(log_p) & jnp.isfinite(slopes).all(1)
        slopes = jnp.where(finite[:, None], slopes, 0.0)
        if at.whole:
            curvature = -noise.T @ slopes / len(noise)
            curvature = (curvature + curvature.T) / 2
        else:
            curvature = -(noise * slopes).mean(0)
        return Seen(log_p.mean(), slopes.mean(0), curvature, finite.all())

    def look(at: Gaussian, noise: Array, first: Array, number: Array) -> Seen:
        def add(i, total):
            one = of_batch(at, noise[first + i])
            both = jax.tree.map(jnp.add, total, one._replace(finite=total.finite))
            return both._replace(finite=total.finite & one.finite)

        d = target.dim
        nothing = jnp.zeros((d, d) if at.whole else d, noise.dtype)
        zero = jnp.zeros((), noise.dtype)
        begin = Seen(zero, jnp.zeros(d, noise.dtype), nothing, jnp.array(True))
        total = jax.lax.fori_loop(0, number, add, begin)
        mean = jax.tree.map(lambda x: x / number, total._replace(finite=zero))
        return mean._replace(elbo=mean.elbo + at.log_volume(), finite=total.finite)

    return look


def descender(target: Target) -> Callable:
    """One round of a start: (state, noise, handful) -> state, steps until it is done."""
    look = looker(target)

    def once(noise, handful, state):
        first, same = state.rate == 0, state.fresh == 0
        length = jnp.where(same, state.rate, averaging(state.fresh))
        tried = step(state.here, state.seen, length)
        seen = look(tried, noise, handful * state.fresh, handful)
        usable = jnp.isfinite(seen.elbo) & seen.finite
        gain = seen.elbo - state.seen.elbo
        rises = usable & ~(gain < 0)
        accepted = first | jnp.where(same, rises, usable)
        never = ~usable & (state.skipped == 0)
        here, seen = choose(accepted, (tried, seen), (state.here, state.seen))
        rate = jnp.where(rises, jnp.minimum(1.0, 2 * state.rate), 0.25 * state.rate)
        settled = (seen.gap < SETTLED) | (rate < SHORTEST) | (rises & (gain < SETTLED))
        settled = ~first & settled | (state.steps + 1 >= MOST_STEPS)
        row = jnp.minimum(state.steps, RECORDED - 1)
        state = state._replace(
            here=here,
            seen=seen,
            rate=jnp.where(first, 1.0, rate),
            fresh=jnp.where(same, settled.astype(int), state.fresh + 1),
            gaps=state.gaps + jnp.where(same, 0.0, seen.gap),
            steps=state.steps + 1,
            skipped=state.skipped + ~usable,
            first_skipped=jnp.where(never, state.steps, state.first_skipped),
            skipped_at=choose(never, tried, state.skipped_at),
            path=jax.tree.map(lambda rows, x: rows.at[row].set(x), state.path, here),
            elbos=state.elbos.at[row].set(seen.elbo),
        )
        misled = (state.fresh == 2) & (seen.gap > MISLED)
        out = handful * (state.fresh + 1) > len(noise)
        return state._replace(done=(state.error < TOLERANCE) | misled | out)

    def descend(state, noise, handful):
        return jax.lax.while_loop(lambda s: ~s.done, partial(once, noise, handful), state)

    return descend


class Programs(NamedTuple):
    """What is compiled for a target and a family; all but `descend` for every start at once."""

    begin: Callable  # (parameters on the scale of steps) -> states
    again: Callable  # states -> the same guides, on their way into another round
    descend: Callable  # (states, noise, handful) -> states
    tell: Callable  # (states, noise) -> ELBOs; ELBOs and parameters of their path, ends last


def programs(here: Target, frame: Frame, family: Family, kept: bool) -> Programs:
    """The programs that fit a family to a target, as seen from a frame."""
    unit = family.init(jnp.zeros(here.dim), 1.0)

    def gaussian(params):
        points = family.draw(params, jnp.eye(here.dim))[0] - params["loc"]
        return Gaussian(params["loc"], points.T if family.turns else jnp.diagonal(points))

    def begin(at):
        d, zero, none = here.dim, jnp.zeros(()), jnp.zeros((), int)
        nothing = Seen(jnp.full((), -jnp.inf), jnp.zeros(d), 0 * at.factor, jnp.array(True))
        path = jax.tree.map(lambda x: jnp.zeros((RECORDED, *x.shape)), at) if kept else None
        done, elbos = jnp.zeros((), bool), jnp.full(RECORDED, jnp.nan)
        counted = zero, none, zero, none, none, none
        return State(at, nothing, *counted, at, done, path, elbos)

    def tell(state, noise):
        end = state.averaged()
        points = end.at(noise.reshape(-1, here.dim)[-BASE_DRAWS:])
        log_p = in_slices(here.finite, points, here.batch)
        elbo = finite_or_minus_inf(log_p.mean() + end.log_volume())
        over = jnp.arange(RECORDED) >= state.steps
        elbos = jnp.where(over, elbo, state.elbos)
        rows = jax.tree.map(lambda x: x[None], end)
        if kept:
            fill = lambda x, y: jnp.where(over.reshape(-1, *[1] * (x.ndim - 1)), y, x)  # noqa: E731
            path = jax.tree.map(fill, state.path, end)
            rows = jax.tree.map(lambda *x: jnp.concatenate(x), path, rows)
        return elbo, elbos, jax.lax.map(parameters, rows)

    def parameters(at):
        return family.moved(family.moved(unit, *at), *frame)

    return Programs(
        jax.jit(jax.vmap(lambda params: begin(gaussian(params)))),
        jax.jit(jax.vmap(lambda state: begin(state.averaged()))),
        jax.jit(jax.vmap(descender(here), (0, None, None))),
        jax.jit(jax.vmap(tell, (0, None))),
    )


class Progress(NamedTuple):
    """All starts, the rounds that they have been through, and what was counted in those."""

    every: State
    noise: Array
    level: int = 0
    steps: np.ndarray | int = 0  # of each start
    looks: int = 0  # batches, of all
    notes: tuple[str, ...] = ()
    elbos: np.ndarray | None = None
    params: dict | None = None


def fit(target: Target, family: Family, key: Array, report: Report = silent) -> Fit:
    """Fit a Gaussian family to a target by maximising E_q[log p − log q], from several starts.

    Where no step leads to a finite ELBO, as with a density that is zero here and there, it is for
    Adam, which skips what is not finite.
    """
    fitted = run(fitter(target, family), key, "reverse_kl", family, report)
    return svi.fit(target, family, key, report) if fitted.status == "failed" else fitted


def fitter(target: Target, family: Family) -> Fitter:
    """Natural gradients from every start at once, a round a chunk."""
    frame, here = starts.to_scale(target, family.turns)
    dim, constant = target.dim, 0.5 * target.dim * float(1 + np.log(2 * np.pi))
    size = LEAST_DRAWS
    while family.turns and size <= 2 * dim:  # or some direction is seen by no draw
        size *= 2
    batches = int(np.clip(MOST_NUMBERS // (size * dim), 2, BATCHES))
    handfuls = [h for h in HANDFULS if 2 * h <= batches]
    kept = dim * (dim + 1 if family.turns else 2) <= MOST_RECORDED
    if ("natural", family.name) not in target.programs:
        target.programs["natural", family.name] = programs(here, frame, family, kept)
    begin, again, descend, tell = target.programs["natural", family.name]

    def init(key):
        start_key, noise_key = jax.random.split(key)
        params = starts.guides(target, family, frame, start_key, STARTS)
        return Progress(begin(params), batches_of_noise(noise_key, batches, size, dim))

    def advance(state):
        every = again(state.every) if state.level else state.every
        every = descend(every, state.noise, handfuls[state.level])
        elbos, way, params = jax.device_get(tell(every, state.noise))
        steps = np.asarray(every.steps)
        rows, number = min(int(steps.max()), RECORDED), int(steps.sum())
        info = {"elbo": way[:, :rows].swapaxes(0, 1) + constant}
        if kept:
            info |= {k: v[:, :rows].swapaxes(0, 1) for k, v in params.items()}
        return state._replace(
            every=every,
            level=state.level + 1,
            steps=state.steps + steps,
            looks=state.looks + number * handfuls[state.level],
            notes=state.notes or skipped(here, every, number, state.noise),
            elbos=elbos + constant,
            params={k: v[:, -1] for k, v in params.items()},
        ), info

    def assess(state):
        right = bool((state.every.error < TOLERANCE).all())
        elbo = float(state.elbos.max())
        text = f"{state.steps.max()} steps, ELBO {elbo:,.3f}"
        if not right and state.level < len(handfuls):
            return Assessment(None, state.level / len(handfuls), text)
        if not np.isfinite(elbo):
            return Assessment("failed", 1.0, text)
        best = state.every.error[int(state.elbos.argmax())]
        return Assessment("converged" if best < TOLERANCE else "stopped", 1.0, text)

    def finish(state):
        best = int(state.elbos.argmax())
        spent = starts.evaluations(target)
        return {
            "params": {k: jnp.asarray(v[best]) for k, v in state.params.items()},
            "steps": int(state.steps[best]),
            "best": best,
            "evaluations": {
                "log_density": spent["log_density"] + len(state.elbos) * BASE_DRAWS * state.level,
                "gradient": spent["gradient"] + state.looks * size,
            },
            "restarts": {
                "elbo": state.elbos,
                "steps": state.steps,
                **(state.params if kept else {}),
            },
            "notes": state.notes,
        }

    return Fitter("natural_gradient", init, advance, assess, finish)


def skipped(here: Target, every: State, steps: int, noise: Array) -> tuple[str, ...]:
    """What to say of steps that led to where the density is not finite, as `svi` does."""
    first = int(jnp.where(every.skipped > 0, every.first_skipped, jnp.inf).argmin())
    at = jax.tree.map(lambda x: x[first], every.skipped_at)
    draws = noise.reshape(-1, here.dim)[:DOUBTED]
    return tuple(
        svi.skipped_steps(
            every.skipped,
            int(every.first_skipped[first]),
            steps,
            lambda: here.not_finite_at(at.at(draws)),
        )
    )


def batches_of_noise(key: Array, batches: int, size: int, dim: int) -> Array:
    """Standard normal noise (batches, size, d), each batch antithetic and its covariance I."""
    half = np.asarray(normal_noise(key, batches * size // 2, dim, whiten=False))
    half = half.reshape(batches, size // 2, dim)
    noise = np.concatenate([half, -half], axis=1)
    if size > 2 * dim:
        factors = np.linalg.cholesky(np.einsum("bni,bnj->bij", noise, noise) / size)
        noise = np.linalg.solve(factors, noise.swapaxes(1, 2)).swapaxes(1, 2)
    return jnp.asarray(noise)
