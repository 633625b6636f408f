"""Restarts as chains: whether fits from several starts agree, and the guide they make together."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base import array_stats
from scipy.special import logsumexp, softmax

from vi_demo import guides
from vi_demo.divergences.estimators import Estimate
from vi_demo.fitting import GAUSSIAN
from vi_demo.fitting.natural_gradient import HOPELESS
from vi_demo.fitting.runner import Fit
from vi_demo.target import Target

DRAWS = 1_000  # of each restart, as of a chain
APART = 1.0  # nats of KL, either way, from which two restarts are two places
TIED = 6  # digits after the point of an ELBO, or of draws in sds, that tell starts apart
STACKED = 4_096, 256  # draws of each place in the stacked guide, for its ELBO, at most and least
HELD = 2**27  # coordinates of them all, unless the least are more
COMPARED = 1_000  # coordinates whose R-hat is taken: those in which starts part most


class Gaussians(NamedTuple):
    """Gaussians on R^d: means (k, d), Cholesky factors (k, d, d), and log evidences (k,).

    The factors of those without correlations may be their sds alone, (k, d).
    """

    means: np.ndarray
    factors: np.ndarray
    log_evidence: np.ndarray

    def take(self, index) -> Gaussians:
        """Some of them."""
        return Gaussians(*(part[index] for part in self))

    def whole(self) -> Gaussians:
        """The same with factors (k, d, d)."""
        if self.factors.ndim == 3:
            return self
        return self._replace(factors=self.factors[:, :, None] * np.eye(self.factors.shape[1]))

    def log_prob(self, points: np.ndarray) -> np.ndarray:
        """Log densities (k, n) at points (n, d)."""
        constant = 0.5 * points.shape[1] * np.log(2 * np.pi)
        rows = []
        for mean, factor in zip(self.means, self.factors, strict=True):
            away, whole = (points - mean).T, factor.ndim == 2
            u = np.linalg.solve(factor, away) if whole else away / factor[:, None]
            scales = np.diag(factor) if whole else factor
            rows.append(-0.5 * (u**2).sum(0) - np.log(scales).sum() - constant)
        return np.array(rows)

    def draws(self, number: int, rng: np.random.Generator, of=slice(None)) -> np.ndarray:
        """Draws (k, number, d), from the same noise for each; `of` some coordinates."""
        noise = rng.normal(size=(number, self.means.shape[1]))
        if self.factors.ndim == 2:
            off = self.factors[:, None, of] * noise[:, of]
        else:
            off = np.einsum("kij,nj->kni", self.factors[:, of], noise)
        return self.means[:, None, of] + off

    @property
    def sds(self) -> np.ndarray:
        """The sds (k, d)."""
        return self.factors if self.factors.ndim == 2 else np.linalg.norm(self.factors, axis=2)

    @property
    def params(self) -> dict:
        """Those of `mixture:k` that has one component each, stacked by their evidence."""
        weights = jnp.array(self.log_evidence - logsumexp(self.log_evidence))
        return {"logits": weights, **guides.from_factors(self.means, self.whole().factors)}


def gaussians(fit: Fit) -> Gaussians | None:
    """Every start's guide with its ELBO, the best first; None where they are no Gaussians.

    Starts that came to nothing, or not near the best, are left out.
    """
    names = list(fit.params)
    if fit.family.name not in GAUSSIAN or "elbo" not in fit.restarts:
        return None
    if not set(names) <= set(fit.restarts):
        return None
    elbos = np.asarray(fit.restarts["elbo"], float)
    # Starts that met stay in their order, whatever the last digits are.
    order = np.argsort(-np.round(np.nan_to_num(elbos, nan=-np.inf), TIED), stable=True)
    kept = order[elbos[order] > elbos[order[0]] - HOPELESS]
    params = {k: np.asarray(fit.restarts[k])[kept] for k in names}
    means = params["loc"]
    if fit.family.name == "diagonal":
        factors = np.exp(params["log_scale"])
    else:
        factors = np.asarray(jax.vmap(guides.scale_tril)(params))
    return Gaussians(means, factors, elbos[kept])


def places(found: Gaussians) -> Gaussians:
    """One Gaussian of each place, the best: two are apart where KL says so both ways."""
    points = found.draws(DRAWS // 4, np.random.default_rng(0))
    at = np.array([found.log_prob(p).mean(1) for p in points])  # [i, j]: E_i[log q_j]
    divergence = np.diag(at)[:, None] - at
    kept: list[int] = []
    for i in range(len(at)):
        if all(min(divergence[i, j], divergence[j, i]) > APART for j in kept):
            kept.append(i)
    return found.take(kept)


def compared(target: Target, fit: Fit) -> dict:
    """How the starts of a fit agree: their ELBOs by rank, R-hat across them, and the guide they
    make together.

    Each start's draws are a chain (Vehtari et al. 2021), and R-hat is the worst coordinate's.
    The stacked guide is the mixture of all places that starts ended at, each weighed by
    exp(ELBO), which is its evidence as far as a guide can tell.
    """
    ranked = np.sort(np.asarray(fit.restarts.get("elbo", []), float))[::-1]
    found = gaussians(fit)
    if found is None or len(ranked) < 2:
        return {}
    of = parting(found)
    chains = found.draws(DRAWS, np.random.default_rng(1), of)
    # R-hat is of ranks: starts that met are tied, whatever their last digits are.
    chains = np.round(chains / chains.std((0, 1)), TIED)
    rhat = np.atleast_1d(array_stats.rhat(chains, chain_axis=0, draw_axis=1))
    worst = int(np.nan_to_num(rhat).argmax()) if len(chains) > 1 else 0
    apart = places(found)
    entry = {
        "elbos": ranked,
        "near_the_best": len(found.means),
        "rhat": rhat[worst] if len(chains) > 1 else None,
        "rhat_at": target.coordinates[of[worst]],
        "places": len(apart.means),
    }
    if len(apart.means) > 1:
        entry["stacked_elbo"] = stacked_elbo(target, apart)._asdict()
    return entry


def parting(found: Gaussians) -> np.ndarray:
    """The coordinates in which means or sds differ most, in their order; all of a few."""
    sds = found.sds.mean(0)
    off = np.abs(found.means - found.means.mean(0)).max(0) / sds
    off += np.abs(np.log(found.sds / sds)).max(0)
    return np.sort(np.argsort(-off, kind="stable")[:COMPARED])


def stacked_elbo(target: Target, apart: Gaussians) -> Estimate:
    """E_q[log p − log q] of the stacked guide, from draws stratified over its components."""
    weights = softmax(apart.log_evidence)
    most, least = STACKED
    number = int(np.clip(HELD // apart.means.size, least, most))
    points = apart.draws(number, np.random.default_rng(2))
    flat = points.reshape(-1, points.shape[-1])
    log_q = logsumexp(apart.log_prob(flat), axis=0, b=weights[:, None])
    values = (target.log_densities(flat) - log_q).reshape(points.shape[:2])
    error = np.sqrt(weights**2 @ values.var(1) / values.shape[1])
    return Estimate(float(weights @ values.mean(1)), float(error))
