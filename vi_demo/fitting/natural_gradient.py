"""Reverse KL of a Gaussian by natural gradients: tens of steps and no learning rate.

In the guide's own units, z = loc + F ε, a step needs two averages over its draws: of the slope
Fᵀ∇log p and, by Stein's identity, of the curvature −sym(ε (Fᵀ∇log p)ᵀ). The natural gradient
moves the precision towards that curvature, and the mean by a Newton step (Khan & Rue 2023, JMLR
24(281)).

First the draws stay the same: the ELBO is a smooth function of the guide then, and a step that
lowers it is tried again, shorter. Its summit is off by what the draws do not show. So there are
steps on fresh draws after it, the t-th of 1/(t + 1) the length: they average what all draws say,
each looked at once. How far a single handful is off, ½ ‖slope‖² + ¼ ‖curvature − I‖² nats by the
Fisher metric, says how far the average may be. It does not say how much of where they began is
left in it, on a skewed target: so a second round, of handfuls four times as large, averages from
there, and it has settled where that moved next to nothing. Where a handful is misled, or
averaging takes too long, the next round climbs on its larger handful first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import qmc

from vi_demo import starts
from vi_demo.batching import in_slices
from vi_demo.fitting import svi
from vi_demo.fitting.objectives import normal_of, sobol
from vi_demo.fitting.runner import Assessment, Fit, Fitter, Report, choose, run, silent
from vi_demo.frames import Frame
from vi_demo.guides import Family
from vi_demo.target import Target, finite_or_minus_inf

STARTS = 8
LANES = 8  # starts more than which are gathered where they have met
LEAST_DRAWS = 64  # of a batch
BATCHES = 256  # fresh ones that a round looks at, at most,
LEAST_HANDFULS = 16  # unless these are more
SUPPLY = 16  # batches that are drawn at a time
MOST_NUMBERS = 2**23  # of these
HANDFULS = 1, 4, 16, 64  # batches looked at in one step, in each round; then the last again
ROUNDS = 8
TOLERANCE = 0.002  # nats
ROUGHLY = 0.01  # nats, that a first round ends at
MOVED = 0.03  # nats, that a round may move a guide that has settled
SETTLED = 1e-4  # nats, of the step that is left on the same draws
MISLED = 2.0  # nats by which fresh draws may disagree with those that stayed the same
MOST_STEPS = 300  # on the same draws
SHORTEST = 1e-3
CURVATURE = 0.05, 50.0  # between which a step believes it
BASE_DRAWS = 1024  # of the guide, for its ELBO
DOUBTED = 4096  # where a step was not finite, for the site
MOST_RECORDED = 2**22  # numbers of all guides on the way, above which they are not kept


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


def descender(target: Target, family: Family) -> Callable:
    """Steps of every start until it is done, or out of draws that it has not looked at, or, where
    all are to be `held`, done with those that stay the same.

    (states, noise, handful, wanted error, held) -> states; where they lead, its volume and
    parameters; the number of steps; ELBOs and parameters after each, not of those beyond what is
    recorded.
    """
    once = jax.vmap(stepper(target), (None, None, None, 0))
    unit = family.init(jnp.zeros(target.dim), 1.0)
    parameters = jax.vmap(lambda at: family.moved(unit, *at))

    def descend(states, noise, handful, wanted, held):
        number = sum(x.size for x in jax.tree.leaves(states.here))
        recorded = min(MOST_STEPS + len(noise), MOST_RECORDED // number)

        def on(states):
            waits = held | (states.used + handful > len(noise))
            return ~states.done & ~(waits & (states.fresh > 0))

        def step_on(carry):
            row, old, path, elbos = carry
            going, new = on(old), once(noise, handful, wanted, old)
            new = jax.vmap(choose)(going, new, old)
            here = jnp.minimum(row, recorded - 1)
            return row + 1, new, put(path, here, new.here), elbos.at[here].set(new.elbo)

        def record(row, params):
            return put(params, row, parameters(jax.tree.map(lambda x: x[row], path)))

        def empty(like, rows):
            return jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), like)

        states = states._replace(used=jnp.zeros_like(states.used))
        begin = 0, states, empty(states.here, recorded + 1), empty(states.elbo, recorded)
        rows, states, path, elbos = jax.lax.while_loop(lambda c: on(c[1]).any(), step_on, begin)
        rows = jnp.minimum(rows, recorded)
        end, volume = jax.vmap(State.averaged)(states)
        path = put(path, rows, end)
        params = empty(jax.eval_shape(parameters, end), recorded + 1)
        params = jax.lax.fori_loop(0, rows + 1, record, params)
        return states, end, volume, rows, elbos, params

    return jax.jit(descend)


def put(rows, at: Array, values):
    """Those values in one row of a tree of arrays."""
    return jax.tree.map(lambda x, y: x.at[at].set(y), rows, values)


class Ends(NamedTuple):
    """Where a round has left every start: guides, their parameters and what is known of them."""

    at: Frame
    volume: np.ndarray
    params: dict
    elbo: np.ndarray
    error: np.ndarray
    moved: np.ndarray  # nats, in the round

    @property
    def settled(self) -> np.ndarray:
        """Which of them are right, as far as can be told."""
        return (self.error < TOLERANCE) & (self.moved < MOVED)


class Progress(NamedTuple):
    """All starts, the rounds that they have been through, and what was counted in those.

    Of many starts, those that have met on the same draws go on as one: `lane` says for each start
    which of `every` it is, `held` that they have not been gathered yet. `noise` makes batches;
    `base` (n, d) is what ends are told by. In between two supplies of noise a round is not `over`.
    """

    every: State
    lane: np.ndarray
    held: bool
    noise: qmc.Sobol
    base: Array
    rounds: int = 0
    over: bool = False
    steps: np.ndarray | int = 0  # of each start, in rounds gone by
    looks: int = 0  # batches, of all
    notes: tuple[str, ...] = ()
    ends: Ends | None = None


def fit(
    target: Target,
    family: Family,
    key: Array,
    report: Report = silent,
    begin: Array | None = None,
) -> Fit:
    """Fit a Gaussian family to a target by maximising E_q[log p − log q], from several starts.

    They are where climbs led to, or narrow ones at the points (n, d) of `begin`. Where no step
    leads to a finite ELBO, as with a density that is zero here and there, it is for Adam, which
    skips what is not finite.
    """
    fitted = run(fitter(target, family, begin), key, "reverse_kl", family, report)
    return svi.fit(target, family, key, report) if fitted.status == "failed" else fitted


def fitter(target: Target, family: Family, at: Array | None = None) -> Fitter:
    """Natural gradients from every start at once, as many as one supply of noise lasts a chunk."""
    dim, constant = target.dim, 0.5 * target.dim * float(1 + np.log(2 * np.pi))
    size = LEAST_DRAWS
    while family.turns and size <= 2 * dim:  # or some direction is seen by no draw
        size *= 2
    most = max(1, MOST_NUMBERS // (size * dim))
    handfuls = [h for h in HANDFULS if h <= most]
    if ("natural", family.name) not in target.programs:
        target.programs["natural", family.name] = descender(target, family)
    descend = target.programs["natural", family.name]

    def init(key):
        start_key, noise_key = jax.random.split(key)
        if at is not None:
            places = starts.narrow(at, family.turns)
        else:
            places = starts.places(target, family.turns, start_key, STARTS)
        sequence = sobol(noise_key, dim)
        every, base = beginning(places), supply(sequence, 1, BASE_DRAWS)[0]
        lane = np.arange(len(every.done))
        return Progress(every, lane, len(lane) > LANES, sequence, base)

    def advance(state):
        if state.over:
            steps = state.steps + state.every.steps[state.lane]
            every = again(state.every, state.ends)
            steps -= every.steps[state.lane]  # of those that have settled, and stay as they are
            state = state._replace(every=every, rounds=state.rounds + 1, steps=steps, over=False)
        handful = handfuls[min(state.rounds, len(handfuls) - 1)]
        drawn = supply(state.noise, max(handful, min(SUPPLY, most)), size)
        wanted = TOLERANCE if state.rounds else ROUGHLY
        found = jax.device_get(descend(state.every, drawn, handful, wanted, state.held))
        every, end, volume, rows, elbos, params = found
        over, number = bool(every.done.all()), int((every.steps - state.every.steps).sum())
        info = {"elbo": elbos + constant, **params}
        info = {k: v[:rows, state.lane] for k, v in info.items()}
        if state.held:
            lane, kept = gathered(every)
            steps = every.steps
            every = jax.tree.map(lambda x: x[kept], every)
            every = every._replace(steps=0 * every.steps)
            state = state._replace(lane=lane, held=False, steps=steps)
        state = state._replace(
            every=every,
            over=over,
            looks=state.looks + number * handful,
            notes=state.notes or skipped(target, every, number, drawn),
        )
        if over:
            height = mean_heights(target, end, state.base)
            params = {k: v[rows] for k, v in params.items()}
            told = height + volume + constant, np.asarray(every.error), moved(end, every.since)
            state = state._replace(ends=Ends(end, volume, params, *told))
        return state, info

    def assess(state):
        steps, share = (
            int((state.steps + state.every.steps[state.lane]).max()),
            state.rounds / ROUNDS,
        )
        if not state.over:
            return Assessment(None, share, f"{steps} steps")
        best, settled = int(state.ends.elbo.argmax()), state.ends.settled
        text = f"{steps} steps, ELBO {state.ends.elbo[best]:,.3f}"
        if not settled.all() and state.rounds + 1 < ROUNDS:
            return Assessment(None, share, text)
        if not np.isfinite(state.ends.elbo[best]):
            return Assessment("failed", 1.0, text)
        return Assessment("converged" if settled[best] else "stopped", 1.0, text)

    def finish(state):
        elbos = state.ends.elbo[state.lane]
        params = {k: v[state.lane] for k, v in state.ends.params.items()}
        best, steps = int(elbos.argmax()), state.steps + state.every.steps[state.lane]
        none = {"log_density": 0, "gradient": 0}
        spent = starts.evaluations(target) if at is None else none
        told = len(state.ends.elbo) * BASE_DRAWS * (state.rounds + 1)
        return {
            "params": {k: jnp.asarray(v[best]) for k, v in params.items()},
            "steps": int(steps[best]),
            "best": best,
            "evaluations": {
                "log_density": spent["log_density"] + told,
                "gradient": spent["gradient"] + state.looks * size,
            },
            "restarts": {"elbo": elbos, "steps": steps, **params},
            "notes": state.notes,
        }

    return Fitter("natural_gradient", init, advance, assess, finish)


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


def again(states: State, ends: Ends) -> State:
    """Those that have not settled from where they were left, at once with fresh draws where those
    agreed.
    """
    new = beginning(ends.at, ends.volume)
    roughly = ends.error < ROUGHLY
    new = new._replace(rate=1.0 * roughly, fresh=1 * roughly)

    def pick(old, new):
        return np.where(ends.settled.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    return jax.tree.map(pick, states, new)


def gathered(states: State) -> tuple[np.ndarray, np.ndarray]:
    """For each of many starts the place it has in common with others; one start of each place.

    On the same draws they have the same summits. Places are as many as a power of two, so that
    few numbers of them are compiled for.
    """
    lane, kept = np.full(len(states.done), -1), []
    height = states.seen.height + states.volume
    for i in np.argsort(-np.where(np.isfinite(height), height, -np.inf)):
        if lane[i] < 0:
            here = jax.tree.map(lambda x, i=i: x[i : i + 1], states.here)
            near = (lane < 0) & (moved(states.here, here) < MOVED)
            near[i] = True
            lane[near] = len(kept)
            kept.append(i)
    places = 2 ** int(np.ceil(np.log2(len(kept))))
    return lane, np.array(kept + [kept[0]] * (places - len(kept)))


def mean_heights(target: Target, at: Frame, base: np.ndarray) -> np.ndarray:
    """Mean log p of each of some Gaussians, by draws that their noise (n, d) makes."""
    if at.factor.ndim == 2:
        points = at.shift[:, None] + base * at.factor[:, None]
    else:
        points = at.shift[:, None] + base @ at.factor.swapaxes(1, 2)
    heights = target.log_densities(points.reshape(-1, target.dim))
    return heights.reshape(len(points), -1).mean(1)


def moved(ends: Frame, since: Frame) -> np.ndarray:
    """KL(end‖since) of Gaussians, one each, in nats."""
    if ends.factor.ndim == 2:
        factor = ends.factor / since.factor
        away, log_volume = (ends.shift - since.shift) / since.factor, np.log(factor).sum(1)
    else:
        factor = np.linalg.solve(since.factor, ends.factor)
        away = np.linalg.solve(since.factor, (ends.shift - since.shift)[..., None])
        log_volume = np.linalg.slogdet(factor)[1]
    size = (factor**2).reshape(len(away), -1).sum(1) + (away**2).reshape(len(away), -1).sum(1)
    return 0.5 * (size - ends.shift.shape[1]) - log_volume


def skipped(target: Target, every: State, steps: int, drawn: Array) -> tuple[str, ...]:
    """What to say of steps that led to where the density is not finite, as `svi` does."""
    if not np.any(every.skipped):
        return ()
    first = int(np.where(every.skipped > 0, every.first_skipped, np.inf).argmin())
    at = jax.tree.map(lambda x: x[first], every.skipped_at)
    draws = drawn.reshape(-1, target.dim)[:DOUBTED]
    return tuple(
        svi.skipped_steps(
            every.skipped,
            int(every.first_skipped[first]),
            steps,
            lambda: target.not_finite_at(at.out(draws)),
        )
    )


def supply(sequence: qmc.Sobol, batches: int, size: int) -> Array:
    """Standard normal noise (batches, size, d), each batch antithetic and its covariance I.

    Quasi-random, so that many handfuls show more together than each by itself.
    """
    dim = sequence.d
    half = normal_of(sequence, batches * size // 2).reshape(batches, size // 2, dim)
    drawn = np.concatenate([half, -half], axis=1)
    if size > 2 * dim:
        factors = np.linalg.cholesky(drawn.swapaxes(1, 2) @ drawn / size)
        drawn = np.linalg.solve(factors, drawn.swapaxes(1, 2)).swapaxes(1, 2)
    return drawn
