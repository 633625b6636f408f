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
    if target.log_density is None and path is not None:
        raise InputError(f"{target.name}: a path needs a log density; leave --path out for draws.")
    asked, given = target, None
    if reference not in references.METHODS:  # refused now, if it cannot be used
        given = references.from_file(target, reference)
    if own is not None and path is not None:
        raise InputError("a path needs a family of guides at both ends; leave --guide own out.")
    family, remarks = family_for(target, guide if own is None else "full_rank")
    for name in fits if path is None else (*fits, *fitting.DEFAULT):
        fitting.objectives.refuse(name, target)
    key = jax.random.key(seed)
    finished = {}
    if own is not None:
        report("reverse_kl", 0.0, "compiling")
        own_key = part(key, "reverse_kl")
        theirs = target.own_guide(own)
        finished["reverse_kl"], target = svi.fit_own(target, theirs, own_key, report)
    elif target.parameters:
        report("parameters", 0.0, "compiling")
        target = svi.learn(target, family, part(key, "parameters"), report)
    report("reference", 0.0, "compiling")
    if given is not None and target is asked:
        truth = references.with_modes(target, given)
    else:
        truth = references.build(target, reference, part(key, "reference"), budget, report)
    report("reference", 1.0, truth.method)
    # Others than the two directions of KL start from the forward fit and use its draws.
    forward_key = part(key, "forward_kl")
    forward = functools.cache(partial(moment_matching.fit, target, family, forward_key, report))
    measured = (*F_DIVERGENCES, *(f for f in map(named, fits) if f not in F_DIVERGENCES))

    @functools.cache
    def fit_once(name):
        fitted = finished.get(name)
        if fitted is None:
            fitted = fitting.fit(name, target, family, part(key, name), report, forward)
        return replace(fitted, notes=(*remarks, *fitted.notes))

    parts, entries, seen = {}, {}, []
    for name in fits:
        report(name, 0.0, "compiling")
        fit = fit_once(name)
        report(name, 1.0, "measuring")
        measure_key = part(key, f"measure {name}")
        figures = measure(target, fit.guide, truth, measure_key, draws, measured)
        verdict = judge(figures, fit.status, truth.method, truth.reasons, name)
        parts[name] = record.fit_tree(target, fit, figures, draws)
        seen.append(figures.points[:draws])
        entries[name] = record.fit_summary(fit, figures, verdict)
        entries[name] |= record.guide_summary(target, parts[name]["guide"].to_dataset())
        report(name, 1.0, verdict.verdict)
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
    text = record.to_json(
        {
            "schema": SCHEMA,
            "model": {
                "name": target.name,
                "dim": target.dim,
                "sites": target.sites,
                "labels": target.labels,
                **record.draws_summary(target),
            },
            "settings": {
                "seed": seed,
                "draws": draws,
                "guide": family.name if own is None else "own",
                "reference": str(reference),
                "budget": budget,
                "precision": str(jnp.zeros(()).dtype),
                "versions": versions(),
            },
            "reference": record.reference_summary(target, truth),
            "fits": entries,
            **({"path": record.path_summary(followed)} if followed else {}),
        }
    )
    tree = xr.DataTree(children=parts)
    tree.attrs |= {"schema": SCHEMA, "summary": text}
    return tree


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
