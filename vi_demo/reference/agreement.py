"""Whether SMC and NUTS, which share nothing but the density, say the same of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from arviz_stats.base import array_stats
from scipy.sparse.csgraph import connected_components

from vi_demo.divergences.estimators import Draws
from vi_demo.reference import modes, nuts
from vi_demo.target import Target

SHIFT = 0.15  # sds by which they may differ, beyond their noise
RATIO = 1.15  # and by which ratio of sds
SELDOM = 0.02  # share of a chain's draws in a basin below which it only strayed there
DIVERGENT = 0.05  # share of NUTS transitions above which it is no check
RHAT, ESS = 1.02, 200  # beyond which chains do not mix


class Agreement(NamedTuple):
    """What speaks against SMC's draws, and where NUTS is too weak to say."""

    against: list[str]
    unchecked: list[str]


def unchecked(why: str) -> Agreement:
    """What there is to say where NUTS was not run."""
    return Agreement([], [why])


class Finding(NamedTuple):
    """What is wrong with one coordinate, in words, and how badly, to find the worst."""

    size: float
    words: str


def compare(target: Target, draws: Draws, chains: nuts.Chains, found: modes.Modes) -> Agreement:
    """Compare SMC's draws with NUTS chains, mode by mode and coordinate by coordinate."""
    differing, weak = [], []
    in_chains = modes.basins(target, found, chains.points.reshape(-1, target.dim))
    in_chains = in_chains.reshape(chains.points.shape[:2])
    in_draws = found.of_draws
    # Basins that one chain goes between are one place to NUTS.
    number = 1 + max(in_chains.max(), in_draws.max())
    visits = np.zeros((number, number), dtype=bool)
    for row in in_chains:
        often = np.flatnonzero(np.bincount(row, minlength=number) > SELDOM * len(row))
        visits[np.ix_(often, often)] = True
    place = connected_components(visits, directed=False)[1]
    home = place[[np.bincount(row).argmax() for row in in_chains]]
    known = set(place[: len(found.masses)])
    for k in known:
        stayed, within = chains.points[home == k], draws.points[place[in_draws] == k]
        if not len(stayed) or len(within) < 100:
            continue  # nothing to compare
        for i, name in enumerate(target.coordinate_names):
            difference = differs(name, stayed[..., i], within[:, i])
            if not difference:
                continue
            stuck = does_not_mix(name, stayed[..., i])
            if stuck:
                weak.append(stuck)
            else:
                differing.append(difference)
    against = the_worst(differing)
    strangers = sum(k not in known for k in home)
    if strangers:
        against.append(
            f"{strangers} of {len(home)} NUTS chains stay where SMC saw next to nothing"
        )
    return Agreement(against, divergences(chains) + the_worst(weak))


def the_worst(findings: list[Finding]) -> list[str]:
    """The worst one in words, with how many others there are."""
    if not findings:
        return []
    others = len(findings) - 1
    words = max(findings).words
    return [f"{words}; {others} more like it" if others else words]


def differs(name: str, chains: np.ndarray, draws: np.ndarray) -> Finding | None:
    """How chains (chain, draw) and draws (n,) of a coordinate differ beyond their noise, if so."""
    effective = {m: float(array_stats.ess(chains, method=m)) for m in ("mean", "sd")}
    independent = len(draws) / 4  # particles share ancestors
    sd = draws.std()
    shift = abs(chains.mean() - draws.mean()) / sd
    if shift > SHIFT + 3 * np.sqrt(1 / effective["mean"] + 1 / independent):
        return Finding(shift, f"NUTS puts the mean of {name} {shift:.1f} sd from where SMC does")
    ratio = chains.std() / sd
    noise = 3 * np.sqrt(0.5 / effective["sd"] + 0.5 / independent)
    off = abs(np.log(ratio))
    if off > np.log(RATIO) + noise:
        return Finding(off, f"NUTS finds {name} {ratio:.2f} times as wide as SMC does")
    return None


def does_not_mix(name: str, chains: np.ndarray) -> Finding | None:
    """That chains (chain, draw) of a coordinate do not mix, if so (Vehtari et al. 2021)."""
    if len(chains) == 1:
        chains = chains.reshape(2, -1)  # its halves
    rhat = float(np.nan_to_num(array_stats.rhat(chains), nan=np.inf))  # of chains that stand
    ess = float(min(array_stats.ess(chains, method=m) for m in ("bulk", "sd")))
    if rhat <= RHAT and ess >= ESS:
        return None
    return Finding(rhat, f"NUTS does not mix in {name}: R-hat {rhat:.2f}, ESS {ess:.0f}")


def divergences(chains: nuts.Chains) -> list[str]:
    """That too many of NUTS's transitions diverged, if so."""
    share = chains.divergent / chains.points[..., 0].size
    if share <= DIVERGENT:
        return []
    return [f"{100 * share:.0f}% of NUTS transitions diverged: the density is too curved for it"]
