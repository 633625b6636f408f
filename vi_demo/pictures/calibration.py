"""The picture and the table of a calibration: DataTree -> Figure, summary -> lines."""

from __future__ import annotations

import json
from pathlib import Path

import arviz_plots as azp
import matplotlib.pyplot as plt
import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from vi_demo.pictures.contents import short
from vi_demo.pictures.drawing import CHANCE, COLOURS, STYLE, WIDTH
from vi_demo.pictures.terminal import escape
from vi_demo.pictures.words import number, spoken

MOST_PANELS = 12
COLUMNS = 4
PANEL = 1.5  # inches: its height
HEAD = 0.5
READING = "Δ-ECDF of the truth's rank among draws, flat where calibrated; dots where it is not"


def calibration_figure(tree: xr.DataTree) -> Figure | None:
    """ArviZ's Δ-ECDFs of the ranks, of the entries that are least uniform; None without ranks."""
    summary = json.loads(tree.attrs["summary"])
    entries = summary["entries"]
    if not entries:
        return None
    order = {name: i for i, name in enumerate(entries)}
    worst = sorted(entries, key=lambda name: least(entries[name]))[:MOST_PANELS]
    chosen = sorted(worst, key=order.get)
    columns = by_entry(tree, summary["model"]["sites"])
    picked = xr.Dataset({short(k): (("chain", "draw"), columns[order[k]][None]) for k in chosen})
    rows = -(-len(chosen) // COLUMNS)
    looks = {
        "p_value_text": False,
        "ecdf_lines": {"color": COLOURS[summary["settings"]["fit"]]},
        "suspicious_points": {"color": COLOURS["quiet"], "size": 4},
        "xlabel": False,
    }
    with matplotlib.style.context(STYLE):
        drawn = azp.plot_ecdf_pit(
            xr.DataTree.from_dict({"prior_sbc": picked}),
            backend="matplotlib",
            visuals=looks,
            figure_kwargs={"figsize": (WIDTH, PANEL * rows + HEAD)},
            col_wrap=COLUMNS,
        )
        figure = drawn.viz["figure"].item()
        for ax in figure.axes:  # ArviZ takes the last panel's limits for all
            ax.set_ylim(*reach(picked.to_array().values.reshape(len(chosen), -1)))
        heading = f"{summary['model']['name']}, {spoken(summary['settings']['fit'])}"
        figure.suptitle(f"{heading}, {summary['refits']['ranked']} refits\n{READING}", fontsize=8)
    plt.close(figure)  # ArviZ made it with pyplot, which would keep it
    return figure


def reach(ranks: np.ndarray) -> tuple[float, float]:
    """Limits around the Δ-ECDFs of all entries (entries, refits), and around what chance does."""
    steps = np.arange(1, ranks.shape[1] + 1) / ranks.shape[1]
    most = np.abs(steps - np.sort(ranks, axis=1)).max()
    half = 1.15 * max(most, CHANCE / np.sqrt(ranks.shape[1]))
    return -half, half


def least(entry: dict) -> float:
    """The smallest corrected p-value of an entry."""
    return min(entry["adjusted"].values())


def by_entry(tree: xr.DataTree, sites: dict) -> np.ndarray:
    """Normalised ranks (entries, refits), in the order of the summary."""
    group = tree["prior_sbc"].to_dataset()
    values = [group[k].transpose("chain", "draw", ...).values[0] for k in sites]
    return np.concatenate([v.reshape(len(v), -1) for v in values], 1).T


def show(summary: dict, folder: Path) -> None:
    """The table of a calibration, what was found in words, and where its files are."""
    console = Console(highlight=False)
    counts, settings = summary["refits"], summary["settings"]
    console.print(
        f"\n[bold]{escape(summary['model']['name'])}[/]: {spoken(settings['fit'])}, "
        f"{settings['guide']}; {counts['asked']} refits, {counts['converged']} converged\n"
    )
    table = Table(
        "", *("p bias", "p width", "p any", "bias in sd", "spread", "90% holds"), box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, entry in summary["entries"].items():
        figures = [number(entry["adjusted"][k]) for k in ("bias", "width", "shape")]
        figures += [number(entry[k], 2) for k in ("bias_in_sd", "spread")]
        table.add_row(escape(name), *figures, f"{100 * entry['coverage']:.0f}%")
    console.print(table)
    console.print("p-values are Holm's; spread 1 and 90% are calibrated\n", style="dim")
    if summary["entries"] and not summary["findings"]:
        console.print("nothing found: ranks as uniform as those of the posterior would be")
    for words in summary["findings"]:
        console.print(f"  – {escape(words)}")
    for words in summary["doubts"]:
        console.print(f"  – {escape(words)}", style="yellow")
    console.print(f"\nSaved in {folder}/", markup=False)
