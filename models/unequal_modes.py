"""Unequal modes: the higher peak holds the less mass.

A wide Gaussian holds 90 % of the mass and a narrow one 10 %, yet the narrow one is the higher
peak, so the posterior mode is the wrong place to look. Reverse KL loses only −log(share) by taking
one of the two: 0.105 nats for the wide one, 2.303 for the narrow one, and a start near the
narrow peak is caught there. At its best its importance weights look perfect, for none of its draws
comes near the tenth it misses. Forward KL spans both, mean −2.4 and sd 2.04 along x₁, at a KL(p‖q)
of 0.614 nats.
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(share=0.1, width=0.25):
    """Mix a standard Gaussian at x₁ = −3 with a narrow one, which holds `share`, at x₁ = 3."""
    which = dist.Categorical(probs=jnp.array([1 - share, share]))
    centre = jnp.array([[-3.0, 0.0], [3.0, 0.0]])
    sd = jnp.array([[1.0], [width]])
    numpyro.sample("x", dist.MixtureSameFamily(which, dist.Normal(centre, sd).to_event(1)))
