"""Ways to fit a guide to a target: one function for whatever is asked for by name."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vi_demo.approximations import APPROXIMATIONS
from vi_demo.divergences.generators import forward_kl, named, reverse_kl
from vi_demo.errors import InputError
from vi_demo.fitting import (
    expectation_propagation,
    gradient_descent,
    laplace,
    moment_matching,
    natural_gradient,
    objectives,
    pathfinder,
    svi,
)
from vi_demo.fitting.runner import Fit, Report, silent
from vi_demo.guides import Family
from vi_demo.target import Target

GAUSSIAN = "diagonal", "full_rank"
OPTIMIZERS = "natural", "adam"  # of reverse KL
DEFAULT = ("reverse_kl", "forward_kl")

# What `APPROXIMATIONS` names: how each is fitted, and why it may not be.
FITTERS = {"laplace": laplace, "pathfinder": pathfinder, "ep": expectation_propagation}


def fit(
    name: str,
    target: Target,
    family: Family,
    key: jax.Array,
    report: Report = silent,
    forward: Callable[[], Fit] | None = None,
    optimizer: str | None = None,
) -> Fit:
    """Fit a family to a target under the divergence, or by the approximation, of that name.

    Reverse KL goes by natural gradients where the guide is one Gaussian and all of the density is
    at hand, else to NumPyro's SVI with Adam where the guide's draws carry every gradient, as it
    does with the `optimizer` "adam"; forward KL goes to moment matching, every other divergence
    to quasi-Newton descent. `forward` gives the forward-KL fit where it has been made already.
    Raises `InputError` where the target lacks what it takes.
    """
    refuse(name, target, family, optimizer)
    if name in FITTERS:
        return FITTERS[name].fit(target, family, key, report)
    f = named(name)
    if f is forward_kl:
        return forward() if forward else moment_matching.fit(target, family, key, report)
    if f is reverse_kl and optimizer != "adam" and is_natural(target, family):
        return natural_gradient.fit(target, family, key, report)
    if f is reverse_kl and reparametrised(family):
        return svi.fit(target, family, key, report)
    return gradient_descent.fit(name, target, family, key, report, forward)


def known(name: str) -> None:
    """Raise `InputError` where nothing that can be fitted has that name."""
    if name not in APPROXIMATIONS:
        named(name, beside=APPROXIMATIONS)


def refuse(name: str, target: Target, family: Family, optimizer: str | None = None) -> None:
    """Raise `InputError` where this cannot be fitted to this target, saying what can be."""
    objectives.refuse(name, target)
    if optimizer not in (None, *OPTIMIZERS):
        raise InputError(f"no optimizer named '{optimizer}'; choose from {', '.join(OPTIMIZERS)}.")
    if name == "reverse_kl" and optimizer == "natural" and not is_natural(target, family):
        raise InputError(
            f"{target.name}: natural gradients fit a diagonal or a full_rank guide to all of the "
            "rows at once; leave --optimizer out, or choose adam."
        )
    if optimizer == "adam" and name == "reverse_kl" and not reparametrised(family):
        raise InputError(
            f"Adam does not fit a {family.name}, whose draws do not carry every gradient; leave "
            "--optimizer out."
        )
    if name not in FITTERS:
        return
    if family.name not in GAUSSIAN:
        raise InputError(
            f"{name} is one Gaussian and no {family.name}; choose --guide full_rank or diagonal, "
            "or leave it out."
        )
    FITTERS[name].refuse(target)


def is_natural(target: Target, family: Family) -> bool:
    """Whether natural gradients fit this: one Gaussian, and the density of all rows at once."""
    return family.name in GAUSSIAN and target.estimate is None


def reparametrised(family: Family) -> bool:
    """Whether NumPyro's own draws of the guide carry every gradient, as a mixture's do not."""
    return family.distribution(family.init(jnp.zeros(2), 1.0)).has_rsample
