"""Reverse KL by NumPyro's SVI on the standard ELBO, from several starts in one program.

The stopping rule. After every chunk of `CHUNK` steps the average of the chunk's iterates is a
candidate guide. Candidates are compared on the same base draws, so the difference of their
ELBOs has little noise. A chunk that does not raise the ELBO by more than `TOLERANCE` nats and
by more than twice the standard error of that difference is idle. After `PATIENCE` idle chunks
in a row Adam starts again from the best candidate at a quarter of its rate; when the last rate
is idle too, the start has converged. One that is about to run out of steps falls to lower rates
all the same. (Iterate averages: Dhaka et al. 2020, arXiv 2009.00666; falling rates: Welandawe et
al. 2022, arXiv 2203.15945.) Its false stops are measured by `benchmarks/false_stops.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoContinuous
from numpyro.infer.svi import SVIState

from vi_demo import mesh, starts
from vi_demo.batching import in_slices
from vi_demo.climbs import ROUNDING
from vi_demo.fitting.runner import Assessment, Fit, Fitter, Report, choose, run, silent
from vi_demo.frames import Frame
from vi_demo.guides import Family, own
from vi_demo.own_guide import Guide
from vi_demo.target import GRADIENT, Target, finite_or_minus_inf

STARTS = 8
PARTICLES = 8  # of the user's own guide; a family says how many suit it
CHUNK = 100
RECORDED = 10  # points of the path kept from a chunk
RATES = (0.1, 0.025, 0.00625)
LATEST = (0.7, 0.9, 2.0)  # share of the steps there are by which each has had its time
PATIENCE = 2
TOLERANCE = 0.002  # nats
LOOKS = 16  # of the base draws are looked at twice
BASE_DRAWS = 1024  # of the guide, for its ELBO
MOST_RECORDED = 20_000  # numbers of all parameters, at a point of the way
MOST_OF_STARTS = 1_000_000  # and of all starts, where they ended
MAX_STEPS = 20_000
LEARNING = 2, 6_000  # starts and steps at most, where the model's own parameters are learned
LEARNING_SECONDS = 300.0  # for the densities of all these steps, or they are fewer
LEAST_STEPS = 500


class StickTheLanding(dist.Distribution):
    """A guide whose log density does not pass gradients to its parameters.

    The ELBO keeps its value and its gradient its mean, E_q[∇ log q] being zero, but the noise
    of that term is gone: at an exact guide the gradient has no variance at all. Roeder et al.
    (2017), arXiv 1703.09194.
    """

    support = constraints.real_vector

    def __init__(self, moving: dist.Distribution, frozen: dist.Distribution):
        self.moving, self.frozen = moving, frozen
        super().__init__((), moving.event_shape, validate_args=False)

    def sample(self, key, sample_shape=()):
        """Draws through which gradients reach the parameters."""
        return self.moving.rsample(key, sample_shape)

    def log_prob(self, value):
        """Log density in nats, constant in the parameters."""
        return self.frozen.log_prob(value)


class FamilyGuide(AutoContinuous):
    """The NumPyro autoguide of a family: any guide of ours, in `SVI` or wherever autoguides go.

    Of `model` it reads the latent sites alone.
    """

    def __init__(self, model: Callable, family: Family):
        self.family = family
        super().__init__(model, prefix="guide")

    def _get_posterior(self):
        initial = self.family.init(jnp.zeros(self.latent_dim), 1.0)
        params = {k: numpyro.param(self.site(k), v) for k, v in initial.items()}
        frozen = jax.lax.stop_gradient(params)
        moving = self.family.distribution(params)
        return StickTheLanding(moving, self.family.distribution(frozen))

    def site(self, name: str) -> str:
        """The `numpyro.param` site that holds a parameter of the family."""
        return f"{self.prefix}_{name}"


class Problem(NamedTuple):
    """What NumPyro's `SVI` is to do, and how to judge where it got to.

    `begin(key)` gives the parameters of every start, on a leading axis; `values(params, key,
    batch)` gives log p − log q, in nats, at draws of the guide. Where rows are on the disk,
    `batches(seed)` gives those that the i-th chunk of steps takes its own from.
    `sites` names the numpyro.param site of each parameter. `doubt(params)` says at which site the
    density is not finite at draws of the guide.
    """

    svi: Callable
    begin: Callable[[Array], dict]
    sites: dict[str, str]
    values: Callable[[dict, Array, Any], Array]
    doubt: Callable[[dict], str | None]
    frame: Frame | None
    spent: dict[str, int]  # before it begins
    particles: int  # draws of the guide that a step averages over
    most_steps: int = MAX_STEPS
    batches: Callable[[int], Callable[[int], Any]] | None = None


def of_family(target: Target, family: Family, learned: bool = False) -> Problem:
    """Fit a family of ours to the target, on the scale of the climbs.

    A target that subsamples its rows is estimated anew from some of them at each step. With
    `learned`, the model's own parameters are fitted along.
    """
    frame, here = starts.to_scale(target, family.turns)
    theta = here.parameters if learned else {}
    number, most_steps = LEARNING if learned else (STARTS, MAX_STEPS)
    if learned and here.estimate is None:
        step = target.seconds(GRADIENT * family.particles * number)
        in_time = max(LEAST_STEPS, CHUNK * int(LEARNING_SECONDS / (CHUNK * step + 1e-9)))
        most_steps = min(most_steps, in_time)
    scaled = starts.climbs(target) is not None
    if here.estimate is None:
        log_density = lambda u, key, theta, batch: here.joint(u, theta)  # noqa: E731
    else:
        log_density = anchored(here) if scaled else from_rows(here)

    def latent():
        improper = dist.ImproperUniform(constraints.real_vector, (), (target.dim,))
        return numpyro.sample("u", improper)

    def model(batch=None):
        u = latent()
        values = {k: parameter(k, v) for k, v in theta.items()}
        key = numpyro.prng_key() if here.estimate else None
        with numpyro.handlers.block():  # the user's sites are not this model's
            log_p = log_density(u, key, values, batch)
        numpyro.factor("log_density", log_p)

    # It runs it op by op: not the user's density, nor all of a batch.
    guide = FamilyGuide(lambda batch=None: latent(), family)
    sites = {k: guide.site(k) for k in family.init(jnp.zeros(target.dim), 1.0)}

    def begin(key):
        numpyro.handlers.seed(guide, key)()
        params = starts.guides(target, family, frame, key, number)
        every = len(jax.tree.leaves(params)[0])
        return params | jax.tree.map(lambda x: jnp.broadcast_to(x, (every, *x.shape)), theta)

    def values(params, key, batch):
        draw_key, row_key = jax.random.split(key)
        q = family.distribution({k: params[k] for k in sites})
        draws = q.rsample(draw_key, (BASE_DRAWS,))
        own = {k: params[k] for k in theta}
        keys = jax.random.split(row_key, BASE_DRAWS)
        # Some draws again, shifted by next to nothing: of a covariance that is all but singular,
        # as a diverging fit's may be, log q is rounding, and might be taken for an ELBO of 1e38.
        again = draws[:LOOKS] * (1 + 8 * jnp.finfo(draws.dtype).eps)
        tried, keys = jnp.concatenate([draws, again]), jnp.concatenate([keys, keys[:LOOKS]])
        log_p = in_slices(lambda at: log_density(*at, own, batch), (tried, keys), target.batch)
        found = finite_or_minus_inf(log_p - q.log_prob(tried))
        changes = jnp.nan_to_num(found[-LOOKS:] - found[:LOOKS])
        return jnp.where(jnp.median(jnp.abs(changes)) < ROUNDING, found[:-LOOKS], -jnp.inf)

    def doubt(params):
        q = family.distribution({k: params[k] for k in sites})
        return here.not_finite_at(q.sample(jax.random.key(0), (4096,)))

    elbo = Trace_ELBO(num_particles=family.particles)
    own_sites = sites | {k: k for k in theta}
    own_scale = frame if scaled else None
    svi = partial(SVI, model, guide, loss=elbo)
    spent = starts.evaluations(target)
    batches = None
    if target.batches:  # as many rows as one estimate takes in a chunk; others take theirs of them
        batches = partial(target.batches, CHUNK)
    return Problem(
        *(svi, begin, own_sites, values, doubt, own_scale, spent, family.particles, most_steps),
        batches=batches,
    )


def parameter(name: str, value):
    """The numpyro.param site that begins at a value, which may be a network and be callable."""
    return numpyro.param(name, lambda _: value)


def from_rows(here: Target) -> Callable:
    """An estimate of log p from some rows, of a batch if they are on the disk."""
    return lambda u, key, theta, batch: here.estimate(u, key, theta, None, batch)


def anchored(here: Target) -> Callable:
    """An estimate of log p from some rows that is exact, slope and all, at 0, the climb's end.

    What the rows say of the slope there is replaced by what all rows say (a control variate,
    Baker et al. 2019, doi:10.1007/s11222-018-9826-2): near the end it is the rows' difference
    from each other in curvature alone that is left as noise.
    """
    origin = jnp.zeros(here.dim)
    height, slope = mesh.program(jax.value_and_grad(here.log_density))(origin)

    def estimate(u, key, theta, batch):
        rows = lambda u: from_rows(here)(u, key, theta, batch)  # noqa: E731
        their_height, their_slope = jax.value_and_grad(rows)(origin)
        return rows(u) - their_height + height + (slope - their_slope) @ u

    return estimate


def of_guide(target: Target, guide: Guide) -> Problem:
    """Fit the user's own guide, and the model's parameters along with it, to the user's model."""
    pair = guide.pair()
    params = guide.parameters | target.parameters

    def begin(key):
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (1, *jnp.shape(x))), params)

    def values(params, key, _):
        def one(key):
            z, log_q = guide.draw(params, key)
            return target.joint(z, {k: params[k] for k in target.parameters}) - log_q

        keys = jax.random.split(key, BASE_DRAWS)
        return finite_or_minus_inf(in_slices(one, keys, target.batch))

    def doubt(params):
        keys = jax.random.split(jax.random.key(0), BASE_DRAWS)
        return target.not_finite_at(jax.vmap(lambda key: guide.draw(params, key)[0])(keys))

    svi = partial(SVI, *pair, loss=guide.elbo(PARTICLES))
    nothing = {"log_density": 0, "gradient": 0}
    return Problem(svi, begin, {k: k for k in params}, values, doubt, None, nothing, PARTICLES)


class State(NamedTuple):
    """Of one start: what the next chunk needs, with the best candidate so far."""

    svi: SVIState
    stage: Array  # index into RATES
    idle: Array  # idle chunks in a row
    done: Array
    steps: Array
    best: dict
    values: Array  # log p - log q of the best candidate at the base draws
    skipped: Array  # steps that were not finite
    lately: Array  # those among them in the last chunk
    first_skipped: Array
    skipped_at: dict  # the guide's parameters before the first of them


def fit(target: Target, family: Family, key: Array, report: Report = silent) -> Fit:
    """Fit a family to a target by maximising E_q[log p − log q], several starts at once."""
    return run(fitter(of_family(target, family)), key, "reverse_kl", family, report)


def fit_own(
    target: Target, guide: Guide, key: Array, report: Report = silent
) -> tuple[Fit, Target]:
    """Fit the user's own guide, and the target with the model's parameters as fitted along."""
    family = own(guide, target.dim)
    fitted = run(fitter(of_guide(target, guide)), key, "reverse_kl", family, report)
    if target.parameters:
        target = target.given({k: fitted.params[k] for k in target.parameters})
    return fitted, target


def learn(target: Target, family: Family, key: Array, report: Report = silent) -> Target:
    """The target at the values of the model's parameters that are fitted along with a guide.

    They are one good explanation of the data among many, as a rule: a remark says where more
    steps would still have raised the ELBO.
    """
    problem = of_family(target, family, learned=True)
    fitted = run(fitter(problem), key, "parameters", family, report)
    learned = target.given({k: fitted.params[k] for k in target.parameters})
    draws = fitted.guide.sample(jax.random.key(0), (BASE_DRAWS,))
    learned.programs[starts.LEARNED] = draws.mean(0), draws.std(0)
    if fitted.status == "converged":
        return learned
    short = f"the parameters had not settled when learning them stopped, at {fitted.steps:,} steps"
    return replace(learned, remarks=(*learned.remarks, short))


def fitter(problem: Problem) -> Fitter:
    """NumPyro's `SVI` with Adam, from every start at once."""
    svi = problem.svi(optim=optax.inject_hyperparams(optax.adam)(learning_rate=RATES[0]))
    rates, latest = jnp.array(RATES), problem.most_steps * jnp.array(LATEST)

    def get_params(svi_state):
        named = svi.optim.get_params(svi_state.optim_state)
        return {k: named[site] for k, site in problem.sites.items()}

    def restart(svi_state, params, stage):
        optim_state = svi.optim.init({problem.sites[k]: v for k, v in params.items()})
        optim_state[1][1].hyperparams["learning_rate"] = rates[stage]
        return svi_state._replace(optim_state=optim_state)

    def begin(key, params, base):
        svi_state = svi.init(key)
        zero = jnp.zeros((), int)
        values = problem.values(params, *base)
        return State(
            restart(svi_state, params, zero),
            *(zero, zero, jnp.zeros((), bool), zero, params, values, zero, zero, zero, params),
        )

    def step(rows, carry, _):
        state, total = carry
        svi_state, loss = svi.stable_update(state.svi, *rows)
        bad = jnp.isnan(loss)
        first = bad & (state.skipped == 0)
        state = state._replace(
            svi=svi_state,
            steps=state.steps + ~state.done,
            skipped=state.skipped + bad,
            lately=state.lately + bad,
            first_skipped=jnp.where(first, state.steps, state.first_skipped),
            skipped_at=choose(first, get_params(state.svi), state.skipped_at),
        )
        return (state, jax.tree.map(jnp.add, total, get_params(svi_state))), -loss

    def chunk(state, base, rows):
        def some_steps(carry, _):
            carry, elbos = jax.lax.scan(partial(step, rows), carry, length=CHUNK // RECORDED)
            return carry, {"elbo": jnp.nanmean(elbos), **recorded(get_params(carry[0].svi))}

        zeros = jax.tree.map(jnp.zeros_like, state.best)
        state = state._replace(lately=jnp.zeros_like(state.lately))
        (state, total), info = jax.lax.scan(some_steps, (state, zeros), length=RECORDED)
        candidate = jax.tree.map(lambda t: t / CHUNK, total)
        return judge(state, candidate, base), info

    def judge(state, candidate, base):
        values = problem.values(candidate, *base)
        gains = values - state.values
        gain = values.mean() - state.values.mean()
        error = jnp.nan_to_num(gains.std() / BASE_DRAWS**0.5)
        first = jnp.isneginf(state.values.mean()) & jnp.isfinite(values.mean())
        better = (first | (gain > 0)) & ~state.done
        best = choose(better, candidate, state.best)
        idle = jnp.where(first | (gain > jnp.maximum(TOLERANCE, 2 * error)), 0, state.idle + 1)
        # Steps that are mostly not finite are too long.
        due = state.steps >= latest[state.stage]
        fall = (idle >= PATIENCE) | (state.lately > CHUNK // 2) | due
        stage = state.stage + fall
        svi_state = choose(
            fall, restart(state.svi, best, jnp.minimum(stage, len(RATES) - 1)), state.svi
        )
        return state._replace(
            svi=svi_state,
            stage=stage,
            idle=jnp.where(fall, 0, idle),
            done=state.done | (stage >= len(RATES)),
            best=best,
            values=jnp.where(better, values, state.values),
        )

    many_chunks = mesh.program(jax.vmap(chunk, in_axes=(0, None, None)))

    @cache
    def batches(seed):
        """The rows that candidates are compared on, and those that chunks of steps are given."""
        if problem.batches is None:
            return None, lambda i: ()
        batch = problem.batches(seed)
        return batch(0), lambda i: (batch(1 + i),)

    def given(base_key):
        compared_on, chunks = batches(int(jax.random.key_data(base_key)[-1]))
        return (base_key, compared_on), chunks

    def init(key):
        setup_key, key, base_key = jax.random.split(key, 3)
        params = problem.begin(setup_key)
        number = len(jax.tree.leaves(params)[0])
        begin_all = mesh.program(jax.vmap(begin, in_axes=(0, 0, None)))
        return begin_all(jax.random.split(key, number), params, given(base_key)[0]), base_key

    def advance(state):
        every, base_key = state
        base, chunks = given(base_key)
        every, info = many_chunks(every, base, chunks(int(every.steps.max()) // CHUNK))
        return (every, base_key), jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), info)

    def assess(state):
        every, _ = state
        steps, elbo = int(every.steps.max()), float(every.values.mean(-1).max())
        stages = jnp.minimum(every.stage, len(RATES)).mean()
        share = max(steps / problem.most_steps, float(stages) / len(RATES))
        text = f"step {steps:,}, ELBO {elbo:,.3f}"
        if not every.done.all() and steps < problem.most_steps:
            return Assessment(None, share, text)
        if not jnp.isfinite(elbo):
            return Assessment("failed", 1.0, text)
        best = int(every.values.mean(-1).argmax())
        settled = every.done[best] and every.lately[best] == 0
        return Assessment("converged" if settled else "stopped", 1.0, text)

    def finish(state):
        every, _ = state
        elbos = every.values.mean(-1)
        best = int(elbos.argmax())
        chunks = int(every.steps.max()) // CHUNK
        return {
            "params": jax.tree.map(lambda x: x[best], every.best),
            "steps": int(every.steps[best]),
            "best": best,
            "evaluations": {
                "log_density": problem.spent["log_density"]
                + len(elbos) * (chunks + 1) * BASE_DRAWS,
                "gradient": problem.spent["gradient"]
                + len(elbos) * problem.particles * CHUNK * chunks,
            },
            "restarts": jax.device_get(
                {"elbo": elbos, "steps": every.steps, **recorded(every.best, MOST_OF_STARTS)}
            ),
            "notes": tuple(notes(every, len(elbos) * CHUNK * chunks)),
        }

    def notes(every, steps):
        first = int(jnp.where(every.skipped > 0, every.first_skipped, jnp.inf).argmin())
        before = jax.tree.map(lambda x: x[first], every.skipped_at)
        begun = int(every.first_skipped[first])
        return skipped_steps(every.skipped, begun, steps, lambda: problem.doubt(before))

    return Fitter("svi", init, advance, assess, finish, problem.frame)


def recorded(params: dict, most: int = MOST_RECORDED) -> dict:
    """The parameters whose way is kept: a family's, not the weights of networks."""
    arrays = {k: v for k, v in params.items() if isinstance(v, Array)}
    return arrays if sum(v.size for v in arrays.values()) <= most else {}


def skipped_steps(skipped: Array, first: int, number: int, doubt: Callable) -> list[str]:
    """What to say of steps that were not finite: how many, when first, and at which site.

    Of so many steps in all, `skipped` (starts,) were; `doubt()` says at which site the density is
    not finite, at draws of the guide as it stood before the first of them.
    """
    if not (skipped > 0).any():
        return []
    sites = doubt()
    at = (
        f" at site {sites}"
        if sites
        else "; every site's density was finite, so a gradient was not"
    )
    return [
        f"{int(skipped.sum()):,} of {number:,} steps were not finite and were skipped, the first "
        f"at step {first + 1:,}{at}"
    ]
