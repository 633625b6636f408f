"""Basins that few starts are in: a great many points climb a little, and climbs begin elsewhere.

A mode may hold half of the mass and its basin next to none of the space, the more dimensions the
less: a mode 0.3 wide in 10 dimensions is not met once by 131,072 uniform points of (-2, 2)^10.
"""

from __future__ import annotations

import jax
import numpy as np

from vi_demo import ascents, noise
from vi_demo.climbs import Climbs, apart, upward
from vi_demo.target import Target

SEARCHED = 8_192  # points
WIDTHS = 0.5, 1.0, 2.0, 4.0  # of what they are drawn from
SECONDS = 5.0  # at most for their climbs, or none is looked for
MOST = 8  # climbs from elsewhere
AGREEING = 30.0  # nats of ELBO below the best, beyond which a basin has no mass to speak of


def elsewhere(target: Target, found: Climbs) -> tuple[Climbs | None, dict[str, int]]:
    """Climbs to basins that none of the climbs found ended in, if any, and what was looked at.

    Where some of a great many points end, after climbing a little and without any curvature,
    beyond a valley from every climb's end, climbs begin there too.
    """
    number = target.affordable(SEARCHED, SECONDS, ascents.LOOKS)
    best = int(np.argmax(found.elbos))
    if number < SEARCHED or not np.isfinite(found.elbos[best]):
        return None, {"log_density": 0, "gradient": 0}
    ends, heights = ascents.climb(target, broadly(target), found.factors[best])
    spent = {"log_density": 0, "gradient": SEARCHED * ascents.STEPS}
    summits = beyond(target, found, ends, heights)
    if not len(summits):
        return None, spent
    more, climbing = upward(target, summits)
    near = np.flatnonzero(more.elbos > float(found.elbos[best]) - AGREEING)
    more = jax.tree.map(lambda x: x[near], more) if len(near) else None
    return more, {name: spent[name] + climbing[name] for name in spent}


def broadly(target: Target) -> np.ndarray:
    """Points (`SEARCHED`, d) from normals of several widths, the prior last where it is proper.

    In many dimensions each width is a shell of its own: the basin of a narrow mode may cut one
    and not the next.
    """
    noise_key, prior_key = jax.random.split(jax.random.key(1))
    each = SEARCHED // len(WIDTHS)
    tried = noise.normal(noise_key, (len(WIDTHS), each, target.dim))
    tried *= np.array(WIDTHS)[:, None, None]
    if target.prior is not None:
        tried[-1] = target.prior_draws(prior_key, each)
    tried = tried.reshape(SEARCHED, target.dim)
    return np.where(np.isfinite(tried).all(1, keepdims=True), tried, 0.0)


def beyond(target: Target, found: Climbs, ends: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Of ends (n, d) the highest of each basin that no climb is in, (k, d)."""
    left = np.isfinite(heights) & np.isfinite(ends).all(1)
    ends, heights = ends[left], heights[left]
    known, summits = [*apart(found).centres], []
    while len(ends) and len(summits) < MOST:
        if known:
            top = known.pop()
        else:
            top = ends[heights.argmax()]
            summits.append(top)
        outside = ~ascents.joined(target, ends, top)
        ends, heights = ends[outside], heights[outside]
    return np.array(summits)
