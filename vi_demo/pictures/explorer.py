"""The explorer: a Gaussian q over a target p, to be dragged, on a page of its own.

`explorer.js` computes and draws, `explorer_panels.html` says what is read and set; here they are
put in a page that needs no other file and no network, with the density of a saved run where there
is one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
import xarray as xr

from vi_demo.pictures import contents

HERE = Path(__file__).parent
MODULE = HERE / "explorer.js"
TITLE = "Two directions of KL"
BINS = 400  # of draws on a line
PROBABLE = {1: 2e-3, 2: 1e-3}  # of the peak: below that draws are too few to tell a density
DEEPEST = 300.0  # nats below the peak: what lies lower weighs nothing
DIGITS = 5  # of a log density
FLATTEST = 1e-12  # share of the larger variance of an ellipse

# Where the page begins, but for the density and the fits of a run.
START = {
    "target": "mixture",
    "modes": 3,
    "spread": 3,
    "decay": 0.55,
    "width": 0.5,
    "mu": 0.8,
    "sigma": 1.2,
    "alpha": 0.3,
    "shown": dict.fromkeys(("forward_kl", "reverse_kl"), True)
    | dict.fromkeys(("jensen_shannon", "total_variation"), False),
    "way": {"rate": 0.1, "draws": 0, "natural": True},
    "plane": {"target": "bimodal", "m": [1.5, 0.5], "s": [1.6, 0.9], "angle": 0.5},
}
# What is copied as Python; names in angle brackets are filled in by the page.
PRINTED = """import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpyro.distributions as dist
from vi_demo.divergences import exact, generators

log_p = {log_p}
q = {q}
for name in ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation"):
    value = exact.quadrature(getattr(generators, name), log_p, q.log_prob, dim={dim}).value
    print(f"{{name:<16}} {{value:.6g}}")
"""
PLANE = {
    "bimodal": """lambda x: (
    jnp.logaddexp(-0.5 * (x[0] + 4) ** 2, -0.5 * (x[0] - 4) ** 2)
    - 0.5 * x[1] ** 2
    - jnp.log(4 * jnp.pi)
)""",
    "banana": """lambda x: (
    dist.Normal(0, 1).log_prob(x[0]) + dist.Normal(2 * (x[0] ** 2 - 1), 0.5).log_prob(x[1])
)""",
    "funnel": """lambda x: (
    dist.Normal(0, 1.5).log_prob(x[1])
    + dist.Normal(0, jnp.exp(jnp.clip(x[1], -60, 60) / 2)).log_prob(x[0])
)""",
    # Less the logarithm of its mass.
    "ring": "lambda x: -0.5 * ((jnp.sqrt(x @ x) - 3) / 0.6) ** 2 - 3.3446022752084676",
}
GAUSSIAN = "dist.MultivariateNormal(jnp.array(<mean>), jnp.array(<covariance>))"
MIXTURE = """dist.MixtureSameFamily(
    dist.CategoricalProbs(jnp.array(<weights>)),
    dist.Normal(jnp.array(<means>), <width>),
).log_prob"""
SCRIPTS = {
    "mixture": PRINTED.format(log_p=MIXTURE, q="dist.Normal(<mu>, <sigma>)", dim=1),
    **{name: PRINTED.format(log_p=log_p, q=GAUSSIAN, dim=2) for name, log_p in PLANE.items()},
    "own": """import vi_demo
from vi_demo.pictures import explorer

run = vi_demo.load(<folder>)
data = explorer.tabulated(run, <sites>)
for name, value in explorer.readouts(data, <mean>, <covariance>).items():
    print(f"{name:<16} {value:.6g}")
""",
}


def page(run: xr.DataTree | None = None, sites: Sequence[str] = (), folder: str = "") -> str:
    """The explorer as one HTML page; of a run, with its density and both of its fits."""
    data = None if run is None else tabulated(run, sites, folder)
    title = TITLE if data is None else f"{data['name']}: t{TITLE[1:]}"
    return filled(title, {"page": True, "data": data, "text": text(data, page=True)})


def filled(title: str, values: dict) -> str:
    """The page with its module, and what a widget's model would hold of it."""
    # Within a script only its own end tag could end it.
    held = json.dumps(values, allow_nan=False).replace("<", "\\u003c")
    style = (HERE / "explorer.css").read_text(encoding="utf-8")
    module = MODULE.read_text(encoding="utf-8")
    return template("explorer.html").render(title=title, style=style, module=module, values=held)


def text(data: dict | None, page: bool = False) -> dict:
    """What the module shows, copies and begins at: panels as HTML, scripts with holes, a state."""
    panels = template("explorer_panels.html").render(data=data or {}, page=page)
    return {"panels": panels, "scripts": SCRIPTS, "state": begun(data)}


def template(name: str) -> jinja2.Template:
    """A file with its holes; what fills one is escaped unless it is called safe."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.from_string((HERE / name).read_text(encoding="utf-8"))


def begun(data: dict | None) -> dict:
    """The state that the page begins at: of a run, at its reverse KL fit or any other."""
    state = json.loads(json.dumps(START))
    fits = data["fits"] if data else {}
    fit = fits.get("reverse_kl") or next(iter(fits.values()), None)
    plane = state["plane"]
    if data and "line" in data:
        state["target"] = "own"
        if fit:
            state |= {"mu": fit["mean"][0], "sigma": fit["covariance"][0][0] ** 0.5}
    elif data:
        plane["target"] = "own"
        if fit:
            plane |= ellipse(**fit)
    return state


def ellipse(mean: list, covariance: list) -> dict:
    """Half axes of one sd, longest first, and the angle of the first; of a line it has a width."""
    (xx, xy), (_, yy) = covariance
    variances = np.linalg.eigvalsh(covariance)[::-1]
    sds = np.sqrt(np.maximum(variances, FLATTEST * variances[0]))
    return {"m": mean, "s": sds.tolist(), "angle": float(np.arctan2(2 * xy, xx - yy) / 2)}


def held(state: dict) -> dict:
    """What a widget holds of q in such a state."""
    plane = state["plane"]
    c, s = np.cos(plane["angle"]), np.sin(plane["angle"])
    axes = np.array([[c, -s], [s, c]]) * plane["s"]
    covariance = (axes @ axes.T).tolist()
    return {k: state[k] for k in ("mu", "sigma")} | {"mean": plane["m"], "covariance": covariance}


# The density of a run.


def tabulated(run: xr.DataTree, sites: Sequence[str] = (), folder: str = "") -> dict:
    """Log p of one or two coordinates of a run on a grid, and where its fits are.

    Of a target of one or two dimensions all of it, on R^d where fits live; of a larger one the
    smoothed draws of the reference for `sites`, such as theta[3], or else the two in which the
    fits are furthest off. Raises `ValueError` with what is wrong.
    """
    name = json.loads(run.attrs["summary"])["model"]["name"]
    whole = contents.landscape_dim(run) in (1, 2) and not sites
    found = of_landscape(run) if whole else of_draws(run, chosen(run, sites))
    return {"name": name, "folder": folder or f"runs/{name}", "sites": list(sites), **found}


def of_landscape(run: xr.DataTree) -> dict:
    """The density that was saved with a run of one or two dimensions, and the guides."""
    log_p = run["landscape"]["log_p"]
    axes = [log_p[dim].values for dim in log_p.dims]
    moments = {name: contents.moments(run, name) for name in contents.fit_names(run)}
    fits = {name: placed(*found) for name, found in moments.items() if found is not None}
    names = contents.axis_labels(run)
    return {"names": names, "fits": fits, **on_grid(names, axes, log_p.values)}


def chosen(run: xr.DataTree, sites: Sequence[str]) -> list[contents.Coordinate]:
    """The coordinates of these names, or else the two that fits miss by most."""
    if not sites:
        return contents.most_different(run)[:2]
    known = {c.plain: c for c in contents.coordinates(run)}
    known |= {c.title: c for c in known.values()}
    missing = [site for site in sites if site not in known]
    if missing:
        some = ", ".join(list(known)[:8])
        raise ValueError(f"it has no coordinate {missing[0]}; it has {some}")
    if len(set(sites)) not in (1, 2):
        raise ValueError("one or two coordinates can be explored at a time")
    return [known[site] for site in dict.fromkeys(sites)]


def of_draws(run: xr.DataTree, coordinates: list[contents.Coordinate]) -> dict:
    """The smoothed density of the reference's draws and each fit's moments, on their own scale."""
    if "reference" not in run.children or "posterior" not in run["reference"].children:
        raise ValueError("it has no reference to take a density from; make the run with one")
    draws = jointly(run, "reference", coordinates)
    if not len(draws) or (np.ptp(draws, axis=0) == 0).any():
        raise ValueError(f"{coordinates[0].title} does not vary, so it has no density")
    names = [c.title for c in coordinates]
    each = {name: jointly(run, name, coordinates) for name in contents.fit_names(run)}
    fits = {name: placed(d.mean(0), np.cov(d.T)) for name, d in each.items() if len(d) > 1}
    return {"names": names, "fits": fits, **on_grid(names, *smoothed(draws))}


def jointly(run: xr.DataTree, group: str, coordinates: list) -> np.ndarray:
    """Draws (S, d) of some coordinates together, those that are finite."""
    columns = []
    for c in coordinates:
        values = run[group]["posterior"][c.site].transpose("chain", "draw", ...).values
        columns.append(values[(slice(None), slice(None), *c.index)].ravel().astype(float))
    draws = np.stack(columns, axis=-1)
    return draws[np.isfinite(draws).all(1)]


def placed(mean, covariance) -> dict:
    """A fit as the page takes it."""
    covariance = np.atleast_2d(covariance)
    return {"mean": np.atleast_1d(mean).tolist(), "covariance": covariance.tolist()}


def smoothed(draws: np.ndarray) -> tuple[list, np.ndarray]:
    """A kernel density of draws (S, d): its axes and the logarithm of its values."""
    dim = draws.shape[1]
    *axes, density = on_line(draws[:, 0]) if dim == 1 else on_plane(draws)
    density /= density.max()
    for i in range(dim):  # ends that hold next to nothing are left to the tails
        others = tuple(k for k in range(dim) if k != i)
        kept = np.flatnonzero(density.max(axis=others) > PROBABLE[dim])
        inside = slice(max(kept[0] - 1, 0), kept[-1] + 2)
        density = np.take(density, range(*inside.indices(len(axes[i]))), axis=i)
        axes[i] = axes[i][inside]
    return axes, np.log(np.maximum(density, PROBABLE[dim] / 30))


def on_line(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kernel density of draws (S,): points and values, beyond the outermost draws too.

    An edge of the support is not drawn as one, for the page goes on from the last point.
    """
    width = 1.06 * contents.peak_sd(np.sort(draws)) * draws.size**-0.2
    low, high = draws.min() - 3 * width, draws.max() + 3 * width
    counts, edges = np.histogram(draws, bins=BINS, range=(low, high))
    middles = (edges[1:] + edges[:-1]) / 2
    kernel = np.exp(-0.5 * ((middles - middles[:, None]) / width) ** 2)
    return middles, kernel @ counts


def on_plane(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A kernel density of draws (S, 2): two axes and values. Raises `ValueError` of too few."""
    from vi_demo.pictures import pairs  # it draws, and few pages need it

    found = pairs.joint_density(*draws.T, [contents.view([column]) for column in draws.T])
    if found is None:
        raise ValueError("its reference has too few draws to take a density from")
    return found


def on_grid(names: list[str], axes: list[np.ndarray], log_p: np.ndarray) -> dict:
    """A table as the page takes it: of a line with its tails, or of a plane."""
    log_p = np.where(np.isfinite(log_p), log_p, -np.inf)
    log_p = np.maximum(log_p - log_p.max(), -DEEPEST).round(DIGITS)
    mass = np.exp(log_p)
    each = range(log_p.ndim)
    sds = [spread(axes[i], mass.sum(tuple(k for k in each if k != i))) for i in each]
    if log_p.ndim == 2:
        x, y = (a.tolist() for a in axes)
        return {"plane": {"label": names, "x": x, "y": y, "logp": log_p.tolist(), "sd": sds}}
    (x,), (sd,) = axes, sds
    step = float(x[1] - x[0])
    tails = [tail(log_p[::-1], step, sd), tail(log_p, step, sd)]
    table = {"start": float(x[0]), "step": step, "logp": log_p.tolist(), "tails": tails}
    return {"line": table | {"starts": peaks(x, log_p)}}


def peaks(x: np.ndarray, log_p: np.ndarray) -> list:
    """Places and sds of Gaussians with the curvature that a log density has at its peaks."""
    at = 1 + np.flatnonzero((log_p[:-2] < log_p[1:-1]) & (log_p[1:-1] >= log_p[2:]))
    at = at[np.argsort(-log_p[at])][:8]
    curvature = (2 * log_p[at] - log_p[at - 1] - log_p[at + 1]) / (x[1] - x[0]) ** 2
    return np.stack([x[at], curvature**-0.5], axis=1).tolist()


def spread(x: np.ndarray, mass: np.ndarray) -> float:
    """The sd of points with masses."""
    mass = mass / mass.sum()
    return float(np.sqrt(mass @ (x - mass @ x) ** 2))


def tail(log_p: np.ndarray, step: float, sd: float) -> list[float]:
    """Slope and curvature with which a log density goes on beyond its last point."""
    slope = (3 * log_p[-1] - 4 * log_p[-2] + log_p[-3]) / (2 * step)
    curvature = (log_p[-1] - 2 * log_p[-2] + log_p[-3]) / step**2
    return [min(float(slope), 0.0), min(float(curvature), -0.1 / sd**2)]


# The same numbers in Python.


def readouts(data: dict, mean, covariance) -> dict[str, float]:
    """The four readouts of q = N(mean, covariance) on a tabulated density, by quadrature."""
    mean, covariance = np.atleast_1d(mean).astype(float), np.atleast_2d(covariance).astype(float)
    log_of, points, weights = (line if len(mean) == 1 else plane)(data)
    log_p = log_of(points)
    total = np.log(weights @ np.exp(log_p))
    log_p, mass = log_p - total, weights * np.exp(log_p - total)
    factor = np.linalg.cholesky(covariance)
    half = np.linspace(-9, 9, {1: 40001, 2: 241}[len(mean)])
    z = np.stack(np.meshgrid(*[half] * len(mean), indexing="ij"), -1).reshape(-1, len(mean))
    masses = np.exp(-0.5 * (z**2).sum(1))
    masses /= masses.sum()

    def log_q(x):
        white = np.linalg.solve(factor, (x - mean).T)
        constant = 0.5 * len(mean) * np.log(2 * np.pi) + np.log(np.diag(factor)).sum()
        return -constant - 0.5 * (white**2).sum(0)

    of_p = log_p - log_q(points)
    there = mean + z @ factor.T
    of_q = log_of(there) - total - log_q(there)

    def both(h):  # a mean over ½(p + q): half over p and half over q
        return float(mass @ h(of_p) + masses @ h(of_q)) / 2

    def jensen_shannon(r):
        small = np.exp(-np.abs(r))
        return np.log(2) - np.log1p(small) - small / (1 + small) * np.abs(r)

    return {
        "forward_kl": float(mass @ of_p),
        "reverse_kl": float(-(masses @ of_q)),
        "jensen_shannon": both(jensen_shannon),
        "total_variation": both(lambda r: np.abs(np.tanh(r / 2))),
    }


def line(data: dict):
    """Of a table on a line: its log density, and points (n, 1) with weights."""
    table = data["line"]
    start, step, values = table["start"], table["step"], np.array(table["logp"])
    end = start + step * (len(values) - 1)

    def log_of(x):
        x = x[:, 0]
        inside = cubic(values, (np.clip(x, start, end) - start) / step)
        (s0, c0), (s1, c1) = table["tails"]
        below, above = np.maximum(start - x, 0), np.maximum(x - end, 0)
        return inside + s0 * below + c0 * below**2 / 2 + s1 * above + c1 * above**2 / 2

    reach = [(np.sqrt(s * s - 90 * c) + s) / -c for s, c in table["tails"]]
    x = np.linspace(start - reach[0], end + reach[1], 200_001)
    return log_of, x[:, None], np.full(x.size, x[1] - x[0])


def plane(data: dict):
    """Of a table on a plane: its log density, and points (n, 2) with weights."""
    table = data["plane"]
    axes, values = [np.array(table[k]) for k in "xy"], np.array(table["logp"])
    steps, sds = np.array([a[1] - a[0] for a in axes]), np.array(table["sd"])
    low, high = (np.array([a[i] for a in axes]) for i in (0, -1))

    def log_of(x):
        near = np.clip(x, low, high)
        u, v = ((near - low) / steps).T
        i = np.minimum(u.astype(int), len(axes[0]) - 2)
        rows = [cubic(values[np.clip(i + k, 0, len(axes[0]) - 1)], v) for k in (-1, 0, 1, 2)]
        away = np.abs(x - near)
        fall = (away * (high - low) / 2 + away**2 / 2) / sds**2
        return blended(rows, u - i) - fall.sum(1)

    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    return log_of, points, np.full(len(points), steps.prod())


def cubic(values: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Values at even places (n,), or one row of them a point (m, n), looked up between them."""
    n = values.shape[-1]
    i = np.minimum(u.astype(int), n - 2)
    rows = np.arange(len(u))
    near = [np.clip(i + k, 0, n - 1) for k in (-1, 0, 1, 2)]
    return blended([values[j] if values.ndim == 1 else values[rows, j] for j in near], u - i)


def blended(near: list, t: np.ndarray) -> np.ndarray:
    """Catmull and Rom's cubic through the middle two of four values."""
    a, b, c, d = near
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
