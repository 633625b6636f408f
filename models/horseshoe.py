"""Horseshoe regression: five of eight effects are zero.

Each coefficient has a width of its own, lam, and all share tau; both have half-Cauchy priors, so a
coefficient is either shrunk to nearly nothing or left alone. Where nothing is there, beta and its
log width form a funnel; where something is, the width has a heavy tail. Reverse KL is expected to
be too narrow in lam; forward KL to match the sd of each beta and to lose its spike at zero.

The data are simulated: 40 observations of 8 standard normal predictors, three of which count.

Source: C. M. Carvalho, N. G. Polson and J. G. Scott (2010), "The horseshoe estimator for sparse
signals", Biometrika 97(2), 465–480, https://doi.org/10.1093/biomet/asq017.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist

coords = {"predictor": list("abcdefgh")}
dims = {"lam": ["predictor"], "beta": ["predictor"], "y": ["observation"]}


def data():
    """Simulate predictors and outcomes; of the true coefficients five are exactly zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 8))
    beta = np.array([2.0, 0.0, 0.0, -1.0, 0.0, 0.4, 0.0, 0.0])
    return {"x": x, "y": x @ beta + rng.normal(size=40)}


def model(x, y=None):
    """Regress y on x, each coefficient under a width of its own."""
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    with numpyro.plate("predictor", x.shape[1]):
        lam = numpyro.sample("lam", dist.HalfCauchy(1.0))
        beta = numpyro.sample("beta", dist.Normal(0.0, tau * lam))
    with numpyro.plate("observation", len(x)):
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)
