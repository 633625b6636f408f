"""A little way uphill, for a great many points at once, and whether a valley is between two.

Each point takes small preconditioned gradient steps, so that it leaves the valleys but stays in
the basin it starts in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vi_demo import mesh
from vi_demo.batching import in_slices
from vi_demo.target import GRADIENT, Target, finite_or_minus_inf

PARTY = 256  # that climb together
STEPS = 40
STRIDE = 0.5  # the longest step, in local sds
VALLEY = 0.1  # nats by which a path must dip to separate two modes
ALONG = 33  # points looked at on a path
LOOKS = GRADIENT * STEPS  # log densities that one point's climb takes as long as


def climb(target: Target, points: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points (n, d) end after climbing, and their log densities (n,)."""
    if "climb" not in target.programs:
        target.programs["climb"] = mesh.program(
            lambda zs, factor: in_slices(lambda z: ascend(target, z, factor), zs, target.batch)
        )
    # Always as many at once, so that it is compiled once.
    rows = np.minimum(np.arange(-(-len(points) // PARTY) * PARTY), len(points) - 1)
    parties = points[rows].reshape(-1, PARTY, points.shape[1])
    factor = jnp.asarray(factor)
    climbed = [target.programs["climb"](party, factor) for party in parties]
    ends, heights = (np.concatenate(parts)[: len(points)] for parts in zip(*climbed, strict=True))
    return ends, heights


def ascend(target: Target, point: Array, factor: Array) -> tuple[Array, Array]:
    """One point's climb: a step that does not rise is taken back and halved."""
    value_and_grad = jax.value_and_grad(lambda z: finite_or_minus_inf(target.log_density(z)))

    def step(_, carry):
        z, height, slope, size = carry
        whitened = factor.T @ slope
        length = size * jnp.linalg.norm(whitened)
        shorten = jnp.minimum(1.0, STRIDE / jnp.maximum(length, 1e-12))
        new = z + shorten * size * factor @ whitened
        new_height, new_slope = value_and_grad(new)
        rises = (new_height >= height) & jnp.isfinite(new_slope).all()
        pick = lambda a, b: jnp.where(rises, a, b)  # noqa: E731
        grown = jnp.where(rises, 1.5 * shorten * size, 0.5 * shorten * size)
        return pick(new, z), pick(new_height, height), pick(new_slope, slope), grown

    height, slope = value_and_grad(point)
    slope = jnp.where(jnp.isfinite(slope), slope, 0.0)
    z, height, *_ = jax.lax.fori_loop(0, STEPS, step, (point, height, slope, jnp.ones(())))
    return z, height


def joined(target: Target, ends: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which ends (n, d) are joined to the others, (n, d) or (d,), with no valley between."""
    along = np.linspace(0, 1, ALONG)[:, None, None]
    path = ends + along * (others - ends)
    heights = target.log_densities(path.reshape(-1, path.shape[-1])).reshape(ALONG, -1)
    return heights.min(0) >= np.minimum(heights[0], heights[-1]) - VALLEY
