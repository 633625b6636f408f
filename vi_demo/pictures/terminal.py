"""A run on the terminal: progress while it goes, one table and the verdicts when it is done."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from vi_demo.pictures.words import measured, number, spoken, with_error

COLOURS = {
    "reliable": "green",
    "correctable": "yellow",
    "unreliable": "red",
    "cannot tell": "magenta",
}
WIDTH = 80
QUIET = 30.0  # seconds between two lines of one phase
MOST_COORDINATES = 20  # of a guide, shown
MOST_PAIRS = 6


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, float, str], None]]:
    """A bar for each phase on standard error, or a line each where that is not a terminal."""
    console = Console(stderr=True, width=None)
    if quiet:
        yield lambda phase, share, text: None
    elif not console.is_terminal:
        yield lines(console)
    else:
        columns = (
            SpinnerColumn(finished_text="·"),
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            tasks: dict[str, int] = {}

            def report(phase: str, share: float, text: str) -> None:
                if phase not in tasks:
                    for task in tasks.values():
                        bars.update(task, completed=1.0)
                    tasks[phase] = bars.add_task(spoken(phase), total=1.0, text=text)
                bars.update(tasks[phase], completed=share, text=text)

            yield report


def lines(console: Console) -> Callable[[str, float, str], None]:
    """A line when a phase begins, and one now and then while it goes on, for logs."""
    last: dict[str, float] = {}

    def report(phase: str, share: float, text: str) -> None:
        now = time.monotonic()
        if now - last.get(phase, -np.inf) > QUIET:
            last[phase] = now
            console.print(f"{spoken(phase)}: {text}", highlight=False)

    return report


def show(summary: dict, folder: Path) -> None:
    """The table of a run, each fit's verdict in words, and where its files are."""
    console = Console(highlight=False)
    console = Console(highlight=False, width=min(console.width, WIDTH))
    console.print()
    console.print(heading(summary))
    for part in tables(summary, console.width):
        console.print(part)
    for name, fit in summary["fits"].items():
        if "draws" in summary["model"] and "guide" in fit:
            for part in guide_parts(name, fit["guide"]):
                console.print(part)
        for line in verdict_lines(name, fit):
            console.print(line)
        for line in restart_lines(fit.get("restarts")):
            console.print(line)
    wanted = summary["settings"].get("quantity", [])
    if wanted:
        console.print(quantity_table(summary["fits"], wanted))
    if "correction" in summary:
        for item in ladder_parts(summary["correction"]):
            console.print(item)
    if "path" in summary:
        console.print(Text("\n" + textwrap.fill(path_words(summary["path"]), WIDTH)))
    console.print(f"\nSaved in {folder}/", markup=False)


def show_timings(seconds: dict[str, dict[str, float]], aside: bool) -> None:
    """Where each second went, on standard error if `aside`."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("where the seconds went", style="dim")
    for title in ("compiling", "running", "together"):
        grid.add_column(title, justify="right")
    total = {k: sum(s[k] for s in seconds.values()) for k in ("compile", "run")}
    for phase, each in (*seconds.items(), ("all", total)):
        columns = each["compile"], each["run"], each["compile"] + each["run"]
        grid.add_row(spoken(phase), *(f"{x:.1f}" for x in columns))
    console = Console(highlight=False, stderr=aside)
    console.print()
    console.print(grid)


def heading(summary: dict) -> str:
    """What was fitted, and what it was measured against."""
    model, reference = summary["model"], summary["reference"]
    sites = ", ".join(model["sites"])
    plural = "s" * (model["dim"] > 1)
    first = f"[bold]{escape(model['name'])}[/]: {model['dim']} dimension{plural} ({escape(sites)})"
    method = f"reference by {reference['method']}"
    if reference["method"] == "none":
        why = "; ".join(reference["reasons"])
        nothing = "no reference: what lies beyond the guide's own draws goes unseen"
        return f"{first}\n{nothing}\n[dim]{escape(why)}[/]\n"
    evidence = reference["log_evidence"]
    if evidence["value"] is not None:
        method += f", log evidence {number(evidence['value'])} ± {evidence['mcse']:.2g}"
    if "draws" in model:
        method = counted(model["draws"])
    masses = [f"{100 * m['mass']:.0f}%" for m in reference["modes"]]
    if masses:
        method += f", {len(masses)} mode{'s' if len(masses) > 1 else ''}"
        method += f" ({', '.join(masses)})" if len(masses) > 1 else ""
    doubts = "".join(f"\n[yellow]not to be trusted: {escape(r)}[/]" for r in reference["reasons"])
    remarks = "".join(f"\n[dim]{escape(r)}[/]" for r in reference["remarks"])
    return f"{first}\n{method}{doubts}{remarks}\n"


def escape(text: str) -> str:
    """Text in which Rich sees no markup."""
    return text.replace("[", r"\[")


def tables(summary: dict, width: int) -> Iterator[Table]:
    """One column a fit, one row a figure; a further table where the fits are too many."""
    names = list(summary["fits"])
    rows = figures(summary)
    if "draws" in summary["model"]:  # which have no density: most rows would be dashes
        known = summary["fits"].values()
        rows = {k: cell for k, cell in rows.items() if any(cell(f) != "–" for f in known)}
    label = max(map(len, rows))
    columns = [
        max(len(spoken(n)), *(len(c(summary["fits"][n])) for c in rows.values())) for n in names
    ]
    while names:
        used, fitting = label, 0
        while fitting < len(names) and (not fitting or used + 2 + columns[fitting] <= width):
            used += 2 + columns[fitting]
            fitting += 1
        yield table({n: summary["fits"][n] for n in names[:fitting]}, rows)
        names, columns = names[fitting:], columns[fitting:]


def table(fits: dict, rows: dict[str, Callable]) -> Table:
    """The figures of some fits."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("nats, unless said otherwise", style="dim", no_wrap=True)
    for name in fits:
        grid.add_column(spoken(name), justify="right", no_wrap=True)
    verdicts = [fit["verdict"] for fit in fits.values()]
    grid.add_row("verdict", *(Text(v, style=COLOURS[v]) for v in verdicts))
    for label, cell in rows.items():
        # As Text, in which mu[a] is no markup.
        grid.add_row(label, *(Text(cell(f)) for f in fits.values()))
    return grid


def figures(summary: dict) -> dict[str, Callable]:
    """What each row of the table is, as a function of a fit."""
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
        "fit": lambda f: f"{f['status']}, {f['steps']:,} steps",
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
    return "–" if value is None else f"{100 * value:.2g}%"


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


def counted(draws: dict) -> str:
    """How many draws there are, and what they are worth."""
    chains = f" in {draws['chains']} chain{'s' * (draws['chains'] > 1)}" if draws["chains"] else ""
    return f"{draws['number']:,} draws{chains}, worth {draws['effective']:,.0f} independent ones"


def guide_parts(name: str, guide: dict) -> Iterator[Table | Text]:
    """The mean and sd of a guide's first coordinates, and which of them go together."""
    coordinates = guide["coordinates"]
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(f"\n{spoken(name)}, {guide['family']}", style="dim")
    for title in ("mean", "sd"):
        grid.add_column(f"\n{title}", justify="right", no_wrap=True)
    shown = list(zip(coordinates, guide["mean"], guide["sd"], strict=True))[:MOST_COORDINATES]
    for coordinate, mean, sd in shown:
        grid.add_row(Text(coordinate), *(significant(v, sd) for v in (mean, sd)))
    yield grid
    if len(coordinates) > len(shown):
        yield Text(f"and {len(coordinates) - len(shown)} more, in summary.json", style="dim")
    pairs = [
        f"{' and '.join(pair['between'])} {number(pair['value'], 2)}"
        for pair in guide["correlations"][:MOST_PAIRS]
    ]
    if pairs:
        more = ", …" * (len(guide["correlations"]) > len(pairs))
        words = f"correlations beyond 0.5: {', '.join(pairs)}{more}"
        yield Text(textwrap.fill(words, WIDTH))


def significant(value: float, sd: float) -> str:
    """A number with three digits of the sd that belongs to it."""
    digits = int(np.clip(2 - np.floor(np.log10(sd)), 0, 9)) if sd > 0 else 3
    return number(value, digits)


def verdict_lines(name: str, fit: dict) -> Iterator[Text]:
    """The verdict, its reasons, what went wrong on the way, and the next thing to do."""
    linked = ":" if fit["verdict"] == "cannot tell" else " is"
    sure = fit.get("confidence")
    share = f" (in {100 * sure:.0f}% of replicates)" if sure is not None and sure < 1 else ""
    verdict = fit["verdict"], f"bold {COLOURS[fit['verdict']]}"
    yield Text.assemble(f"\n{spoken(name)}{linked} ", verdict, share)
    for reason in (*fit["reasons"], *fit["notes"]):
        yield indented(reason, "–")
    yield indented(fit["advice"], "→")


def indented(words: str, sign: str) -> Text:
    """A sentence behind its sign, its later lines under the first."""
    begin = {"initial_indent": f"  {sign} ", "subsequent_indent": "    "}
    return Text(textwrap.fill(words, WIDTH - 2, **begin))


def restart_lines(restarts: dict | None) -> Iterator[Text]:
    """Whether the starts of a fit agree, where they do not."""
    if not restarts or restarts["places"] < 2:
        return
    words = f"its {len(restarts['elbos'])} starts ended at {restarts['places']} places"
    if restarts["rhat"] is not None:
        words += f", R-hat {restarts['rhat']:.2f} in {restarts['rhat_at']}"
    words += f"; stacked by evidence they have ELBO {with_error(restarts['stacked_elbo'])}"
    yield indented(words, "–")


def quantity_table(fits: dict, sites: list[str]) -> Table:
    """Of the quantities that were asked for: each fit's value, its error, and what it is worth."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("\nquantity", style="dim", no_wrap=True)
    grid.add_column("\nreference", justify="right", no_wrap=True)
    for name in fits:
        grid.add_column(f"\n{spoken(name)}", justify="right", no_wrap=True)
        grid.add_column("\n", no_wrap=True)
    first = next(iter(fits.values()))["quantities"]
    for label in (k for k in first if k.partition("[")[0] in sites):
        for statistic, entry in first[label].items():
            cells = [Text(f"{label} {statistic}"), with_error(entry.get("reference"))]
            for fit in fits.values():
                own = fit["quantities"][label][statistic]
                cells += [with_error(own["guide"])]
                cells += [Text(own["verdict"], style=COLOURS[own["verdict"]])]
            grid.add_row(*cells)
    return grid


def ladder_parts(correction: dict) -> Iterator[Table | Text]:
    """Each correction that was tried, with its error and its cost, and where the ladder ended."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("\ncorrection", style="dim")
    for title in ("mean off\nby sds", "sd, times\nthe right", "\nk-hat", "\nKL(q‖p)"):
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("looks\nat p", justify="right", no_wrap=True)
    grid.add_column("\nseconds", justify="right", no_wrap=True)
    grid.add_column("\nright", no_wrap=True)
    for rung in correction["rungs"]:
        grid.add_row(
            Text(rung_name(rung["name"])),
            number(rung["worst_mean_error_in_sd"], 2),
            number(rung["worst_sd_ratio"], 2),
            number(rung["khat"], 2),
            with_error(rung["divergences"].get("reverse_kl")),
            counted_in_thousands(sum(rung["evaluations"].values())),
            f"{rung['seconds']:.1f}",
            {True: Text("yes", style="green"), False: Text("no", style="red")}.get(
                rung["passes"], Text("?", style="magenta")
            ),
        )
    yield grid
    last = correction["rungs"][-1]
    yield Text.assemble(
        "\nThe ladder ends at ", (rung_name(correction["ends"]), "bold"), f": {last['why']}"
    )
    if correction["passes"]:
        yield indented("Use the draws in corrected/posterior.", "→")
    elif correction["passes"] is None:
        yield indented("No reference tells whether it is right.", "→")
    else:
        yield indented("No rung was right: do not use any; reparametrise the model.", "→")


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
