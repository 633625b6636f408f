"""Whether a density can be normalised, as far as can be told from far out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vi_demo import starts
from vi_demo.frames import Frame
from vi_demo.target import Target

OUTWARD = 1e3, 1e6  # sds from the middle at which a proper density has fallen
FARTHEST = 16  # draws, the ways to which are looked at
NEGLIGIBLE = 100.0  # nats below the middle: what stays so low, as clipped ones do, is as good as 0


def does_not_fall(target: Target, draws: np.ndarray | None = None) -> list[str]:
    """Directions along which log p falls no faster than −log distance, so has no integral.

    Looked at are the axes of the curvature where climbs ended, and the ways to the farthest of
    some draws (n, d), where there are some; they are told by the coordinates that move most.
    """
    frame = starts.frame(target, whole=True)
    if frame.factor.ndim == 1:
        frame = frame._replace(factor=jnp.diag(frame.factor))
    ways = np.concatenate([np.eye(target.dim), -np.eye(target.dim)])
    if draws is not None:
        ways = np.concatenate([ways, farthest(np.asarray(draws), frame)])
    near, far = OUTWARD
    log_p = [target.log_densities(jax.vmap(frame.out)(r * ways)) for r in (near, far)]
    low = float(target.log_densities(frame.shift[None])[0]) - NEGLIGIBLE
    falls = (log_p[0] < low) & (log_p[1] < low)
    falls |= ~np.isfinite(log_p[1]) | (log_p[1] < log_p[0] - np.log(far / near) - 1e-6)
    scale = jnp.linalg.norm(frame.factor, axis=1)
    moves = np.abs(ways[~falls] @ np.asarray(frame.factor / scale[:, None]).T)
    names = np.array(target.coordinate_names)
    told = [" with ".join(names[move > 0.5 * move.max()]) for move in moves]
    return list(dict.fromkeys(told))


def farthest(draws: np.ndarray, frame: Frame) -> np.ndarray:
    """Unit vectors (m, d) on the scale of a frame, to the draws that lie farthest from it."""
    local = np.linalg.solve(frame.factor, (draws - np.asarray(frame.shift)).T).T
    with np.errstate(over="ignore"):  # of an improper posterior there are no bounds to them
        distances = np.linalg.norm(local, axis=1)
    chosen = np.argsort(distances)[-FARTHEST:]
    chosen = chosen[np.isfinite(distances[chosen]) & (distances[chosen] > 0)]
    return local[chosen] / distances[chosen, None]
