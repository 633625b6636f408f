"""Student-t tails: right in the middle, wrong far out.

One symmetric mode, and still no Gaussian will do: the density falls off like a power, so p/q grows
without bound under every Gaussian q and importance weights never have a finite variance. With
three degrees of freedom, reverse KL fits the body, sd 1.21, at a KL(q‖p) of 0.085 nats that gives
no hint of the tails. Forward KL takes the true sd √3 = 1.73, too wide for the body, at a KL(p‖q)
of log 3 − 2/3 = 0.432 nats; fitted to draws it comes out narrower, as a few draws far out decide
about the variance. With two degrees of freedom or fewer the variance, and with it
KL(p‖q), is infinite for every Gaussian.

How weights betray such tails: A. Vehtari, D. Simpson, A. Gelman, Y. Yao and J. Gabry (2024),
"Pareto smoothed importance sampling", Journal of Machine Learning Research 25(72), 1–58,
arXiv:1507.02646.
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model(df=3.0, dim=2):
    """Draw from the multivariate t distribution around the origin."""
    numpyro.sample("x", dist.MultivariateStudentT(df, jnp.zeros(dim), jnp.eye(dim)))
