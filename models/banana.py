"""Banana: a bent valley that no Gaussian can follow.

y curves with x² and the density is normalised, so its log evidence is exactly 0. Reverse KL fits
the bottom of the bend: sd 0.34 in x where the truth is 1, at a KL(q‖p) of 0.850 nats. Forward KL
takes the right means and variances, sd 1 and 2.87, and puts most of its mass where there is none:
KL(p‖q) is ½ log(1 + 2 bend²/width²) = 1.748 nats. x and y are uncorrelated, so a full-rank
Gaussian does no better than a diagonal one in either direction.

The twist of a Gaussian is that of H. Haario, E. Saksman and J. Tamminen (1999), "Adaptive
proposal distribution for random walk Metropolis algorithm", Computational Statistics 14, 375–395,
https://doi.org/10.1007/s001800050022.
"""

import numpyro
import numpyro.distributions as dist


def model(bend=2.0, width=0.5):
    """Draw x, then y around a parabola in x."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(bend * (x**2 - 1.0), width))
