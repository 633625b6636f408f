"""Two modes: half a Gaussian at (−4, 0), half at (4, 0).

A single Gaussian cannot be both. Reverse KL settles on one half, forward KL stretches over the
two of them, and because the target is normalised (its log evidence is exactly 0) every
divergence can be checked by quadrature.
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints


def model(separation=4.0):
    """Give the density of x in the plane, with the modes at x₁ = ±separation."""
    # The flat site plus a factor states a density and nothing else: as for most real posteriors,
    # there is no way to draw from it directly.
    x = numpyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    mode = jnp.array([separation, 0.0])
    left = dist.Normal(-mode, 1.0).to_event(1).log_prob(x)
    right = dist.Normal(mode, 1.0).to_event(1).log_prob(x)
    numpyro.factor("log_density", jnp.logaddexp(left, right) - jnp.log(2.0))
