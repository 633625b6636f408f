"""From reverse to forward KL along Amari's α, following every local optimum from both ends.

At α = 0 the divergence is KL(q‖p), at 1 it is KL(p‖q). Each reverse-KL start that found an
optimum of its own begins a branch at 0, the forward-KL guide one at 1, and each is followed to
the other end by small steps, its last optimum being the next start. All divergences are averages
over the same fixed draws, so branches are compared without noise. Where the best guide of one α
and the best of the next lie on branches that differ, it has jumped (Minka 2005, MSR-TR-2005-173,
shows why: zero-forcing gives way to covering).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vi_demo import starts
from vi_demo.divergences.generators import Alpha
from vi_demo.fitting import gradient_descent, objectives
from vi_demo.fitting.runner import Fit, Report, silent
from vi_demo.guides import Family
from vi_demo.target import Target

SIZES = 2048, 8192  # draws of the guide's noise, of the target
MOST_BRANCHES = 6
CHUNKS = 20  # of steps, at each α at most
SETTLED = 1e-5  # nats
SAME = 0.05  # sds, or logs of sd ratios: guides closer than that are one optimum


class Path(NamedTuple):
    """Branches of local optima: α (K,), divergence (B, K), mean and sd (B, K, d) of the guide.

    `begins` (B,) is the end each branch was followed from, 0 or 1; `best` (K,) the branch with
    the least divergence; `jumps` where the best guide leaves one branch for another.
    """

    alpha: np.ndarray
    divergence: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    params: dict[str, np.ndarray]
    begins: np.ndarray
    best: np.ndarray
    jumps: tuple[float, ...]


def follow(
    target: Target,
    family: Family,
    reverse: Fit,
    forward: Fit,
    key: Array,
    steps: int,
    report: Report = silent,
) -> Path:
    """The path of α in `steps` even steps, from the fits at its two ends."""
    alphas = np.linspace(0.0, 1.0, steps)
    solve = solver(target, family, forward, key)
    optima = distinct(family, reverse)
    ends = [(0.0, p) for p in optima] + [(1.0, forward.params)]
    branches = []
    for i, (begin, params) in enumerate(ends):
        order = alphas if begin == 0 else alphas[::-1]
        found = []
        for k, a in enumerate(order):
            share = (i + k / steps) / len(ends)
            report("path", share, f"branch {i + 1} of {len(ends)}, α = {a:.2f}")
            params, value = solve(params, a)
            found.append((params, value))
        branches.append(found if begin == 0 else found[::-1])
    divergence = np.array([[value for _, value in b] for b in branches])
    params = jax.tree.map(
        lambda *x: np.asarray(x).reshape(len(branches), steps, *np.shape(x[0])),
        *[p for b in branches for p, _ in b],
    )
    mean, sd = spots(family, params)
    best, jumps = best_and_jumps(alphas, divergence, mean, sd)
    begins = np.array([begin for begin, _ in ends])
    return Path(alphas, divergence, mean, sd, params, begins, best, jumps)


def solver(target: Target, family: Family, forward: Fit, key: Array) -> Callable:
    """A function (parameters, α) -> (parameters, divergence) of the optimum nearby.

    It steps on the scale of the target's curvature.
    """
    frame, here = starts.to_scale(target, family.turns)
    back = frame.inverse()
    there, back_again = (jax.jit(lambda p, f=f: family.moved(p, *f)) for f in (back, frame))
    noise = objectives.normal_noise(
        key, max(SIZES[0], gradient_descent.enough(target)), target.dim
    )
    draws = gradient_descent.moved(gradient_descent.subset(forward.draws, SIZES[1]), back)

    def loss(params, noise_and_alpha, draws):  # one program for every α
        fixed, a = noise_and_alpha
        return objectives.through_both(Alpha(a), here, family, params, fixed, draws)

    program = gradient_descent.descent(loss)

    def solve(params, a):
        params = jax.tree.map(lambda x: x[None], there(params))
        optimiser, old = gradient_descent.fresh(params), jnp.array([jnp.inf])
        for _ in range(CHUNKS):
            params, optimiser, value, _ = program(
                *(params, optimiser, old, jnp.array([True]), (noise, jnp.asarray(a)), draws)
            )
            if not old[0] - value[0] > SETTLED:
                break
            old = value
        # The objective is log(1 + D).
        return back_again(jax.tree.map(lambda x: x[0], params)), float(jnp.expm1(value[0]))

    return solve


def distinct(family: Family, reverse: Fit) -> list[dict]:
    """The optima that the restarts of reverse KL found, the best first, each once."""
    if not set(reverse.params) <= set(reverse.restarts):  # they were too large to be kept
        return [reverse.params]
    score = "elbo" if "elbo" in reverse.restarts else "loss"
    values = reverse.restarts[score] * (-1 if score == "elbo" else 1)
    kept: list[dict] = []
    for i in np.argsort(values):
        if not np.isfinite(values[i]) or len(kept) == MOST_BRANCHES - 1:
            break
        params = {k: v[i] for k, v in reverse.restarts.items() if k in reverse.params}
        known = [apart(*spots(family, stack([params, other]))) for other in kept]
        if all(d > SAME for d in known):
            kept.append(params)
    return kept


def stack(params: list[dict]) -> dict:
    """Parameters of one branch at several α."""
    return jax.tree.map(lambda *x: np.stack(x)[None], *params)


def spots(family: Family, params: dict) -> tuple[np.ndarray, np.ndarray]:
    """Means and sds (B, K, d) of guides of parameters (B, K, …)."""

    def spot(p):
        q = family.distribution(p)
        return q.mean, jnp.sqrt(q.variance)

    mean, sd = jax.vmap(jax.vmap(spot))(jax.tree.map(jnp.asarray, params))
    return np.asarray(mean), np.asarray(sd)


def apart(mean: np.ndarray, sd: np.ndarray) -> float:
    """How far the first two guides (…, 2, d) are apart, in sds or logs of their ratio."""
    (a, b), (s, t) = mean.reshape(2, -1), sd.reshape(2, -1)
    return float(max(np.abs((a - b) / np.sqrt(s * t)).max(), np.abs(np.log(s / t)).max()))


def best_and_jumps(
    alphas: np.ndarray, divergence: np.ndarray, mean: np.ndarray, sd: np.ndarray
) -> tuple[np.ndarray, tuple[float, ...]]:
    """The best branch at each α, staying where others are no better, and where it jumps."""
    best = np.zeros(len(alphas), int)
    best[0] = int(np.argmin(divergence[:, 0]))
    jumps = []
    for k in range(1, len(alphas)):
        old, new = best[k - 1], int(np.argmin(divergence[:, k]))
        better = divergence[new, k] < divergence[old, k] - SETTLED
        best[k] = new if better else old
        both = [[best[k], old], k]
        if better and apart(mean[tuple(both)], sd[tuple(both)]) > SAME:
            gap = divergence[old] - divergence[new]  # below 0 before it, above 0 after
            share = np.clip(gap[k - 1] / (gap[k - 1] - gap[k]), 0, 1) if gap[k - 1] < 0 else 0.0
            jumps.append(float(alphas[k - 1] + share * (alphas[k] - alphas[k - 1])))
        elif apart(mean[old, [k - 1, k]], sd[old, [k - 1, k]]) > 10 * SAME * steepness(alphas):
            jumps.append(float(alphas[k - 1 : k + 1].mean()))  # its optimum vanished on the way
    return best, tuple(jumps)


def steepness(alphas: np.ndarray) -> float:
    """How much more guides may move between two α where those are few."""
    return max(1.0, 10 * float(alphas[1] - alphas[0]))
