"""What a site of a NumPyro model is, seen through what plates, masks and events put around it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to


def has_density(fn: dist.Distribution) -> bool:
    """Whether a distribution is neither improper nor masked."""
    return not is_masked(fn) and not isinstance(innermost(fn), dist.ImproperUniform)


def is_masked(fn: dist.Distribution) -> bool:
    """Whether some of a distribution's log density is left out."""
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution) and fn._mask is not True:
            return True
        fn = fn.base_dist
    return False


def stated(fn: dist.Distribution) -> dist.Distribution:
    """A distribution without what plates, masks and events put around it."""
    wrappers = dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution
    while isinstance(fn, wrappers):
        fn = fn.base_dist
    return fn


def innermost(fn: dist.Distribution) -> dist.Distribution:
    """The distribution that others were made of, however often."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def words_of(support) -> str:
    """A constraint as people say it: `positive`, `real vector`."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    words = repr(support).partition("(")[0].partition(" object at ")[0]
    words = words.rpartition(".")[2].strip("<>_")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words).lower().replace("_", " ")


def is_array(value) -> bool:
    """Whether a site's value can be stored: numbers, not random keys or objects."""
    return hasattr(value, "dtype") and not jnp.issubdtype(value.dtype, jax.dtypes.extended)


def transform_of(site):
    """From R to where a numpyro.param site may lie."""
    return biject_to(site["kwargs"].get("constraint", constraints.real))


def parameters_of(trace: Mapping) -> dict:
    """The values of numpyro.param sites on R^n, in the precision that all is computed in.

    Networks begin in single precision whatever that is, and an optimiser keeps to one of them.
    """
    found = {k: site for k, site in trace.items() if site["type"] == "param"}
    values = {k: transform_of(site).inv(site["value"]) for k, site in found.items()}
    precise = lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    return jax.tree.map(lambda x: precise(jnp.asarray(x)), values)


def entry_names(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A name for each entry of named arrays: `theta[3]` for the fourth of theta."""
    return [
        f"{k}[{', '.join(map(str, index))}]" if shape else k
        for k, shape in shapes.items()
        for index in np.ndindex(shape)
    ]


def brief(values) -> str:
    """A few numbers in a few characters: the first that is not finite, or from least to most."""
    values = np.ravel(np.asarray(values, dtype=float))
    bad = values[~np.isfinite(values)]
    if len(bad) or not len(values):
        return f"{bad[0]:g}" if len(bad) else "nothing"
    low, high = values.min(), values.max()
    return f"{low:.4g}" if low == high else f"{low:.4g}…{high:.4g}"


def unravel(z: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """One point (d,) cut into named arrays, in the order of `shapes`."""
    sizes = [int(np.prod(shape, dtype=int)) for shape in shapes.values()]
    parts = jnp.split(z, np.cumsum(sizes)[:-1])
    return {k: part.reshape(s) for (k, s), part in zip(shapes.items(), parts, strict=True)}
