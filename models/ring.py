"""A ring of eight modes: how many does a fit find?

Eight equal Gaussians stand on a circle, six sds from neighbour to neighbour, with log evidence 0.
Reverse KL takes one of the eight and is content: KL(q‖p) is log 8 = 2.079 nats less the hundredth
that the tails of its neighbours are worth. Forward KL lies over all of them, with sd √8.25 = 2.87
both ways and its peak in the empty middle: KL(p‖q) is 1.423 nats. Neither number says how many
modes there are; a mixture of eight components can.

The ring is a common picture of modes gone missing, as in L. Metz, B. Poole, D. Pfau and
J. Sohl-Dickstein (2017), "Unrolled generative adversarial networks", ICLR, arXiv:1611.02163.
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(modes=8, radius=4.0, width=0.5):
    """Give equal shares to Gaussians spread evenly over a circle."""
    angle = 2 * jnp.pi * jnp.arange(modes) / modes
    centre = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    share = dist.Categorical(probs=jnp.full(modes, 1 / modes))
    numpyro.sample("x", dist.MixtureSameFamily(share, dist.Normal(centre, width).to_event(1)))
