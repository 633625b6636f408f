"""Any divergence by quasi-Newton descent on fixed draws, from several starts.

The objective is an average over draws that stay the same (see `objectives`), so it is a smooth
function and L-BFGS with a line search goes down it in tens of steps. Three stages: every start
first descends reverse KL on few draws, for where a guide is far from the target the bounded
divergences are flat; then the divergence itself on more draws, joined by the forward-KL guide;
and the best few at last on many. Where none of them gains `TOLERANCE` nats in `CHUNK` steps, the
stage is over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jax import Array
from jax.nn import logsumexp

from vi_demo import mesh, starts
from vi_demo.divergences.estimators import Draws, seen_whole
from vi_demo.divergences.generators import log_height, named, reverse_kl
from vi_demo.fitting import moment_matching
from vi_demo.fitting.objectives import Loss, TargetDraws, loss_of, normal_noise
from vi_demo.fitting.runner import Assessment, Fit, Fitter, Report, choose, run, silent
from vi_demo.frames import Frame
from vi_demo.guides import Family
from vi_demo.target import Target

STARTS = 8
CHUNK = 3
TOLERANCE = (1e-3, 1e-4, 1e-5)  # nats, in each stage
MAX_CHUNKS = 60  # a stage
FINALISTS = 2  # at most, of those that are
MARGIN = 0.05  # nats from the best
LINE_SEARCH = 8  # evaluations at most
SIZES = (512, 1), (1024, 2048), (4096, 16384)  # a stage's draws of the guide, of the target

FEW = (
    "far out in the tails this divergence grows, or a few draws carry nearly all of it: it may be "
    "infinite for every guide of the family, and its optimum is not to be trusted"
)
FAR = 30.0, 300.0  # sds of the guide
DIRECTIONS = 64


class Stage(NamedTuple):
    """One compiled descent, and the fixed draws of the guide's noise and of the target in it."""

    program: Callable
    noise: Array
    draws: TargetDraws | None


class State(NamedTuple):
    """Every start's parameters and optimiser, and how they have done in the present stage."""

    stage: int
    chunk: int
    params: dict
    optimiser: tuple
    losses: Array
    gained: Array  # in the last chunk
    active: Array
    steps: Array
    gradients: int  # of the target's density
    believed: bool = True  # where all is done: many draws carry the divergence, and it is finite


def fit(
    name: str,
    target: Target,
    family: Family,
    key: Array,
    report: Report = silent,
    forward: Callable[[], Fit] | None = None,
) -> Fit:
    """Fit a family under the divergence of that name.

    `forward` gives the forward-KL fit: a start, and whose draws of the target are used. What it
    cost is counted in.
    """
    f = named(name)
    if f is reverse_kl:
        return run(fitter(f, target, family, None), key, name, family, report)
    forward_key = jax.random.fold_in(key, 1)
    covering = forward() if forward else moment_matching.fit(target, family, forward_key, report)
    fitted = run(fitter(f, target, family, covering), key, name, family, report)
    both = lambda a, b: {k: a[k] + b[k] for k in a}  # noqa: E731
    return replace(
        fitted,
        evaluations=both(fitted.evaluations, covering.evaluations),
        seconds=both(fitted.seconds, covering.seconds),
        draws=covering.draws,
    )


def fitter(f: Callable, target: Target, family: Family, covering: Fit | None) -> Fitter:
    """L-BFGS in stages; `covering` is the forward-KL fit, for all but reverse KL."""
    stages: list[Stage] = []
    user = target
    frame, target = starts.to_scale(user, family.turns)
    back = frame.inverse()

    def init(key):
        point_key, *keys = jax.random.split(key, 1 + len(SIZES))
        for g, (noise, number), noise_key in zip((reverse_kl, f, f), SIZES, keys, strict=True):
            noise = normal_noise(noise_key, max(noise, enough(target)), target.dim)
            draws = covering and moved(subset(covering.draws, number), back)
            stages.append(Stage(program_of(g, target, family), noise, draws))
        params = starts.guides(user, family, frame, point_key, STARTS)
        if covering:
            ours = family.moved(covering.params, *back)
            params = jax.tree.map(lambda x, y: jnp.r_[x, y[None]], params, ours)
        number = len(jax.tree.leaves(params)[0])
        worst = jnp.full(number, jnp.inf)
        active, none = jnp.arange(number) < number - bool(covering), jnp.zeros(number, int)
        return State(0, 0, params, fresh(params), worst, worst, active, none, 0)

    def advance(state):
        if settled(state):
            state = next_stage(state)
        program, noise, draws = stages[state.stage]
        params, optimiser, losses, spent = program(*state[2:5], state.active, noise, draws)
        state = state._replace(
            chunk=state.chunk + 1,
            params=params,
            optimiser=optimiser,
            losses=losses,
            gained=jnp.where(state.active, state.losses - losses, 0.0),
            steps=state.steps + CHUNK * state.active,
            gradients=state.gradients + int(spent.sum()) * len(noise),
        )
        if settled(state) and state.stage == len(SIZES) - 1 and covering:
            state = state._replace(believed=whole(state))
        info = {"loss": losses, "stage": jnp.full(losses.shape, state.stage), **params}
        return state, jax.tree.map(lambda x: x[None], info)

    def next_stage(state):
        if state.stage == 0:
            active = jnp.ones_like(state.active)
        else:
            order = jnp.argsort(state.losses)
            active = jnp.zeros_like(state.active).at[order[:FINALISTS]].set(True)
            active &= state.losses <= state.losses.min() + MARGIN
        return state._replace(
            stage=state.stage + 1,
            chunk=0,
            optimiser=fresh(state.params),
            losses=jnp.full_like(state.losses, jnp.inf),
            active=active,
        )

    def settled(state):
        going = (state.gained > TOLERANCE[state.stage]) & state.active
        return state.chunk > 0 and (state.chunk >= MAX_CHUNKS or not going.any())

    def assess(state):
        loss = float(state.losses.min())
        share = (state.stage + state.chunk / MAX_CHUNKS) / len(SIZES)
        text = f"stage {state.stage + 1}, step {int(state.steps.max())}, loss {loss:,.4f}"
        if not settled(state) or state.stage < len(SIZES) - 1:
            return Assessment(None, share, text)
        if not np.isfinite(loss):
            return Assessment("failed", 1.0, text)
        done = state.chunk < MAX_CHUNKS and state.believed
        return Assessment("converged" if done else "stopped", 1.0, text)

    def whole(state):
        """Whether the divergence at the best guide is a number, and many draws carry it."""
        _, noise, draws = stages[-1]
        sides = two_sides(target, family, best_of(state), noise, draws)
        q = family.distribution(best_of(state))
        return seen_whole(jax.jit(f), *sides) and not grows_outward(f, target, q, noise)

    def finish(state):
        best, last = winner(state), stages[-1]
        measured = {"draws": len(last.noise)}
        if covering:
            measured |= {"target_draws": len(last.draws.points)} | covering.measured
        return {
            "params": best_of(state),
            "steps": int(state.steps[best]),
            "best": best,
            "evaluations": {"log_density": 0, "gradient": state.gradients},
            "restarts": jax.device_get({"loss": state.losses, **state.params}),
            "measured": measured,
            "notes": () if state.believed else (FEW,),
        }

    def winner(state):
        return int(jnp.where(state.active, state.losses, jnp.inf).argmin())

    def best_of(state):
        return jax.tree.map(lambda x: x[winner(state)], state.params)

    return Fitter("gradient_descent", init, advance, assess, finish, frame)


@functools.lru_cache(maxsize=16)
def program_of(f: Callable, target: Target, family: Family) -> Callable:
    """The compiled descent of a divergence: the first stage is the same for all of a run."""
    return descent(loss_of(f, target, family))


def solver() -> optax.GradientTransformationExtraArgs:
    """L-BFGS, whose line search tries the whole step first."""
    search = optax.scale_by_zoom_linesearch(LINE_SEARCH, initial_guess_strategy="one")
    return optax.lbfgs(linesearch=search)


def fresh(params: dict) -> tuple:
    """An optimiser for each start."""
    return jax.vmap(solver().init)(params)


def descent(loss: Loss) -> Callable:
    """A compiled chunk of steps of every active start, one after the other.

    What starts share is not batched: each line search stops when it is done.
    """

    def chunk(params, optimiser, old, active, noise, draws):
        def objective(p):
            value = loss(p, noise, draws)
            return jnp.where(jnp.isnan(value), jnp.inf, value)

        def step(carry, _):
            params, optimiser, spent = carry
            value, grad = optax.value_and_grad_from_state(objective)(params, state=optimiser)
            updates, optimiser = solver().update(
                grad, optimiser, params, value=value, grad=grad, value_fn=objective
            )
            tried = optimiser[-1].info.num_linesearch_steps
            return (optax.apply_updates(params, updates), optimiser, spent + tried + 1), None

        def go():
            begin = (params, optimiser, jnp.zeros((), int))
            (new, inner, spent), _ = jax.lax.scan(step, begin, length=CHUNK)
            value = objective(new)
            better = value <= old  # a line search that found nothing may leave us worse off
            return choose(better, new, params), inner, jnp.where(better, value, old), spent

        return jax.lax.cond(active, go, lambda: (params, optimiser, old, jnp.zeros((), int)))

    @mesh.program
    def all_starts(params, optimiser, losses, active, noise, draws):
        one = lambda start: chunk(*start, noise, draws)  # noqa: E731
        return jax.lax.map(one, (params, optimiser, losses, active))

    return all_starts


def two_sides(target: Target, family: Family, params: dict, noise: Array, draws: TargetDraws):
    """Both ratios, log p − log q, each with its draws: of the target, then of the guide."""
    q = family.distribution(params)
    points, log_masses = family.draw(params, noise)
    log_p = target.log_densities(points) - draws.log_evidence
    return (
        np.asarray(draws.log_p - q.log_prob(draws.points)),
        Draws(draws.points, np.exp(draws.log_weights)),
        np.asarray(log_p - q.log_prob(points)),
        Draws(points, np.exp(log_masses)),
    )


def grows_outward(f: Callable, target: Target, q: dist.Distribution, noise: Array) -> bool:
    """Whether ½(p + q) h(r) grows outward in some direction: its integral is infinite then.

    No draw would tell: none lies there.
    """
    away = noise[:DIRECTIONS] / jnp.linalg.norm(noise[:DIRECTIONS], axis=1, keepdims=True)
    heights = []
    for distance in FAR:
        points = q.mean + distance * jnp.sqrt(q.variance) * away
        log_p, log_q = target.log_densities(points), q.log_prob(points)
        seen = jnp.isfinite(log_p) & jnp.isfinite(log_q)
        log_p, log_q = jnp.where(seen, log_p, 0.0), jnp.where(seen, log_q, 0.0)
        term = jnp.logaddexp(log_p, log_q) + log_height(f, log_p - log_q)
        heights.append(jnp.where(seen, term, -jnp.inf))
    return bool((heights[1] > heights[0]).any())


def enough(target: Target) -> int:
    """Fewer draws than a few times the dimension leave directions that nothing sees."""
    return 2 ** int(np.ceil(np.log2(8 * target.dim)))


def moved(draws: TargetDraws, to: Frame) -> TargetDraws:
    """Weighted draws at the points that a scale makes of theirs."""
    points = jax.vmap(to.out)(draws.points)
    return draws._replace(points=points, log_p=draws.log_p - to.log_volume())


def subset(draws: TargetDraws, number: int) -> TargetDraws:
    """The first of weighted draws: of a quasi-random sequence they are one as well."""
    log_weights = draws.log_weights[:number]
    return draws._replace(
        points=draws.points[:number],
        log_weights=log_weights - logsumexp(log_weights),
        log_p=draws.log_p[:number],
    )
