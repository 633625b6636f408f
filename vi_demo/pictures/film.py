"""The way down as a film: each guide moves over the target while its divergence falls.

What does not move is drawn once; every frame is that picture with the moving marks on top. Frames
go to ffmpeg, where it is on the path, else to Pillow.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import LogLocator
from PIL import Image

from vi_demo.pictures.contents import landscape_dim, target_density
from vi_demo.pictures.drawing import (
    COLOURS,
    HALO,
    MASSES,
    STYLE,
    Look,
    contours,
    density_levels,
    half_axes,
    logarithmic,
    looks,
    shade,
)
from vi_demo.pictures.pairs import joint_density
from vi_demo.pictures.ways import descended, labels_of, parted, total_moments
from vi_demo.pictures.words import measured, number

FORMATS = {"mp4": "video/mp4", "gif": "image/gif", "webp": "image/webp"}
FPS, SIZE, SNUG, DPI = 25, (900, 480), (480, 320), 100
LEAST_SIZE = 240  # pixels
HOLD = 1.0  # seconds that the last frame stays
CROSS = "#C00000"
FAINT = 0.35
MOST_PANELS = 4
POINTS = 241  # of a curve
TRANSPARENT = 127  # the last of a GIF's colours
FLOOR = 1e-4  # nats
STILL = "no way down was recorded to be watched; make the run anew with --film"


class Film(NamedTuple):
    """A film in memory; in a notebook it shows itself."""

    data: bytes
    format: str

    def save(self, path: str | Path) -> None:
        """Write it to a file."""
        Path(path).write_bytes(self.data)

    def _repr_html_(self) -> str:
        source = f"data:{FORMATS[self.format]};base64,{base64.b64encode(self.data).decode()}"
        if self.format == "mp4":
            return f'<video src="{source}" autoplay loop muted controls></video>'
        return f'<img src="{source}" alt="the guides on their way down">'


class Scene(NamedTuple):
    """A picture that is drawn once, and what puts its moving marks where a frame has them."""

    figure: Figure
    frames: int
    moving: list
    move: Callable[[int], None]


def animate(
    run: xr.DataTree,
    *,
    fps: int = FPS,
    size: tuple[int, int] = SIZE,
    format: str | None = None,
    sites: Sequence[str] = (),
    start: int = 0,
) -> Film:
    """The way down of every divergence of a run, side by side, as a film.

    `size` is in pixels. `format` is mp4, where ffmpeg is on the path, else gif, or webp. `sites`
    are two coordinates of a target of more dimensions, those that part most unless given; `start`
    is the one that is drawn strongly, the others being its faint companions. Raises `ValueError`
    where there is nothing to watch.
    """
    format = format or ("mp4" if shutil.which("ffmpeg") else "gif")
    if format == "mp4" and not shutil.which("ffmpeg"):
        raise ValueError("mp4 needs ffmpeg on the path; choose gif or webp")
    if min(size) < LEAST_SIZE:
        raise ValueError(f"{size[0]}x{size[1]} pixels are too few; at least {LEAST_SIZE} each way")
    with matplotlib.style.context(STYLE):
        made = scene(run, size, tuple(sites), start)
        pictures = rendered(made, round(HOLD * fps))
        write = to_mp4 if format == "mp4" else to_pillow
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"film.{format}"
            write(pictures, path, fps)
            return Film(path.read_bytes(), format)


# What is seen.


def scene(run: xr.DataTree, size: tuple[int, int], sites: Sequence[str], start: int) -> Scene:
    """A panel for each divergence over the target, and how far it has fallen below."""
    names = descended(run)[:MOST_PANELS]
    if not names:
        raise ValueError(STILL)
    ways = {name: run[name]["descent"].to_dataset() for name in names}
    starts = min(way.sizes["start"] for way in ways.values())
    if not 0 <= start < starts:
        raise ValueError(f"there are {starts} starts, 0 to {starts - 1}, and no {start}")
    which = shown(run, names, sites)
    # Letters grow with a large film, and shrink where they would not fit.
    dpi = DPI * np.clip(1.0, min(np.divide(size, SIZE)), min(np.divide(size, SNUG)))
    figure = Figure(figsize=np.divide(size, dpi), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    tops, bottoms = figure.subplots(2, len(names), height_ratios=[3, 1], squeeze=False)
    moving, moves = [], []
    stage = plane_stage if len(which) == 2 else line_stage
    stage(run, tops, ways, which, start)
    for name, top, bottom in zip(names, tops, bottoms, strict=True):
        look = looks(names)[name]
        top.set_title(measured(name), color=look.color, fontweight="bold")
        for artists, move in (
            guides_of(top, ways[name], which, look, start),
            falling(bottom, ways[name], look, start),
        ):
            moving += artists
            moves.append(move)
    bottoms[0].set_ylabel("nats")
    low = min(float(w["divergence"].min()) for w in ways.values())
    high = max(float(w["divergence"].max()) for w in ways.values())
    if low > 0:
        for bottom in bottoms:
            bottom.set_ylim(max(low, FLOOR) / 1.6, high * 1.6)
    for artist in moving:
        artist.set(animated=True, in_layout=False)
    if len(which) == 2:
        figure.draw_without_rendering()  # how large panels are is known once they are laid out
        for top in tops:
            one_scale(top)
    return Scene(figure, ways[names[0]].sizes["frame"], moving, lambda k: [m(k) for m in moves])


def shown(run: xr.DataTree, names: Sequence[str], sites: Sequence[str]) -> list[int]:
    """Which of the recorded coordinates are drawn: all of one or two, else those asked for."""
    plain = [str(c) for c in run[names[0]]["descent"]["coordinate"].values]
    if not sites:
        return parted(run, names) if len(plain) > 2 else list(range(len(plain)))
    titles = [label.partition(" (")[0] for label in labels_of(run, names[0])]
    unknown = [s for s in sites if s not in plain and s not in titles]
    if unknown:
        few = ", ".join(titles[:8]) + ", …" * (len(titles) > 8)
        every = run[names[0]]["guide"].sizes["coordinate"]
        if every > len(plain):
            raise ValueError(
                f"the way of {unknown[0]} was not recorded; choose two of the {len(plain)} of "
                f"{every} coordinates that were, {few}, or run again and name it by --quantity"
            )
        raise ValueError(f"there is no {unknown[0]}; choose two of {few}")
    if len(sites) != min(2, len(plain)):
        raise ValueError(f"choose {min(2, len(plain))} of the coordinates, not {len(sites)}")
    return [plain.index(s) if s in plain else titles.index(s) for s in sites]


def plane_stage(run, panels, ways, which, start) -> None:
    """The target's contours in every panel, and limits that hold them and the guides."""
    target = target_on(run, which)
    seen = []
    if target is not None:
        *axes, log_p = target
        levels = density_levels(log_p, MASSES)
        inside = np.nonzero(log_p >= levels[0])
        seen.append(np.stack([x[i] for x, i in zip(axes, inside, strict=True)], -1))
    for way in ways.values():
        moments = [total_moments(way, i) for i in which]
        for side in (-2, 2):
            seen.append(np.stack([m[:, start] + side * s[:, start] for m, s in moments], -1))
    seen = np.concatenate(seen)
    low, high = seen.min(0), seen.max(0)
    margin = 0.05 * (high - low)
    labels = labels_of(run, next(iter(ways)))
    for ax in panels:
        if target is not None:
            contours(ax, axes, log_p, levels)
        ax.set(xlim=(low[0] - margin[0], high[0] + margin[0]))
        ax.set(ylim=(low[1] - margin[1], high[1] + margin[1]))
        ax.set_xlabel(labels[which[0]])
    panels[0].set_ylabel(labels[which[1]])


def one_scale(ax: Axes) -> None:
    """Widen limits until both axes have one scale, unless that leaves the panel all but empty."""
    box = ax.get_window_extent()
    limits = np.array([ax.get_xlim(), ax.get_ylim()])
    scales = np.diff(limits).ravel() / (box.width, box.height)
    if not 0.3 < scales[0] / scales[1] < 3.3:
        return
    half = 0.5 * scales.max() * np.array([box.width, box.height])
    centre = limits.mean(1)
    ax.set(
        xlim=centre[0] + half[0] * np.array([-1, 1]), ylim=centre[1] + half[1] * np.array([-1, 1])
    )


def target_on(run: xr.DataTree, which: Sequence[int]):
    """Two axes and log p over them: the target's own, or of the reference's draws; else None."""
    if landscape_dim(run) == 2:
        grid = run["landscape"]["log_p"]
        log_p = grid.values.T if list(which) == [1, 0] else grid.values
        return *(grid[grid.dims[i]].values for i in which), log_p
    if "reference" not in run.children or "unconstrained" not in run["reference"].children:
        return None
    points = run["reference"]["unconstrained"]["points"].values
    columns = [points[:, i] for i in which]
    limits = tuple(tuple(np.quantile(c, [0.0005, 0.9995])) for c in columns)
    *axes, density = joint_density(*columns, limits)
    return *axes, np.log(np.maximum(density, 1e-300))


def line_stage(run, panels, ways, which, start) -> None:
    """The target's density in every panel, and limits that hold it and the guides."""
    moments = [total_moments(way, 0) for way in ways.values()]
    ends = [np.concatenate([m[:, start] - 2 * s[:, start] for m, s in moments]).min()]
    ends += [np.concatenate([m[:, start] + 2 * s[:, start] for m, s in moments]).max()]
    top = 0.0
    if landscape_dim(run) == 1:
        x, density = target_density(run["landscape"]["log_p"], 0)
        inside = x[density > 1e-3 * density.max()]
        ends, top = [min(ends[0], inside[0]), max(ends[1], inside[-1])], density.max()
    narrow = max(1 / (np.sqrt(2 * np.pi) * s[-1, start]) for _, s in moments)
    for ax in panels:
        if landscape_dim(run) == 1:
            ax.fill_between(x, density, color=shade(0.35), linewidth=0)
            ax.plot(x, density, color=COLOURS["target"], linewidth=0.8)
        ax.set(xlim=ends, ylim=(0, 1.15 * max(top, narrow)), yticks=[])
        ax.set_xlabel(labels_of(run, next(iter(ways)))[0])


# What moves.


def guides_of(ax: Axes, way: xr.Dataset, which, look: Look, start: int):
    """The marks of every start in one panel, and what moves them to a frame."""
    order = [s for s in range(way.sizes["start"]) if s != start] + [start]
    draw = ellipses if len(which) == 2 else curves
    made = [draw(ax, way, which, look, s, s == start) for s in order]
    means = np.stack([total_moments(way, i)[0][:, start] for i in which], -1)
    height = [0.0] * (2 - len(which))
    (cross,) = ax.plot([], [], "x", color=CROSS, markersize=9, path_effects=[HALO], zorder=6)
    cross.set_clip_on(len(which) == 2)

    def move(k):
        for _, each in made:
            each(k)
        cross.set_data(*[[v] for v in (*means[k], *height)])

    return [a for artists, _ in made for a in artists] + [cross], move


def ellipses(ax: Axes, way: xr.Dataset, which, look: Look, start: int, strong: bool):
    """The 2σ ellipse of each component of one start."""
    mean = way["mean"].values[:, start][..., which]
    covariance = way["covariance"].values[:, start][..., which, :][..., which]
    sizes, angles = half_axes(covariance)
    style = {"linewidth": 2.2 if strong else 1.0, "alpha": 1.0 if strong else FAINT}
    style |= {"fill": False, "edgecolor": look.color, "linestyle": look.linestyle}
    patches = [ax.add_patch(Ellipse((0, 0), 1, 1, **style)) for _ in range(mean.shape[1])]

    def move(k):
        for j, patch in enumerate(patches):
            patch.set(center=mean[k, j], angle=angles[k, j])
            patch.set(width=2 * sizes[k, j, 0], height=2 * sizes[k, j, 1])

    return patches, move


def curves(ax: Axes, way: xr.Dataset, which, look: Look, start: int, strong: bool):
    """The density of one start's guide on a line."""
    mean, mass = way["mean"].values[:, start, :, 0], way["mass"].values[:, start]
    sd = np.sqrt(way["covariance"].values[:, start, :, 0, 0])
    x = np.linspace(*ax.get_xlim(), POINTS)
    style = {"linewidth": 2.2 if strong else 1.0, "alpha": 1.0 if strong else FAINT}
    (line,) = ax.plot(x, x * 0, color=look.color, linestyle=look.linestyle, **style)

    def move(k):
        z = (x - mean[k][:, None]) / sd[k][:, None]
        scale = mass[k] / (sd[k] * np.sqrt(2 * np.pi))
        line.set_ydata(scale @ np.exp(-0.5 * z**2))

    return [line], move


def falling(ax: Axes, way: xr.Dataset, look: Look, start: int):
    """How far the divergence has fallen: the whole curve quietly, what is past strongly."""
    steps, values = way["step"].values, way["divergence"].values
    if values.min() > 0:
        values = np.maximum(values, FLOOR)
        ax.plot(steps, values, color=look.color, linewidth=0.6, alpha=FAINT)
        logarithmic(ax.yaxis)
        ax.yaxis.set_major_locator(LogLocator(numticks=4))
    else:
        ax.plot(steps, values, color=look.color, linewidth=0.6, alpha=FAINT)
    ax.set(xlim=(0, steps[-1]), xlabel="step of Adam")
    (past,) = ax.plot([], [], color=look.color, linewidth=2.0)
    (now,) = ax.plot([], [], "o", color=look.color, markersize=5, clip_on=False)
    words = ax.text(0.98, 0.86, "", transform=ax.transAxes, ha="right", va="top", fontsize=9)

    def move(k):
        past.set_data(steps[: k + 1], values[: k + 1, start])
        now.set_data([steps[k]], [values[k, start]])
        words.set_text(f"step {steps[k]:,}: {number(float(values[k, start]), 3)} nats")

    return [past, now, words], move


# From a scene to a file.


def rendered(scene: Scene, hold: int) -> Iterator[np.ndarray]:
    """Every frame as RGBA (height, width, 4), the last one some times over."""
    canvas = scene.figure.canvas
    canvas.draw()
    still = canvas.copy_from_bbox(scene.figure.bbox)
    for k in range(scene.frames):
        canvas.restore_region(still)
        scene.move(k)
        for artist in scene.moving:
            artist.axes.draw_artist(artist)
        picture = np.array(canvas.buffer_rgba())
        yield picture
    yield from repeat(picture, hold)


def to_mp4(pictures: Iterator[np.ndarray], path: Path, fps: int) -> None:
    """Through ffmpeg: H.264 of even sides, as browsers play it."""
    first = next(pictures)
    high, wide = first.shape[:2]
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgba"]
    command += ["-s", f"{wide}x{high}", "-r", str(fps), "-i", "-", "-an", "-c:v", "libx264"]
    command += ["-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-pix_fmt", "yuv420p"]
    command += ["-crf", "20", "-preset", "veryfast", "-movflags", "+faststart", str(path)]
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said) as ffmpeg:
            try:
                for picture in chain([first], pictures):
                    ffmpeg.stdin.write(picture.tobytes())
            except BrokenPipeError:  # why, it has said
                pass
        if ffmpeg.returncode:
            said.seek(0)
            words = " ".join(said.read().decode(errors="replace").split())
            raise ValueError(f"ffmpeg failed: {words[:200]}; choose gif or webp")


def to_pillow(pictures: Iterator[np.ndarray], path: Path, fps: int) -> None:
    """Through Pillow, for ever around."""
    frames = [Image.fromarray(p[..., :3]) for p in pictures]
    options = {"save_all": True, "duration": round(1000 / fps), "loop": 0}
    if path.suffix == ".gif":
        frames = in_palette(frames)
        options |= {"transparency": TRANSPARENT, "disposal": 1, "optimize": False}
    else:
        options |= {"quality": 80, "method": 0, "kmax": 0}  # a loop needs no key frames to seek
    frames[0].save(path, append_images=frames[1:], **options)


def in_palette(frames: list[Image.Image]) -> list[Image.Image]:
    """The frames in one palette, transparent where they are as the one before.

    Pillow would do that, and take twice as long over it.
    """
    both = np.concatenate([np.asarray(frames[len(frames) // 3]), np.asarray(frames[-1])])
    palette = Image.fromarray(both).quantize(TRANSPARENT)
    before, found = None, []
    for frame in frames:
        index = np.asarray(frame.quantize(palette=palette, dither=Image.Dither.NONE))
        changed = index if before is None else np.where(index == before, TRANSPARENT, index)
        found.append(Image.fromarray(changed.astype(np.uint8), "L"))
        found[-1].putpalette([*palette.getpalette()[: 3 * TRANSPARENT], *[255] * 3])
        before = index
    return found
