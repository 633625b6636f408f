"""NUTS chains from dispersed starts: an independent look at what SMC found."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer import MCMC, NUTS

from vi_demo import mesh, noise, starts
from vi_demo.batching import clocked
from vi_demo.frames import Frame
from vi_demo.target import Target

CHAINS = 4
WARMUP = 500
DRAWS = 1000
ACCEPTANCE = 0.95
MOST_DENSE = 200  # dimensions up to which the mass matrix is dense
DEEPEST = 8  # trees, of 255 leapfrog steps: a check that needs more is none
SHALLOWEST = 5
GRADIENT = 4  # times as long as a density, a guess


class Chains(NamedTuple):
    """Draws (chain, draw, d) on R^d, how many transitions diverged, and the gradients spent."""

    points: np.ndarray
    divergent: int
    gradients: int


def sample(
    target: Target,
    key: Array,
    deepest: int = DEEPEST,
    beginning: tuple[Frame, Array] | None = None,
) -> Chains:
    """Run NumPyro's NUTS, all chains side by side, with trees of at most that depth.

    They begin at dispersed points, on the scale of the climbs, unless `beginning` gives both.
    """
    start_key, run_key = jax.random.split(key)
    frame, begin = beginning or dispersed(target, start_key)
    kernel = NUTS(
        potential_fn=lambda u: -target.log_density(frame.out(u)),
        target_accept_prob=ACCEPTANCE,
        dense_mass=target.dim <= MOST_DENSE,
        max_tree_depth=deepest,
    )
    chains = MCMC(
        kernel,
        num_warmup=WARMUP,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    chains.run(run_key, init_params=begin, extra_fields=("diverging", "num_steps"))
    fields = chains.get_extra_fields(group_by_chain=True)
    steps = int(fields["num_steps"].sum())
    return Chains(
        points=np.asarray(jax.vmap(jax.vmap(frame.out))(chains.get_samples(group_by_chain=True))),
        divergent=int(fields["diverging"].sum()),
        gradients=steps * (WARMUP + DRAWS) // DRAWS,  # warm-up's are not recorded: about as many
    )


def affordable(target: Target, within: float) -> tuple[int | None, float]:
    """How deep trees may grow for every one to be full and yet all to be done `within` so many
    seconds, None where not even shallow ones are, and about how long those would take.
    """
    transitions = WARMUP + DRAWS
    if target.seconds(GRADIENT * CHAINS * transitions * 2**DEEPEST) <= within:
        return DEEPEST, 0.0
    frame, begin = dispersed(target, jax.random.key(0))
    slopes = mesh.program(jax.vmap(jax.grad(lambda u: target.log_density(frame.out(u)))))
    each = clocked(slopes, begin) * transitions
    depths = [d for d in range(SHALLOWEST, DEEPEST + 1) if each * 2**d <= within]
    return max(depths, default=None), each * 2**SHALLOWEST


def dispersed(target: Target, key: Array) -> tuple[Frame, Array]:
    """The scale that chains step on, and where they begin on it (chain, d).

    Where there were climbs, the scale is the best one's and chains begin at draws around their
    ends; else they begin at dispersed points, on the scale of R^d itself.
    """
    found = starts.climbs(target)
    if found is None:
        nothing = Frame(jnp.zeros(target.dim), jnp.ones(target.dim))
        return nothing, starts.points(target, key, CHAINS)
    frame = jax.tree.map(lambda x: x[jnp.argmax(found.elbos)], found.frames(whole=True))
    centres, factors, scale = map(np.asarray, (found.centres, found.factors, frame.factor))
    chosen = np.arange(CHAINS) % len(centres)
    u = noise.normal(key, (CHAINS, target.dim))
    around = centres[chosen] + np.einsum("cij,cj->ci", factors[chosen], u)
    return frame, jnp.asarray(np.linalg.solve(scale, (around - np.asarray(frame.shift)).T).T)
