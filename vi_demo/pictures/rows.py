"""What the tables of a run hold, and its sentences: the same on the terminal and in the report.

Every function reads `summary.json` and gives plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from vi_demo.pictures.words import measured, number, spoken, with_error

MOST_SITES = 16  # of a model, named
MOST_PAIRS = 6  # of correlated coordinates, told


def fit_rows(summary: dict) -> dict[str, Callable]:
    """What each row of the table of fits is, as a function of a fit."""
    rows = all_rows(summary)
    if "draws" not in summary["model"]:
        return rows
    # Draws have no density: most rows would be dashes.
    known = summary["fits"].values()
    return {label: cell for label, cell in rows.items() if any(cell(f) != "–" for f in known)}


def all_rows(summary: dict) -> dict[str, Callable]:
    """The rows of a target with a density."""
    modes, labels = len(summary["reference"]["modes"]), summary["model"]["labels"]
    divergences = dict.fromkeys(n for fit in summary["fits"].values() for n in fit["divergences"])
    return {
        "ELBO": lambda f: with_error(f["elbo"]),
        "EUBO": lambda f: with_error(f["eubo"]),
        **{
            measured(name): lambda f, name=name: with_error(f["divergences"].get(name))
            for name in divergences
        },
        "k-hat (below 0.7 is fine)": lambda f: khat(f),
        f"effective draws of {summary['settings']['draws']:,}": lambda f: number(f["ess"], 0),
        "effective share, from p": lambda f: share(f.get("forward_ess")),
        "modes covered": lambda f: f"{f['modes_covered']} of {modes}" if modes else "–",
        "mass covered": lambda f: "–" if f["mass_covered"] is None else f"{f['mass_covered']:.0%}",
        "worst mean, posterior sds off": lambda f: worst(f, labels, "mean_error_in_sd", np.argmax),
        "narrowest, ratio of sds": lambda f: worst(f, labels, "sd_ratio", np.argmin),
        "widest, ratio of sds": lambda f: worst(f, labels, "sd_ratio", np.argmax),
        "fit": lambda f: f"{f['status']}, {f['steps']:,} step{'s' * (f['steps'] != 1)}",
        "seconds, compiling + running": lambda f: (
            f"{f['seconds']['compile']:.1f} + {f['seconds']['run']:.1f}"
        ),
    }


def khat(fit: dict) -> str:
    """k-hat with its spread, or that the weights are too much alike to have one."""
    if "constant" in fit.get("khat_reason", ""):
        return "constant weights"
    spread = fit.get("khat_spread")
    return number(fit["khat"], 2) + ("" if spread is None else f" ± {number(spread, 2)}")


def share(value: float | None) -> str:
    """A share in per cent."""
    if value is None:
        return "–"
    if 0 < value < 1e-5:
        return "under 0.001%"
    return f"{100 * value:.0f}%" if value >= 0.1 else f"{100 * value:.2g}%"


def worst(fit: dict, labels: dict, figure: str, which: Callable) -> str:
    """The most extreme entry of a figure over all sites, with its label."""
    entries = [
        (value, label)
        for name, site in fit["sites"].items()
        for value, label in zip(np.ravel(site[figure]), labels[name], strict=True)
        if value is not None and np.isfinite(float(value))
    ]
    if not entries:
        return "–"
    value, label = entries[int(which([v for v, _ in entries]))]
    return f"{label} {number(float(value), 2)}"


# The target, and what the fits are measured against.


def size_words(model: dict) -> str:
    """How many dimensions a model has, and its sites."""
    names, plural = list(model["sites"]), "s" * (model["dim"] > 1)
    more = f" and {len(names) - MOST_SITES} more sites" * (len(names) > MOST_SITES)
    return f"{model['dim']:,} dimension{plural} ({', '.join(names[:MOST_SITES])}{more})"


def reference_words(summary: dict) -> str:
    """What the fits were measured against, and how many modes it has."""
    reference = summary["reference"]
    if reference["method"] == "none":
        return "no reference: what lies beyond the guide's own draws goes unseen"
    words = f"reference by {spoken(reference['method'])}"
    evidence = reference["log_evidence"]
    if evidence["value"] is not None:
        words += f", log evidence {with_error(evidence)}"
    if "draws" in summary["model"]:
        words = counted(summary["model"]["draws"])
    masses = [f"{100 * m['mass']:.0f}%" for m in reference["modes"]]
    if masses:
        words += f", {len(masses)} mode{'s' if len(masses) > 1 else ''}"
        words += f" ({', '.join(masses)})" if len(masses) > 1 else ""
    return words


def counted(draws: dict) -> str:
    """How many draws there are, and what they are worth."""
    chains = f" in {draws['chains']} chain{'s' * (draws['chains'] > 1)}" if draws["chains"] else ""
    return f"{draws['number']:,} draws{chains}, worth {draws['effective']:,.0f} independent ones"


# A guide in a few numbers.


def guide_rows(guide: dict) -> list[tuple[str, str, str]]:
    """Mean and sd of each coordinate of R^d."""
    rows = zip(guide["coordinates"], guide["mean"], guide["sd"], strict=True)
    return [(name, significant(mean, sd), significant(sd, sd)) for name, mean, sd in rows]


def significant(value: float | None, sd: float | None) -> str:
    """A number with three digits of the sd that belongs to it."""
    digits = int(np.clip(2 - np.floor(np.log10(sd)), 0, 9)) if sd is not None and sd > 0 else 3
    return number(value, digits)


def correlation_words(guide: dict) -> str:
    """Which coordinates of a guide go together; nothing where none do."""
    pairs = [
        f"{' and '.join(pair['between'])} {number(pair['value'], 2)}"
        for pair in guide["correlations"][:MOST_PAIRS]
    ]
    more = ", …" * (len(guide["correlations"]) > len(pairs))
    return f"correlations beyond 0.5: {', '.join(pairs)}{more}" if pairs else ""


# Verdicts, restarts and quantities.


def confidence_words(fit: dict) -> str:
    """How often the verdict is the same where every figure is moved by its error."""
    sure = fit.get("confidence")
    return f"in {100 * sure:.0f}% of replicates" if sure is not None and sure < 1 else ""


def restart_words(restarts: dict | None) -> str:
    """Whether the starts of a fit agree; nothing where they do."""
    if not restarts or restarts["places"] < 2:
        return ""
    words = f"its {len(restarts['elbos'])} starts ended at {restarts['places']} places"
    if restarts["rhat"] is not None:
        words += f", R-hat {restarts['rhat']:.2f} in {restarts['rhat_at']}"
    stacked = with_error(restarts["stacked_elbo"])
    return words + f"; stacked by evidence they have ELBO {stacked}"


class Quantity(NamedTuple):
    """A statistic of an entry: by the reference, and each fit's value with its verdict."""

    label: str
    reference: str
    fits: list[dict]


def quantity_rows(summary: dict) -> Iterator[Quantity]:
    """The quantities that were asked for."""
    fits, wanted = summary["fits"], summary["settings"].get("quantity", [])
    first = next(iter(fits.values()), {}).get("quantities", {})
    for label in (k for k in first if k.partition("[")[0] in wanted):
        for statistic, entry in first[label].items():
            own = [fit["quantities"][label][statistic] for fit in fits.values()]
            yield Quantity(f"{label} {statistic}", with_error(entry.get("reference")), own)


# The ladder of corrections, and the path along alpha.


class Rung(NamedTuple):
    """One correction: how far off it is, what it took, and whether it is right."""

    name: str
    mean_error: str
    sd_ratio: str
    khat: str
    reverse_kl: str
    looks: str
    seconds: str
    right: str
    why: str


def rungs(correction: dict) -> Iterator[Rung]:
    """The corrections that were tried, in turn."""
    for rung in correction["rungs"]:
        yield Rung(
            rung_name(rung["name"]),
            number(rung["worst_mean_error_in_sd"], 2),
            number(rung["worst_sd_ratio"], 2),
            number(rung["khat"], 2),
            with_error(rung["divergences"].get("reverse_kl")),
            counted_in_thousands(sum(rung["evaluations"].values())),
            f"{rung['seconds']:.1f}",
            {True: "yes", False: "no"}.get(rung["passes"], "?"),
            rung["why"],
        )


def ladder_advice(correction: dict) -> str:
    """What to do with the draws that the ladder ended with."""
    if correction["passes"]:
        return "Use the draws in corrected/posterior."
    if correction["passes"] is None:
        return "No reference tells whether it is right."
    return "No rung was right: do not use any; reparametrise the model."


def ladder_words(correction: dict) -> str:
    """Where the ladder ended, why, and what to do with its draws."""
    ends, why = rung_name(correction["ends"]), correction["rungs"][-1]["why"]
    return f"The ladder ends at {ends}: {why}. {ladder_advice(correction)}"


def path_words(path: dict) -> str:
    """What became of the best guide between the two directions of KL."""
    steps, branches = len(path["alpha"]), path["branches"]
    words = (
        f"Along alpha from reverse to forward KL, {steps} steps, {branches} branches followed: "
    )
    if not path["jumps"]:
        return words + "the best guide moves without a jump."
    places = ", ".join(f"{a:.2f}" for a in path["jumps"])
    return words + f"the best guide jumps from one optimum to another at alpha = {places}."


def counted_in_thousands(count: int) -> str:
    """A large number in short: 49k, 1.2M."""
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"


def rung_name(name: str) -> str:
    """A rung as people say it; a guide's name stays as it is typed."""
    return name if name.startswith("mixture:") else spoken(name)
