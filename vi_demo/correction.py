"""The next thing to do, tried rather than advised: a ladder of corrections.

Its rungs go from what costs nothing to what costs most: the fits as they are; their
Pareto-smoothed weights (Vehtari et al. 2024, arXiv 1507.02646); adaptive importance sampling
from the best of them (Cappé et al. 2008, doi:10.1007/s11222-008-9059-x); a mixture of the places
that restarts and modes are at, of as many components as raise the evidence's bound; tempered SMC
and NUTS that start from the best guide so far; the reference's own draws. Each is measured against
the reference as the fits are, and the ladder ends at the first that is right. Where there are
several modes it goes on to a mixture though weights are enough: a guide that is on all of them can
be drawn from for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.special import softmax

from vi_demo import checkpoints, guides, mesh, starts
from vi_demo.diagnostics import Figures, coverage
from vi_demo.divergences.estimators import Draws, Estimate, equal_weights, resample
from vi_demo.fitting import moment_matching
from vi_demo.fitting.runner import Fit, Report
from vi_demo.frames import Frame
from vi_demo.quantities import of_sites
from vi_demo.reference import Reference, modes, nuts, smc
from vi_demo.restarts import Gaussians, gaussians, places
from vi_demo.target import Target
from vi_demo.verdict import (
    CORRECTED_SD_RATIO,
    Judged,
    missed_modes,
    still_wrong,
    weights_carry,
    weights_suffice,
    wrong_sites,
)

ADAPTIVE = 4  # components of the proposal that adapts
INFLATED = 2.0  # times as wide as the fit, of all but its first
MOST_COMPONENTS = 16
MOST_WHOLE = 2_000  # dimensions of covariances that are held whole
CLOSE = 0.003  # nats of KL(q‖p) from which more components are not tried
WORTH = 0.002  # nats of the ELBO that they must bring
LEAST_IN_A_BASIN = 10  # draws a dimension, for a mode's covariance
RUNS = 4
WEIGHTED = ", weighted"
SHOWN = 1_000
SHARE = 0.25  # of the budget, for one guide to adapt in


@dataclass(frozen=True)
class Rung:
    """One correction: what it came to, and at what cost.

    `passes` is None where there is no reference to tell. `draws` make the corrected posterior,
    of equal weight, on R^d; `judged` is the guide that it made, if it made one.
    """

    name: str
    passes: bool | None
    why: str
    figures: Figures
    sites: str  # which of the figures' sites are this rung's: "" or "corrected_"
    draws: Callable[[int], np.ndarray]
    evaluations: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    judged: Judged | None = None
    log_evidence: Estimate | None = None


@dataclass(frozen=True)
class Attempt:
    """What every rung is made from: the target, its fits as judged, the reference, the means."""

    target: Target
    judged: dict[str, Judged]
    truth: Reference
    judge: Callable[[str, Fit], Judged]
    key: jax.Array
    budget: float
    report: Report

    @property
    def best(self) -> Judged:
        """The fit that is nearest to being right: by its verdict, then by its total variation."""
        order = ["reliable", "correctable", "cannot tell", "unreliable"]

        def rank(judged):
            distance = judged.figures.divergences.get("total_variation")
            own = judged.figures.own_distance
            far = distance.value if distance is not None else 1.0 if own is None else own
            return order.index(judged.verdict.verdict), far

        return min(self.judged.values(), key=rank)

    @property
    def blind(self) -> bool:
        """Whether no reference tells what is right."""
        return not self.truth.trusted or self.truth.draws is None

    @property
    def several(self) -> bool:
        """Whether the target is known to have several modes."""
        return self.truth.modes is not None and len(self.truth.modes.masses) > 1


def climb(attempt: Attempt) -> list[Rung]:
    """The rungs in their order, up to where one is right; the last one is where it ends."""
    rungs: list[Rung] = []
    for stage in ladder(attempt):
        attempt.report("correct", min(len(rungs) / 8, 1.0), f"{stage[-1].name}: {stage[-1].why}")
        rungs += stage
        if done(attempt, rungs[-1]):
            break
    return rungs


def done(attempt: Attempt, rung: Rung) -> bool:
    """Whether a rung is where the ladder ends: it is right, or nobody could tell more."""
    if attempt.blind:
        return rung.sites == "corrected_" and weights_carry(rung.figures)[0]
    return bool(rung.passes) and not (attempt.several and rung.name.endswith(WEIGHTED))


def ladder(attempt: Attempt) -> Iterator[list[Rung]]:
    """The stages, each made when it is asked for; the last of one is the best of it."""
    yield sorted(as_they_are(attempt), key=lambda rung: rung.passes is True)
    yield [weighted := by_weights(attempt)]
    if attempt.target.dim <= MOST_WHOLE:
        yield from from_the_best(attempt, weighted)
    if not attempt.blind:
        yield [by_reference(attempt)]


def from_the_best(attempt: Attempt, weighted: Rung) -> Iterator[list[Rung]]:
    """The stages that begin at the best guide so far, and know its covariance."""
    guide = attempt.best
    if not weighted.passes and not attempt.several:
        yield [rung := adaptive(attempt)]
        guide = better(guide, rung)
    yield (grown := list(mixtures(attempt)))
    guide = better(guide, grown[-1])
    yield [by_smc(attempt, guide)]
    yield [by_nuts(attempt, guide)]


def better(guide: Judged, rung: Rung) -> Judged:
    """The guide of higher ELBO."""
    elbos = [j.figures.elbo for j in (guide, rung.judged)]
    if elbos[1] is None or (elbos[0] is not None and elbos[0].value >= elbos[1].value):
        return guide
    return rung.judged


def as_they_are(attempt: Attempt) -> Iterator[Rung]:
    """The fits, with the verdict that they have."""
    for name, judged in attempt.judged.items():
        yield of_guide(f"{name} as it is", judged, attempt.blind, as_it_is=True)


def of_guide(name: str, judged: Judged, blind: bool, as_it_is: bool = False) -> Rung:
    """The rung that a guide makes: by its draws where they are right, else by their weights."""
    fit, figures, verdict = judged
    right = verdict.verdict == "reliable"
    weighs = not right and not as_it_is and figures.weighted is not None
    passes = right or (weighs and weights_suffice(figures))
    return Rung(
        name=name,
        passes=None if blind else passes,
        why=verdict.reasons[0] if not weighs or not passes else "right with its weights",
        figures=figures,
        sites="corrected_" if weighs else "",
        draws=weighted_draws(judged) if weighs else own_draws(judged),
        evaluations=fit.evaluations,
        seconds=sum(fit.seconds.values()),
        judged=judged,
        log_evidence=figures.importance_log_evidence,
    )


def own_draws(judged: Judged) -> Callable[[int], np.ndarray]:
    """Draws of the guide; of a mixture, each component has its share of them to the draw.

    Of 4,000 draws 40 ± 6 lie in a mode of 1 %, by chance, and an sd is off by 7 % then.
    """
    q, points = judged.fit.guide, judged.figures.points
    if not isinstance(q, dist.MixtureSameFamily):
        return lambda number: points[:number]
    each = q.component_distribution
    locs, factors = np.asarray(each.loc), np.asarray(each.scale_tril)
    shares = softmax(np.asarray(q.mixing_distribution.logits))

    def draw(number):
        rng = np.random.default_rng(0)
        which = resample(Draws(np.arange(len(shares)), shares), number, seed=0)
        noise = rng.standard_normal((number, locs.shape[1]))
        return locs[which] + np.einsum("nij,nj->ni", factors[which], noise)

    return draw


def weighted_draws(judged: Judged) -> Callable[[int], np.ndarray]:
    """Draws of equal weight from the guide's weighted ones, a mixture's component by component."""
    q, (points, _, weights) = judged.fit.guide, judged.figures.weighted
    if isinstance(q, dist.MixtureSameFamily):
        order = np.argsort(np.asarray(q.component_log_probs(points)).argmax(1), kind="stable")
        points, weights = points[order], weights[order]
    return lambda number: resample(Draws(points, weights), number, seed=0)


def by_weights(attempt: Attempt) -> Rung:
    """Pareto-smoothed importance resampling of the best fit's draws."""
    judged = attempt.best
    figures = judged.figures
    name = judged.fit.divergence + WEIGHTED
    if figures.weighted is None:
        nothing = "its weights are unknown or all zero"
        return replace(
            of_guide(name, judged, attempt.blind, as_it_is=True), passes=False, why=nothing
        )
    passes = weights_suffice(figures)
    against = (*missed_modes(figures), *weights_carry(figures)[1], *still_wrong(figures))
    return Rung(
        name=name,
        passes=None if attempt.blind else passes,
        why=against[0] if against else "right with its weights",
        figures=figures,
        sites="corrected_",
        draws=weighted_draws(judged),
        evaluations={"log_density": len(figures.weighted.points), "gradient": 0},
        log_evidence=figures.importance_log_evidence,
    )


def adaptive(attempt: Attempt) -> Rung:
    """A mixture that begins at the best fit, and is fitted to its own weighted draws in rounds."""
    attempt.report("correct", 0.2, "adaptive importance sampling")
    q = attempt.best.fit.guide
    mean, factor = np.asarray(q.mean), np.linalg.cholesky(guides.covariance_of(q))
    stretch = np.array([1.0, *([INFLATED] * (ADAPTIVE - 1))])
    apart = np.random.default_rng(0).normal(size=(ADAPTIVE, len(mean)))
    apart[0] = 0.0
    begin = Gaussians(
        mean + apart @ factor.T, stretch[:, None, None] * factor, np.zeros(ADAPTIVE)
    ).params
    return fitted(attempt, "adaptive importance sampling", begin)


def fitted(attempt: Attempt, name: str, begin: dict) -> Rung:
    """The mixture that adaptive importance sampling makes of one, as judged."""
    number = len(begin["logits"])
    family = guides.family(f"mixture:{number}")
    key = jax.random.fold_in(attempt.key, number)
    seconds = SHARE * attempt.budget
    fit = moment_matching.fit(attempt.target, family, key, begin=begin, seconds=seconds)
    attempt.report("correct", 0.5, f"measuring {name}")
    return of_guide(name, attempt.judge(name, fit), attempt.blind)


def mixtures(attempt: Attempt) -> Iterator[Rung]:
    """A mixture with a component at each place that is known, then twice as many while it pays."""
    begin, last = stacked(attempt).params, None
    while True:
        number = len(begin["logits"])
        rung = fitted(attempt, f"mixture:{number}", begin)
        if last is not None and not gained(last.figures, rung.figures):
            return
        yield rung
        if near_enough(rung.figures) or 2 * number > MOST_COMPONENTS:
            return
        begin, last = split(rung.judged.fit.params), rung


def near_enough(figures: Figures) -> bool:
    """Whether KL(q‖p) is so small, as the guide's own weights have it, that no more is tried."""
    evidence, elbo = figures.importance_log_evidence, figures.elbo
    return bool(evidence and elbo and evidence.value - elbo.value < CLOSE)


def gained(old: Figures, new: Figures) -> bool:
    """Whether the ELBO rose by more than `WORTH`."""
    if new.elbo is None or old.elbo is None:
        return new.elbo is not None
    return new.elbo.value - old.elbo.value > WORTH


def split(params: dict) -> dict:
    """Each component as two of the same mean and covariance together, along its widest axis."""
    means = np.asarray(params["loc"])
    factors = np.asarray(jax.vmap(guides.scale_tril)(params))
    covariances = factors @ np.swapaxes(factors, 1, 2)
    values, vectors = np.linalg.eigh(covariances)
    step = 0.5 * np.sqrt(values[:, -1:]) * vectors[:, :, -1]
    narrower = np.linalg.cholesky(covariances - step[:, :, None] * step[:, None, :])
    twice = lambda x: np.concatenate([x, x])  # noqa: E731
    both = Gaussians(
        np.concatenate([means + step, means - step]),
        twice(narrower),
        twice(np.asarray(params["logits"])),
    )
    return both.params


def stacked(attempt: Attempt) -> Gaussians:
    """A Gaussian at each place that restarts or the reference's modes are at, with evidence."""
    found = [g for j in attempt.judged.values() if (g := gaussians(j.fit)) is not None]
    if attempt.truth.modes is not None and attempt.truth.draws is not None:
        found.append(of_modes(attempt.truth))
    if not found:
        q = attempt.best.fit.guide
        one = np.asarray(q.mean)[None], np.linalg.cholesky(guides.covariance_of(q))[None]
        return Gaussians(*one, np.zeros(1))
    each = [g.whole() for g in found]
    every = Gaussians(*(np.concatenate(parts) for parts in zip(*each, strict=True)))
    every = every.take(np.argsort(-every.log_evidence))
    known = attempt.truth.modes
    if known is None or attempt.blind:
        return places(every).take(slice(MOST_COMPONENTS))
    # One for each mode that the reference knows.
    basin = modes.basins(attempt.target, known, every.means)
    first = [int(np.argmax(basin == k)) for k in range(len(known.masses)) if (basin == k).any()]
    return every.take(first[:MOST_COMPONENTS])


def of_modes(truth: Reference) -> Gaussians:
    """The Gaussian of the reference's draws in each mode, or of all about its summit if few."""
    points, labels = truth.draws.points, truth.modes.of_draws
    dim = points.shape[1]
    log_z = truth.log_evidence.value if truth.log_evidence is not None else 0.0
    rows = []
    for k, mass in enumerate(truth.modes.masses):
        inside, weights = points[labels == k], truth.draws.weights[labels == k]
        mean, factor = truth.modes.locations[k], truth.modes.factor
        if len(inside) > LEAST_IN_A_BASIN * dim:
            mean = np.average(inside, axis=0, weights=weights)
            covariance = np.atleast_2d(np.cov(inside.T, aweights=weights))
            factor = np.linalg.cholesky(covariance + 1e-9 * np.diag(np.diag(covariance)))
        rows.append((mean, factor, log_z + np.log(mass.value)))
    return Gaussians(*(np.array(column) for column in zip(*rows, strict=True)))


def by_smc(attempt: Attempt, guide: Judged) -> Rung:
    """Tempered SMC from the best guide so far, half of its start being wider than it."""
    began = mesh.now()
    attempt.report("correct", 0.7, "SMC from the best guide")
    target = attempt.target
    given = max(attempt.budget, 30.0)
    temper = partial(
        smc.temper,
        *(target, jax.random.fold_in(attempt.key, 101)),
        *(smc.number_of_particles(target, RUNS, given), RUNS),
        seconds=given,
        start=around(guide.fit.guide),
    )
    tempered = checkpoints.once("SMC from a guide", temper)
    draws = smc.pooled(tempered)
    short = "" if tempered.finished else "SMC had not reached the target when its time was over"
    evidence = smc.pooled_evidence(tempered) if tempered.finished else None
    rung = of_draws(attempt, "SMC from the best guide", draws, short)
    return replace(
        rung,
        evaluations=tempered.evaluations,
        seconds=mesh.now() - began,
        log_evidence=evidence,
    )


def around(q: dist.Distribution) -> starts.Wide:
    """Half a guide itself, half a Student-t of its moments that is wider."""
    factor = jnp.linalg.cholesky(jnp.asarray(guides.covariance_of(q)))
    own = starts.Wide(lambda key, n: np.asarray(q.sample(key, (n,))), q.log_prob)
    return starts.halves(own, starts.around(q.mean[None], factor[None]))


def by_nuts(attempt: Attempt, guide: Judged) -> Rung:
    """NUTS from draws of the best guide so far, on its scale."""
    began = mesh.now()
    attempt.report("correct", 0.85, "NUTS from the best guide")
    q = guide.fit.guide
    factor = jnp.linalg.cholesky(jnp.asarray(guides.covariance_of(q)))
    frame = Frame(jnp.asarray(q.mean), factor)
    begin = q.sample(jax.random.fold_in(attempt.key, 102), (nuts.CHAINS,))
    beginning = frame, jax.vmap(frame.inverse().out)(begin)
    key = jax.random.fold_in(attempt.key, 103)
    sample = partial(nuts.sample, attempt.target, key, beginning=beginning)
    chains = checkpoints.once("NUTS from a guide", sample)
    points = chains.points.reshape(-1, attempt.target.dim)
    blocks = np.repeat(np.arange(len(chains.points)), chains.points.shape[1])
    rung = of_draws(attempt, "NUTS from the best guide", equal_weights(points, blocks), "")
    evaluations = {"log_density": 0, "gradient": chains.gradients}
    return replace(rung, evaluations=evaluations, seconds=mesh.now() - began)


def by_reference(attempt: Attempt) -> Rung:
    """The reference's own draws, which started from no guide."""
    truth = attempt.truth
    points = resample(truth.draws, SHOWN, seed=0)
    return Rung(
        name=f"the reference, {truth.method}",
        passes=True,
        why="nothing that starts from a fit was right; the reference started elsewhere",
        figures=Figures(points, None, np.zeros(SHOWN)),
        sites="",
        draws=lambda number: resample(truth.draws, number, seed=1),
        evaluations=truth.evaluations,
        log_evidence=truth.log_evidence,
    )


def of_draws(attempt: Attempt, name: str, draws: Draws, short: str) -> Rung:
    """The rung that draws of the target itself make, measured against the reference."""
    points = resample(draws, len(draws.points), seed=0)
    reasons: dict[str, Any] = {}
    figures = Figures(
        points=points,
        log_p=None,
        log_q=np.zeros(len(points)),
        sites=of_sites(attempt.target, points, None, attempt.truth, reasons),
        labels=attempt.target.labels,
        **coverage(attempt.target, points, attempt.truth, reasons),
    )
    wrong = wrong_sites(figures, "", CORRECTED_SD_RATIO, slack=1.0)
    against = (*filter(None, (short,)), *missed_modes(figures), *wrong)
    return Rung(
        name=name,
        passes=None if attempt.blind else not against,
        why=against[0] if against else "its draws agree with the reference",
        figures=figures,
        sites="",
        draws=lambda number: resample(draws, number, seed=1),
    )
