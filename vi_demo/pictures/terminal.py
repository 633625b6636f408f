"""A run on the terminal: progress while it goes, one table and the verdicts when it is done."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vi_demo.pictures import rows
from vi_demo.pictures.words import spoken, with_error

COLOURS = {
    "reliable": "green",
    "correctable": "yellow",
    "unreliable": "red",
    "cannot tell": "magenta",
}
WIDTH = 80
QUIET = 30.0  # seconds between two lines of one phase
MOST_COORDINATES = 20  # of a guide, shown


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
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
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
    if summary["settings"].get("quantity"):
        console.print(quantity_table(summary))
    if "correction" in summary:
        for item in ladder_parts(summary["correction"]):
            console.print(item)
    if "path" in summary:
        console.print(Text("\n" + textwrap.fill(rows.path_words(summary["path"]), WIDTH)))
    console.print(f"\nSaved in {folder}/; report.html there has all of it", markup=False)


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
    first = f"[bold]{escape(model['name'])}[/]: {escape(rows.size_words(model))}"
    against = rows.reference_words(summary)
    if reference["method"] == "none":
        why = "; ".join(reference["reasons"])
        return f"{first}\n{against}\n[dim]{escape(why)}[/]\n"
    doubts = "".join(f"\n[yellow]not to be trusted: {escape(r)}[/]" for r in reference["reasons"])
    remarks = "".join(f"\n[dim]{escape(r)}[/]" for r in reference["remarks"])
    return f"{first}\n{against}{doubts}{remarks}\n"


def escape(text: str) -> str:
    """Text in which Rich sees no markup."""
    return text.replace("[", r"\[")


def tables(summary: dict, width: int) -> Iterator[Table]:
    """One column a fit, one row a figure; a further table where the fits are too many."""
    names = list(summary["fits"])
    cells = rows.fit_rows(summary)
    label = max(map(len, cells))
    columns = [
        max(len(spoken(n)), *(len(c(summary["fits"][n])) for c in cells.values())) for n in names
    ]
    while names:
        used, fitting = label, 0
        while fitting < len(names) and (not fitting or used + 2 + columns[fitting] <= width):
            used += 2 + columns[fitting]
            fitting += 1
        yield table({n: summary["fits"][n] for n in names[:fitting]}, cells)
        names, columns = names[fitting:], columns[fitting:]


def table(fits: dict, cells: dict[str, Callable]) -> Table:
    """The figures of some fits."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("nats, unless said otherwise", style="dim", no_wrap=True)
    for name in fits:
        grid.add_column(spoken(name), justify="right", no_wrap=True)
    verdicts = [fit["verdict"] for fit in fits.values()]
    grid.add_row("verdict", *(Text(v, style=COLOURS[v]) for v in verdicts))
    for label, cell in cells.items():
        # As Text, in which mu[a] is no markup.
        grid.add_row(label, *(Text(cell(f)) for f in fits.values()))
    return grid


def guide_parts(name: str, guide: dict) -> Iterator[Table | Text]:
    """The mean and sd of a guide's first coordinates, and which of them go together."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(f"\n{spoken(name)}, {guide['family']}", style="dim")
    for title in ("mean", "sd"):
        grid.add_column(f"\n{title}", justify="right", no_wrap=True)
    every = rows.guide_rows(guide)
    for coordinate, mean, sd in every[:MOST_COORDINATES]:
        grid.add_row(Text(coordinate), mean, sd)
    yield grid
    if len(every) > MOST_COORDINATES:
        yield Text(f"and {len(every) - MOST_COORDINATES} more, in summary.json", style="dim")
    if words := rows.correlation_words(guide):
        yield Text(textwrap.fill(words, WIDTH))


def verdict_lines(name: str, fit: dict) -> Iterator[Text]:
    """The verdict, its reasons, what went wrong on the way, and the next thing to do."""
    linked = ":" if fit["verdict"] == "cannot tell" else " is"
    sure = rows.confidence_words(fit)
    verdict = fit["verdict"], f"bold {COLOURS[fit['verdict']]}"
    yield Text.assemble(f"\n{spoken(name)}{linked} ", verdict, f" ({sure})" if sure else "")
    for reason in (*fit["reasons"], *fit["notes"]):
        yield indented(reason, "–")
    yield indented(fit["advice"], "→")


def indented(words: str, sign: str) -> Text:
    """A sentence behind its sign, its later lines under the first."""
    begin = {"initial_indent": f"  {sign} ", "subsequent_indent": "    "}
    return Text(textwrap.fill(words, WIDTH - 2, **begin))


def restart_lines(restarts: dict | None) -> Iterator[Text]:
    """Whether the starts of a fit agree, where they do not."""
    if words := rows.restart_words(restarts):
        yield indented(words, "–")


def quantity_table(summary: dict) -> Table:
    """Of the quantities that were asked for: each fit's value, its error, and what it is worth."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("\nquantity", style="dim", no_wrap=True)
    grid.add_column("\nreference", justify="right", no_wrap=True)
    for name in summary["fits"]:
        grid.add_column(f"\n{spoken(name)}", justify="right", no_wrap=True)
        grid.add_column("\n", no_wrap=True)
    for label, reference, fits in rows.quantity_rows(summary):
        cells = [Text(label), reference]
        for own in fits:
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
    for name, *cells, right, _ in rows.rungs(correction):
        colour = {"yes": "green", "no": "red"}.get(right, "magenta")
        grid.add_row(Text(name), *cells, Text(right, style=colour))
    yield grid
    ends, why = rows.rung_name(correction["ends"]), correction["rungs"][-1]["why"]
    yield Text.assemble("\nThe ladder ends at ", (ends, "bold"), f": {why}")
    yield indented(rows.ladder_advice(correction), "→")
