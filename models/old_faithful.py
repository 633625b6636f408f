"""Old Faithful: two kinds of wait, labels exchangeable.

A mixture of two Gaussians for the minutes between eruptions of the geyser. The prior treats the
components alike, so swapping them leaves the posterior unchanged: it has two modes of exactly
equal mass that say the same thing. `one_kind` is one Gaussian for all of them, whose posterior
is nearly Gaussian though the waits are not: a fit can be right and its model wrong.

Data: W. Härdle (1991), "Smoothing Techniques with Implementation in S", Springer.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

coords = {"component": ["a", "b"]}
dims = {"mu": ["component"], "sigma": ["component"], "waiting": ["eruption"]}


def data():
    """Return the 272 waiting times, in minutes."""
    file = Path(__file__).parent / "data" / "old_faithful.csv"
    return {"waiting": np.genfromtxt(file, skip_header=1)}


def model(waiting=None):
    """Mix two Gaussians; `weight` is the share of the first."""
    weight = numpyro.sample("weight", dist.Beta(2.0, 2.0))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(70.0, 15.0))
        # The times are whole minutes with many ties: a prior with mass near zero, a half-normal
        # say, would let a component collapse onto one tied value, where the density is infinite.
        sigma = numpyro.sample("sigma", dist.LogNormal(jnp.log(6.0), 0.5))

    # Summing over which component each wait belongs to leaves continuous sites only.
    shares = dist.Categorical(probs=jnp.stack([weight, 1.0 - weight]))
    mixture = dist.MixtureSameFamily(shares, dist.Normal(mu, sigma))
    with numpyro.plate("eruption", 272 if waiting is None else len(waiting)):
        numpyro.sample("waiting", mixture, obs=waiting)


def one_kind(waiting=None):
    """Draw all waits from one Gaussian."""
    mean = numpyro.sample("mean", dist.Normal(70.0, 15.0))
    sd = numpyro.sample("sd", dist.LogNormal(jnp.log(12.0), 0.5))
    with numpyro.plate("eruption", 272 if waiting is None else len(waiting)):
        numpyro.sample("waiting", dist.Normal(mean, sd), obs=waiting)
