"""The main job: a target, a reference, fits in both directions, and what each got wrong."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vi_demo import fitting, guides, loading, record
from vi_demo import reference as references
from vi_demo.diagnostics import measure
from vi_demo.divergences.estimators import resample
from vi_demo.divergences.generators import F_DIVERGENCES, named
from vi_demo.errors import InputError
from vi_demo.fitting import moment_matching, svi
from vi_demo.fitting.path import follow
from vi_demo.fitting.runner import Report, silent
from vi_demo.inputs import as_target
from vi_demo.results import SCHEMA
from vi_demo.target import Target
from vi_demo.verdict import judge

DRAWS = 4_000
LEAST_DRAWS = 100
LEAST_STEPS = 3  # of a path
BUDGET = 60.0  # seconds
PACKAGES = ("vi-demo", "numpyro", "jax", "arviz", "blackjax", "optax", "numpy")


def run(
    model: Target | Callable | str | Path | loading.Loaded,
    data: Mapping | str | Path | None = None,
    *,
    fits: str | Sequence[str] | None = None,
    guide: str | Callable = "full_rank",
    reference: str | Path = "auto",
    seed: int = 0,
    draws: int = DRAWS,
    budget: float = BUDGET,
    path: int | None = None,
    report: Report = silent,
    name: str | None = None,
    coords: dict | None = None,
    dims: dict | None = None,
) -> xr.DataTree:
    """Fit a model under several divergences and measure each fit against a reference.

    `model` is a NumPyro model with `data`, its keyword arguments or a file of them, a `Target`,
    or whatever `vi-demo run` takes, such as a file's path, which may be one of somebody's draws.
    `fits` are both directions of KL unless given, and forward KL of draws. `reference` may be a
    file of trusted draws. `guide` names a family, or is a NumPyro guide of your own for the
    reverse fit, `own` being the one in the model's file. Returns an ArviZ
    DataTree with a sub-tree a fit, `run["reverse_kl"]`, which ArviZ's functions take as it is;
    `summary(run)` gives all figures, in nats. With `path`, the best guide is followed along
    alpha from reverse to forward KL in so many steps, into `run["path"]`. `report(phase, share,
    text)` is called as the work goes on. Raises `InputError` where the input cannot be used.
    """
    fits = (fits,) if isinstance(fits, str) else fits and tuple(fits)
    check_settings(fits or (), reference, draws, budget, path)
    if isinstance(guide, str) and guide != "own":
        guides.family(guide)  # refused now, if there is none of that name
    report("model", 0.0, "reading the model")
    target, own = as_target(model, data, guide, name=name, coords=coords, dims=dims)
    fits = fits or (fitting.DEFAULT if target.log_density is not None else ("forward_kl",))
    refuse(target, own, fits, path)
    given = None if reference in references.METHODS else references.from_file(target, reference)
    family, remarks = family_for(target, guide if own is None else "full_rank")
    key = jax.random.key(seed)
    asked = target
    own_fit, target = first_learned(target, family, own, key, report)
    report("reference", 0.0, "compiling")
    if given is not None and target is asked:
        truth = references.with_modes(target, given)
    else:
        truth = references.build(target, reference, part(key, "reference"), budget, report)
    report("reference", 1.0, truth.method)
    fit_once = each_once(target, family, key, report, own_fit, remarks)
    parts, entries, seen = fitted_and_measured(target, fits, fit_once, truth, key, draws, report)
    if truth.draws is not None:
        points = resample(truth.draws, draws, seed)
        parts["reference"] = record.reference_tree(target, truth, points)
        seen.append(points)
    if target.learned:
        parts["parameters"] = record.parameters_tree(target)
    followed = None
    if path is not None:
        report("path", 0.0, "compiling")
        ends = [fit_once(name) for name in fitting.DEFAULT]
        followed = follow(target, family, *ends, part(key, "path"), path, report)
        parts["path"] = record.path_tree(target, followed)
    if target.dim <= 2 and target.log_density is not None:
        parts["landscape"] = xr.DataTree(record.landscape(target, np.concatenate(seen)))
    settings = {
        "seed": seed,
        "draws": draws,
        "guide": family.name if own is None else "own",
        "reference": str(reference),
        "budget": budget,
        "precision": str(jnp.zeros(()).dtype),
        "versions": versions(),
    }
    tree = xr.DataTree(children=parts)
    summary = {
        "schema": SCHEMA,
        "model": record.model_summary(target),
        "settings": settings,
        "reference": record.reference_summary(target, truth),
        "fits": entries,
        **({"path": record.path_summary(followed)} if followed else {}),
    }
    tree.attrs |= {"schema": SCHEMA, "summary": record.to_json(summary)}
    return tree


def refuse(target: Target, own: Callable | None, fits: Sequence[str], path: int | None) -> None:
    """Refuse what cannot be done to this target before anything is compiled."""
    if path is not None and target.log_density is None:
        raise InputError(f"{target.name}: a path needs a log density; leave --path out for draws.")
    if path is not None and own is not None:
        raise InputError("a path needs a family of guides at both ends; leave --guide own out.")
    for name in fits if path is None else (*fits, *fitting.DEFAULT):
        fitting.objectives.refuse(name, target)


def first_learned(
    target: Target, family: guides.Family, own: Callable | None, key: jax.Array, report: Report
) -> tuple[fitting.Fit | None, Target]:
    """The fit of the user's own guide, if there is one, and the target with what was learned."""
    if own is not None:
        report("reverse_kl", 0.0, "compiling")
        own_key = part(key, "reverse_kl")
        return svi.fit_own(target, target.own_guide(own), own_key, report)
    if target.parameters:
        report("parameters", 0.0, "compiling")
        target = svi.learn(target, family, part(key, "parameters"), report)
    return None, target


def each_once(
    target: Target,
    family: guides.Family,
    key: jax.Array,
    report: Report,
    own_fit: fitting.Fit | None,
    remarks: tuple[str, ...],
) -> Callable[[str], fitting.Fit]:
    """The fit of a name, made when it is first asked for.

    Others than the two directions of KL start from the forward fit and use its draws.
    """
    forward_key = part(key, "forward_kl")
    forward = functools.cache(partial(moment_matching.fit, target, family, forward_key, report))

    @functools.cache
    def fit_once(name):
        fitted = own_fit if name == "reverse_kl" else None
        if fitted is None:
            fitted = fitting.fit(name, target, family, part(key, name), report, forward)
        return replace(fitted, notes=(*remarks, *fitted.notes))

    return fit_once


def fitted_and_measured(
    target: Target,
    fits: Sequence[str],
    fit_once: Callable[[str], fitting.Fit],
    truth: references.Reference,
    key: jax.Array,
    draws: int,
    report: Report,
) -> tuple[dict, dict, list]:
    """Of each fit its sub-tree and its figures, by name, and the points that show where it is."""
    measured = (*F_DIVERGENCES, *(f for f in map(named, fits) if f not in F_DIVERGENCES))
    parts, entries, seen = {}, {}, []
    for name in fits:
        report(name, 0.0, "compiling")
        fit = fit_once(name)
        report(name, 1.0, "measuring")
        measure_key = part(key, f"measure {name}")
        figures = measure(target, fit.guide, truth, measure_key, draws, measured)
        verdict = judge(figures, fit.status, truth.method, truth.reasons, name)
        parts[name] = record.fit_tree(target, fit, figures, draws)
        entries[name] = record.fit_summary(fit, figures, verdict)
        entries[name] |= record.guide_summary(target, parts[name]["guide"].to_dataset())
        seen.append(figures.points[:draws])
        report(name, 1.0, verdict.verdict)
    return parts, entries, seen


def family_for(target: Target, guide: str) -> tuple[guides.Family, tuple[str, ...]]:
    """The family of that name, or a smaller one where it is out of reach, and a remark on that."""
    family = guides.family(guide)
    remarks = target.remarks if target.draws is None else ()  # of draws their reference tells
    if target.parameters:
        names = ", ".join(target.parameters)
        remarks += (f"learned by SVI first, and held in what follows: {names}",)
    if guide == "full_rank" and target.dim > guides.MOST_FULL_RANK:
        numbers = target.dim * (target.dim + 3) // 2
        remarks += (
            f"full_rank would have {numbers:,} numbers in {target.dim:,} dimensions: diagonal was "
            "fitted",
        )
        family = guides.family("diagonal")
    return family, remarks


def check_settings(fits, reference, draws, budget, path) -> None:
    """Refuse settings that cannot be before anything is compiled."""
    for name in fits:
        named(name)
    references.known(reference)
    if draws < LEAST_DRAWS:
        raise InputError(f"draws must be at least {LEAST_DRAWS}, not {draws}.")
    if path is not None and path < LEAST_STEPS:
        raise InputError(f"path takes at least {LEAST_STEPS} steps, not {path}.")
    if not budget > 0:
        raise InputError(f"budget must be a positive number of seconds, not {budget:g}.")


def part(key: jax.Array, name: str) -> jax.Array:
    """A key for one part of the work, the same whichever other parts there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def versions() -> dict[str, str]:
    """What this ran on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}
