"""A run as one HTML page that needs nothing else: no script, no other file and no network.

The page is `report.html`, a template: verdicts, every figure of the table `FIGURES` that can be
drawn, and what `sections.py` has.
"""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vi_demo.pictures import rows, sections
from vi_demo.pictures.drawing import STYLE, WIDTH
from vi_demo.pictures.figures import FIGURES, drawn
from vi_demo.pictures.words import spoken

TEMPLATE = Path(__file__).with_name("report.html")
MEANING = {
    "reliable": "use it as it is",
    "correctable": "use it with its importance weights, or corrected",
    "unreliable": "do not use it",
    "cannot tell": "nothing that it was measured against can judge it",
}
COLUMN = 712  # CSS pixels: how wide a figure is, as wide as the text
SHARPNESS = 2  # pixels of a figure for each of them
# What no page may hold, or would turn its text around: controls, halves of characters, bidi marks.
ILLEGIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


class Picture(NamedTuple):
    """A figure in the page: its words, its size in CSS pixels, and its bytes in base 64."""

    name: str
    title: str
    caption: str
    alt: str
    width: int
    height: int
    data: str


def page(run: xr.DataTree, figures: dict[str, Figure] | None = None) -> str:
    """The report of a run; `figures` where they are drawn already."""
    summary = json.loads(run.attrs["summary"])
    figures = drawn(run) if figures is None else figures
    return template().render(
        summary=summary,
        verdicts=verdict_words(summary),
        size=rows.size_words(summary["model"]),
        against=sections.trust_words(summary),
        points=points,
        made=sections.date_words(summary["settings"].get("made")),
        pictures=[picture(name, figure, summary) for name, figure in figures.items()],
        sections=sections.of(run),
        corrected=corrected(summary),
        meaning=MEANING,
    )


def template() -> jinja2.Template:
    """The page with its holes; whatever fills one is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: ILLEGIBLE.sub("�", value) if type(value) is str else value,
    )
    environment.filters["spoken"] = spoken
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def verdict_words(summary: dict) -> str:
    """Every fit and its verdict in a line."""
    fits = summary["fits"].items()
    return ", ".join(f"{spoken(name)} {fit['verdict']}" for name, fit in fits)


def corrected(summary: dict) -> tuple[str, str, str] | None:
    """Of the ladder: the verdict that its end stands for, that end, and what to do."""
    ladder = summary.get("correction")
    if ladder is None:
        return None
    stands = {True: "reliable", False: "unreliable"}.get(ladder["passes"], "cannot tell")
    return stands, rows.rung_name(ladder["ends"]), rows.ladder_words(ladder)


def points(fit: dict) -> list[str]:
    """Why a fit has its verdict, and what else there is to tell of it."""
    restarts = rows.restart_words(fit.get("restarts"))
    return [*fit["reasons"], *fit["notes"], *([restarts] if restarts else ())]


def picture(name: str, figure: Figure, summary: dict) -> Picture:
    """A figure as the page holds it, the same text at the same size in each."""
    plate, scale = FIGURES[name], COLUMN / WIDTH
    size = (round(scale * inches) for inches in figure.get_size_inches())
    alt = f"{plate.title}, of {summary['model']['name']}: {verdict_words(summary)}."
    data = base64.b64encode(png(figure, SHARPNESS * scale)).decode("ascii")
    return Picture(name, plate.title, plate.caption, alt, *size, data)


def png(figure: Figure, dpi: float) -> bytes:
    """A figure's bytes, in a palette of its own: a third of the size, and it looks the same."""
    canvas, file = FigureCanvasAgg(figure), io.BytesIO()
    figure.set_dpi(dpi)
    with matplotlib.style.context(STYLE):
        canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    image.quantize(256, dither=Image.Dither.NONE).save(file, "png")
    return file.getvalue()
