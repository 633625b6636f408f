"""Calibration of a fit over data sets: is the truth where fits to simulated data say it is?

Parameters are drawn from the prior, data from the model given them, and the guide is fitted to
each of these data sets as it would be to the observed ones. What is found holds on average over
the prior, and need not at the data at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import arviz_base as azb
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from vi_demo import guides, loading, ranks, record
from vi_demo.circumstances import versions
from vi_demo.draws import stored
from vi_demo.errors import InputError
from vi_demo.fitting import GAUSSIAN, many
from vi_demo.fitting.runner import Report, silent
from vi_demo.guides import Family
from vi_demo.inputs import as_target
from vi_demo.results import SCHEMA
from vi_demo.study import part
from vi_demo.target import Simulation, Target

REFITS = 200
LEAST_REFITS = 20
AT_ONCE = 25  # data sets, of no more than so many rows each
FEW_ROWS = 2**13
DRAWS = 999  # of a guide, that the truth is ranked among
MOST_DIMENSIONS = 200
NO_RANK = -1
FEW_RANKED = 0.95  # share of refits below which what is left out may hide a bias


class Refits(NamedTuple):
    """Of each data set: ranks of the true sites, the ELBO, and what became of the fit.

    The first row is the fit to the observed data, which has no truth.
    """

    ranks: dict[str, np.ndarray]
    elbo: np.ndarray
    converged: np.ndarray
    finite: np.ndarray


def calibrate(
    model: Target | Callable | str | Path | loading.Loaded,
    data: Mapping | str | Path | None = None,
    *,
    fit: str = "reverse_kl",
    guide: str = "full_rank",
    refits: int = REFITS,
    seed: int = 0,
    report: Report = silent,
    name: str | None = None,
    coords: dict | None = None,
    dims: dict | None = None,
) -> xr.DataTree:
    """Simulation-based calibration of a fit: ranks of true values in fits to simulated data.

    `model` and `data` as in `vi_demo.run`; the data give shapes to simulate in, and covariates.
    `fit` is `reverse_kl` or `forward_kl`, `guide` `diagonal` or `full_rank`. For z ~ p(z) and
    y ~ p(y | z), the rank of each entry of z among L draws of the guide fitted to y is uniform on
    0, …, L if the guide is the posterior. Returns an ArviZ DataTree: `prior_sbc` holds normalised
    ranks (rank + ½)/(L + 1), (chain, draw, ...), as `arviz_plots.plot_ecdf_pit` takes them;
    `refits` what became of each fit, those without a rank too (−1); `summary(tree)` p-values,
    sizes and findings of each entry. Raises `InputError` where the prior is improper or data
    cannot be simulated. Sources: Talts et al. (2018), arXiv 1804.06788; Yao et al. (2018),
    arXiv 1802.02538.
    """
    check_settings(fit, guide, refits)
    report("model", 0.0, "reading the model")
    target, _ = as_target(model, data, name=name, coords=coords, dims=dims)
    if target.simulation is None:
        raise InputError(
            f"{target.name}: draws say nothing of a prior or of data; calibrate needs the NumPyro "
            "model."
        )
    simulation = target.simulation()
    if target.dim > MOST_DIMENSIONS:
        raise InputError(
            f"{target.name}: {target.dim} dimensions are too many for refits; calibrate takes up "
            f"to {MOST_DIMENSIONS}."
        )
    family, key = guides.family(guide), jax.random.key(seed)
    fitter = many.FITS[fit](simulation, family, target.dim, part(key, "noise"))
    found = refitted(target, simulation, family, fitter, refits, key, report)
    settings = {"seed": seed, "fit": fit, "guide": guide, "refits": refits, "draws": DRAWS}
    return as_tree(target, found, settings | {"versions": versions()})


def check_settings(fit: str, guide: Any, refits: int) -> None:
    """Refuse settings that cannot be before anything is compiled."""
    if fit not in many.FITS:
        raise InputError(f"calibrate fits {' or '.join(many.FITS)}, not '{fit}'; choose one.")
    if not isinstance(guide, str) or guide == "own":
        raise InputError(
            f"calibrate refits no guide of your own; choose from {', '.join(GAUSSIAN)}."
        )
    guides.family(guide)  # an unknown name is told as such
    if guide not in GAUSSIAN:
        raise InputError(f"calibrate cannot refit '{guide}'; choose from {', '.join(GAUSSIAN)}.")
    if refits < LEAST_REFITS:
        raise InputError(f"refits must be at least {LEAST_REFITS}, not {refits}.")


def refitted(
    target: Target,
    simulation: Simulation,
    family: Family,
    fitter: Callable,
    number: int,
    key: jax.Array,
    report: Report,
) -> Refits:
    """Simulate, refit and rank, some data sets at a time, of one size: all is compiled once."""
    report("refits", 0.0, "simulating")
    truths, sets = jax.jit(jax.vmap(simulation.draw))(
        jax.random.split(part(key, "simulate"), number)
    )
    observed = {k: jnp.asarray(target.observed[k]).astype(v.dtype) for k, v in sets.items()}
    sets = {k: jnp.concatenate([observed[k][None], v]) for k, v in sets.items()}
    truths = jnp.concatenate([jnp.zeros((1, target.dim)), truths])
    finite = all_finite({"truth": truths, **sets})
    fit_keys, rank_keys = (jax.random.split(part(key, k), number + 1) for k in ("fit", "rank"))
    ranker = jax.jit(jax.vmap(ranked(simulation, family, list(target.sites))))
    parts = []
    for rows in slices(number + 1, target.rows):
        report("refits", rows[0] / (number + 1), "compiling" if rows[0] == 0 else f"{rows[0]:,}")
        some = {k: v[rows] for k, v in sets.items()}
        fits = fitter(some, fit_keys[rows])
        usable = finite[rows] & all_finite(fits.params)
        positions = ranker(fits.params, truths[rows], some, rank_keys[rows])
        parts.append(Refits(positions, fits.elbo, fits.converged & usable, usable))
    joined = jax.tree.map(lambda *x: np.concatenate(x)[: number + 1], *parts)
    report("refits", 1.0, f"{number:,} refits")
    return joined


def all_finite(arrays: dict) -> np.ndarray:
    """Of each row of named arrays, whether all of it is finite."""
    rows = [np.isfinite(v).reshape(len(v), -1).all(1) for v in arrays.values()]
    return np.all(rows, axis=0)


def slices(number: int, rows: int) -> Iterator[np.ndarray]:
    """Rows in slices of one length; the last one is filled up with the last row."""
    most = max(1, min(AT_ONCE, AT_ONCE * FEW_ROWS // rows))
    each = -(-number // -(-number // most))
    for first in range(0, number, each):
        yield np.minimum(np.arange(first, first + each), number - 1)


def ranked(simulation: Simulation, family: Family, sites: list[str]) -> Callable:
    """The ranks of a true point among draws of a guide, entry by entry on the model's scale."""

    def one(params, truth, data, key):
        target = simulation.given(data)
        draws = family.distribution(params).sample(key, (DRAWS,))
        values, true = jax.vmap(target.constrain)(draws), target.constrain(truth)
        return {k: (values[k] < true[k]).sum(0) for k in sites}

    return one


def as_tree(target: Target, found: Refits, settings: dict) -> xr.DataTree:
    """The tree of a calibration, its summary in its attributes."""
    kept = found.finite[1:]
    normalised = {stored(k): (v[1:] + 0.5) / (DRAWS + 1) for k, v in found.ranks.items()}
    labels = {"coords": target.coords, "dims": {stored(k): v for k, v in target.dims.items()}}
    groups = {"prior_sbc": {k: v[kept][None] for k, v in normalised.items()}}
    tree = azb.from_dict(groups, **labels)
    rows = {"elbo": found.elbo, "converged": found.converged, "finite": found.finite}
    rows = {k: ("refit", v[1:]) for k, v in rows.items()}
    for k, v in found.ranks.items():
        own = [f"{stored(k)}_dim_{i}" for i in range(v.ndim - 1)]
        there = kept.reshape(-1, *[1] * len(own))
        rows[f"rank_{stored(k)}"] = (["refit", *own], np.where(there, v[1:], NO_RANK))
    tree["refits"] = xr.DataTree(xr.Dataset(rows))
    tree.attrs |= {
        "schema": SCHEMA,
        "summary": record.to_json(summary_of(target, found, normalised, settings)),
    }
    return tree


def summary_of(target: Target, found: Refits, normalised: dict, settings: dict) -> dict:
    """Counts, each entry's p-values and sizes, and what was found in words."""
    kept = found.finite[1:]
    entries = {}
    if kept.sum() >= LEAST_REFITS:
        columns = np.concatenate([v[kept].reshape(kept.sum(), -1) for v in normalised.values()], 1)
        names = [label for k in target.sites for label in target.labels[k]]
        entries = dict(zip(names, (r._asdict() for r in ranks.assess(columns)), strict=True))
    counts = {
        "asked": len(kept),
        "ranked": int(kept.sum()),
        "converged": int(found.converged[1:].sum()),
        "not_converged": int((kept & ~found.converged[1:]).sum()),
        "not_finite": int((~kept).sum()),
    }
    findings = [f"{name}: {words}" for name, e in entries.items() for words in e["findings"]]
    return {
        "schema": SCHEMA,
        "model": {
            "name": target.name,
            "dim": target.dim,
            "sites": {stored(k): shape for k, shape in target.sites.items()},
        },
        "settings": settings,
        "refits": counts,
        "observed": {"elbo": found.elbo[0], "converged": bool(found.converged[0])},
        "entries": entries,
        "findings": findings,
        "doubts": doubts(counts, settings["fit"]),
    }


def doubts(counts: dict[str, int], fit: str) -> list[str]:
    """What the refits themselves leave open."""
    said = []
    if counts["not_finite"]:
        said.append(
            f"{counts['not_finite']} of {counts['asked']} refits have no rank: their data or "
            "their guide are not finite"
        )
    if counts["ranked"] < FEW_RANKED * counts["asked"]:
        said.append("so many refits without a rank may hide a bias")
    if counts["not_converged"]:
        said.append(
            f"{counts['not_converged']} of {counts['asked']} refits did not converge; their ranks "
            "count all the same"
        )
    if fit == "forward_kl":
        said.append(
            "forward KL is by importance weights from around the reverse fit, without a run's "
            "SMC: a neck or a mode that they miss shows as a guide too narrow"
        )
    return said
