"""Tempered sequential Monte Carlo: draws and log evidence without looking at any guide.

Particles go from a wide start p₀ (the prior where it is proper) to the target along
log p_β = (1 − β) log p₀ + β log p, each β as far on as the effective sample size allows, and
are moved at each by BlackJAX's HMC, whose mass matrix is the particles' own covariance and
whose step size follows their acceptance. Independent populations run side by side in one
program: what differs between them is the Monte Carlo error. Del Moral, Doucet & Jasra (2006),
doi:10.1111/j.1467-9868.2006.00553.x.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import blackjax.mcmc.hmc as hmc
import blackjax.smc.ess as ess
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc.resampling import systematic
from blackjax.smc.solver import dichotomy
from jax import Array

from vi_demo import mesh, starts
from vi_demo.batching import in_slices
from vi_demo.divergences.estimators import Draws, Estimate, expectation
from vi_demo.target import Target, finite_or_minus_inf

PARTICLES = 1024  # of a population
TARGET_ESS = 0.6  # share of the particles that a rise of β leaves effective
MOVES = 2  # at each β
SETTLING = 4  # rounds of moves more at β = 1
MAX_LEAPFROGS = 16
TRAJECTORY = 1.6  # in posterior sds, a quarter turn: as many leapfrog steps as that takes
ACCEPTANCE = 0.8
MAX_TEMPERATURES = 500
MOST_DENSE = 1_000  # dimensions: beyond, so few particles tell scales and no correlations
OUTLYING = 1e3  # times the usual length of a gradient
SINGULAR = 1e-12  # eigenvalues below, as a share, are rounding
LEAST_LOOKS = 200  # at the density, by each particle, where all goes well
FIRST_LOOKS = 0.5  # share of them that are near the start: one temperature's
USUAL_LOOKS = 2_000  # where it does not, roughly; a gradient counts twice
STUCK = 10  # temperatures in a row without any rise


class Population(NamedTuple):
    """The particles of one run: points (n, d), β, log evidence."""

    points: Array
    beta: Array
    log_evidence: Array
    evidence_variance: Array  # of its logarithm, were the particles independent at each β
    log_step: Array
    acceptance: Array
    gradients: Array  # evaluated so far, per particle


class Tempered(NamedTuple):
    """What SMC leaves: points (runs, n, d), the log evidence of each run, and its cost.

    `evidence_variance` (runs,) is what the weights at each β would make of that logarithm's
    variance, if the moves between made the particles independent.
    """

    points: np.ndarray
    log_evidence: np.ndarray
    evidence_variance: np.ndarray
    temperatures: int
    acceptance: float
    evaluations: dict[str, int]
    finished: bool


def temper(
    target: Target,
    key: Array,
    particles: int,
    runs: int,
    report: Callable[[float, str], None] = lambda share, text: None,
    seconds: float = np.inf,
    start: starts.Wide | None = None,
) -> Tempered:
    """Bring `runs` independent populations of `particles` from a start, wide unless it is given.

    After so many `seconds` it stops short of it, unless it is well on its way: the first
    temperatures, far out, are the slow ones. It then settles once instead of `SETTLING` times.
    """
    start, raise_temperature = usual(target) if start is None else compiled(target, start)
    init_key, key = jax.random.split(key)
    populations = begin(start, init_key, runs, particles)
    temperatures = settled = stuck = 0
    lowest, done = 0.0, False
    while settled < SETTLING and stuck < STUCK and temperatures < MAX_TEMPERATURES:
        if temperatures <= 1:
            began = mesh.now()  # compiling does not count
        done = bool((populations.beta >= 1).all())
        spent = mesh.now() - began
        if spent > (1 + lowest) * seconds if not done else settled and spent > seconds:
            break
        settled += done
        key, step_key = jax.random.split(key)
        populations = raise_temperature(jax.random.split(step_key, runs), populations)
        temperatures += 1
        beta = float(populations.beta.min())
        stuck = stuck + 1 if beta == lowest < 1 else 0
        lowest = beta
        report(beta, f"{particles:,} particles at β = {beta:.3g}")
    return Tempered(
        points=np.asarray(populations.points),
        log_evidence=np.asarray(populations.log_evidence),
        evidence_variance=np.asarray(populations.evidence_variance),
        temperatures=temperatures,
        acceptance=float(populations.acceptance.mean()),
        evaluations={
            "log_density": particles * runs * temperatures,
            "gradient": int(populations.gradients.sum()) * particles,
        },
        finished=done,
    )


def seconds(target: Target, particles: int) -> float:
    """About how long `temper` will run at the least, for so many particles in all.

    The first of its looks are at where it starts, and an ODE may be stiff there.
    """
    if "start's seconds" not in target.programs:
        near = target.seconds_each  # which compiles it
        points = usual(target)[0].draws(jax.random.key(0), target.timed)
        began = mesh.now()
        jax.block_until_ready(target.many(points))
        each = (mesh.now() - began) / target.timed
        target.programs["start's seconds"] = max(each, near)
    first = int(FIRST_LOOKS * LEAST_LOOKS)
    at_the_start = particles * first * target.programs["start's seconds"]
    return at_the_start + target.seconds(particles * (LEAST_LOOKS - first))


def number_of_particles(target: Target, runs: int, within: float) -> int:
    """How many particles a population has: fewer where a density is slow and time is short.

    Only by a factor, so that on the same machine it is the same number at every run.
    """
    slow = target.seconds(PARTICLES * runs * USUAL_LOOKS) > 2 * within
    return PARTICLES // 4 if slow else PARTICLES


def usual(target: Target) -> tuple[starts.Wide, Callable]:
    """The wide start of a target, and the program that raises β and moves, compiled once."""
    if "smc" not in target.programs:
        target.programs["smc"] = compiled(target, starts.wide(target))
    return target.programs["smc"]


def compiled(target: Target, start: starts.Wide) -> tuple[starts.Wide, Callable]:
    """A start with its program."""
    return start, mesh.program(partial(raise_temperature, target, start))


def begin(start: starts.Wide, key: Array, runs: int, particles: int) -> Population:
    """Populations drawn from the start; points that are not finite give way to one that is."""
    points = start.draws(key, runs * particles)
    finite = np.isfinite(points).all(1, keepdims=True)
    points = np.where(finite, points, points[finite.argmax()])
    points = jnp.asarray(points.reshape(runs, particles, -1))
    zero = jnp.zeros(runs, points.dtype)
    log_step = zero + float(np.log(0.5) - 0.25 * np.log(points.shape[2]))
    return Population(points, zero, zero, zero, log_step, zero, jnp.zeros(runs, int))


def log_densities(
    target: Target, start: starts.Wide, size: int, points: Array
) -> tuple[Array, Array]:
    """The log densities p₀ and p at each point, -inf where either is not a number."""

    def both(z):
        return finite_or_minus_inf(start.log_density(z)), finite_or_minus_inf(
            target.log_density(z)
        )

    return in_slices(both, points, size)


def raise_temperature(
    target: Target, start: starts.Wide, keys: Array, old: Population
) -> Population:
    """One step up of each population: choose β, weigh, resample, move.

    Each moves by the mass matrix of the next one's particles: by its own, log evidence comes out
    too high, by 2 nats of a Gaussian in 100 dimensions, and no spread between runs shows it.
    """
    size = max(1, target.batch // len(keys))  # of a slice, as all populations have theirs at once
    keys = jax.vmap(jax.random.split)(keys)
    risen = jax.vmap(partial(rise, target, start, size))(keys[:, 0], old)
    states = jax.vmap(partial(states_of, target, start, size))(risen)
    mass = jax.vmap(local_covariance)(risen.points, states.logdensity_grad)
    mass = jnp.roll(mass, 1, 0)
    return jax.vmap(partial(move, target, start, size))(keys[:, 1], risen, states, mass)


def rise(target: Target, start: starts.Wide, size: int, key: Array, old: Population) -> Population:
    """Choose β, weigh and resample; at β = 1 nothing is left to do."""
    n = len(old.points)
    log_start, log_target = log_densities(target, start, size, old.points)
    alive = jnp.isfinite(log_target) & jnp.isfinite(log_start)
    ratio = jnp.where(alive, log_target - log_start, -jnp.inf)
    # Particles where the target has no density die at the first rise: count on the others only.
    wanted = TARGET_ESS * jnp.mean(alive)
    by = ess.ess_solver(lambda r: r, ratio, wanted, 1.0 - old.beta, dichotomy)
    by = jnp.clip(jnp.nan_to_num(by), 0.0, 1.0 - old.beta)
    log_weights = jnp.where(by > 0, by * ratio, 0.0)
    total = jax.nn.logsumexp(log_weights)
    index = systematic(key, jnp.exp(log_weights - total), n)
    return old._replace(
        points=old.points[index],
        beta=old.beta + by,
        log_evidence=old.log_evidence + total - jnp.log(n),
        evidence_variance=old.evidence_variance + jnp.exp(-ess.log_ess(log_weights)) - 1 / n,
    )


def between(target: Target, start: starts.Wide, beta: Array) -> Callable:
    """The log density (1 − β) log p₀ + β log p of one point."""

    def log_density(z):
        return finite_or_minus_inf(
            (1 - beta) * start.log_density(z) + beta * target.log_density(z)
        )

    return log_density


def states_of(target: Target, start: starts.Wide, size: int, at: Population) -> hmc.HMCState:
    """Each particle with the log density and the slope it has at the present β."""
    log_density = between(target, start, at.beta)
    return in_slices(lambda z: hmc.init(z, log_density), at.points, size)


def move(
    target: Target,
    start: starts.Wide,
    size: int,
    key: Array,
    old: Population,
    states: hmc.HMCState,
    mass: Array,
) -> Population:
    """HMC on every particle at the present β, the step size following their acceptance."""
    n = len(old.points)
    log_density = between(target, start, old.beta)
    kernel = hmc.build_kernel()
    each = partial(in_slices, size=size)

    def one_move(carry, key):
        states, log_step = carry
        jitter_key, key = jax.random.split(key)
        sizes = jnp.exp(log_step) * jax.random.uniform(jitter_key, (n,), minval=0.6, maxval=1.2)
        leapfrogs = jnp.clip(jnp.round(TRAJECTORY / jnp.exp(log_step)), 1, MAX_LEAPFROGS)

        def step(of_one):
            key, state, size = of_one
            return kernel(key, state, log_density, size, mass, leapfrogs.astype(int))

        states, info = each(step, (jax.random.split(key, n), states, sizes))
        acceptance = jnp.nan_to_num(info.acceptance_rate).mean()
        log_step = jnp.minimum(log_step + (acceptance - ACCEPTANCE), 0.5)
        return (states, log_step), (acceptance, leapfrogs.astype(int))

    keys = jax.random.split(key, MOVES)
    (states, log_step), (acceptance, leapfrogs) = jax.lax.scan(
        one_move, (states, old.log_step), keys
    )
    return old._replace(
        points=states.position,
        log_step=log_step,
        acceptance=acceptance.mean(),
        gradients=old.gradients + leapfrogs.sum() + 1,
    )


def local_covariance(points: Array, gradients: Array) -> Array:
    """The particles' covariance as an HMC move feels it, from points and gradients (n, d).

    The geometric mean of cov(z) and E[∇∇ᵀ]⁻¹: both are Σ for a Gaussian, but between far modes
    the first sees the distance and the second the width of each. Seyboldt et al. (2024), nutpie.
    A matrix (d, d), or beyond `MOST_DENSE` dimensions its diagonal (d,) alone.
    """
    n, dim = points.shape
    finite = jnp.isfinite(gradients).all(-1, keepdims=True)
    gradients = jnp.where(finite, gradients, 0.0)
    if dim > MOST_DENSE:
        sd = jnp.sqrt(raised(points.var(0, ddof=1)))
    else:
        covariance = shrunk(jnp.atleast_2d(jnp.cov(points, rowvar=False)), n)
        sd = jnp.sqrt(jnp.diagonal(covariance))
    # Nor may one particle at the end of a tail, where a density overflows, speak for the rest.
    length = jnp.linalg.norm(gradients * sd, axis=1)
    usual = jnp.median(length)
    far = (usual > 0) & (length > OUTLYING * usual)
    gradients *= jnp.where(far, OUTLYING * usual / length, 1.0)[:, None]
    if dim > MOST_DENSE:
        values = sd**2 * (gradients**2).mean(0)
        return sd**2 / jnp.sqrt(jnp.maximum(values, SINGULAR * values.max()))
    # In units of the particles' sds, lest rounding swamp sites of a small scale.
    fisher = shrunk(gradients.T @ gradients / n, n)
    values, vectors = jnp.linalg.eigh(covariance / sd / sd[:, None])
    root = vectors @ (jnp.sqrt(jnp.maximum(values, SINGULAR))[:, None] * vectors.T)
    values, vectors = jnp.linalg.eigh(root @ (sd[:, None] * fisher * sd) @ root)
    values = jnp.maximum(values, SINGULAR * values.max())
    return sd[:, None] * (root @ (vectors @ (vectors.T / jnp.sqrt(values)[:, None])) @ root) * sd


def shrunk(matrix: Array, n: int) -> Array:
    """A covariance (d, d) estimated from n points, its correlations shrunk where n is small."""
    kept = n / (n + 2 * len(matrix))
    diagonal = jnp.diagonal(matrix)
    return kept * matrix + jnp.diag(raised(diagonal) - kept * diagonal)


def raised(variances: Array) -> Array:
    """Variances that are above zero, by next to nothing."""
    return variances + 1e-10 * variances + jnp.finfo(variances.dtype).tiny ** 0.5


def pooled(tempered: Tempered) -> Draws:
    """All runs' particles as draws in one block a run, each run weighed by its evidence."""
    runs, n, dim = tempered.points.shape
    shares = np.exp(tempered.log_evidence - tempered.log_evidence.max())
    weights = np.repeat(shares / shares.sum() / n, n)
    return Draws(tempered.points.reshape(-1, dim), weights, np.repeat(np.arange(runs), n))


def effective_draws(draws: Draws) -> float:
    """How many independent draws these are worth: the least over coordinates of (sd / error)²."""
    worth = []
    for x in draws.points.T:
        mean, mcse = expectation(x, draws)
        worth.append(np.sum(draws.weights * ((x - mean) / mcse) ** 2))
    return float(min(worth))


def pooled_evidence(tempered: Tempered) -> Estimate:
    """Log of the runs' mean evidence; its error is their spread, but no less than theory says.

    A handful of runs may agree by chance: their mean has the error of Student's t, which is
    √((n − 1) / (n − 3)) times the usual one, and the variance that the weights imply is a floor.
    """
    top = tempered.log_evidence.max()
    relative = np.exp(tempered.log_evidence - top)
    runs = len(relative)
    spread = relative.std(ddof=1) / relative.mean() * ((runs - 1) / (runs - 3)) ** 0.5
    floor = np.sqrt(tempered.evidence_variance.mean())
    return Estimate(top + float(np.log(relative.mean())), float(max(spread, floor) / runs**0.5))
