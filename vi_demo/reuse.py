"""A fit at work again: more draws of it without its model, and predictions with it.

Everything comes from the saved run. Its names are looked up, never used as paths, and nothing
in it is run.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import arviz_base as azb
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpyro import handlers
from numpyro.infer import Predictive

from vi_demo import guides, loading, results, supports
from vi_demo.batching import batched
from vi_demo.draws import Linear, stored
from vi_demo.effects import Rows
from vi_demo.errors import InputError
from vi_demo.model import traced
from vi_demo.record import flat, path_name
from vi_demo.refusals import stopped_by
from vi_demo.sites import unravel
from vi_demo.target import Target, put_together

BATCH = 1024  # draws made at once


def draw(run: xr.DataTree | str | Path, fit: str, number: int, seed: int = 0) -> xr.DataTree:
    """New draws of a saved fit, from the parameters of its guide alone.

    `run` is a run or its folder. Returns an ArviZ DataTree with the latent sites in `posterior`,
    (1, number, *shape) each, and the guide's log density on R^d in `sample_stats`, as `log_q`.
    """
    if number < 1:
        raise InputError(f"number must be at least 1, not {number}.")
    saved = _fit(run, fit)
    group = saved["guide"].to_dataset() if "guide" in saved.children else xr.Dataset()
    sites, ways = _sites(group, fit)
    linear = _linear(group, fit)
    inside = {k: ways[k].inverse_shape(tuple(site["shape"])) for k, site in sites.items()}
    size = sum(int(np.prod(shape, dtype=int)) for shape in inside.values())
    if linear is not None and linear.kept.size != size:
        raise _damaged(fit, "its linear map is not of its sites")
    dim = size if linear is None else int(linear.kept.sum())
    guide = _guide(group, fit, dim)

    def constrain(z):
        u = z if linear is None else put_together(z, linear)
        return {k: ways[k](part) for k, part in unravel(u, inside).items()}

    points = guide.sample(jax.random.key(seed), (number,))
    values = batched(constrain, BATCH)(points)
    log_q = batched(guide.log_prob, BATCH)(points)
    groups = {"posterior": values, "sample_stats": {"log_q": log_q}}
    as_chain = {g: {k: np.asarray(v)[None] for k, v in part.items()} for g, part in groups.items()}
    return azb.from_dict(as_chain, **_labels(saved, values))


def predict(
    run: xr.DataTree | str | Path,
    fit: str,
    model: Callable | str | Path | loading.Loaded,
    data: Mapping | None = None,
    seed: int = 0,
) -> xr.DataTree:
    """What a model predicts at a saved fit's draws: its observed and deterministic sites.

    `model` is a NumPyro model, or whatever `vi-demo run` takes. `data` are its arguments without
    what was observed, which is None then; its own data unless given. Discrete latents are drawn
    anew. Returns an ArviZ DataTree with `posterior_predictive`, (1, draw, *shape) each.
    """
    run = _run(run)
    saved = _fit(run, fit)
    loaded = _loaded(model, bare=data is not None)
    arguments = _arguments(loaded, data)
    function, trace = _with_learned(run, loaded, arguments)
    rows = {k: jnp.arange(s["args"][0]) for k, s in trace.items() if s["type"] == "plate"}
    if "posterior" not in saved.children:
        raise _damaged(fit, "it has no posterior")
    posterior = saved["posterior"].to_dataset()
    draws = {
        k: jnp.asarray(posterior[stored(k)].values[0]) for k in _latent(run, trace, posterior, fit)
    }
    predicted = [k for k, site in trace.items() if _is_predicted(site) and k not in draws]
    if not predicted:
        raise InputError(
            f"{loaded.name}: it predicts nothing: no observed site is drawn when its argument is "
            "None, and no site is deterministic; pass what is observed as an argument, y=None."
        )
    predictive = Predictive(Rows(function, rows), draws, return_sites=predicted)
    try:
        values = predictive(jax.random.key(seed), **arguments)
    except Exception as error:
        raise stopped_by(error, loaded.name) from error
    groups = {"posterior_predictive": {stored(k): np.asarray(v)[None] for k, v in values.items()}}
    shapes = {stored(k): np.shape(v)[1:] for k, v in values.items()}
    dims = {stored(k): v for k, v in loaded.dims.items()}
    return azb.from_dict(groups, **_fitting_labels(shapes, loaded.coords, dims))


# What was saved


def _run(run: xr.DataTree | str | Path) -> xr.DataTree:
    return run if isinstance(run, xr.DataTree) else results.load(run)


def _fit(run: xr.DataTree | str | Path, fit: str) -> xr.DataTree:
    run = _run(run)
    known = results.summary(run).get("fits")
    fits = [k for k in known if k in run.children] if isinstance(known, dict) else []
    if fit not in fits:
        raise InputError(f"the run has no fit '{fit}'; it has {', '.join(fits) or 'none'}.")
    return run.children[fit]


def _damaged(fit: str, what: str) -> InputError:
    return InputError(
        f"{fit}: what was saved of it cannot be used, {what}; make the run anew with vi-demo run."
    )


def _sites(group: xr.Dataset, fit: str) -> tuple[dict, dict]:
    """Each site's shape and support, and the way from R^n to it."""
    if group.attrs.get("family") == "own":
        raise InputError(
            f"{fit}: its guide is one of the user's own, which only its model's file knows; use "
            "the draws in its posterior."
        )
    try:
        sites = json.loads(group.attrs["sites"])
        shapes = {k: [int(n) for n in site["shape"]] for k, site in sites.items()}
        known = {k: site["support"] for k, site in sites.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(fit, "its sites are not described") from error
    hidden = [k for k, support in known.items() if support is None]
    if hidden:
        raise InputError(
            f"{fit}: the support of '{hidden[0]}' depends on other sites, so the model is needed "
            "to draw it; use the draws in its posterior, or run the model with more draws."
        )
    try:
        ways = {k: supports.transform_of(support) for k, support in known.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(fit, f"a support is unknown ({error})") from error
    return {k: {"shape": shape} for k, shape in shapes.items()}, ways


def _linear(group: xr.Dataset, fit: str) -> Linear | None:
    """How entries that were left out of R^d are put back, for a fit to draws."""
    names = [f"linear_{k}" for k in Linear._fields]
    if not set(names) & set(group.data_vars):
        return None
    try:
        kept, offset, slope = (group[k].values for k in names)
        kept = kept.astype(bool)
        if offset.shape != ((~kept).sum(),) or slope.shape != (offset.size, kept.sum()):
            raise ValueError("its shapes do not fit")
    except (KeyError, ValueError) as error:
        raise _damaged(fit, "its linear map is not whole") from error
    return Linear(kept, offset, slope)


def _guide(group: xr.Dataset, fit: str, dim: int):
    """The saved guide as a distribution on R^d."""
    family = guides.family(str(group.attrs.get("family")))
    wanted = jax.eval_shape(lambda: family.init(jnp.zeros(dim), 1.0))
    params = {}
    for name, like in wanted.items():
        value = group[name].values if name in group else None
        if value is None or value.shape != like.shape or not np.isfinite(value).all():
            raise _damaged(fit, f"its parameter '{name}' is missing, not finite or misshapen")
        params[name] = jnp.asarray(value)
    return family.distribution(params)


def _labels(saved: xr.DataTree, values: Mapping) -> dict:
    """Coordinates and dimensions as the run's own posterior has them."""
    posterior = saved["posterior"].to_dataset() if "posterior" in saved.children else xr.Dataset()
    dims = {k: list(posterior[k].dims[2:]) for k in values if k in posterior}
    coords = {
        d: posterior[d].values for found in dims.values() for d in found if d in posterior.coords
    }
    return {"coords": coords, "dims": dims}


# The model again


def _loaded(model: Callable | str | Path | loading.Loaded, bare: bool) -> loading.Loaded:
    if isinstance(model, loading.Loaded):
        return model
    if callable(model):
        name = getattr(model, "__name__", "model")
        return loading.Loaded(name, "", model, {}, {}, {}, "")
    return loading.load(str(model), bare=bare)


def _arguments(loaded: loading.Loaded, data: Mapping | None) -> dict:
    """The model's arguments without what was observed: None for each that is not there."""
    if data is None:
        data = dict(loaded.data)
        about = Target.from_numpyro(loaded.model, data, name=loaded.name).about() if data else {}
        observed = {entry.get("argument") for entry in about.values()}
        data = {k: None if k in observed else v for k, v in data.items()}
    absent = {
        name: None
        for name, parameter in inspect.signature(loaded.model).parameters.items()
        if name not in data and parameter.default is inspect.Parameter.empty
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    return {**data, **absent}


def _with_learned(run: xr.DataTree, loaded: loading.Loaded, arguments: Mapping):
    """The model with the parameters that the run learned, and one run of it on these arguments."""
    empty = [k for k, v in arguments.items() if v is None]
    remedy = f"; it is given None for {', '.join(empty)}, see that it can be" if empty else ""
    key, called = jax.random.key(0), partial(loaded.model, **arguments)
    trace = traced(called, key, loaded.name, remedy)
    saved = run["parameters"].to_dataset() if "parameters" in run.children else xr.Dataset()
    own = {k: site["value"] for k, site in trace.items() if site["type"] == "param"}
    names = set(flat(own))
    missing = [k for k in saved if k not in names]
    if missing:
        raise InputError(
            f"{loaded.name}: the run learned a parameter '{missing[0]}', which the model is "
            "without; give the model that was run."
        )

    def fill(path, like):
        name = path_name(path)
        if name in saved and saved[name].shape != jnp.shape(like):
            raise InputError(
                f"{loaded.name}: parameter '{name}' has shape {saved[name].shape} in the run and "
                f"{jnp.shape(like)} in the model; give the model that was run."
            )
        return jnp.asarray(saved[name].values) if name in saved else like

    values = jax.tree_util.tree_map_with_path(fill, own)
    return handlers.substitute(loaded.model, data=values), trace


def _latent(run, trace: Mapping, posterior: xr.Dataset, fit: str) -> list[str]:
    """The model's sites that the fit has draws of, if it has them of the same shapes."""
    try:
        known = {stored(k) for k in results.summary(run)["model"]["sites"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(fit, "the run does not say what its sites are") from error
    names = {stored(k): k for k, site in trace.items() if site["type"] == "sample"}
    for k in sorted(known):
        if k not in names or k not in posterior:
            raise InputError(
                f"{fit}: the run's site '{k}' is not one of the model's "
                f"({', '.join(names) or 'none'}); give the model that was run."
            )
        shapes = posterior[k].shape[2:], np.shape(trace[names[k]]["value"])
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{fit}: '{k}' has shape {shapes[0]} in the run and {shapes[1]} in the model with "
                "these data; give data for which they agree."
            )
    return [names[k] for k in names if k in known]


def _is_predicted(site: Mapping) -> bool:
    if site["type"] == "deterministic":
        return hasattr(site["value"], "dtype")
    return site["type"] == "sample" and not site["is_observed"]


def _fitting_labels(shapes: Mapping, coords: Mapping, dims: Mapping) -> dict:
    """The coordinates and dimensions that are of these shapes: new data may be longer."""
    dims = {k: list(v) for k, v in dims.items() if len(v) == len(shapes.get(k, ()))}
    sizes = [(d, n) for k, names in dims.items() for d, n in zip(names, shapes[k], strict=True)]
    other = {d for d, n in sizes if d in coords and len(coords[d]) != n}
    return {"coords": {k: v for k, v in coords.items() if k not in other}, "dims": dims}
