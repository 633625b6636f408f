"""What is measured of a fit against a reference: from the guide's side and from the target's.

Checks that draw from q look only where q already is; each is paired with one that starts from
draws of p. Whatever could not be measured is None, with the reason in `reasons` beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from arviz_stats.base import array_stats

from vi_demo.divergences import estimators, integration
from vi_demo.divergences.estimators import Draws, Estimate, equal_weights, expectation
from vi_demo.divergences.generators import F_DIVERGENCES
from vi_demo.reference import Reference
from vi_demo.reference import modes as modality
from vi_demo.target import Target

KHAT_DRAWS = 10_000  # k-hat spreads by ±0.1 even then (Vehtari et al. 2024)
SECONDS = 60.0  # for the densities at them; where that is not enough, there are fewer
MODE_DRAWS = 4_000
CONSTANT = 1e-9  # relative sd below which an entry of a site does not vary
CENTRES = 16  # draws of the guide that quadrature of it is cut at
HEAVY = "too heavy-tailed: a few points in the tails hold most of it"
COVERED = 0.1  # of a mode's mass that the guide must put in its basin


@dataclass(frozen=True)
class Figures:
    """Everything measured of one fit; energies and divergences in nats.

    `points` (S, d) are draws of the guide on R^d with `log_p` (unnormalised) and `log_q`.
    `sites` holds for each site the error of its mean in reference sds, absolute, and the ratio
    of its sd to the reference's; `labels` how to write each entry of a site. `own_distance` is
    total variation as the guide's own weights have it, blind to where it does not reach.
    """

    points: np.ndarray
    log_p: np.ndarray | None
    log_q: np.ndarray
    elbo: Estimate | None = None
    eubo: Estimate | None = None
    importance_log_evidence: Estimate | None = None
    divergences: dict[str, Estimate | None] = field(default_factory=dict)
    khat: float | None = None
    khat_threshold: float = 0.7
    ess: float | None = None
    ess_share: float | None = None
    own_distance: float | None = None
    modes_covered: int | None = None
    mass_covered: float | None = None
    missed: tuple[float, ...] = ()
    sites: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def measure(
    target: Target,
    guide,
    reference: Reference,
    key: jax.Array,
    draws: int,
    divergences: tuple[Callable, ...] = F_DIVERGENCES,
) -> Figures:
    """Measure a guide against a reference; `draws` is how many draws will be kept of it."""
    reasons: dict[str, str] = {}
    number = target.affordable(max(draws, KHAT_DRAWS), SECONDS)
    points = np.asarray(guide.sample(key, (number,)))
    log_prob = target.batched(guide.log_prob)
    log_q = np.asarray(log_prob(points))
    known = {"points": points, "log_q": log_q, "log_p": None}
    if target.log_density is None:
        for name in (
            "elbo",
            "eubo",
            "divergences",
            "khat",
            "ess",
            "modes_covered",
            "mass_covered",
        ):
            reasons[name] = "the target is only draws, so its density is unknown"
    else:
        log_p = np.asarray(target.log_densities(points))
        known |= {"log_p": log_p} | importance(log_p - log_q, draws, reasons)
        at = ratios(target, log_prob, points, log_p, log_q, reference)
        known |= energies(at, reasons)
        known |= distances(at, reference, divergences, reasons)
        for energy, f in (("elbo", "reverse_kl"), ("eubo", "forward_kl")):
            if reasons.get(f) == HEAVY:  # it is the same average
                known[energy], reasons[energy] = None, HEAVY
        known |= coverage(target, points, reference, reasons)
    known["sites"] = site_errors(target, points, reference, reasons)
    return Figures(**known, labels=target.labels, reasons=reasons)


def importance(log_weights: np.ndarray, draws: int, reasons: dict) -> dict:
    """What the weights p/q say from the guide's side: k-hat, ESS, an estimate of the evidence."""
    size = len(log_weights)
    khat, reason = pareto_khat(log_weights)
    if reason:
        reasons["khat"] = reason
    known = {"khat": khat, "khat_threshold": min(1 - 1 / np.log10(size), 0.7)}
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


def importance_evidence(log_weights: np.ndarray) -> Estimate | None:
    """Log of the weights' mean, their upper tail taken at its fitted mean; None where it has none.

    The tail beyond the largest of S weights is missing from their plain mean, and the plain
    error does not know it. A generalised Pareto fitted to the M largest has the mean
    u + σ / (1 − k); the error adds to the plain one the step from plain to fitted mean and
    what an error of (1 + k) / √M in k makes of it.
    """
    size, top = len(log_weights), log_weights.max()
    w = np.sort(np.exp(log_weights - top))
    plain = w.mean()
    error = w.std() / plain / np.sqrt(size)
    number = int(min(0.2 * size, 3 * np.sqrt(size)))
    tail, threshold = w[-number:], w[-number - 1]
    if threshold <= 0:  # nearly all the weight is on less than the tail
        return None
    if number < 25 or tail[-1] / threshold - 1 < 1e-6:
        return Estimate(float(top + np.log(plain)), float(error))
    k, sigma = generalised_pareto(tail - threshold)
    if k >= 1:
        return None
    mean = (w[:-number].sum() + number * (threshold + sigma / (1 - k))) / size
    of_k = number / size * sigma / (1 - k) ** 2 / mean * (1 + k) / np.sqrt(number)
    step = np.log(mean / plain)
    return Estimate(float(top + np.log(mean)), float(np.sqrt(error**2 + step**2 + of_k**2)))


def generalised_pareto(excess: np.ndarray) -> tuple[float, float]:
    """Shape k and scale σ of a generalised Pareto, from sorted positive excesses (n,).

    Zhang and Stephens' (2009) posterior mean over a grid, doi:10.1198/tech.2009.08017.
    """
    n = len(excess)
    grid = 30 + int(np.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    b = 1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))
    b = b / (3 * quartile) + 1 / excess[-1]
    shapes = np.log1p(-b[:, None] * excess).mean(axis=1)
    profile = n * (np.log(-b / shapes) - shapes - 1)
    weights = np.exp(profile - profile.max())
    b = float(np.sum(b * weights) / weights.sum())
    k = float(np.log1p(-b * excess).mean())
    return k, -k / b


def pareto_khat(log_weights: np.ndarray) -> tuple[float | None, str | None]:
    """Shape of the weights' upper tail, or None and why there is none to fit."""
    finite = log_weights[np.isfinite(log_weights)]
    if len(finite) < 25:
        return None, f"only {len(finite)} draws of the guide lie where the target has density"
    if np.ptp(finite) < 1e-6:
        return None, "the importance weights are constant: the guide is exact where it looks"
    khat = float(array_stats.psislw(-log_weights)[1])
    if not np.isfinite(khat):
        return None, "the importance weights have no tail to fit"
    return khat, None


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
    log_q_at_p = integration.padded(log_prob)(from_p.points)
    if not from_p.exact:
        return Ratios(equal_weights(points), log_p, log_q, from_p, reference.log_p, log_q_at_p)
    start = points[:2000]
    centres = np.concatenate([start.mean(0, keepdims=True), start[:CENTRES]])
    nodes = integration.integrate(integration.padded(log_prob), centres, 3 * start.std(0)).nodes
    log_p, log_q = (integration.padded(g)(nodes.points) for g in (target.log_densities, log_prob))
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
        reasons["eubo"] = "there is no reference"
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
        reasons["divergences"] = "there is no reference"
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
        reasons["modes_covered"] = reasons["mass_covered"] = "there is no reference"
        return {}
    where = modality.basins(target, reference.modes, points[:MODE_DRAWS])
    masses = np.array([m.value for m in reference.modes.masses])
    shares = np.array([(where == k).mean() for k in range(len(masses))])
    covered = shares >= COVERED * masses
    return {
        "modes_covered": int(covered.sum()),
        "mass_covered": float(masses[covered].sum()),
        "missed": tuple(float(m) for m in masses[~covered]),
    }


def site_errors(target, points, reference, reasons) -> dict:
    """Per site, on the model's own scale: |mean − mean| / sd and sd / sd of the reference."""
    if reference.draws is None:
        reasons["sites"] = "there is no reference"
        return {}
    theirs = target.constrain_all(reference.draws.points)
    ours = target.constrain_all(points)
    sites = {}
    for name in target.sites:
        mean, sd = mean_and_sd(np.asarray(theirs[name]), reference.draws)
        our_mean, our_sd = mean_and_sd(np.asarray(ours[name]), equal_weights(points))
        # Entries that the support fixes, such as a zero of a Cholesky factor, have no sd.
        varies = sd > CONSTANT * np.maximum(np.abs(mean), 1.0)
        unit = np.where(varies, sd, 1.0)
        sites[name] = {
            "mean_error_in_sd": np.where(varies, np.abs(our_mean - mean) / unit, np.nan),
            "sd_ratio": np.where(varies, our_sd / unit, np.nan),
        }
        if not varies.all():
            reasons.setdefault("sites", "entries that are constant have no sd to compare with")
    return sites


def mean_and_sd(values: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and sd over the leading axis."""
    mean = np.tensordot(draws.weights, values, 1)
    return mean, np.sqrt(np.tensordot(draws.weights, (values - mean) ** 2, 1))
