"""The main job: a target, a reference, fits in both directions, and what each got wrong."""

from __future__ import annotations

import importlib.metadata
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vi_demo import fitting, guides, loading, record
from vi_demo import reference as references
from vi_demo.diagnostics import measure
from vi_demo.divergences.estimators import resample
from vi_demo.errors import InputError
from vi_demo.fitting.runner import Report, silent
from vi_demo.target import Target
from vi_demo.verdict import judge

DRAWS = 4_000
LEAST_DRAWS = 100
BUDGET = 60.0  # seconds
PACKAGES = ("vi-demo", "numpyro", "jax", "arviz", "blackjax", "optax", "numpy")


def run(
    model: Target | Callable | str | Path,
    data: dict | None = None,
    *,
    fits: str | Sequence[str] = fitting.DEFAULT,
    guide: str = "full_rank",
    reference: str = "auto",
    seed: int = 0,
    draws: int = DRAWS,
    budget: float = BUDGET,
    report: Report = silent,
    name: str | None = None,
    coords: dict | None = None,
    dims: dict | None = None,
) -> xr.DataTree:
    """Fit a model under several divergences and measure each fit against a reference.

    `model` is a NumPyro model with `data`, its keyword arguments, a `Target`, or whatever
    `vi-demo run` takes, such as a file's path. Returns an ArviZ DataTree with a sub-tree a fit,
    `run["reverse_kl"]`, which ArviZ's functions take as it is; `summary(run)` gives all
    figures, in nats. `report(phase, share, text)` is called as the work goes on. Raises
    `InputError` where the input cannot be used.
    """
    fits = (fits,) if isinstance(fits, str) else tuple(fits)
    check_settings(fits, reference, draws, budget)
    family = guides.family(guide)
    report("model", 0.0, "reading the model")
    target = as_target(model, data, name=name, coords=coords, dims=dims)
    fitters = {name: fitting.fitter_for(name, target) for name in fits}
    key = jax.random.key(seed)
    report("reference", 0.0, "compiling")
    truth = references.build(target, reference, part(key, "reference"), budget, report)
    report("reference", 1.0, truth.method)
    parts, entries, seen = {}, {}, []
    for name, fitter in fitters.items():
        report(name, 0.0, "compiling")
        fit = fitter(target, family, part(key, name), report)
        report(name, 1.0, "measuring")
        figures = measure(target, fit.guide, truth, part(key, f"measure {name}"), draws)
        verdict = judge(figures, fit.status, truth.method, truth.reasons, name)
        parts[name] = record.fit_tree(target, fit, figures, draws)
        seen.append(figures.points[:draws])
        entries[name] = record.fit_summary(fit, figures, verdict)
        report(name, 1.0, verdict.verdict)
    if truth.draws is not None:
        points = resample(truth.draws, draws, seed)
        parts["reference"] = record.reference_tree(target, truth, points)
        seen.append(points)
    if target.dim <= 2 and target.log_density is not None:
        parts["landscape"] = xr.DataTree(record.landscape(target, np.concatenate(seen)))
    text = record.to_json(
        {
            "schema": record.SCHEMA,
            "model": {
                "name": target.name,
                "dim": target.dim,
                "sites": target.sites,
                "labels": target.labels,
            },
            "settings": {
                "seed": seed,
                "draws": draws,
                "guide": guide,
                "reference": reference,
                "budget": budget,
                "precision": str(jnp.zeros(()).dtype),
                "versions": versions(),
            },
            "reference": record.reference_summary(target, truth),
            "fits": entries,
        }
    )
    tree = xr.DataTree(children=parts)
    tree.attrs |= {"schema": record.SCHEMA, "summary": text}
    return tree


def as_target(model, data, **labels) -> Target:
    """The target of whatever stands for a model."""
    if isinstance(model, Target):
        if data is not None:
            raise InputError(f"{model.name}: a Target has its data already; leave data out.")
        return model
    if isinstance(model, str | Path):
        loaded = loading.load(str(model))
        data = loaded.data if data is None else data
        own = {"name": loaded.name, "coords": loaded.coords, "dims": loaded.dims}
        labels = own | {k: v for k, v in labels.items() if v is not None}
        return Target.from_numpyro(loaded.model, data, **labels)
    if not callable(model):
        raise InputError(
            "a model is a function, a Target or the path of a file, not of type "
            f"{type(model).__name__}."
        )
    return Target.from_numpyro(model, data, **labels)


def check_settings(fits, reference, draws, budget) -> None:
    """Refuse settings that cannot be before anything is compiled."""
    for name in fits:
        fitting.known(name)
    references.known(reference)
    if draws < LEAST_DRAWS:
        raise InputError(f"draws must be at least {LEAST_DRAWS}, not {draws}.")
    if not budget > 0:
        raise InputError(f"budget must be a positive number of seconds, not {budget:g}.")


def part(key: jax.Array, name: str) -> jax.Array:
    """A key for one part of the work, the same whichever other parts there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def versions() -> dict[str, str]:
    """What this ran on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}
