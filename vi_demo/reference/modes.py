"""Modes: basins of a target's density on the unconstrained scale, found, merged and weighed.

Points climb the density a while by small preconditioned gradient steps, so that each leaves the
valleys but stays in the basin it starts in. Two groups of ends are one mode where any straight
line from one to the other crosses no valley: so bent ridges, plateaus and necks of funnels,
which have no summit that climbing would reach, are one basin too.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from vi_demo import mesh
from vi_demo.ascents import ALONG, LOOKS, climb, joined
from vi_demo.divergences.estimators import Draws, Estimate, expectation
from vi_demo.target import Target

SMALLEST_MASS = 0.005  # a basin with less of the posterior is not reported
CLIMBERS = 1024
MOST = 64  # groups of ends
PAIRS = 24  # nearest pairs of two groups that are tried
PIECE = 2**22  # numbers, of the points looked at together
LAST_STEPS = 20  # of a summit's search
SECONDS = 10.0  # about, for points to climb; where that is not enough, there are fewer


class Modes(NamedTuple):
    """Basins by falling mass: summits (K, d), their log densities (K,), and masses with errors.

    `ends` (n, d) are ends of climbs and `labels` (n,) the basin of each: at least K, where a
    basin holds too little mass to be reported. `factor` (d, d) is a square root of the local
    covariance, in whose units points climb and distances are taken. `of_draws` (n,) are the
    basins of the draws they were found from.
    """

    locations: np.ndarray
    log_density: np.ndarray
    masses: tuple[Estimate, ...]
    ends: np.ndarray
    labels: np.ndarray
    factor: np.ndarray
    of_draws: np.ndarray | None = None


def find(target: Target, draws: Draws, factor: np.ndarray, seed: int, others=None) -> Modes:
    """The modes that draws of the target lie in, and the mass of each.

    `others` (m, d) are points to climb from besides, which may lie where no draw does: their
    basins come last, without mass.
    """
    rng = np.random.default_rng(seed)
    number = affordable(target, CLIMBERS)
    chosen = draws.points[rng.choice(len(draws.points), number, p=draws.weights)]
    if others is not None:
        chosen = np.concatenate([chosen, others])
    ends, heights = climb(target, chosen, factor)
    labels = group(target, ends, heights, factor)
    found = Modes(np.zeros((0, target.dim)), np.zeros(0), (), ends, labels, factor)
    where = basins(target, found, draws.points)
    masses = [expectation((where == k).astype(float), draws) for k in range(labels.max() + 1)]
    order = np.argsort([-m.value for m in masses])
    kept = [k for k in order if masses[k].value >= SMALLEST_MASS]
    rank = np.argsort(order)
    tops = [int(np.where(labels == k, heights, -np.inf).argmax()) for k in kept]
    locations = np.array([polish(target, ends[top], factor) for top in tops])
    return Modes(
        locations=locations,
        log_density=target.log_densities(jnp.asarray(locations)),
        masses=tuple(masses[k] for k in kept),
        ends=ends,
        labels=rank[labels],
        factor=factor,
        of_draws=rank[where],
    )


def affordable(target: Target, number: int) -> int:
    """How many points can climb in the time that there is for it."""
    return target.affordable(number, SECONDS, LOOKS)


def basins(target: Target, modes: Modes, points: np.ndarray) -> np.ndarray:
    """Which basin each point (n, d) lies in: that of the end nearest to where it climbs to.

    Where there is no time for all to climb, the others lie where the nearest that does lies.
    """
    if modes.labels.max() == 0:
        return np.zeros(len(points), dtype=int)
    number = affordable(target, len(points))
    chosen = np.linspace(0, len(points) - 1, number).astype(int)
    ends, _ = climb(target, points[chosen], modes.factor)
    labels = modes.labels[nearest(modes.ends, ends, modes.factor)]
    if number == len(points):
        return labels
    return labels[nearest(points[chosen], points, modes.factor)]


def nearest(points: np.ndarray, to: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The index of the one of some points (m, d) that is nearest to each of others (n, d)."""
    return KDTree(whiten(points, factor)).query(whiten(to, factor))[1]


def whiten(points: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Points (n, d) in units of the local covariance."""
    return np.linalg.solve(factor, points.T).T


def group(target: Target, ends, heights, factor) -> np.ndarray:
    """A label for each end (n,), the same for all of one basin, from 0 up.

    First each end goes to the highest one that it reaches without crossing a valley; then
    groups are joined wherever one of the nearest pairs between them is.
    """
    labels = np.full(len(ends), -1)
    count = 0
    while (labels < 0).any() and count < MOST:
        left = np.flatnonzero(labels < 0)
        top = left[heights[left].argmax()]
        labels[left[joined(target, ends[left], ends[top])]] = count
        labels[top] = count
        count += 1
    whitened = whiten(ends, factor)
    labels[labels < 0] = labels[KDTree(whitened[labels >= 0]).query(whitened[labels < 0])[1]]
    members = [np.flatnonzero(labels == k) for k in range(count)]
    groups = list(itertools.combinations(range(count), 2))
    tried = target.affordable(len(groups) * PAIRS, SECONDS, ALONG) // max(len(groups), 1)
    which, one, other = [], [], []
    for a, b in groups:
        distances = cdist(whitened[members[a]], whitened[members[b]])
        i, j = np.unravel_index(distances.argsort(axis=None)[: max(tried, 1)], distances.shape)
        which += [(a, b)] * len(i)
        one += members[a][i].tolist()
        other += members[b][j].tolist()
    joins = np.zeros((count, count), dtype=bool)
    # In few large pieces: two thousand small ones would take longer to begin than to look at.
    size = max(128, PIECE // (ALONG * ends.shape[1]))
    for k in range(0, len(which), size):
        piece = slice(k, k + size)
        found = joined(target, ends[one[piece]], ends[other[piece]])
        for pair in np.array(which[piece])[found]:
            joins[tuple(pair)] = True
    return connected_components(joins, directed=False)[1][labels]


def summits(target: Target, ends: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The different summits (K, d) that BFGS leads to from ends of climbs (n, d).

    Ends may still stand on a slope, from which every line to a higher mode only rises: summits
    are compared with each other instead.
    """
    found: list[np.ndarray] = []
    for end in ends:
        summit = polish(target, end, factor, reach=np.inf)
        if not found or not joined(target, np.array(found), summit).any():
            found.append(summit)
    return np.array(found)


def polish(target: Target, point: np.ndarray, factor: np.ndarray, reach=3.0) -> np.ndarray:
    """The summit within reach of a point, by BFGS in local sds; the point where there is none."""
    if "slope" not in target.programs:
        target.programs["slope"] = mesh.program(jax.value_and_grad(target.log_density))

    def downhill(u):
        value, slope = target.programs["slope"](jnp.asarray(point + factor @ u))
        return -float(value), -factor.T @ np.asarray(slope)

    with np.errstate(all="ignore"):
        found = minimize(downhill, np.zeros(len(point)), jac=True, options={"maxiter": 200})
        u, slope = found.x, found.jac
        # It ends where log p rises no more, at half the digits that its slope still tells.
        for _ in range(LAST_STEPS):
            tried = u - found.hess_inv @ slope
            left = downhill(tried)[1]
            if not np.linalg.norm(left) < np.linalg.norm(slope):
                break
            u, slope = tried, left
        near = np.isfinite(found.fun) and np.linalg.norm(u) < reach
    return point + factor @ u if near else point
