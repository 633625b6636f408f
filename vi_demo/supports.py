"""Supports of variables by name: what a file can say of one, and what draws suggest.

A description is a dictionary that JSON can hold: `{"support": "positive"}`, or with its bounds
`{"support": "interval", "lower_bound": 0.0, "upper_bound": 2.0}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

PLAIN = {
    name: getattr(constraints, name)
    for name in (
        *("real", "positive", "nonnegative", "softplus_positive", "unit_interval", "circular"),
        *("simplex", "l1_ball", "ordered_vector"),
        *("positive_ordered_vector", "corr_cholesky", "corr_matrix", "lower_cholesky"),
        *("scaled_unit_lower_cholesky", "softplus_lower_cholesky", "positive_definite"),
        "positive_semidefinite",
    )
}
BOUNDED = {
    "greater_than": ("lower_bound",),
    "greater_than_eq": ("lower_bound",),
    "less_than": ("upper_bound",),
    "less_than_eq": ("upper_bound",),
    "interval": ("lower_bound", "upper_bound"),
    "open_interval": ("lower_bound", "upper_bound"),
}
ROUNDED = 1e-4  # by which files of few digits may miss a sum or a norm


def describe(constraint: constraints.Constraint) -> dict | None:
    """A support as a description; None where it has no name, or bounds that JAX traces."""
    while isinstance(constraint, type(constraints.independent(constraints.real, 1))):
        constraint = constraint.base_constraint  # which says how to sum, not where values lie
    for name, plain in PLAIN.items():
        if type(constraint) is type(plain):
            return {"support": name}
    if isinstance(constraint, constraints.zero_sum):
        return {"support": "zero_sum", "event_dim": constraint.event_dim}
    for name, bounds in BOUNDED.items():
        if type(constraint) is getattr(constraints, name):
            values = {k: getattr(constraint, k) for k in bounds}
            if any(isinstance(v, jax.core.Tracer) for v in values.values()):
                return None
            return {"support": name, **{k: np.asarray(v).tolist() for k, v in values.items()}}
    return None


def constraint_of(description: Mapping) -> constraints.Constraint:
    """The support that a description is of; ValueError where it is of none."""
    name = description.get("support")
    if name in PLAIN:
        return PLAIN[name]
    if name == "zero_sum" and description.get("event_dim") in (1, 2, 3):
        return constraints.zero_sum(description["event_dim"])
    if name not in BOUNDED:
        raise ValueError(f"no support named {name!r}")
    bounds = [np.asarray(description.get(k), dtype=float) for k in BOUNDED[name]]
    if not all(np.isfinite(bound).all() for bound in bounds):
        raise ValueError(f"a bound of {name!r} is not finite")
    return getattr(constraints, name)(*bounds)


def transform_of(description: Mapping) -> Transform:
    """The way from R^n to a support."""
    return biject_to(constraint_of(description))


# What draws suggest


def guess(values: np.ndarray) -> dict | None:
    """The support that draws (S, *shape) of a variable suggest; None for whole numbers."""
    if values.dtype.kind in "biu" or np.array_equal(values, np.round(values)):
        return None
    return {"support": next(name for name, suits in SUITS.items() if suits(values))}


def to_reals(values: np.ndarray, description: Mapping) -> np.ndarray:
    """Draws (S, *shape) on R^n, in double precision; what was rounded in them is set right."""
    values = np.asarray(values, dtype=float)
    tidy = TIDY.get(description["support"], lambda x: x)
    with jax.enable_x64(True):
        return np.asarray(transform_of(description).inv(jnp.asarray(tidy(values))))


def _square(x):
    return x.ndim >= 3 and x.shape[-1] == x.shape[-2] >= 2


def _lower(x):
    if not _square(x):
        return False
    diagonal = np.diagonal(x, axis1=-2, axis2=-1)
    return bool((np.triu(x, 1) == 0).all() and (diagonal > 0).all())


def _unit_rows(x):
    return bool((np.abs((x**2).sum(-1) - 1) < ROUNDED).all())


def _definite(x):
    if not _square(x):
        return False
    diagonal = np.diagonal(x, axis1=-2, axis2=-1)
    if not (diagonal > 0).all():
        return False
    sd = np.sqrt(diagonal)
    unit = x / (sd[..., None] * sd[..., None, :])
    symmetric = np.abs(unit - np.swapaxes(unit, -1, -2)).max() < ROUNDED
    return bool(symmetric and (np.linalg.eigvalsh(unit) > 0).all())


def _unit_diagonal(x):
    return bool((np.abs(np.diagonal(x, axis1=-2, axis2=-1) - 1) < ROUNDED).all())


def _simplex(x):
    if x.ndim < 2 or x.shape[-1] < 2:
        return False
    return bool((x > 0).all() and (np.abs(x.sum(-1) - 1) < ROUNDED).all())


def _ordered(x):
    return x.ndim >= 2 and x.shape[-1] >= 2 and bool((np.diff(x, axis=-1) > 0).all())


SUITS: dict[str, Callable[[np.ndarray], bool]] = {  # in this order: the narrowest first
    "corr_cholesky": lambda x: _lower(x) and _unit_rows(x),
    "corr_matrix": lambda x: _definite(x) and _unit_diagonal(x),
    "lower_cholesky": _lower,
    "positive_definite": _definite,
    "simplex": _simplex,
    "unit_interval": lambda x: bool((x > 0).all() and (x < 1).all()),
    "positive": lambda x: bool((x > 0).all()),
    "ordered_vector": _ordered,
    "real": lambda x: True,
}


def _symmetric(x):
    return (x + np.swapaxes(x, -1, -2)) / 2


TIDY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "corr_cholesky": lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True),
    "corr_matrix": _symmetric,
    "positive_definite": _symmetric,
    "simplex": lambda x: x / x.sum(-1, keepdims=True),
}


# Names of what is on R^n


def coordinate_names(description: Mapping | None, labels: np.ndarray, number: int) -> list[str]:
    """What each of the `number` coordinates of a variable is, as people write it: `log tau`.

    `labels` names the variable's entries on its own scale, in its shape.
    """
    name = description["support"] if description else None
    if name in ENTRYWISE and labels.size == number:
        return [ENTRYWISE[name](label, description) for label in labels.ravel()]
    if name in VECTORS:
        rows = labels.reshape(-1, labels.shape[-1])
        return [word for row in rows for word in VECTORS[name](row)]
    if name in MATRICES:
        squares = labels.reshape(-1, *labels.shape[-2:])
        return [word for square in squares for word in MATRICES[name](square)]
    first = str(labels.ravel()[0]).partition("[")[0]
    return [f"{first} on R" if number == 1 else f"{first} on R[{i}]" for i in range(number)]


def _above(label, description):
    bound = description["lower_bound"]
    return f"log ({label} - {bound:g})" if np.ndim(bound) == 0 else f"log {label} above its bound"


def _below(label, description):
    bound = description["upper_bound"]
    return f"log ({bound:g} - {label})" if np.ndim(bound) == 0 else f"log {label} below its bound"


def _gaps(row):
    return [f"log ({b} - {a})" for a, b in pairwise(row)]


def _lower_entries(square, word="{}"):
    return [word.format(label) for label in square[np.tril_indices(len(square), -1)]]


def _diagonal(square, word="log {}"):
    return [word.format(square[i, i]) for i in range(len(square))]


ENTRYWISE: dict[str, Callable] = {
    "real": lambda x, _: x,
    **dict.fromkeys(("positive", "nonnegative"), lambda x, _: f"log {x}"),
    **dict.fromkeys(("greater_than", "greater_than_eq"), _above),
    **dict.fromkeys(("less_than", "less_than_eq"), _below),
    **dict.fromkeys(
        ("unit_interval", "interval", "open_interval", "circular"), lambda x, _: f"logit {x}"
    ),
    "softplus_positive": lambda x, _: f"softplus⁻¹ {x}",
}
VECTORS: dict[str, Callable] = {
    "simplex": lambda row: [f"stick {x}" for x in row[:-1]],  # its share of what is left, logit
    "ordered_vector": lambda row: [row[0], *_gaps(row)],
    "positive_ordered_vector": lambda row: [f"log {row[0]}", *_gaps(row)],
}
MATRICES: dict[str, Callable] = {
    **dict.fromkeys(
        ("corr_cholesky", "corr_matrix"), lambda x: _lower_entries(x, "atanh partial {}")
    ),
    "lower_cholesky": lambda x: _lower_entries(x) + _diagonal(x),
    "positive_definite": lambda x: (
        _lower_entries(x, "Cholesky {}") + _diagonal(x, "log Cholesky {}")
    ),
}
