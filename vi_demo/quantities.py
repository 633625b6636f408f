"""What users ask a posterior for, each with an error of its own: means, sds, quantiles, ranks.

Everything is on the model's own scale and measured three times: from the guide's draws as they
are, from the same draws with their importance weights, and from the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vi_demo.divergences.estimators import Draws, equal_weights, expectation, resample
from vi_demo.errors import InputError
from vi_demo.reference import Reference
from vi_demo.target import Target
from vi_demo.weights import khat_of

CONSTANT = 1e-9  # relative sd below which an entry of a site does not vary
RANKED = 1_000  # entries of a site whose ranks are looked at
LEVELS = np.linspace(0.005, 0.995, 199)
CENTRAL = 0.95
TOGETHER = 512  # columns whose moments are taken at once
SPREAD = 40_000  # draws that stand for a quadrature
QUANTILES = 0.05, 0.5, 0.95
MOST_ENTRIES = 20  # of all sites together that are told of one by one, unless they are named
NO_REFERENCE = "there is no reference"


class Weighted(NamedTuple):
    """Draws (n, d) of a guide with log weights, and smoothed weights adding up to one."""

    points: np.ndarray
    log_weights: np.ndarray
    weights: np.ndarray


def of_sites(
    target: Target,
    points: np.ndarray,
    weighted: Weighted | None,
    reference: Reference,
    reasons: dict,
) -> dict[str, dict[str, np.ndarray]]:
    """Per entry of each site, how far draws (S, d) of a guide are from the reference.

    `mean_error_in_sd` is |mean − mean| / sd and `sd_ratio` sd / sd of the reference; with
    `corrected_` before them they are those of the weighted draws; `mean_mcse`, in sds, and
    `log_sd_mcse` are the errors of both, the reference's included. `rank_distance` is the largest
    |F_p(x) − F_q(x)|, how far the ranks of the target's draws among the guide's are from uniform,
    and `covered_95` the mass that the target has in the guide's central 95 %.
    """
    if reference.draws is None:
        reasons["sites"] = NO_REFERENCE
        return {}
    draws = spread(reference.draws)
    theirs, ours = target.constrain_all(reference.draws.points), target.constrain_all(points)
    by_rank = theirs if draws is reference.draws else target.constrain_all(draws.points)
    corrected = weighted and target.constrain_all(weighted.points)
    found = {}
    for name in target.sites:
        values = np.asarray(ours[name])
        sides = {"": moments(values, equal_weights(points))}
        if weighted:
            again = Draws(weighted.points, weighted.weights)
            sides["corrected_"] = moments(np.asarray(corrected[name]), again)
        right = moments(np.asarray(theirs[name]), reference.draws)
        found[name] = of_site(sides, right, reasons)
        if right.sd.size <= RANKED:
            found[name] |= ranks(values, np.asarray(by_rank[name]), draws.weights)
    return found


def spread(draws: Draws) -> Draws:
    """The same as draws whose ranks mean something: nodes of a quadrature stand for boxes."""
    return equal_weights(resample(draws, SPREAD, seed=0)) if draws.exact else draws


class Moments(NamedTuple):
    """Of each entry of a site: mean and sd, and the standard errors of the mean and of log sd."""

    mean: np.ndarray
    sd: np.ndarray
    mean_mcse: np.ndarray
    log_sd_mcse: np.ndarray


def moments(values: np.ndarray, draws: Draws) -> Moments:
    """Moments over the leading axis of weighted values (n, *shape)."""
    columns = values.reshape(len(values), -1)
    parts = [
        of_columns(columns[:, k : k + TOGETHER], draws)
        for k in range(0, columns.shape[1], TOGETHER)
    ]
    return Moments(
        *(np.concatenate(part).reshape(values.shape[1:]) for part in zip(*parts, strict=True))
    )


def of_columns(x: np.ndarray, draws: Draws) -> Moments:
    """Moments of weighted columns (n, k)."""
    mean = draws.weights @ x
    squares = (x - mean) ** 2
    variance = draws.weights @ squares
    errors = standard_errors(x - mean, draws), standard_errors(squares - variance, draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Moments(mean, np.sqrt(variance), errors[0], errors[1] / (2 * variance))


def standard_errors(centred: np.ndarray, draws: Draws) -> np.ndarray:
    """Of the means of columns (n, k) whose weighted mean is zero, as `expectation` has them."""
    if draws.exact:
        return np.zeros(centred.shape[1])
    w = draws.weights
    variance = w**2 @ centred**2
    if draws.blocks is not None:
        count = draws.blocks.max() + 1
        sums = np.zeros((count, centred.shape[1]))
        np.add.at(sums, draws.blocks, w[:, None] * centred)
        variance = np.maximum(variance, (sums**2).sum(0) * count / max(count - 1, 1))
    return np.sqrt(variance)


def of_site(sides: dict[str, Moments], right: Moments, reasons: dict) -> dict[str, np.ndarray]:
    """The errors of one site's entries, by the guide and with its weights."""
    # Entries that the support fixes, such as a zero of a Cholesky factor, have no sd.
    varies = right.sd > CONSTANT * np.maximum(np.abs(right.mean), 1.0)
    if not varies.all():
        reasons.setdefault("sites", "entries that are constant have no sd to compare with")
    unit = np.where(varies, right.sd, 1.0)
    figures = {}
    for prefix, ours in sides.items():
        entry = {
            "mean_error_in_sd": np.abs(ours.mean - right.mean) / unit,
            "sd_ratio": ours.sd / unit,
            "mean_mcse": np.hypot(ours.mean_mcse, right.mean_mcse) / unit,
            "log_sd_mcse": np.hypot(ours.log_sd_mcse, right.log_sd_mcse),
        }
        figures |= {f"{prefix}{name}": np.where(varies, v, np.nan) for name, v in entry.items()}
    return figures


def ranks(ours: np.ndarray, theirs: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """How the target's values (n, *shape), weighted, lie among the guide's."""
    columns = (x.reshape(len(x), -1).T for x in (ours, theirs))
    found = np.array([ranked(q, p, weights) for q, p in zip(*columns, strict=True)])
    shape = ours.shape[1:]
    distance, inside = np.where(np.ptp(theirs, axis=0).reshape(-1, 1) > 0, found, np.nan).T
    return {"rank_distance": distance.reshape(shape), "covered_95": inside.reshape(shape)}


def ranked(q: np.ndarray, p: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The largest |F_p − F_q|, and the mass of p between q's 2.5 % and 97.5 % quantiles."""
    order = np.argsort(p)
    below = np.concatenate([[0.0], np.cumsum(weights[order])])
    mass = lambda x: below[np.searchsorted(p[order], x, side="right")]  # noqa: E731
    distance = np.abs(mass(np.quantile(q, LEVELS)) - LEVELS).max()
    low, high = mass(np.quantile(q, [(1 - CENTRAL) / 2, (1 + CENTRAL) / 2]))
    return float(distance), float(high - low)


def quantile(x: np.ndarray, weights: np.ndarray, levels) -> np.ndarray:
    """Quantiles of weighted values (n,)."""
    order = np.argsort(x)
    below = np.cumsum(weights[order])
    return x[order][np.minimum(np.searchsorted(below, levels), len(x) - 1)]


def statistics(x: np.ndarray, draws: Draws) -> dict[str, tuple[float, float]]:
    """Mean, sd and quantiles of weighted values (n,), each with its standard error.

    The error of a quantile is that of the mass below it, in values: half the distance between
    the quantiles one error to either side.
    """
    mean, error = expectation(x, draws)
    variance, of_variance = expectation((x - mean) ** 2, draws)
    sd = np.sqrt(variance)
    found = {"mean": (mean, error), "sd": (sd, of_variance / (2 * sd) if sd else 0.0)}
    for level in QUANTILES:
        value = quantile(x, draws.weights, level)
        off = expectation((x <= value).astype(float), draws).mcse
        low, high = quantile(x, draws.weights, np.clip([level - off, level + off], 0, 1))
        found[f"{100 * level:g}%"] = float(value), float(high - low) / 2
    return found


def log_size(x: np.ndarray, name: str) -> np.ndarray:
    """Log |h|, up to a constant, of values (n,): h is what a statistic is the mean of.

    That of a quantile is bounded, so its weights' tail is that of the weights.
    """
    with np.errstate(divide="ignore"):
        return np.log(np.abs(x - x.mean())) * {"mean": 1, "sd": 2}.get(name, 0)


def numbers(target: Target) -> int:
    """How many numbers all sites at one point are, deterministic ones too."""
    values = jax.eval_shape(target.constrain, jnp.zeros(target.dim))
    return sum(v.size for v in values.values())


def known(target: Target, names: Sequence[str]) -> None:
    """Refuse names that are no site of the model's, latent or deterministic."""
    values = jax.eval_shape(target.constrain, jnp.zeros(target.dim))
    known = ", ".join(dict.fromkeys((*target.sites, *values)))
    for name in names:
        if name not in values:
            raise InputError(f"{target.name}: no site '{name}' to measure; choose from {known}.")


def entries(target: Target, names: Sequence[str], points: np.ndarray) -> Mapping[str, np.ndarray]:
    """The values (n,) at points (n, d) of each entry that is told of one by one.

    They are those of the named sites, deterministic ones too, and as many of the others as there
    is room for.
    """
    values = {k: np.asarray(v) for k, v in target.constrain_all(points).items()}
    found = {}
    for name in dict.fromkeys((*names, *target.sites)):
        value = values[name]
        labels = target.labels_of(name, value.shape[1:])
        if name in names or len(found) + len(labels) <= MOST_ENTRIES:
            found |= dict(zip(labels, value.reshape(len(value), -1).T, strict=True))
    return found


def of_entries(
    target: Target,
    names: Sequence[str],
    points: np.ndarray,
    weighted: Weighted | None,
    reference: Reference,
) -> dict[str, dict[str, dict]]:
    """Of each entry its mean, sd and quantiles: by the guide, with weights, by the reference.

    `error` and `corrected_error` are absolute, in the reference's sds; those of an sd are
    |log ratio|; each has an `_mcse`, the reference's included. `khat` is that of the weights
    times what the statistic is a mean of, so that a mean may be fine where a variance is not
    (Vehtari et al. 2024, arXiv 1507.02646).
    """
    drawn = reference.draws and spread(reference.draws)
    sides = {"guide": equal_weights(points), "reference": drawn}
    if weighted:
        sides["corrected"] = Draws(weighted.points, weighted.weights)
    values = {k: entries(target, names, d.points) for k, d in sides.items() if d is not None}
    found = {}
    for label in values["guide"]:
        if not np.ptp(values["guide"][label]) > 0:
            continue
        by = {side: statistics(columns[label], sides[side]) for side, columns in values.items()}
        found[label] = {name: compared(name, by) for name in by["guide"]}
        if weighted:
            x = values["corrected"][label]
            for name, entry in found[label].items():
                entry["khat"] = khat_of(weighted.log_weights + log_size(x, name))
    return found


def compared(name: str, by: Mapping) -> dict:
    """One statistic's values, each with its error, and how far they are from the reference's."""
    found = {side: dict(zip(("value", "mcse"), by[side][name], strict=True)) for side in by}
    sd = by["reference"]["sd"][0] if "reference" in by else 0.0
    for label, side in (("error", "guide"), ("corrected_error", "corrected")):
        if side not in by or not sd > 0:
            continue
        value, mcse = by[side][name]
        right, its_mcse = by["reference"][name]
        off = np.log(value / sd) if name == "sd" else (value - right) / sd
        found[label] = float(abs(off))
        found[f"{label}_mcse"] = float(np.hypot(mcse, its_mcse) / sd)
    return found
