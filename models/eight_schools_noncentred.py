"""Eight schools, non-centred: the funnel written away.

The same posterior as eight_schools in other coordinates: z says how far a school lies from mu in
units of tau, and theta follows from it. The likelihood says little about any one z, so z, mu and
log tau are nearly independent a posteriori and a Gaussian can be close in both directions; what is
left is the skewness of log tau. Where the data are many the centred form is the better one.

Reparametrisations: O. Papaspiliopoulos, G. O. Roberts and M. Sköld (2007), "A general framework
for the parametrization of hierarchical models", Statistical Science 22(1), 59–73,
https://doi.org/10.1214/088342307000000014.

Data: D. B. Rubin (1981), "Estimation in parallel randomized experiments", Journal of Educational
Statistics 6(4), 377–401.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

coords = {"school": list("ABCDEFGH")}
dims = {"z": ["school"], "theta": ["school"], "y": ["school"]}


def data():
    """Return the estimated effects and their standard errors, schools A to H."""
    return {
        "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
        "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    }


def model(sigma, y=None):
    """Draw each school's standardised effect, place it around a common mean, then measure it."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(sigma)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
