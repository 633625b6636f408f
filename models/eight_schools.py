"""Eight schools, centred: the scale can vanish.

Eight schools each ran a coaching programme for the SAT; y is a school's estimated effect in
points and sigma the standard error of that estimate. As tau shrinks, every theta is pinned to
mu: the posterior narrows into a funnel that no Gaussian guide can follow to its tip.

Data: D. B. Rubin (1981), "Estimation in parallel randomized experiments", Journal of Educational
Statistics 6(4), 377–401.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

coords = {"school": list("ABCDEFGH")}
dims = {"theta": ["school"], "y": ["school"]}


def data():
    """Return the estimated effects and their standard errors, schools A to H."""
    return {
        "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
        "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    }


def model(sigma, y=None):
    """Draw each school's true effect around a common mean, then its noisy estimate."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(sigma)):
        # Centred on purpose: writing theta = mu + tau * z would remove the funnel.
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
