"""Reverse KL of a Gaussian by natural gradients: tens of steps and no learning rate.

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

from vi_demo import mesh, starts
from vi_demo.fitting import svi
from vi_demo.fitting.natural_step import MOST_STEPS, State, beginning, stepper
from vi_demo.fitting.objectives import normal_of, sobol
from vi_demo.fitting.runner import Assessment, Fit, Fitter, Report, choose, run, silent
from vi_demo.frames import Frame
from vi_demo.guides import Family
from vi_demo.target import Target

STARTS = 8
LANES = 8  # starts more than which are gathered where they have met
LEAST_DRAWS = 64  # of a batch
SUPPLY = 16  # batches that are drawn at a time
MOST_NUMBERS = 2**23  # of these
HANDFULS = 1, 4, 16, 64  # batches looked at in one step, in each round; then the last again
ROUNDS = 8
TOLERANCE = 0.001  # nats
ROUGHLY = 0.01  # nats, that a first round ends at
MOVED = 0.03  # nats, that a round may move a guide that has settled
HOPELESS = 10.0  # nats below the best, from which a start adds nothing to the others
BASE_DRAWS = 1024  # of the guide, for its ELBO
DOUBTED = 4096  # where a step was not finite, for the site
MOST_RECORDED = 2**22  # numbers of all guides on the way, above which they are not kept


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
        recorded = max(1, min(MOST_STEPS + len(noise), MOST_RECORDED // number))

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

    return mesh.program(descend)


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

    @property
    def over(self) -> np.ndarray:
        """Which of them need not go on."""
        return self.settled | ~(self.elbo > self.elbo.max() - HOPELESS)


class Progress(NamedTuple):
    """All starts, the rounds that they have been through, and what was counted in those.

    Of many starts, those that have met on the same draws go on as one: `lane` says for each start
    which of `every` it is, `held` that they have not been gathered yet. `noise` is the key of the
    sequence that batches are made of, `drawn` how much of it they have used up; `base` (n, d) is
    what ends are told by. In between two supplies of noise a round is not `over`.
    """

    every: State
    lane: np.ndarray
    held: bool
    noise: Array
    drawn: int
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
    skips what is not finite; and where `MOST_STEPS` on the same draws have found no summit.
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
        every, base = beginning(places), supply(sobol(noise_key, dim), 1, BASE_DRAWS)[0]
        lane = np.arange(len(every.done))
        return Progress(every, lane, len(lane) > LANES, noise_key, BASE_DRAWS // 2, base)

    def advance(state):
        if state.over:
            steps = state.steps + state.every.steps[state.lane]
            every = again(state.every, state.ends)
            steps -= every.steps[state.lane]  # of those that have settled, and stay as they are
            state = state._replace(every=every, rounds=state.rounds + 1, steps=steps, over=False)
        handful = handfuls[min(state.rounds, len(handfuls) - 1)]
        batches = max(handful, min(SUPPLY, most))
        drawn = supply(sobol(state.noise, dim, state.drawn), batches, size)
        state = state._replace(drawn=state.drawn + batches * size // 2)
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
            hopeless = ~(every.elbo > every.elbo.max() - HOPELESS)
            every = every._replace(steps=0 * every.steps, done=every.done | hopeless)
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
        each = state.steps + state.every.steps[state.lane]
        steps, share = int(each.max()), state.rounds / ROUNDS
        lost = state.rounds == 0 and state.over and (each > MOST_STEPS).all()
        if not state.over:
            return Assessment(None, share, f"{steps} steps")
        best, settled = int(state.ends.elbo.argmax()), state.ends.settled
        text = f"{steps} steps, ELBO {state.ends.elbo[best]:,.3f}"
        if not (lost or state.ends.over.all()) and state.rounds + 1 < ROUNDS:
            return Assessment(None, share, text)
        if lost or not np.isfinite(state.ends.elbo[best]):
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


def again(states: State, ends: Ends) -> State:
    """Those that are to go on from where they were left, at once with fresh draws where those
    agreed.
    """
    new = beginning(ends.at, ends.volume)
    roughly = ends.error < ROUGHLY
    new = new._replace(rate=1.0 * roughly, fresh=1 * roughly)

    def pick(old, new):
        return np.where(ends.over.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    return jax.tree.map(pick, states, new)


def gathered(states: State) -> tuple[np.ndarray, np.ndarray]:
    """For each of many starts the place it has in common with others; one start of each place.

    On the same draws they have the same summits. Places are as many as a power of two, so that
    few numbers of them are compiled for.
    """
    lane, kept = np.full(len(states.done), -1), []
    for i in np.argsort(-np.where(np.isfinite(states.elbo), states.elbo, -np.inf)):
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


def supply(sequence: qmc.QMCEngine, batches: int, size: int) -> np.ndarray:
    """Standard normal noise (batches, size, d), each batch antithetic and its covariance I.

    Where draws are too few for that, each coordinate's variance is 1: it is all that sds depend
    on where p's coordinates are independent. Quasi-random, so that many handfuls show more
    together than each by itself.
    """
    dim = sequence.d
    half = normal_of(sequence, batches * size // 2).reshape(batches, size // 2, dim)
    drawn = np.concatenate([half, -half], axis=1)
    if size > 2 * dim:
        factors = np.linalg.cholesky(drawn.swapaxes(1, 2) @ drawn / size)
        drawn = drawn @ np.linalg.inv(factors).swapaxes(1, 2)
    else:
        drawn /= np.sqrt((drawn**2).mean(1, keepdims=True))
    return drawn
