"""Coal: one year in which disasters became rare.

Explosions in British coal mines that killed ten or more, a year from 1851 to 1962, at one rate
until a year of change and at another from then on. The year is a whole number, which no density
on R^d has; it is summed out by enumeration (NumPyro does so through funsor), exactly and with
gradients. What is left are two rates, well determined and nearly Gaussian on the log scale, so
both directions should be right. The year itself, whose posterior has three peaks between 1887 and
1896, is had back from draws of the rates. The log evidence is known exactly: −176.888.

Model: B. P. Carlin, A. E. Gelfand and A. F. M. Smith (1992), "Hierarchical Bayesian analysis of
changepoint problems", Applied Statistics 41(2), 389–405, https://doi.org/10.2307/2347570.

Data: R. G. Jarrett (1979), "A note on the intervals between coal-mining disasters", Biometrika
66(1), 191–193, https://doi.org/10.1093/biomet/66.1.191.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

coords = {"year": list(range(1851, 1963))}
dims = {"disasters": ["year"]}


def data():
    """Return the number of disasters of each year from 1851 to 1962."""
    file = Path(__file__).parent / "data" / "coal.csv"
    return {"disasters": np.genfromtxt(file, delimiter=",", names=True, dtype=int)["disasters"]}


def model(disasters=None):
    """Draw two rates and the last year of the first, then the disasters of each year."""
    before = numpyro.sample("before", dist.Exponential(0.5))
    after = numpyro.sample("after", dist.Exponential(0.5))
    # Counted from 1851, as NumPyro's enumeration takes the lowest value of a site for 0.
    last = dist.DiscreteUniform(0, 110)
    change = numpyro.sample("change", last, infer={"enumerate": "parallel"})
    with numpyro.plate("year", 112) as year:
        # Enumerated, change is a column of all its values, and rate has a row for each of them.
        rate = jnp.where(year <= change, before, after)
        numpyro.sample("disasters", dist.Poisson(rate), obs=disasters)
