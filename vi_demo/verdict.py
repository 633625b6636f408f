"""What the figures of a fit mean, in words, with the next thing to do.

A fit is reliable where it may be used as it is, correctable where its importance weights or a
short ladder of corrections make it so, and unreliable otherwise. Every verdict needs a check from
the guide's side (k-hat, ESS) and one from the target's (modes, means and widths against the
reference): either alone passes fits that are wrong. Where the reference is weak, what was measured
by it is no evidence, and unless the guide's own weights condemn it the verdict is that nobody can
tell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vi_demo.diagnostics import Figures
from vi_demo.divergences.estimators import Estimate
from vi_demo.fitting.runner import Fit
from vi_demo.weights import NEARLY_CONSTANT

CANNOT_TELL = "cannot tell"
MISSED_MASS = 0.01, 0.05  # told of, and too much
MEAN_ERROR = 0.1  # reference sds
SD_RATIO = 1.1
CORRECTED_SD_RATIO = 1.05
CORRECTED_ERROR = 0.045  # of log sd: known no better, it is not known to be within that ratio
TOTAL_VARIATION = 0.05, 0.1  # too near to be called unreliable, too far to be called reliable
LEAST_ESS = 1_000  # of weighted draws: an sd is known within 2 % then
LEAST, MOST = 0.01, 1_000  # figures that are written out
REPLICATES = 100  # of the figures, each moved by its error


class Verdict(NamedTuple):
    """reliable, correctable, unreliable or cannot tell; why; and what to do next.

    `confidence` is how often the verdict is the same where every figure is moved by its error.
    """

    verdict: str
    reasons: tuple[str, ...]
    advice: str
    confidence: float | None = None


class Judged(NamedTuple):
    """A fit with what was measured of it, and what that means."""

    fit: Fit
    figures: Figures
    verdict: Verdict


def judge(
    figures: Figures, status: str, method: str, doubts: tuple[str, ...], fit: str
) -> Verdict:
    """The verdict on a fit from its figures, its status, and the reference's method and doubts."""
    verdict = ruling(figures, status, method, doubts, fit)
    if status == "failed" or verdict.verdict == CANNOT_TELL:
        return verdict
    rng = np.random.default_rng(0)
    again = [
        ruling(moved(figures, rng.normal(size=4)), status, method, doubts, fit).verdict
        for _ in range(REPLICATES)
    ]
    return verdict._replace(confidence=again.count(verdict.verdict) / REPLICATES)


def moved(figures: Figures, by: np.ndarray) -> Figures:
    """The figures moved by their errors times four numbers: all means alike, and all sds."""
    sites = {name: dict(site) for name, site in figures.sites.items()}
    for site in sites.values():
        for which in ("", "corrected_"):
            if f"{which}sd_ratio" in site:
                mean, sd = by[0] * site[f"{which}mean_mcse"], by[1] * site[f"{which}log_sd_mcse"]
                site[f"{which}mean_error_in_sd"] = np.abs(site[f"{which}mean_error_in_sd"] + mean)
                site[f"{which}sd_ratio"] = site[f"{which}sd_ratio"] * np.exp(sd)
    divergences = dict(figures.divergences)
    distance = divergences.get("total_variation")
    if distance is not None:
        divergences["total_variation"] = Estimate(
            distance.value + by[2] * distance.mcse, distance.mcse
        )
    khat = figures.khat
    if khat is not None and figures.khat_spread is not None:
        khat += by[3] * figures.khat_spread
    return replace(figures, sites=sites, divergences=divergences, khat=khat)


def ruling(
    figures: Figures, status: str, method: str, doubts: tuple[str, ...], fit: str
) -> Verdict:
    """The verdict without its confidence."""
    if status == "failed":
        return Verdict(
            "unreliable",
            ("the fit failed: its objective is not finite, or has no optimum",),
            ADVICE["failed"],
        )
    missed, wrong = missed_modes(figures), wrong_sites(figures) + far_apart(figures)
    carried, weak = weights_carry(figures)
    doubt = tuple(f"the reference is not to be trusted: {d}" for d in doubts)
    if method == "none":
        blind = "there is no reference, so a missed mode would go unseen"
        doubt = (": ".join(filter(None, (blind, "; ".join(doubts)))),)
    unsettled = ("the fit stopped before it settled",) if status == "stopped" else ()
    # Chains that stay apart do not tell how much each mode holds.
    known = method != "nuts" if doubt else not near(figures)
    if sum(figures.missed) >= MISSED_MASS[1] and known:
        advice = "missed_forward" if fit == "forward_kl" else "missed"
        advice = ADVICE["weights" if doubt else advice]
        return Verdict("unreliable", (*missed, *(() if doubt else wrong), *doubt), advice)
    if method == "draws" and figures.log_p is None:
        return by_draws_alone(wrong, unsettled)
    if doubt:
        return unchecked(figures, carried, (*missed, *weak, *unsettled), doubt)
    against = (*missed, *wrong, *unsettled)
    if not against and (carried or close(figures)):
        return Verdict("reliable", passed(figures), ADVICE["reliable"])
    return with_weights(figures, carried, weak, against)


def with_weights(figures: Figures, carried: bool, weak, against) -> Verdict:
    """Of a fit that is not to be used as it is: what its weights make of it."""
    left = still_wrong(figures) if carried else ()
    if carried and not left:
        enough = figures.ess is None or figures.ess >= LEAST_ESS
        advice = ADVICE["correctable" if enough else "correctable_by_more"]
        return Verdict("correctable", (*against, *passed_over(figures)), advice)
    if near(figures):
        distance = figures.divergences["total_variation"].value
        but = f"yet total variation from the posterior is only {distance:.2f}"
        return Verdict("correctable", (*against, *left, *weak, but), ADVICE["ladder"])
    return Verdict("unreliable", (*weak, *against, *left), ADVICE["weights_or_reference"])


def unchecked(
    figures: Figures, carried: bool, against: tuple[str, ...], doubt: tuple[str, ...]
) -> Verdict:
    """Where no reference is to be trusted: the guide's own weights can condemn it, not pass it."""
    near = figures.own_distance is not None and figures.own_distance <= TOTAL_VARIATION[1]
    if not carried and not near:
        return Verdict("unreliable", (*against, *doubt), ADVICE["weights"])
    own = () if against else ("nothing speaks against it from its own side, which is not enough",)
    return Verdict(CANNOT_TELL, (*doubt, *against, *own), ADVICE["unchecked"])


ADVICE = {
    "reliable": "Use its draws as they are.",
    "correctable": (
        "Use its draws with their importance weights (log_weights in sample_stats), "
        "for means, quantiles and expectations alike, or let --correct do it."
    ),
    "correctable_by_more": (
        "Use --correct, which draws as many as its importance weights need, or --draws for more "
        "draws to weigh by yourself; these are too few."
    ),
    "ladder": (
        "Nearly all of it is right, and its weights do not mend the rest: use --correct, which "
        "tries what does."
    ),
    "missed": (
        "Do not use it. Use --correct, which builds a guide with a component on each mode, or "
        "compare the forward_kl fit; one Gaussian cannot be on several modes and narrow."
    ),
    "weights_or_reference": (
        "Do not use it, weighted or not. Reparametrise the model so that its posterior is closer "
        "to a Gaussian (non-centred hierarchies, log scales), or use --correct."
    ),
    "missed_forward": "Do not use it. Use --correct, or the reference's draws.",
    "weights": (
        "Do not use it, weighted or not. Reparametrise the model so that its posterior is closer "
        "to a Gaussian (non-centred hierarchies, log scales)."
    ),
    "unchecked": (
        "Run it with a reference (--reference auto), give that more time (--budget), or give "
        "draws that you trust (--reference draws.nc)."
    ),
    "failed": "Run vi-demo with another --seed, and look at the notes for the site at fault.",
    "draws": "Compare its means and widths with the draws'; nothing else can be checked.",
}


def by_draws_alone(wrong, unsettled) -> Verdict:
    """A target that is only draws: means and widths are all there is to compare."""
    reasons = (*wrong, *unsettled, "a target of draws alone leaves its density unchecked")
    return Verdict("unreliable" if wrong else "correctable", reasons, ADVICE["draws"])


def missed_modes(figures: Figures) -> tuple[str, ...]:
    """The modes the guide leaves out, if they matter."""
    mass = sum(figures.missed)
    if mass < MISSED_MASS[0]:
        return ()
    number = len(figures.missed)
    what = "a mode that holds" if number == 1 else f"{number} modes that hold"
    return (f"misses {what} {100 * mass:.0f}% of the posterior mass",)


def wrong_sites(
    figures: Figures, which: str = "", sd_ratio: float = SD_RATIO, slack: float = 0.0
) -> tuple[str, ...]:
    """The worst mean, the narrowest and the widest site, where they are off.

    `which` is "corrected_" for the weighted draws; `slack` is how many of its standard errors
    each figure may be beyond what is tolerated.
    """
    known = [(k, s) for k, s in figures.sites.items() if f"{which}sd_ratio" in s]
    if not known:
        return ()
    labels = [label for name, _ in known for label in figures.labels[name]]

    def column(name):
        return np.concatenate([np.ravel(site[which + name]) for _, site in known])

    error, ratio = column("mean_error_in_sd"), column("sd_ratio")
    excess = error - MEAN_ERROR - slack * column("mean_mcse")
    most = np.log(sd_ratio) + slack * column("log_sd_mcse")
    with np.errstate(divide="ignore"):
        width = np.log(ratio)
    found = (
        (excess, error, "the mean of {} is off by {} posterior sds"),
        (-width - most, ratio, "{} is too narrow: {} of the posterior's sd"),
        (width - most, ratio, "{} is too wide: {} times the posterior's sd"),
    )
    reasons = []
    for beyond, value, words in found:
        beyond = np.where(np.isfinite(error) & np.isfinite(ratio), beyond, -np.inf)
        worst = int(beyond.argmax())
        if beyond[worst] > 0:
            reasons.append(words.format(labels[worst], written(value[worst])))
    return tuple(reasons)


def still_wrong(figures: Figures) -> tuple[str, ...]:
    """What is off after weighting, or not known well enough to say that it is not."""
    found = wrong_sites(figures, "corrected_", CORRECTED_SD_RATIO)
    reasons = [f"with its weights {reason}" for reason in found]
    known = {
        k: s["corrected_log_sd_mcse"]
        for k, s in figures.sites.items()
        if "corrected_sd_ratio" in s
    }
    errors = {
        label: error
        for name, each in known.items()
        for label, error in zip(figures.labels[name], np.ravel(each), strict=True)
    }
    worst = max(errors, key=lambda label: np.nan_to_num(errors[label]), default=None)
    if worst is not None and errors[worst] > CORRECTED_ERROR:
        reasons.append(
            f"with its weights the sd of {worst} is known to {100 * errors[worst]:.0f}% only"
        )
    return tuple(reasons)


def written(value: float) -> str:
    """A figure as far as its digits mean something."""
    if value >= MOST:
        return f"over {MOST:,}"
    return f"{value:.2g}" if value < LEAST else f"{value:.2f}"


def far_apart(figures: Figures) -> tuple[str, ...]:
    """Whether the distributions differ though their means and widths may agree."""
    distance = figures.divergences.get("total_variation")
    if distance is None or distance.value - 2 * distance.mcse <= TOTAL_VARIATION[1]:
        return ()
    return (
        f"total variation from the posterior is {distance.value:.2f}: "
        "probabilities can be wrong by as much",
    )


def weights_suffice(figures: Figures) -> bool:
    """Whether the weighted draws are right, as far as the reference can tell."""
    told = sum(figures.missed) < MISSED_MASS[0] and not still_wrong(figures)
    return weights_carry(figures)[0] and told


def close(figures: Figures) -> bool:
    """Whether total variation, seen from both sides, is known to be small: no weights needed."""
    return figures.divergences.get("total_variation") is not None and not far_apart(figures)


def near(figures: Figures) -> bool:
    """Whether total variation is so small that a fit is not to be called unreliable."""
    distance = figures.divergences.get("total_variation")
    return distance is not None and distance.value - 2 * distance.mcse <= TOTAL_VARIATION[0]


def weights_carry(figures: Figures) -> tuple[bool, tuple[str, ...]]:
    """Whether importance weights could correct the fit, or why not."""
    if figures.ess is None:
        return False, (figures.reasons.get("ess", "its weights are unknown"),)
    if figures.ess_share > NEARLY_CONSTANT:
        return True, ()
    reasons = []
    if figures.khat is not None and figures.khat >= figures.khat_threshold:
        reasons.append(
            f"k-hat {figures.khat:.2f} is above {figures.khat_threshold:.2f}: "
            "importance weights cannot correct it"
        )
    number = len(figures.points if figures.weighted is None else figures.weighted.points)
    left = figures.ess_share * number
    if left < LEAST_ESS:
        reasons.append(f"only {left:.0f} of {number:,} draws are left after weighting")
    return not reasons, tuple(reasons)


def passed(figures: Figures) -> tuple[str, ...]:
    """What a reliable fit was found right in."""
    errors = [np.nanmax(s["mean_error_in_sd"], initial=0.0) for s in figures.sites.values()]
    return (
        f"covers all the posterior mass, means within {max(errors):.2f} sd, "
        f"widths within {100 * (SD_RATIO - 1):.0f}%",
        *passed_over(figures),
    )


def passed_over(figures: Figures) -> tuple[str, ...]:
    """Why a k-hat above its threshold was not held against a fit, if it was not."""
    if figures.khat is None or figures.khat < figures.khat_threshold:
        return ()
    if figures.ess_share > NEARLY_CONSTANT:
        share = 100 * figures.ess_share
        because = f"the weights are nearly constant, {share:.0f}% of the draws effective"
    else:
        distance = figures.divergences["total_variation"].value
        because = f"total variation from the posterior is only {distance:.2f}"
    return (f"k-hat {figures.khat:.2f} is passed over: {because}",)


def of_quantities(figures: Figures, doubted: bool) -> dict[str, dict[str, dict]]:
    """Each quantity with a verdict of its own: a mean may be right where an sd is not."""
    carried = weights_carry(figures)[0]
    return {
        label: {
            name: entry | {"verdict": of_quantity(name, entry, figures, carried, doubted)}
            for name, entry in entries.items()
        }
        for label, entries in figures.quantities.items()
    }


def of_quantity(name: str, entry: dict, figures: Figures, carried: bool, doubted: bool) -> str:
    """The verdict on one quantity, by its own error and its own k-hat."""
    if doubted or "error" not in entry:
        return CANNOT_TELL
    ratios = np.log([SD_RATIO, CORRECTED_SD_RATIO])
    most, most_corrected = ratios if name == "sd" else (MEAN_ERROR, MEAN_ERROR)
    if entry["error"] <= most:
        return "reliable"
    khat = entry.get("khat")
    fine = khat is None or khat < figures.khat_threshold or figures.ess_share > NEARLY_CONSTANT
    if carried and fine and entry["corrected_error"] <= most_corrected:
        return "correctable"
    return "unreliable"
