"""A run as an ArviZ DataTree and as `summary.json`: one sub-tree a fit, and all its figures.

/                      attrs: schema, summary (the text of summary.json)
/<fit>                 posterior, sample_stats (log_p, log_q, log_weights), log_likelihood,
                       observed_data, as ArviZ's functions take them
/<fit>/guide           the parameters of the fitted guide; its mean and covariance on R^d;
                       attrs: family, sites (shape and support of each, as JSON)
/<fit>/history         the way there: one row a recorded step
/<fit>/restarts        every start's result
/<fit>/descent         the way down of a few starts in common with the other fits, to be watched
/corrected             posterior draws that the last rung of the ladder made, of equal weight;
                       its guide, if it has one
/reference             posterior draws, sample_stats; modes; unconstrained, the draws on R^d in
                       the coordinates of the descents, where a film of more than two is asked for
/parameters            of the model, numpyro.param sites, as they were learned
/path                  local optima along alpha from reverse to forward KL, a branch each
/landscape             log p on a grid, for targets of one or two dimensions
/kl_landscape          both KLs over a Gaussian's mean and log sd, for targets of one
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import arviz_base as azb
import jax
import numpy as np
import xarray as xr

from vi_demo.correction import Rung
from vi_demo.diagnostics import Figures
from vi_demo.divergences.estimators import Estimate
from vi_demo.divergences.generators import F_DIVERGENCES
from vi_demo.draws import stored
from vi_demo.fitting.descent import Descent
from vi_demo.fitting.path import Path
from vi_demo.fitting.runner import Fit
from vi_demo.guides import covariance_of
from vi_demo.reference import Reference
from vi_demo.target import Target
from vi_demo.verdict import Verdict

DIVERGENCES = [f.__name__ for f in F_DIVERGENCES]
MOST_LIKELIHOOD_TERMS = 20_000_000  # draws × rows kept; more would fill the disk
MOST_OBSERVED = 1_000_000  # numbers
MOST_COVARIANCE = 200  # dimensions up to which a guide's covariance is kept
STRONG = 0.5  # a correlation beyond this is told
MOST_CORRELATIONS = 20


def draws_groups(target: Target, points: np.ndarray) -> dict[str, dict]:
    """Posterior, log likelihood and observed data of draws (S, d), as one chain."""
    as_chain = lambda tree: {stored(k): np.asarray(v)[None] for k, v in tree.items()}  # noqa: E731
    values = target.constrain_all(points)
    if target.discrete is not None:
        values |= target.discrete_draws(jax.random.key(0), points)
    groups = {"posterior": as_chain(values)}
    rows = sum(np.size(v) for v in target.observed.values())
    if target.log_likelihood and rows and len(points) * rows <= MOST_LIKELIHOOD_TERMS:
        terms = target.log_likelihoods(points)
        groups["log_likelihood"] = as_chain({k: np.asarray(v, "f4") for k, v in terms.items()})
    return groups


def with_labels(target: Target, groups: dict[str, dict]) -> xr.DataTree:
    """ArviZ's tree of these groups, with the model's coordinates and dimensions."""
    labels = {"coords": target.coords, "dims": {stored(k): v for k, v in target.dims.items()}}
    tree = azb.from_dict(groups, **labels)
    observed = {stored(k): v for k, v in target.observed.items()}
    if observed and sum(v.size for v in observed.values()) <= MOST_OBSERVED:
        group = azb.from_dict({"observed_data": observed}, **labels)
        tree["observed_data"] = group["observed_data"]
    return tree


def fit_tree(target: Target, fit: Fit, figures: Figures, draws: int) -> xr.DataTree:
    """The sub-tree of one fit."""
    points = figures.points[:draws]
    groups = draws_groups(target, points)
    stats = {"log_q": figures.log_q[:draws]}
    if figures.log_p is not None:
        stats |= {"log_p": figures.log_p[:draws]}
        stats["log_weights"] = stats["log_p"] - stats["log_q"]
    groups["sample_stats"] = {k: v[None] for k, v in stats.items()}
    tree = with_labels(target, groups)
    tree["guide"] = guide_group(target, fit)
    tree["history"] = xr.DataTree(history(fit))
    if fit.restarts:
        rows = {k: (("restart", *unnamed(k, v[0])[0]), v) for k, v in fit.restarts.items()}
        tree["restarts"] = xr.DataTree(xr.Dataset(rows, attrs={"best": fit.best}))
    tree.attrs |= {"divergence": fit.divergence, "fitter": fit.fitter, "status": fit.status}
    return tree


def guide_group(target: Target, fit: Fit) -> xr.DataTree:
    """The parameters of a guide, with its mean and covariance on R^d."""
    guide = {k: unnamed(k, v) for k, v in flat(fit.params).items()}
    if target.dim <= MOST_COVARIANCE:
        q = fit.guide
        covariance = covariance_of(q)
        guide["mean"] = ("coordinate", np.asarray(q.mean))
        guide["covariance"] = (("coordinate", "coordinate_2"), np.asarray(covariance))
    if target.linear is not None:
        guide |= {f"linear_{k}": unnamed(k, v) for k, v in target.linear._asdict().items()}
    names = dict.fromkeys(("coordinate", "coordinate_2"), target.coordinate_names)
    attrs = {"family": fit.family.name, "sites": json.dumps(sites_described(target))}
    return xr.DataTree(xr.Dataset(guide, coords=names, attrs=attrs))


def sites_described(target: Target) -> dict[str, dict]:
    """What the way from R^d to each site is made of: its shape and its support."""
    known = target.supports()
    return {
        stored(k): {"shape": list(shape), "support": known.get(k)}
        for k, shape in target.sites.items()
    }


def flat(params: Mapping) -> dict[str, np.ndarray]:
    """Parameters by one name each: those within others, of a network's layers say, `a.kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(params))
    return {path_name(path): value for path, value in leaves}


def path_name(path) -> str:
    """The name of a parameter within others, which a file can hold."""
    return stored(jax.tree_util.keystr(path, simple=True, separator="."))


def unnamed(name: str, values) -> tuple[list[str], np.ndarray]:
    """An array with dimensions of its own name, for xarray."""
    values = np.asarray(values)
    return [f"{name}_dim_{i}" for i in range(values.ndim)], values


def history(fit: Fit) -> xr.Dataset:
    """The path of a fit: scalars of every restart, parameters of the best alone."""
    rows = {}
    for name, values in fit.history.items():
        own = (
            ["restart"] if fit.restarts and name not in fit.params else unnamed(name, values[0])[0]
        )
        rows[name] = (("step", *own), values)
    return xr.Dataset(rows)


def descent_tree(target: Target, way: Descent) -> xr.DataTree:
    """The guides on a way down, by the moments of their components on R^d."""
    dims = ("frame", "start", "component", "coordinate")
    rows = {
        "step": ("frame", way.steps),
        "mean": (dims, way.mean),
        "covariance": ((*dims, "coordinate_2"), np.asarray(way.covariance, "f4")),
        "mass": (dims[:3], way.mass),
        "divergence": (dims[:2], way.divergence),
    }
    names = [target.coordinate_names[i] for i in way.coordinates]
    coords = dict.fromkeys(("coordinate", "coordinate_2"), names)
    return xr.DataTree(xr.Dataset(rows, coords=coords))


def unconstrained_tree(target: Target, points: np.ndarray, kept: np.ndarray) -> xr.DataTree:
    """Some coordinates of the reference's draws (S, d) on R^d, where the guides live."""
    names = {"coordinate": [target.coordinate_names[i] for i in kept]}
    rows = {"points": (("draw", "coordinate"), np.asarray(points[:, kept], "f4"))}
    return xr.DataTree(xr.Dataset(rows, coords=names))


def reference_tree(target: Target, reference: Reference, points: np.ndarray) -> xr.DataTree:
    """The sub-tree of the reference, of draws (S, d) of equal weight."""
    groups = draws_groups(target, points)
    if target.log_density is not None:
        groups["sample_stats"] = {"log_p": target.log_densities(points)[None]}
    tree = with_labels(target, groups)
    if reference.modes is not None:
        modes = reference.modes
        tree["modes"] = xr.DataTree(
            xr.Dataset(
                {
                    "location": (("mode", "coordinate"), modes.locations),
                    "log_density": ("mode", modes.log_density),
                    "mass": ("mode", [m.value for m in modes.masses]),
                    "mass_mcse": ("mode", [m.mcse for m in modes.masses]),
                },
                coords={"coordinate": target.coordinate_names},
            )
        )
    tree.attrs |= {"method": reference.method, "trusted": int(reference.trusted)}
    return tree


def parameters_tree(target: Target) -> xr.DataTree:
    """The model's learned parameters on its own scale."""
    return xr.DataTree(xr.Dataset({k: unnamed(k, v) for k, v in flat(target.learned).items()}))


def path_tree(target: Target, path: Path) -> xr.DataTree:
    """The branches of local optima along alpha."""
    by_branch = {"mean": path.mean, "sd": path.sd}
    rows = {k: (("branch", "alpha", "coordinate"), v) for k, v in by_branch.items()}
    rows |= {k: (("branch", "alpha", *unnamed(k, v[0, 0])[0]), v) for k, v in path.params.items()}
    rows |= {
        "divergence": (("branch", "alpha"), path.divergence),
        "begins": ("branch", path.begins),
        "best": ("alpha", path.best),
    }
    coords = {"alpha": path.alpha, "coordinate": target.coordinate_names}
    return xr.DataTree(xr.Dataset(rows, coords=coords, attrs={"jumps": str(list(path.jumps))}))


def path_summary(path: Path) -> dict:
    """The entry of a path in `summary.json`: where the best guide jumps, and how good it is."""
    at_best = (path.best, np.arange(len(path.alpha)))
    return {
        "alpha": path.alpha,
        "divergence": path.divergence[at_best],
        "mean": path.mean[at_best],
        "sd": path.sd[at_best],
        "branches": len(path.begins),
        "jumps": list(path.jumps),
    }


def fit_summary(fit: Fit, figures: Figures, verdict: Verdict, quantities: dict) -> dict:
    """The entry of one fit in `summary.json`; `quantities` with their verdicts."""
    reasons = figures.reasons
    entry = {
        "fitter": fit.fitter,
        "status": fit.status,
        "steps": fit.steps,
        "evaluations": fit.evaluations,
        "seconds": fit.seconds,
        "notes": list(fit.notes),
        "measured": fit.measured,
        "elbo": estimate(figures.elbo, reasons, "elbo"),
        "eubo": estimate(figures.eubo, reasons, "eubo"),
        "importance_log_evidence": estimate(
            figures.importance_log_evidence, reasons, "importance_log_evidence", "ess"
        ),
        "divergences": {
            name: estimate(value, reasons, name, "divergences")
            for name, value in (dict.fromkeys(DIVERGENCES) | figures.divergences).items()
        },
        "khat": figures.khat,
        "khat_spread": figures.khat_spread,
        "khat_threshold": figures.khat_threshold,
        "ess": figures.ess,
        "forward_ess": figures.forward_ess,
        "modes_covered": figures.modes_covered,
        "mass_covered": figures.mass_covered,
        "mode_shares": list(figures.mode_shares),
        "sites": figures.sites,
        "quantities": quantities,
    }
    for name in ("khat", "ess", "forward_ess", "modes_covered", "mass_covered", "sites"):
        if name in reasons and (name == "sites" or not entry[name]):
            entry[f"{name}_reason"] = reasons[name]
    return entry | verdict._asdict()


def corrected_tree(target: Target, rung: Rung, draws: int) -> xr.DataTree:
    """The sub-tree of corrected draws, of equal weight, and of their guide where they have one."""
    points = rung.draws(draws)
    groups = draws_groups(target, points)
    groups["sample_stats"] = {"log_p": target.log_densities(points)[None]}
    tree = with_labels(target, groups)
    if rung.judged is not None:
        tree["guide"] = guide_group(target, rung.judged.fit)
    tree.attrs |= {"rung": rung.name, "passes": str(rung.passes)}
    return tree


def correction_summary(rungs: Sequence[Rung]) -> dict:
    """The ladder in `summary.json`: every rung with its error and its cost, and where it ends."""
    last = rungs[-1]
    return {
        "ends": last.name,
        "passes": last.passes,
        "rungs": [rung_summary(rung) for rung in rungs],
    }


def rung_summary(rung: Rung) -> dict:
    """One rung: whether it is right and why, how far off it is, and what it took."""
    figures = rung.figures
    sites = [s for s in figures.sites.values() if f"{rung.sites}sd_ratio" in s]
    worst = {"worst_mean_error_in_sd": None, "worst_sd_ratio": None}
    if sites:
        column = lambda n: np.concatenate([np.ravel(s[rung.sites + n]) for s in sites])  # noqa: E731
        ratios = column("sd_ratio")
        ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
        if ratios.size:
            worst["worst_mean_error_in_sd"] = np.nanmax(column("mean_error_in_sd"))
            worst["worst_sd_ratio"] = ratios[np.abs(np.log(ratios)).argmax()]
    weighted = figures.weighted
    ess = None
    if weighted is not None and rung.sites:
        ess = figures.ess_share * len(weighted.points)
    return {
        "name": rung.name,
        "passes": rung.passes,
        "why": rung.why,
        **worst,
        "divergences": {
            name: estimate(value, figures.reasons, name, "divergences")
            for name, value in figures.divergences.items()
        },
        "khat": figures.khat,
        "ess": ess,
        "log_evidence": estimate(rung.log_evidence, {}, "log_evidence"),
        "evaluations": rung.evaluations,
        "seconds": rung.seconds,
    }


def guide_summary(target: Target, guide: xr.Dataset) -> dict:
    """A guide in a few numbers: mean and sd of each coordinate of R^d, and who goes with whom."""
    if "covariance" not in guide:
        return {}
    mean, covariance = guide["mean"].values, guide["covariance"].values
    sd = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(sd, sd)
    rows, columns = np.tril_indices(len(sd), -1)
    strong = np.argsort(-np.abs(correlation[rows, columns]))[:MOST_CORRELATIONS]
    names = target.coordinates
    pairs = [
        {"between": [names[columns[i]], names[rows[i]]], "value": correlation[rows[i], columns[i]]}
        for i in strong
        if abs(correlation[rows[i], columns[i]]) > STRONG
    ]
    entry = {"family": guide.attrs["family"], "coordinates": names, "mean": mean, "sd": sd}
    return {"guide": entry | {"correlations": pairs}}


def model_summary(target: Target) -> dict:
    """What the target is; of one of draws alone, how many they are and what they are worth."""
    known = {
        "name": target.name,
        "dim": target.dim,
        "sites": target.sites,
        "labels": target.labels,
    }
    if target.draws is None:
        return known
    number = {"number": len(target.draws), "chains": target.chains}
    return known | {"draws": number | {"effective": target.effective_draws}}


def estimate(value: Estimate | None, reasons: Mapping, *names: str) -> dict:
    """A value with its error, or null with the reason."""
    if value is not None:
        return value._asdict()
    reason = next((reasons[n] for n in names if n in reasons), "not measured")
    return {"value": None, "mcse": None, "reason": reason}


def reference_summary(target: Target, reference: Reference) -> dict:
    """The entry of the reference in `summary.json`."""
    entry = {
        "method": reference.method,
        "trusted": reference.trusted,
        "reasons": list(reference.reasons),
        "remarks": list(reference.remarks),
        "log_evidence": estimate(
            reference.log_evidence,
            {"log_evidence": f"{reference.method} gives no log evidence"},
            "log_evidence",
        ),
        "evidence_by": {name: e._asdict() for name, e in reference.routes.items()},
        "evaluations": reference.evaluations,
        "modes": [],
    }
    if reference.modes is not None:
        sites = target.constrain_all(reference.modes.locations)
        entry["modes"] = [
            {
                "mass": mass.value,
                "mcse": mass.mcse,
                "location": {k: sites[k][i] for k in target.sites},
            }
            for i, mass in enumerate(reference.modes.masses)
        ]
    return entry


def to_json(summary: dict) -> str:
    """JSON text in which every number is finite: what is not becomes null."""
    return json.dumps(plain(summary), indent=2, ensure_ascii=False, allow_nan=False)


def plain(value):
    """Arrays and NumPy numbers as lists and Python numbers; not finite ones as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
