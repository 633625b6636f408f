"""The sections of a report below its pictures: sentences and tables, in plain text.

What a row holds and how it is said is what the terminal has, in `rows.py`. A section is a function
that gives None where the run does not hold what it tells; its place is its place in `of`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import xarray as xr

from vi_demo.pictures import rows
from vi_demo.pictures.words import number, spoken, with_error

LONG = 24  # rows beyond which a table is folded
MOST_ROWS = 300
AS_IT_IS = 5  # columns of a site's row that weights do not enter
MOST_MODES = 40
SMALL = 5e-4  # an error of a mode's mass that is not told
MOST_NUMBERS = 8  # of a site's location in a mode, or of a learned parameter


class Sheet(NamedTuple):
    """A table: what it shows, its columns, and its rows, the first cell of each being its name.

    `groups` are titles over several columns each, with how many; `note` is a line below; columns
    of `words` begin at their left.
    """

    caption: str
    head: Sequence[str]
    rows: list[Sequence[str]]
    note: str = ""
    groups: Sequence[tuple[str, int]] = ()
    words: Sequence[int] = ()

    @property
    def folded(self) -> bool:
        """Whether it is so long that the reader is to open it."""
        return len(self.rows) > LONG


class Section(NamedTuple):
    """A part of the page: sentences, a command, remarks, tables, and why they have dashes."""

    name: str
    title: str
    words: Sequence[str] = ()
    command: str = ""
    remarks: Sequence[str] = ()
    sheets: Sequence[Sheet] = ()
    dashes: Sequence[str] = ()


def of(run: xr.DataTree) -> list[Section]:
    """The sections of a run, in their order."""
    summary = json.loads(run.attrs["summary"])
    parts = (numbers, sites, quantities, correction, path, reference, fitting, guides)
    sections = [*(part(summary) for part in parts), learned(run), reproduced(summary)]
    return [section for section in sections if section is not None]


def numbers(summary: dict) -> Section:
    """One column a fit, one row a figure."""
    fits = summary["fits"]
    head = ["nats, unless said otherwise", *map(spoken, fits)]
    table = [["verdict", *(fit["verdict"] for fit in fits.values())]]
    for label, cell in rows.fit_rows(summary).items():
        table.append([label, *map(cell, fits.values())])
    note = (
        "p is the posterior and q the guide; ± is the Monte Carlo error, where it is above "
        "0.0005. Total variation, squared Hellinger and χ² have no unit."
    )
    sheet = Sheet("Each fit against the reference", head, table, note)
    return Section("numbers", "What was measured", sheets=[sheet], dashes=missing(summary))


def missing(summary: dict) -> list[str]:
    """Why a dash stands where a figure could not be had, each reason once."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, fit in summary["fits"].items():
        for label, cell in rows.fit_rows(summary).items():
            reason = reason_of(label, fit) if cell(fit) == "–" else None
            if reason:
                which = found.setdefault(reason, {}).setdefault(spoken(name), [])
                which.append(re.split(r",| \(", label)[0].removeprefix("effective "))
    return [
        "; ".join(f"{', '.join(which)} of {name}" for name, which in each.items()) + f": {reason}"
        for reason, each in found.items()
    ]


KEPT_AT = {  # the beginning of a row's label, and where the reason for its dash is
    "k-hat": "khat_reason",
    "effective draws": "ess_reason",
    "effective share": "forward_ess_reason",
    "modes covered": "modes_covered_reason",
    "mass covered": "mass_covered_reason",
    **dict.fromkeys(("worst mean", "narrowest", "widest"), "sites_reason"),
}


def reason_of(label: str, fit: dict) -> str | None:
    """Why a fit has no figure in the row of this label."""
    estimates = {"ELBO": fit["elbo"], "EUBO": fit["eubo"]}
    estimates |= {rows.measured(k): v for k, v in fit["divergences"].items()}
    if label in estimates:
        return (estimates[label] or {}).get("reason")
    return next((fit.get(key) for begin, key in KEPT_AT.items() if label.startswith(begin)), None)


def sites(summary: dict) -> Section | None:
    """How far the mean and the width of every entry are off, for each fit."""
    labels = summary["model"]["labels"]
    head = ["", "mean off", "sd ratio", "in its 95%", "ranks off", "mean off", "sd ratio"]
    groups = [("", 1), ("as it is", AS_IT_IS - 1), ("weighted", len(head) - AS_IT_IS)]
    sheets = []
    for name, fit in summary["fits"].items():
        entries = list(site_entries(fit["sites"], labels))
        shown = worst_of(entries)
        more = len(shown) < len(entries)
        note = f"The worst {len(shown)} of {len(entries):,}; all are in summary.json." * more
        cells = [site_cells(*entry) for entry in shown]
        # Weights may be of no use, and a target of draws has none.
        n = len(head) if any(set(row[AS_IT_IS:]) != {"–"} for row in cells) else AS_IT_IS
        if cells:
            cells = [row[:n] for row in cells]
            caption = f"{spoken(name)}, site by site"
            sheets.append(Sheet(caption, head[:n], cells, note, groups if n > AS_IT_IS else ()))
    words = (
        "How far off each mean is, in posterior sds; the guide's sd over the posterior's; how "
        "much of the posterior lies in the guide's central 95%; the largest gap between the ranks "
        "of posterior draws among the guide's and even ones. Weighted: by importance weights."
    )
    return Section("sites", "Site by site", [words], sheets=sheets) if sheets else None


def site_entries(sites: dict, labels: dict) -> Iterator[tuple[str, dict]]:
    """The label of every entry of all sites, and its figures."""
    for name, figures in sites.items():
        columns = {k: np.ravel(np.array(v, dtype=object)) for k, v in figures.items()}
        for i, label in enumerate(labels[name]):
            yield label, {k: column[i] for k, column in columns.items()}


def worst_of(entries: list[tuple[str, dict]]) -> list[tuple[str, dict]]:
    """So many of the entries as a table takes, those that are furthest off, in their order."""

    def off(i):
        error, ratio = (entries[i][1].get(k) for k in ("mean_error_in_sd", "sd_ratio"))
        return max(error or 0.0, abs(np.log(ratio)) if ratio else 0.0)

    worst = sorted(range(len(entries)), key=off, reverse=True)[:MOST_ROWS]
    return [entries[i] for i in sorted(worst)]


def site_cells(label: str, entry: dict) -> list[str]:
    """The row of one entry."""

    def both(which):
        mean = {"value": entry.get(f"{which}mean_error_in_sd")}
        ratio = {"value": entry.get(f"{which}sd_ratio")}
        mean["mcse"] = entry.get(f"{which}mean_mcse")
        relative = entry.get(f"{which}log_sd_mcse")
        known = relative is not None and ratio["value"] is not None
        ratio["mcse"] = ratio["value"] * relative if known else None
        return [with_error(mean), with_error(ratio)]

    covered, distance = entry.get("covered_95"), entry.get("rank_distance")
    return [label, *both(""), rows.share(covered), number(distance, 2), *both("corrected_")]


def quantities(summary: dict) -> Section | None:
    """The quantities that were asked for, with a verdict each."""
    found = list(rows.quantity_rows(summary))
    if not found:
        return None
    table = []
    for label, by_reference, fits in found[:MOST_ROWS]:
        pairs = [(with_error(own["guide"]), own["verdict"]) for own in fits]
        table.append([label, by_reference, *(cell for pair in pairs for cell in pair)])
    more = len(found) - len(table)
    note = f"And {more:,} more, in summary.json." if more else ""
    groups = [("", 2), *((spoken(name), 2) for name in summary["fits"])]
    head = ["", "reference", *["value", "verdict"] * len(summary["fits"])]
    sheet = Sheet("A verdict for each quantity", head, table, note, groups)
    return Section("quantities", "Quantities", sheets=[sheet])


def correction(summary: dict) -> Section | None:
    """The ladder of corrections, where it was climbed."""
    ladder = summary.get("correction")
    if ladder is None:
        return None
    tried = list(rows.rungs(ladder))
    head = [
        "",
        "worst mean, sds off",
        "worst sd, times the right",
        "k\N{NON-BREAKING HYPHEN}hat",
        "KL(q‖p), nats",
    ]
    head += ["looks at p", "seconds", "right"]
    sheets = [
        Sheet("Corrections in the order they were tried", head, [r[:-1] for r in tried]),
        Sheet(
            "Why each was right or not", ["", "why"], [r[:1] + r[-1:] for r in tried], words=[1]
        ),
    ]
    return Section("correction", "Corrections", [rows.ladder_words(ladder)], sheets=sheets)


def path(summary: dict) -> Section | None:
    """What became of the best guide along alpha, where that was followed."""
    if "path" not in summary:
        return None
    return Section("alpha", "From reverse to forward KL", [rows.path_words(summary["path"])])


def reference(summary: dict) -> Section:
    """What the fits were measured against, and whether it is to be trusted."""
    known = summary["reference"]
    words = trust_words(summary)
    looks = known.get("evaluations", {})
    if any(looks.values()):
        count = "{log_density:,} log densities and {gradient:,} gradients".format(**looks)
        words += f" It took {count}."
    sheets = []
    if known.get("evidence_by"):
        by = [[route, with_error(e)] for route, e in known["evidence_by"].items()]
        sheets.append(Sheet("Log evidence by each route", ["", "nats"], by))
    if known["modes"]:
        sheets.append(modes(known["modes"]))
    remarks = [*known["reasons"], *known.get("remarks", ())]
    return Section("reference", "The reference", [words], remarks=remarks, sheets=sheets)


def modes(found: list[dict]) -> Sheet:
    """Where the modes are, and how much of the posterior each holds."""
    table = []
    for i, mode in enumerate(found[:MOST_MODES]):
        mass = f"{100 * mode['mass']:.1f}"
        if (mode.get("mcse") or 0) > SMALL:
            mass += f" ± {100 * mode['mcse']:.1f}"
        place = "; ".join(f"{site} {several(values)}" for site, values in mode["location"].items())
        table.append([str(i + 1), mass, place])
    more = len(found) - len(table)
    note = f"And {more:,} more, in summary.json." if more else ""
    return Sheet("Modes of the posterior", ["", "% of its mass", "at"], table, note, words=[2])


def several(values) -> str:
    """A few numbers of an array written out, and how many more there are."""
    flat = np.ravel(np.array(values, dtype=float))
    text = ", ".join(number(v) for v in flat[:MOST_NUMBERS])
    return text + f" and {flat.size - MOST_NUMBERS:,} more" * (flat.size > MOST_NUMBERS)


def fitting(summary: dict) -> Section:
    """How each fit went: from where, for how long, and whether its starts agree."""
    fits = summary["fits"]
    cells = {
        "fitter": lambda f: spoken(f["fitter"]),
        "status": lambda f: f["status"],
        "steps": lambda f: f"{f['steps']:,}",
        "log densities": lambda f: f"{f['evaluations'].get('log_density', 0):,}",
        "gradients": lambda f: f"{f['evaluations'].get('gradient', 0):,}",
        "seconds compiling": lambda f: number(f["seconds"]["compile"], 1),
        "seconds running": lambda f: number(f["seconds"]["run"], 1),
        "starts and where they ended": starts_words,
        "R-hat across starts": rhat_words,
        "ELBO of the starts, nats": elbo_range,
        "ELBO of them stacked, nats": lambda f: with_error(
            f.get("restarts", {}).get("stacked_elbo")
        ),
    }
    table = [[label, *map(cell, fits.values())] for label, cell in cells.items()]
    table = [row for row in table if set(row[1:]) != {"–"}]
    sheet = Sheet("Work and starts of each fit", ["", *map(spoken, fits)], table)
    return Section("fitting", "How the fits went", sheets=[sheet])


def starts_words(fit: dict) -> str:
    """How many starts a fit had, and at how many places they ended."""
    known = fit.get("restarts")
    if not known:
        return "–"
    starts, places = len(known["elbos"]), known["places"]
    return f"{starts} start{'s' * (starts > 1)}, {places} place{'s' * (places > 1)}"


def rhat_words(fit: dict) -> str:
    """The worst R-hat across the starts of a fit, and where it is."""
    known = fit.get("restarts", {})
    value = known.get("rhat")
    return "–" if value is None else f"{number(value, 2)} in {known['rhat_at']}"


def elbo_range(fit: dict) -> str:
    """From the best to the worst start of a fit."""
    values = [v for v in fit.get("restarts", {}).get("elbos", ()) if v is not None]
    if not values:
        return "–"
    return f"{number(max(values))} to {number(min(values))}"


def stacked_words(fit: dict) -> str:
    """The ELBO of the guide that the starts of a fit make together."""
    return with_error(fit.get("restarts", {}).get("stacked_elbo"))


def guides(summary: dict) -> Section | None:
    """Each guide in a few numbers."""
    sheets = []
    for name, fit in summary["fits"].items():
        if "guide" not in fit:
            continue
        table = rows.guide_rows(fit["guide"])
        note = capital(rows.correlation_words(fit["guide"]))
        if len(table) > MOST_ROWS:
            note = f"And {len(table) - MOST_ROWS:,} more, in summary.json. {note}"
        caption = f"{spoken(name)}, {fit['guide']['family']}"
        sheets.append(Sheet(caption, ["", "mean", "sd"], table[:MOST_ROWS], note))
    words = ["Mean and sd of each guide on the unconstrained scale, where it was fitted."]
    return Section("guides", "The fitted guides", words, sheets=sheets) if sheets else None


def learned(run: xr.DataTree) -> Section | None:
    """The model's own parameters, as SVI learned them."""
    if "parameters" not in run.children:
        return None
    table = []
    for name, values in run["parameters"].to_dataset().items():
        shape = "×".join(map(str, values.shape)) or "one number"
        table.append([str(name), shape, several(values.values)])
    note = "All numbers are in posterior.nc, in the group parameters."
    more = len(table) - MOST_ROWS
    if more > 0:
        note = f"And {more:,} more. {note}"
    head = ["", "shape", "values"]
    sheet = Sheet("Parameters of the model", head, table[:MOST_ROWS], note, words=[1, 2])
    return Section("parameters", "Learned parameters", sheets=[sheet])


# How the run was made.

SETTINGS = ("seed", "draws", "guide", "reference", "budget", "optimizer", "precision")


def reproduced(summary: dict) -> Section:
    """The command, the settings and the versions that make the run again."""
    settings = summary["settings"]
    known = [[k, value_words(settings[k])] for k in SETTINGS if k in settings]
    versions = [[k, str(v)] for k, v in settings.get("versions", {}).items()]
    command = settings.get("command")
    made = date_words(settings.get("made"))
    words = [f"Made on {made}, by this command:" if made else "Made by this command:"]
    if command is None:
        made = made and f"on {made} "
        words = [f"Made {made}in Python. With the model in a file, this does the same:"]
    sheets = [
        Sheet("Settings", ["", "value"], known, "The budget is in seconds.", words=[1]),
        Sheet("Versions", ["", "version"], versions, words=[1]),
    ]
    command = command or equivalent(summary)
    return Section("again", "To make it again", words, command, sheets=sheets)


def equivalent(summary: dict) -> str:
    """The command that does what a run made in Python did."""
    settings, parts = summary["settings"], ["vi-demo", "run", "MODEL"]
    for name in summary["fits"]:
        parts += ["--fit", name]
    for key in ("guide", "reference", "seed", "draws", "budget", "path", "optimizer"):
        value = settings.get(key)
        if value is not None:
            parts += [f"--{key}", f"{value:g}" if isinstance(value, float) else str(value)]
    for site in settings.get("quantity", ()):
        parts += ["--quantity", site]
    return shlex.join(parts + ["--correct"] * bool(settings.get("correct")))


def value_words(value) -> str:
    """A setting as people write it."""
    if value is None:
        return "chosen by vi-demo"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if type(value) is int else str(value)


# Words.


def trust_words(summary: dict) -> str:
    """What the fits were measured against, and whether to trust it, in sentences."""
    words, known = f"{capital(rows.reference_words(summary))}.", summary["reference"]
    if known["method"] == "none":
        return words
    return f"{words} It is {'' if known['trusted'] else 'not '}to be trusted."


def date_words(made: str | None) -> str:
    """A date as people write it; nothing where none was kept."""
    if made is None:
        return ""
    date = datetime.fromisoformat(made)
    return f"{date.day} {date:%B %Y, %H:%M} UTC"


def capital(words: str) -> str:
    """Words with a capital at their beginning."""
    return words[:1].upper() + words[1:]
