"""What is measured of a fit against a reference: from the guide's side and from the target's.

Checks that draw from q look only where q already is; each is paired with one that starts from
draws of p. Whatever could not be measured is None, with the reason in `reasons` beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from vi_demo import mesh, quantities
from vi_demo.batching import in_sizes, in_slices
from vi_demo.divergences import estimators, integration
from vi_demo.divergences.estimators import Draws, Estimate, equal_weights, expectation
from vi_demo.divergences.generators import F_DIVERGENCES
from vi_demo.reference import Reference
from vi_demo.reference import modes as modality
from vi_demo.target import Target
from vi_demo.weights import importance_evidence, khat_spread, pareto_khat, smoothed

KHAT_DRAWS = 10_000  # k-hat spreads by ±0.1 even then (Vehtari et al. 2024)
SECONDS = 60.0  # for the densities at them; where that is not enough, there are fewer
MODE_DRAWS = 1_000, 4_000  # whose modes are told, at least and at most
OF_EACH = 20  # of them that the smallest mode should have
WANTED_ESS = 3_000  # of the weighted draws: then an sd is known within 1.3 %
MOST_WEIGHTED = 16  # times as many draws as otherwise, for that
MOST_NUMBERS = 2**26  # of all sites at these
CENTRES = 16  # draws of the guide that quadrature of it is cut at
HEAVY = "too heavy-tailed: a few points in the tails hold most of it"
COVERED = 0.1  # of a mode's mass that the guide must put in its basin


@dataclass(frozen=True)
class Figures:
    """Everything measured of one fit; energies and divergences in nats.

    `points` (S, d) are draws of the guide on R^d with `log_p` (unnormalised) and `log_q`.
    `sites` holds for each site the error of its mean in reference sds, absolute, and the ratio
    of its sd to the reference's, as they are and `corrected_` by the weights of `weighted` draws;
    `labels` how to write each entry of a site; `quantities` single ones. `forward_ess` is the
    share of effective draws as the target's own draws have it, which a missed mode brings to
    nothing. `own_distance` is total variation as the guide's own weights have it, blind to where
    it does not reach.
    """

    points: np.ndarray
    log_p: np.ndarray | None
    log_q: np.ndarray
    elbo: Estimate | None = None
    eubo: Estimate | None = None
    importance_log_evidence: Estimate | None = None
    divergences: dict[str, Estimate | None] = field(default_factory=dict)
    khat: float | None = None
    khat_spread: float | None = None
    khat_threshold: float = 0.7
    ess: float | None = None
    ess_share: float | None = None
    own_distance: float | None = None
    forward_ess: float | None = None
    weighted: quantities.Weighted | None = None
    modes_covered: int | None = None
    mass_covered: float | None = None
    missed: tuple[float, ...] = ()
    mode_shares: tuple[float, ...] = ()
    sites: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    quantities: dict[str, dict[str, dict]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def measure(
    target: Target,
    guide,
    reference: Reference,
    key: jax.Array,
    draws: int,
    divergences: tuple[Callable, ...] = F_DIVERGENCES,
    named: tuple[str, ...] = (),
) -> Figures:
    """Measure a guide against a reference; `draws` is how many draws will be kept of it.

    Of the sites that are `named`, deterministic ones too, all entries are told of one by one.
    """
    reasons: dict[str, str] = {}
    number = target.affordable(max(draws, KHAT_DRAWS), SECONDS)
    sample, log_prob = programs_of(target, guide)
    points = sample(key, number)
    log_q = log_prob(points)
    known = {"points": points, "log_q": log_q, "log_p": None}
    weighted = None
    if target.log_density is None:
        for name in (
            "elbo",
            "eubo",
            "divergences",
            "khat",
            "ess",
            "forward_ess",
            "modes_covered",
            "mass_covered",
        ):
            reasons[name] = "the target is only draws, so its density is unknown"
    else:
        log_p = target.log_densities(points)
        known |= {"log_p": log_p} | importance(log_p - log_q, draws, reasons)
        weighted = enough(target, sample, log_prob, key, points, log_p - log_q)
        at = ratios(target, log_prob, points, log_p, log_q, reference)
        known |= energies(at, reasons)
        known |= distances(at, reference, divergences, reasons)
        for energy, f in (("elbo", "reverse_kl"), ("eubo", "forward_kl")):
            if reasons.get(f) == HEAVY:  # it is the same average
                known[energy], reasons[energy] = None, HEAVY
        known |= coverage(target, points, reference, reasons)
        known["forward_ess"] = forward_ess(at, reference, reasons)
    known["sites"] = quantities.of_sites(target, points, weighted, reference, reasons)
    known["quantities"] = quantities.of_entries(target, named, points, weighted, reference)
    known["weighted"] = weighted
    return Figures(**known, labels=target.labels, reasons=reasons)


def programs_of(target: Target, guide) -> tuple[Callable, Callable]:
    """Draws of a guide, (key, number) -> (number, d), and its log density of points (n, d).

    A distribution is a tree of arrays, so guides of one family share what is compiled.
    """
    if "of guides" not in target.programs:
        draw = mesh.program(lambda q, key, number: q.sample(key, (number,)), static_argnums=2)
        densities = mesh.program(lambda q, points: in_slices(q.log_prob, points, target.batch))
        target.programs["of guides"] = draw, densities
    draw, densities = target.programs["of guides"]
    return lambda key, number: np.asarray(draw(guide, key, number)), in_sizes(
        partial(densities, guide)
    )


def enough(target, sample, log_prob, key, points, log_weights) -> quantities.Weighted | None:
    """Draws of the guide with their weights, so many that `WANTED_ESS` are effective if can be."""
    if not np.isfinite(log_weights).any():
        return None
    share = estimators.effective_sample_size(log_weights) / len(points)
    room = MOST_NUMBERS // quantities.numbers(target)
    wanted = min(int(WANTED_ESS / share), MOST_WEIGHTED * len(points), room)
    if wanted > len(points) and target.seconds(wanted) < SECONDS:
        # As many at once as before, so that nothing is compiled again.
        keys = [jax.random.fold_in(key, 1 + i) for i in range(-(-wanted // len(points)))]
        points = np.concatenate([sample(k, len(points)) for k in keys])[:wanted]
        log_weights = target.log_densities(points) - log_prob(points)
    return quantities.Weighted(points, log_weights, smoothed(log_weights))


def forward_ess(at: Ratios, reference: Reference, reasons: dict) -> float | None:
    """1 / E_p[p/q]: the share of effective draws, as draws of the target have it.

    Where the evidence is unknown, 1 / E_p[q/p] stands for it.
    """
    if at.from_p is None:
        reasons["forward_ess"] = quantities.NO_REFERENCE
        return None
    r, log_weights = at.log_p_at_p - at.log_q_at_p, np.log(at.from_p.weights)
    log_z = reference.log_evidence
    log_z = -np.logaddexp.reduce(log_weights - r) if log_z is None else log_z.value
    return float(np.exp(np.minimum(log_z - np.logaddexp.reduce(log_weights + r), 0.0)))


def importance(log_weights: np.ndarray, draws: int, reasons: dict) -> dict:
    """What the weights p/q say from the guide's side: k-hat, ESS, an estimate of the evidence."""
    size = len(log_weights)
    khat, reason = pareto_khat(log_weights)
    if reason:
        reasons["khat"] = reason
    known = {"khat": khat, "khat_threshold": min(1 - 1 / np.log10(size), 0.7)}
    known["khat_spread"] = None if khat is None else khat_spread(log_weights)
    if not np.isfinite(log_weights).any():
        reasons["ess"] = "the target's density is zero at every draw of the guide"
        return known
    share = estimators.effective_sample_size(log_weights) / size
    evidence = importance_evidence(log_weights)
    if evidence is None:
        reasons["importance_log_evidence"] = (
            "the weights are too heavy-tailed to average from these draws"
        )
    known["importance_log_evidence"] = evidence
    weights = np.exp(log_weights - log_weights.max())
    own_distance = float(np.abs(weights / weights.mean() - 1).mean() / 2)
    kept = log_weights[:draws]
    ess = estimators.effective_sample_size(kept) if np.isfinite(kept).any() else 0.0
    return known | {"ess": ess, "ess_share": share, "own_distance": own_distance}


class Ratios(NamedTuple):
    """log p and log q at draws of the guide and of the reference, p not normalised."""

    from_q: Draws
    log_p: np.ndarray
    log_q: np.ndarray
    from_p: Draws | None
    log_p_at_p: np.ndarray | None
    log_q_at_p: np.ndarray | None


def ratios(target, log_prob, points, log_p, log_q, reference) -> Ratios:
    """Both densities at both draws; where the reference is exact, so are the guide's."""
    from_p = reference.draws
    if from_p is None:
        return Ratios(equal_weights(points), log_p, log_q, None, None, None)
    log_q_at_p = log_prob(from_p.points)
    if not from_p.exact:
        return Ratios(equal_weights(points), log_p, log_q, from_p, reference.log_p, log_q_at_p)
    start = points[:2000]
    centres = np.concatenate([start.mean(0, keepdims=True), start[:CENTRES]])
    try:
        nodes = integration.integrate(log_prob, centres, 3 * start.std(0)).nodes
    except ArithmeticError:  # of a component so wide that nodes are out of bounds
        return Ratios(equal_weights(points), log_p, log_q, from_p, reference.log_p, log_q_at_p)
    log_p, log_q = (g(nodes.points) for g in (target.log_densities, log_prob))
    return Ratios(nodes, log_p, log_q, from_p, reference.log_p, log_q_at_p)


def energies(at: Ratios, reasons: dict) -> dict:
    """ELBO and EUBO."""
    known = {}
    elbo = expectation(at.log_p - at.log_q, at.from_q)
    if np.isfinite(elbo.value):
        known["elbo"] = elbo
    else:
        reasons["elbo"] = "infinite: the guide has mass where the target's density is zero"
    if at.from_p is None:
        reasons["eubo"] = quantities.NO_REFERENCE
        return known
    eubo = expectation(at.log_p_at_p - at.log_q_at_p, at.from_p)
    if np.isfinite(eubo.value):
        known["eubo"] = eubo
    else:
        reasons["eubo"] = "infinite: the target has mass where the guide's density is zero"
    return known


def distances(at: Ratios, reference: Reference, divergences: tuple, reasons: dict) -> dict:
    """Every divergence between the target and the guide, from draws of both."""
    known: dict[str, Estimate | None] = {f.__name__: None for f in divergences}
    if at.from_p is None:
        reasons["divergences"] = quantities.NO_REFERENCE
        return {"divergences": known}
    if reference.log_evidence is None:
        reasons["divergences"] = f"the reference, by {reference.method}, gives no log evidence"
        return {"divergences": known}
    log_z, error = reference.log_evidence
    sides = (
        *(at.log_p_at_p - log_z - at.log_q_at_p, at.from_p),
        *(at.log_p - log_z - at.log_q, at.from_q),
    )
    for f in divergences:
        value = estimators.divergence(jax.jit(f), *sides, error)
        if np.isfinite(value.value) and estimators.seen_whole(jax.jit(f), *sides):
            known[f.__name__] = estimators.finished(f, value)
        elif value.value == np.inf:
            reasons[f.__name__] = (
                "infinite: one has no mass where the other has, or far less in the tails"
            )
        else:
            reasons[f.__name__] = HEAVY
    return {"divergences": known}


def coverage(target, points, reference, reasons) -> dict:
    """Which of the reference's modes hold a fair share of the guide's draws."""
    if reference.modes is None:
        reasons["modes_covered"] = reasons["mass_covered"] = quantities.NO_REFERENCE
        return {}
    masses = np.array([m.value for m in reference.modes.masses])
    number = int(np.clip(OF_EACH / masses.min(initial=1.0), *MODE_DRAWS))
    where = modality.basins(target, reference.modes, points[:number])
    shares = np.array([(where == k).mean() for k in range(len(masses))])
    covered = shares >= COVERED * masses
    return {
        "modes_covered": int(covered.sum()),
        "mass_covered": float(masses[covered].sum()),
        "missed": tuple(float(m) for m in masses[~covered]),
        "mode_shares": tuple(map(float, shares)),
    }
