"""Forward KL: the guide of greatest likelihood on importance-weighted draws of the target.

KL(p‖q) is least where Σ wᵢ log q(xᵢ) is greatest over weighted draws of p; for Gaussians that
is matching weighted moments, in closed form. The first draws come from tempered SMC, which
starts wide and knows nothing of the guide. From then on the fitted guide is the proposal: its
draws, quasi-random, weighted by p/q and Pareto-smoothed, give better moments, the next guide,
and so on (Cappé et al. 2008, doi:10.1007/s11222-008-9059-x). Where the weights' k-hat says that
the guide cannot carry such draws, more SMC populations take its place.

The stopping rule. It has settled when the effective draws are enough for an error of
KL(q*‖q) ≈ parameters / (2·ESS) ≤ `TOLERANCE` nats and of `MEAN_ERROR` posterior sds in each
mean (`MEAN_ERROR_TOLERATED` on SMC's draws, and after the last round), and the last round brought
draws and improved the likelihood by no more than that noise explains. Of a fit that held-out
draws judge, the parameters are those of its mean and covariance alone, the rest being in their
hands, and a round may improve it by `TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import logsumexp

from vi_demo import mesh, starts
from vi_demo.divergences.estimators import effective_sample_size
from vi_demo.fitting.objectives import draws_of_target, normal_noise
from vi_demo.fitting.runner import Assessment, Fit, Fitter, Report, run, silent
from vi_demo.guides import Family, number_of_parameters
from vi_demo.reference import smc
from vi_demo.target import Target
from vi_demo.weights import pareto_smoothed

RUNS = 4
DRAWS = 16_384, 262_144  # of the guide in a round, at least and at most
HELD = 2**28  # coordinates of them in memory, whatever is wanted
MAX_ROUNDS = 12
PATIENCE = 4  # rounds without weights to be believed, where there is nothing but weights
TOLERANCE = 0.01  # nats
MEAN_ERROR = 0.007  # posterior sds
MEAN_ERROR_TOLERATED = 0.02  # where better is dear: by SMC, or after the last round
KHAT = 0.7
SECONDS = 90.0  # after which no more SMC populations are begun, and one is given up
WEIGHING = 45.0  # more, for the guide's own draws to be weighed after that
NO_SMC = "its weights were refused, and SMC would take too long"
REFUSED = "its own weights were refused to the end: k-hat {:.2f}"
COINCIDE = "the target's draws lie on a point, or in a plane: no guide can be fitted to them"
SHORT = "SMC was stopped short of the target, after {} temperatures: its draws are too wide"


class Batch(NamedTuple):
    """Weighted draws of the target from one round, worth `ess` independent ones.

    `log_p` are their log densities, unnormalised; `log_evidence` this round's estimate of it.
    """

    points: np.ndarray
    weights: np.ndarray
    ess: float
    log_p: np.ndarray | None = None
    log_evidence: float = np.nan


class State(NamedTuple):
    """What the next round needs: where draws come from, those in hand, and the guide so far."""

    key: Array
    source: str  # smc | guide
    particles: tuple[Batch, ...]
    weighted: tuple[Batch, ...]
    params: dict | None
    rounds: int
    refused: bool  # k-hat turned the last round's draws away
    khat: float
    gain: float
    yield_: float  # effective draws a draw of the guide
    evaluations: dict[str, int]
    seconds: float  # that rounds have taken
    short: str = ""  # that SMC stopped short of the target, if it did
    failed: bool = False  # there is no guide of these draws

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The guide's own weighted draws, or the particles until there are some."""
        return self.weighted or self.particles

    @property
    def ess(self) -> float:
        """Effective draws in hand."""
        return sum(batch.ess for batch in self.batches)


def fit(
    target: Target,
    family: Family,
    key: Array,
    report: Report = silent,
    begin: dict | None = None,
    seconds: float = SECONDS,
    tolerance: float = TOLERANCE,
) -> Fit:
    """Fit a family to a target by maximising E_p[log q] over weighted draws of p.

    With `begin`, the guide of these parameters makes the first draws and no SMC comes to its
    help: that is adaptive importance sampling alone, given up where its weights are refused.
    After so many `seconds` no round is begun. `tolerance` is the error wanted of the fit,
    KL(q*‖q) in nats: the number of draws follows from it.
    """
    loop = fitter(target, family, report, begin, seconds, tolerance)
    return run(loop, key, "forward_kl", family, report)


def fitter(
    target: Target,
    family: Family,
    report: Report = silent,
    begin: dict | None = None,
    seconds: float = SECONDS,
    tolerance: float = TOLERANCE,
) -> Fitter:
    """Rounds of weighted draws, each followed by a weighted maximum-likelihood fit."""
    if ("forward", family.name) not in target.programs:
        target.programs["forward", family.name] = programs(family)
    draw, likelihood = target.programs["forward", family.name]
    coarser = (tolerance / TOLERANCE) ** 0.5
    mean_error = coarser * MEAN_ERROR

    # Of so many rows, or of a stiff ODE, the curvature is nearly all there is to find.
    slow = target.draws is None and smc.seconds(target, smc.PARTICLES * RUNS) > SECONDS
    dear = slow and starts.climbs(target) is not None
    alone = dear or begin is not None

    def init(key):
        starts.climbs(target)  # which tempering begins at, or this
        beginning = (np.nan, np.inf, 1.0, starts.evaluations(target), 0.0)
        source, params = ("guide", begin or of_the_climbs()) if alone else ("smc", None)
        return State(key, source, (), (), params, 0, False, *beginning)

    def of_the_climbs():
        unit = family.init(jnp.zeros(target.dim), 1.0)
        return family.moved(unit, *starts.frame(target, family.turns))

    def advance(state):
        began = mesh.now()
        key, draw_key = jax.random.split(state.key)
        state = state._replace(key=key, rounds=state.rounds + 1, refused=False)
        if target.draws is not None:
            draws = np.asarray(target.draws)
            new = Batch(draws, np.full(len(draws), 1 / len(draws)), target.effective_draws)
            state = state._replace(particles=(new,))
        elif state.source == "smc":
            state = from_smc(state, draw_key)
        else:
            state = from_guide(state, draw_key)
        state = refit(state)
        spent = state.seconds + mesh.now() - began
        return state._replace(seconds=spent), record(state)

    def from_smc(state, key):
        share = state.rounds / MAX_ROUNDS
        tempered = smc.temper(
            *(target, key, number_of_particles(), RUNS),
            report=lambda part, text: report("forward_kl", share + part / MAX_ROUNDS, text),
            seconds=seconds,
        )
        short = "" if tempered.finished else SHORT.format(tempered.temperatures)
        draws = smc.pooled(tempered)
        # In random order, so that the first of them are of all populations.
        order = np.random.default_rng(state.rounds).permutation(len(draws.points))
        points, log_z = draws.points[order], smc.pooled_evidence(tempered).value
        log_p = target.log_densities(points)
        new = Batch(points, draws.weights[order], smc.effective_draws(draws), log_p, log_z)
        state = state._replace(particles=(*state.particles, new), short=state.short or short)
        return spend(state, tempered.evaluations)

    def number_of_particles():
        most = smc.number_of_particles(target, RUNS, SECONDS / 2)
        enough = 2 ** int(np.ceil(np.log2(smc.PARTICLES / coarser**2)))
        return min(most, max(enough, smc.PARTICLES // 4))

    def from_guide(state, key):
        noise = normal_noise(key, number_of_draws(state), target.dim, whiten=False)
        # In parts of one size, so that the program is one.
        parts = noise.reshape(-1, min(len(noise), DRAWS[0]), target.dim)
        drawn = [draw(state.params, part) for part in parts]
        log_p = np.concatenate([target.log_densities(points) for points, _ in drawn])
        points, log_shares = (np.concatenate(each) for each in zip(*drawn, strict=True))
        log_weights = log_p + log_shares - np.log(len(parts))  # shares: of mass over density
        log_z = float(logsumexp(log_weights))
        state = spend(state, {"log_density": len(points), "gradient": 0})
        log_weights, khat = pareto_smoothed(log_weights)
        state = state._replace(khat=khat)
        if alone:
            refused = "" if khat < KHAT else NO_SMC if dear else REFUSED.format(khat)
            state = state._replace(short=refused, weighted=() if refused else state.weighted)
        elif not khat < KHAT:
            # Neither these weights nor those of a guide like this one before are to be believed.
            return state._replace(source="smc", weighted=(), refused=True)
        weights = np.exp(log_weights - log_weights.max())
        ess = effective_sample_size(log_weights)
        new = Batch(points, weights / weights.sum(), ess, log_p, log_z)
        yield_ = state.yield_ if state.short else ess / len(points)
        return state._replace(weighted=(*state.weighted, new), yield_=yield_)

    def number_of_draws(state):
        missing = max(1 / mean_error**2, parameters(state) / (2 * tolerance)) - state.ess
        missing = missing / state.yield_
        least, most = (target.affordable(min(n, HELD // target.dim), WEIGHING / 2) for n in DRAWS)
        # A power of two, as Sobol sequences have it.
        return 2 ** int(np.log2(np.clip(2 ** np.ceil(np.log2(max(missing, 1))), least, most)))

    def spend(state, spent):
        total = {k: state.evaluations[k] + spent[k] for k in spent}
        return state._replace(evaluations=total)

    def refit(state):
        points, weights = filled_up(*together(state)[:2])
        params = family.fit(points, weights, state.params)
        if not all(np.isfinite(p).all() for p in params.values()):
            return state._replace(params=state.params or of_the_climbs(), failed=True)
        gain = np.inf  # the first round has nothing to compare with, a refused one nothing new
        if state.params is not None and not state.refused:
            gain = float(likelihood(params, points, weights))
            gain -= float(likelihood(state.params, points, weights))
        source = "guide" if state.rounds == 1 else state.source
        return state._replace(params=params, gain=gain, source=source)

    def parameters(state):
        moments = target.dim * (target.dim + 3) // 2
        return moments if family.judged else number_of_parameters(state.params)

    def noise(state):
        return parameters(state) / (2 * state.ess)

    def record(state):
        row = {"ess": state.ess, "khat": state.khat, **state.params}
        return {k: np.asarray(v)[None] for k, v in row.items()}

    def assess(state):
        text = f"round {state.rounds}, {state.ess:,.0f} effective draws"
        if state.failed:
            return Assessment("failed", 1.0, text)
        if target.draws is not None:
            return Assessment("converged", 1.0, text)
        more = 0.0 if alone or state.source == "smc" else WEIGHING
        late = state.seconds > seconds + more
        hopeless = begin is not None and bool(state.short) and state.rounds >= PATIENCE
        last = state.rounds >= MAX_ROUNDS or late or hopeless
        dearer = coarser * MEAN_ERROR_TOLERATED
        error = dearer if last or state.source == "smc" else mean_error
        if last and state.short and (alone or not state.weighted):
            return Assessment("stopped", 1.0, text)
        enough = noise(state) <= tolerance and state.ess >= 1 / error**2
        little = max(3 * noise(state), tolerance if family.judged else 0.0)
        if enough and state.gain < little:
            return Assessment("converged", 1.0, text)
        if last:
            return Assessment("stopped", 1.0, text)
        return Assessment(None, state.rounds / MAX_ROUNDS, text)

    def finish(state):
        error = {} if family.judged else {"error": noise(state)}
        tail = {"khat": state.khat} if np.isfinite(state.khat) else {}  # none on SMC's draws
        return {
            "params": state.params,
            "steps": state.rounds,
            "evaluations": state.evaluations,
            "notes": (
                *filter(None, (state.short, COINCIDE if state.failed and not state.short else "")),
            ),
            "measured": {"ess": state.ess} | error | tail,
            "draws": None if target.log_density is None else draws_of_target(*together(state)),
        }

    return Fitter("moment_matching", init, advance, assess, finish)


def programs(family: Family) -> tuple[Callable, Callable]:
    """Compiled: points of noise, with the log of what mass over density each has; E_p[log q]."""

    @jax.jit
    def draw(params, noise):
        points, log_masses = family.draw(params, noise)
        return points, log_masses - family.distribution(params).log_prob(points)

    @jax.jit
    def likelihood(params, points, weights):
        return weights @ family.distribution(params).log_prob(points)

    return draw, likelihood


def together(state: State) -> tuple:
    """Points, weights adding up to one, log densities and log evidence of all batches in hand.

    The newest come first, whose guide was the best.
    """
    batches = state.batches[::-1]
    shares = [b.ess / state.ess for b in batches]
    points = np.concatenate([b.points for b in batches])
    weights = np.concatenate([s * b.weights for s, b in zip(shares, batches, strict=True)])
    if batches[0].log_p is None:
        return points, weights, None, np.nan
    log_p = np.concatenate([b.log_p for b in batches])
    log_z = logsumexp([b.log_evidence for b in batches], b=shares)
    return points, weights, log_p, float(log_z)


def filled_up(points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The draws and some without weight, up to a power of four: few shapes, few compiled."""
    more = 4 ** int(np.ceil(np.log2(len(points)) / 2)) - len(points)
    return np.append(points, np.repeat(points[:1], more, 0), 0), np.append(weights, np.zeros(more))
