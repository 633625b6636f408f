"""NUTS chains from dispersed starts: an independent look at what SMC found."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from numpyro.infer import MCMC, NUTS

from vi_demo.target import Target

CHAINS = 4
WARMUP = 500
DRAWS = 1000
ACCEPTANCE = 0.95


class Chains(NamedTuple):
    """Draws (chain, draw, d) on R^d, how many transitions diverged, and the gradients spent."""

    points: np.ndarray
    divergent: int
    gradients: int


def sample(target: Target, key: Array) -> Chains:
    """Run NumPyro's NUTS, all chains side by side."""
    start_key, run_key = jax.random.split(key)
    kernel = NUTS(
        potential_fn=lambda z: -target.log_density(z),
        target_accept_prob=ACCEPTANCE,
        dense_mass=True,
    )
    chains = MCMC(
        kernel,
        num_warmup=WARMUP,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    starts = target.start_points(start_key, CHAINS)
    chains.run(run_key, init_params=starts, extra_fields=("diverging", "num_steps"))
    fields = chains.get_extra_fields(group_by_chain=True)
    steps = int(fields["num_steps"].sum())
    return Chains(
        points=np.asarray(chains.get_samples(group_by_chain=True)),
        divergent=int(fields["diverging"].sum()),
        gradients=steps * (WARMUP + DRAWS) // DRAWS,  # warm-up's are not recorded: about as many
    )
