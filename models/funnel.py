"""Neal's funnel: nine widths that hang on one number.

log_width sets the sd of each x, from a tip narrower than any Gaussian to a mouth wider than all.
The best factorised guide under reverse KL settles near the tip, with sd 0.47 for log_width where
the truth is 3, and has an ELBO of −1.863 nats (the log evidence is 0). Forward KL matches the
variances, exp(9/2) for each x, and so covers the mouth and nothing of the tip: KL(p‖q) is
9 · 9/4 = 20.25 nats. The x are uncorrelated with each other and with log_width, so for forward KL
a full-rank Gaussian is no better than a diagonal one.

Source: R. M. Neal (2003), "Slice sampling", Annals of Statistics 31(3), 705–767, section 8,
https://doi.org/10.1214/aos/1056562461.
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(dim=9, sd=3.0):
    """Draw the log of a variance, then `dim` numbers of that variance."""
    log_width = numpyro.sample("log_width", dist.Normal(0.0, sd))
    with numpyro.plate("direction", dim):
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(log_width / 2)))
