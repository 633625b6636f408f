"""What in a NumPyro model stops it, in one line with the site and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from vi_demo.errors import InputError, MixedPrecision, place_of, text_of
from vi_demo.sites import has_density, innermost


def refuse_misfit(model: Callable, data: Mapping, name: str) -> None:
    """Data that the model cannot be called with, before NumPyro's handlers hide whose fault."""
    try:
        inspect.signature(model).bind(**data)
    except TypeError as error:
        raise InputError(f"{name}: {error}; data are the keyword arguments of model.") from error
    except ValueError:
        pass  # some callables do not say what they take


def refuse_unusable(name: str, trace: Mapping, latent: Mapping, discrete: Mapping) -> None:
    """A model without a posterior on R^d, or without one that can be written down."""
    if not latent:
        raise InputError(
            f"{name}: the model has no continuous latent site, so there is no posterior to fit; "
            "give at least one numpyro.sample without obs."
        )
    for k, site in trace.items():
        if site["type"] == "mutable":
            raise InputError(
                f"{name}: '{k}' changes with every run of the model (numpyro.contrib.module's "
                "mutable state, batch norm say), so there is no one density; leave it out."
            )
    for k, site in latent.items():
        if isinstance(site["value"], jax.core.Tracer):
            raise InputError(
                f"{name}: site '{k}' is drawn inside a loop or function that JAX compiles, where "
                "NumPyro cannot see it; use numpyro.contrib.control_flow.scan in place of "
                "jax.lax.scan, and no jax.jit inside the model."
            )
        if isinstance(innermost(site["fn"]), dist.Delta):
            raise InputError(
                f"{name}: site '{k}' is a Delta, which has no density; "
                "use numpyro.deterministic for what is computed."
            )
        if 0 in jnp.shape(site["value"]):
            raise InputError(
                f"{name}: site '{k}' has shape {jnp.shape(site['value'])}, so it holds nothing; "
                "are the data empty?"
            )
    for k, site in discrete.items():
        if not site["fn"].has_enumerate_support:
            raise InputError(
                f"{name}: site '{k}' is a discrete latent with endlessly many values "
                f"({type(innermost(site['fn'])).__name__}), which cannot be summed out; "
                "sum it out of the model by hand, or cut it off."
            )
        first = np.min(site["fn"].enumerate_support(expand=False))
        if first != 0:
            raise InputError(
                f"{name}: the values of discrete site '{k}' begin at {first}, and NumPyro sums "
                "from 0 up; draw it from 0 up, and add the rest where it is used."
            )
    if discrete:
        _refuse_loose_batches(name, trace, next(iter(discrete)))


def refuse_unsimulated(model) -> None:
    """A `Model` whose parameters and data cannot be drawn anew from its prior."""
    name = model.name
    if model.subsampled:
        raise InputError(
            f"{name}: plate '{next(iter(model.subsampled))}' takes some of its rows at a time, "
            "and a calibration refits whole data sets; leave subsample_size out."
        )
    for k in {**model.parameters, **model.held}:
        raise InputError(
            f"{name}: numpyro.param '{k}' has no prior to draw from; make it a numpyro.sample."
        )
    for k, site in model.latent.items():
        if not has_density(site["fn"]):
            raise InputError(
                f"{name}: site '{k}' has no proper prior that parameters could be drawn from; "
                "give it one, such as dist.Normal(0, 10)."
            )
    if not model.observed:
        raise InputError(
            f"{name}: no site is observed, so there are no data to simulate; give the likelihood "
            "as numpyro.sample(..., obs=...)."
        )
    for k, site in model.given.items():
        if k not in model.observed:
            raise InputError(
                f"{name}: '{k}' is a numpyro.factor, which data cannot be simulated from; give "
                "the likelihood as numpyro.sample(..., obs=...)."
            )
        if site.get("_control_flow_done"):
            raise InputError(
                f"{name}: site '{k}' is observed inside scan, where data cannot be simulated; "
                "observe it outside, given all steps."
            )
    for k, site in {**model.latent, **model.discrete, **model.given}.items():
        if site["scale"] is not None:
            raise InputError(
                f"{name}: the density of site '{k}' is scaled, so its draws are not those of the "
                "model; leave numpyro.handlers.scale out."
            )
    _refuse_other_shapes(model)


def _refuse_other_shapes(model) -> None:
    """Observed sites that cannot be drawn, or not in the shape that they were observed in."""
    try:
        _, drawn = jax.eval_shape(model.draw_joint, model.key)
    except Exception as error:
        raise InputError(
            f"{model.name}: data cannot be simulated: {where(error)}; use distributions that can "
            "be sampled."
        ) from error
    for k, value in drawn.items():
        if value.shape != model.observed[k].shape:
            raise InputError(
                f"{model.name}: data simulated at site '{k}' have shape {value.shape}, those "
                f"observed {model.observed[k].shape}; give obs the shape of its distribution."
            )


def _refuse_loose_batches(name: str, trace: Mapping, summed: str) -> None:
    """Enumeration takes dimensions left of all plates: what is batched must be in a plate."""
    for k, site in trace.items():
        if site["type"] != "sample":
            continue
        shape = jnp.shape(site["fn"].log_prob(site["value"]))
        plates = {f.dim for f in site["cond_indep_stack"]}
        loose = [-i for i, n in enumerate(reversed(shape), 1) if n > 1 and -i not in plates]
        if loose and not site.get("_control_flow_done"):
            raise InputError(
                f"{name}: site '{k}' has a batch of shape {shape} outside of a plate, and "
                f"'{summed}' is to be summed out; put it in a numpyro.plate, "
                "or add .to_event()."
            )


def stopped_by(error: Exception, name: str, remedy: str = "") -> InputError:
    """What is said of an exception in the user's model."""
    mixed = isinstance(error, TypeError) and "must have equal types" in str(error)
    if mixed and jax.config.read("jax_enable_x64"):
        return MixedPrecision(
            f"{name}: the model mixes 32-bit numbers with 64-bit ones{place_of(error)}; leave "
            "their dtypes to JAX, or compute in single precision, without jax_enable_x64."
        )
    return InputError(f"{name}: the model stopped with {where(error)}{remedy}")


def where(error: Exception) -> str:
    """An exception of the user's code in one line: what, where in their code, and its words."""
    return f"{type(error).__name__}{place_of(error)}: {text_of(error)}"
