"""Pathfinder: the Gaussian of greatest ELBO along quasi-Newton paths, by BlackJAX.

L-BFGS climbs the density from each of some dispersed points of R^d. At every step its history
gives an estimate S of the inverse of −∇² log p, and with it the Gaussian N(z + S ∇ log p(z), S);
that of greatest ELBO is the path's, and the best path's is the guide. Zhang et al. (2022), JMLR
23(306), arXiv 2108.03782.

The paths and S are BlackJAX's. The choice among the Gaussians is made here: BlackJAX 1.7 takes
the slope in their means with the wrong sign, and leaves out the last step of a path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.optimizers.lbfgs import bfgs_sample, lbfgs_inverse_hessian_formula_1
from blackjax.vi import pathfinder
from jax import Array

from vi_demo import mesh, starts
from vi_demo.batching import in_slices
from vi_demo.fitting.laplace import MARGINAL
from vi_demo.fitting.runner import Assessment, Fit, Fitter, Report, run, silent
from vi_demo.guides import Family, nearest
from vi_demo.target import Target, finite_or_minus_inf

PATHS = 8
STEPS = 100  # of a path at most
HISTORY = 10  # steps that the curvature is made of, as BlackJAX has it
LINE_SEARCH = 32  # evaluations at most
TOLERANCE = 1e-10  # relative rise of log p below which a path ends
DRAWS = 64  # of each Gaussian on a path, for its ELBO
LAST_DRAWS = 1024  # of the best of each path, to compare paths by


class Path(NamedTuple):
    """The best Gaussian of a path: mean (d,), a square root of its covariance (d, d), or its sds
    (d,), and its ELBO in nats; the ELBOs on the way (STEPS + 1,), how many steps it took, which
    of them was the best, and the gradients that were looked at.
    """

    mean: Array
    factor: Array
    elbo: Array
    elbos: Array
    steps: Array
    at: Array
    gradients: int = 0


def refuse(target: Target) -> None:
    """Nothing that has a density is refused."""


def fit(target: Target, family: Family, key: Array, report: Report = silent) -> Fit:
    """The Gaussian of greatest ELBO, in nats, on any of the paths.

    `restarts` holds the best of each path that was finite; a note counts the others.
    """
    return run(fitter(target, family, report), key, "pathfinder", family, report)


def fitter(target: Target, family: Family, report: Report = silent) -> Fitter:
    """Every path from its own point, one after the other."""
    go = climber(target, family)

    def init(key):
        point_key, key = jax.random.split(key)
        return starts.points(target, point_key, PATHS), jax.random.split(key, PATHS)

    def advance(state):
        paths = []
        for i, (z, key) in enumerate(zip(*state, strict=True)):
            report("pathfinder", i / PATHS, f"path {i + 1} of {PATHS}")
            paths.append(go(key, z))
        longest = max(int(path.steps) for path in paths)
        history = np.stack([path.elbos[: longest + 1] for path in paths if finite(path)], -1)
        return paths, {"elbo": history}

    def finite(path):
        return bool(jnp.isfinite(path.elbo))

    def assess(paths):
        good = [path for path in paths if finite(path)]
        if not good:
            return Assessment("failed", 1.0, "no path was finite")
        best = max(good, key=lambda path: path.elbo)
        status = "stopped" if best.at == STEPS else "converged"
        return Assessment(status, 1.0, f"{len(good)} paths, ELBO {float(best.elbo):,.3f}")

    def finish(paths):
        good = [path for path in paths if finite(path)]
        bad = len(paths) - len(good)
        lost = (f"{bad} of {len(paths)} paths were not finite, and were left out",) * bool(bad)
        steps = sum(int(path.steps) + 1 for path in paths)
        fields = {
            "steps": sum(int(path.steps) for path in paths),
            "evaluations": {
                "log_density": PATHS * (STEPS + 1 + LAST_DRAWS) + steps * DRAWS,
                "gradient": sum(path.gradients for path in paths),
            },
            "notes": lost if family.turns else (MARGINAL, *lost),
        }
        if not good:
            return fields | {"params": nearest(family, *starts.frame(target, family.turns))}
        each = [nearest(family, path.mean, path.factor) for path in good]
        elbos = np.array([path.elbo for path in good])
        best = int(elbos.argmax())
        every = jax.tree.map(lambda *x: np.stack(x), *each)
        return fields | {"params": each[best], "best": best, "restarts": {"elbo": elbos, **every}}

    return Fitter("pathfinder", init, advance, assess, finish)


def climber(target: Target, family: Family) -> Callable[[Array, Array], Path]:
    """A function (key, point) -> the path from there."""
    looks = 0

    def look():
        nonlocal looks
        looks += 1

    def counted(z):
        jax.debug.callback(look)  # BlackJAX does not say how often its line search looked
        return target.log_density(z)

    def elbo(key, number, state):
        points, log_q = bfgs_sample(
            *(key, number, state.position, -state.grad_position),
            *(state.alpha, state.beta, state.gamma),
        )
        log_p = finite_or_minus_inf(in_slices(target.log_density, points, target.batch))
        return finite_or_minus_inf((log_p - log_q).mean())

    @mesh.program
    def path(key, z):
        path_key, key, last_key = jax.random.split(key, 3)
        every = pathfinder.approximate(
            *(path_key, counted, z, 1),
            **{"maxiter": STEPS, "maxcor": HISTORY, "maxls": LINE_SEARCH, "ftol": TOLERANCE},
        )[1].path
        steps = (jnp.diff(every.position, axis=0) != 0).any(1).sum()

        def if_taken(at):
            i, state = at
            draw = lambda: elbo(key, DRAWS, state)  # noqa: E731
            taken = (i >= jnp.minimum(1, steps)) & (i <= steps)  # at 0 there is no S yet
            return jax.lax.cond(taken, draw, lambda: -jnp.inf)

        elbos = jax.lax.map(if_taken, (jnp.arange(STEPS + 1), every))
        best = jnp.argmax(elbos)
        state = jax.tree.map(lambda x: x[best], every)
        ways = state.alpha, state.beta, state.gamma
        if family.turns:
            covariance = lbfgs_inverse_hessian_formula_1(*ways)
            factor, slope = jnp.linalg.cholesky(covariance), covariance @ state.grad_position
        else:
            alpha, beta, gamma = ways
            factor = jnp.sqrt(alpha + ((beta @ gamma) * beta).sum(1))
            slope = alpha * state.grad_position + beta @ (gamma @ (beta.T @ state.grad_position))
        value = jnp.where(jnp.isfinite(factor).all(), elbo(last_key, LAST_DRAWS, state), -jnp.inf)
        return Path(state.position - slope, factor, value, elbos, steps, best)

    def go(key, z):
        nonlocal looks
        looks = 0
        found = jax.block_until_ready(path(key, z))
        jax.effects_barrier()
        return found._replace(gradients=looks - 1)  # one look was for BlackJAX's own ELBOs

    return go
