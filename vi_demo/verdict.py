"""What the figures of a fit mean, in words, with the next thing to do.

A fit is reliable where it may be used as it is, correctable where it may be used with its
importance weights, and unreliable otherwise. Every verdict needs a check from the guide's side
(k-hat, ESS) and one from the target's (modes, means and widths against the reference): either
alone passes fits that are wrong. Where the reference is weak, what was measured by it is no
evidence, and unless the guide's own weights condemn it the verdict is that nobody can tell.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vi_demo.diagnostics import Figures

CANNOT_TELL = "cannot tell"
MISSED_MASS = 0.01
MEAN_ERROR = 0.1  # reference sds
SD_RATIO = 1.1
TOTAL_VARIATION = 0.1
LEAST_ESS = 100
LEAST, MOST = 0.01, 1_000  # figures that are written out
CONSTANT_WEIGHTS = 0.95  # ESS / draws above which k-hat is not to be believed


class Verdict(NamedTuple):
    """reliable, correctable, unreliable or cannot tell; why; and what to do next."""

    verdict: str
    reasons: tuple[str, ...]
    advice: str


def judge(
    figures: Figures, status: str, method: str, doubts: tuple[str, ...], fit: str
) -> Verdict:
    """The verdict on a fit from its figures, its status, and the reference's method and doubts."""
    if status == "failed":
        return Verdict(
            "unreliable", ("the fit failed: its objective is not finite",), ADVICE["failed"]
        )
    missed, wrong = missed_modes(figures), wrong_sites(figures) + far_apart(figures)
    carried, weak = weights_carry(figures)
    doubt = tuple(f"the reference is not to be trusted: {d}" for d in doubts)
    if method == "none":
        blind = "there is no reference, so a missed mode would go unseen"
        doubt = (": ".join(filter(None, (blind, "; ".join(doubts)))),)
    unsettled = ("the fit stopped before it settled",) if status == "stopped" else ()
    if missed:
        advice = ADVICE["missed_forward" if fit == "forward_kl" else "missed"]
        return Verdict("unreliable", (*missed, *(() if doubt else wrong), *doubt), advice)
    if method == "draws" and figures.log_p is None:
        return by_draws_alone(wrong, unsettled)
    if doubt:
        return unchecked(figures, carried, (*weak, *unsettled), doubt)
    if not (wrong or unsettled) and close(figures):
        return Verdict("reliable", passed(figures), ADVICE["reliable"])
    if not carried:
        return Verdict("unreliable", (*weak, *wrong, *unsettled), ADVICE["weights_or_reference"])
    if wrong or unsettled:
        reasons = (*wrong, *unsettled, *passed_over(figures))
        return Verdict("correctable", reasons, ADVICE["correctable"])
    return Verdict("reliable", passed(figures), ADVICE["reliable"])


def unchecked(
    figures: Figures, carried: bool, against: tuple[str, ...], doubt: tuple[str, ...]
) -> Verdict:
    """Where no reference is to be trusted: the guide's own weights can condemn it, not pass it."""
    near = figures.own_distance is not None and figures.own_distance <= TOTAL_VARIATION
    if not carried and not near:
        return Verdict("unreliable", (*against, *doubt), ADVICE["weights"])
    own = () if against else ("nothing speaks against it from its own side, which is not enough",)
    return Verdict(CANNOT_TELL, (*doubt, *against, *own), ADVICE["unchecked"])


ADVICE = {
    "reliable": "Use its draws as they are.",
    "correctable": (
        "Use its draws with their importance weights (log_weights in sample_stats), "
        "for means, quantiles and expectations alike."
    ),
    "missed": (
        "Do not use it. Compare the forward_kl fit, which covers all modes, or use the "
        "reference's draws; one Gaussian cannot be on several modes and narrow."
    ),
    "weights_or_reference": (
        "Do not use it, weighted or not. Reparametrise the model so that its posterior is closer "
        "to a Gaussian (non-centred hierarchies, log scales), or use the reference's draws."
    ),
    "missed_forward": "Do not use it. Use the reference's draws.",
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
    if mass < MISSED_MASS:
        return ()
    number = len(figures.missed)
    what = "a mode that holds" if number == 1 else f"{number} modes that hold"
    return (f"misses {what} {100 * mass:.0f}% of the posterior mass",)


def wrong_sites(figures: Figures) -> tuple[str, ...]:
    """The worst mean, the narrowest and the widest site, where they are off."""
    entries = [
        entry
        for name, site in figures.sites.items()
        for entry in zip(
            figures.labels[name],
            np.ravel(site["mean_error_in_sd"]),
            np.ravel(site["sd_ratio"]),
            strict=True,
        )
        if np.isfinite(entry[1:]).all()
    ]
    if not entries:
        return ()
    reasons = []
    shifted = max(entries, key=lambda e: e[1])
    narrow, wide = min(entries, key=lambda e: e[2]), max(entries, key=lambda e: e[2])
    if shifted[1] > MEAN_ERROR:
        reasons.append(f"the mean of {shifted[0]} is off by {written(shifted[1])} posterior sds")
    if narrow[2] < 1 / SD_RATIO:
        reasons.append(f"{narrow[0]} is too narrow: {written(narrow[2])} of the posterior's sd")
    if wide[2] > SD_RATIO:
        reasons.append(f"{wide[0]} is too wide: {written(wide[2])} times the posterior's sd")
    return tuple(reasons)


def written(value: float) -> str:
    """A figure as far as its digits mean something."""
    if value >= MOST:
        return f"over {MOST:,}"
    return f"{value:.2g}" if value < LEAST else f"{value:.2f}"


def far_apart(figures: Figures) -> tuple[str, ...]:
    """Whether the distributions differ though their means and widths may agree."""
    distance = figures.divergences.get("total_variation")
    if distance is None or distance.value - 2 * distance.mcse <= TOTAL_VARIATION:
        return ()
    return (
        f"total variation from the posterior is {distance.value:.2f}: "
        "probabilities can be wrong by as much",
    )


def close(figures: Figures) -> bool:
    """Whether total variation, seen from both sides, is known to be small: no weights needed."""
    return figures.divergences.get("total_variation") is not None and not far_apart(figures)


def weights_carry(figures: Figures) -> tuple[bool, tuple[str, ...]]:
    """Whether importance weights could correct the fit, or why not."""
    if figures.ess is None:
        return False, (figures.reasons.get("ess", "its weights are unknown"),)
    if figures.ess_share > CONSTANT_WEIGHTS:
        return True, ()
    reasons = []
    if figures.khat is None:
        reasons.append(figures.reasons["khat"])
    elif figures.khat >= figures.khat_threshold:
        reasons.append(
            f"k-hat {figures.khat:.2f} is above {figures.khat_threshold:.2f}: "
            "importance weights cannot correct it"
        )
    left = figures.ess_share * len(figures.points)
    if left < LEAST_ESS:
        reasons.append(
            f"only {left:.0f} of {len(figures.points):,} draws are left after weighting"
        )
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
    if figures.ess_share > CONSTANT_WEIGHTS:
        share = 100 * figures.ess_share
        because = f"the weights are nearly constant, {share:.0f}% of the draws effective"
    else:
        distance = figures.divergences["total_variation"].value
        because = f"total variation from the posterior is only {distance:.2f}"
    return (f"k-hat {figures.khat:.2f} is passed over: {because}",)
