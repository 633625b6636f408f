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
    objectives,
    pathfinder,
    svi,
)
from vi_demo.fitting.runner import Fit, Report, silent
from vi_demo.guides import Family
from vi_demo.target import Target

GAUSSIAN = "diagonal", "full_rank"
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
) -> Fit:
    """Fit a family to a target under the divergence, or by the approximation, of that name.

    Reverse KL goes to NumPyro's SVI where the guide's draws carry every gradient, forward KL to
    moment matching, every other divergence to quasi-Newton descent. `forward` gives the forward-KL
    fit where it has been made already. Raises `InputError` where the target lacks what it takes.
    """
    refuse(name, target, family)
    if name in FITTERS:
        return FITTERS[name].fit(target, family, key, report)
    f = named(name)
    if f is forward_kl:
        return forward() if forward else moment_matching.fit(target, family, key, report)
    if f is reverse_kl and reparametrised(family):
        return svi.fit(target, family, key, report)
    return gradient_descent.fit(name, target, family, key, report, forward)


def known(name: str) -> None:
    """Raise `InputError` where nothing that can be fitted has that name."""
    if name not in APPROXIMATIONS:
        named(name, beside=APPROXIMATIONS)


def refuse(name: str, target: Target, family: Family) -> None:
    """Raise `InputError` where this cannot be fitted to this target, saying what can be."""
    objectives.refuse(name, target)
    if name not in FITTERS:
        return
    if family.name not in GAUSSIAN:
        raise InputError(
            f"{name} is one Gaussian and no {family.name}; choose --guide full_rank or diagonal, "
            "or leave it out."
        )
    FITTERS[name].refuse(target)


def reparametrised(family: Family) -> bool:
    """Whether NumPyro's own draws of the guide carry every gradient, as a mixture's do not."""
    return family.distribution(family.init(jnp.zeros(2), 1.0)).has_rsample
