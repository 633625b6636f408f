"""A Gaussian process: wiggles, or a trend and noise?

Fourteen points are explained in two ways: by a function that turns at a length of about a third,
with hardly any noise, or by a slow trend, with much. The function is integrated out, which leaves
length, amplitude and noise with two modes, each plausible. Reverse KL is expected to settle on one
explanation and be sure of it; forward KL to lie across both and, between them, to believe in
functions that fit neither way.

That the marginal likelihood can have several optima, each a reading of the data: C. E. Rasmussen
and C. K. I. Williams (2006), "Gaussian Processes for Machine Learning", MIT Press, section 5.4.1.
The data are simulated: a line, a sine wave and a little noise.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

dims = {"y": ["point"]}


def data():
    """Return the fourteen points."""
    x = [-2.7, -2.3, -1.8, -1.5, -1.5, -0.9, -0.8, -0.3, 0.1, 0.3, 0.4, 0.5, 1.5, 2.4]
    y = [-0.7, -1.5, -0.2, -0.9, -0.8, 0.1, 0.3, -0.7, 0.2, 0.7, 0.8, 0.3, 0.7, 1.6]
    return {"x": np.array(x), "y": np.array(y)}


def model(x, y=None):
    """Draw the kernel's parameters, then all of y at once: the function itself is summed over."""
    length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    amplitude = numpyro.sample("amplitude", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    distance = (x[:, None] - x) / length
    kernel = amplitude**2 * jnp.exp(-0.5 * distance**2)
    covariance = kernel + noise**2 * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)
