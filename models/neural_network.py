"""A neural network: ten million modes that agree.

One hidden layer of eight tanh units. Units can trade places, and a unit whose weights all change
sign computes what it did before, so every mode comes in 8! · 2⁸ = 10 321 920 copies. Reverse KL
fits one copy, and where copies are well apart that costs it log 10 321 920 = 16.1 nats of ELBO and
its predictions nothing. The forward KL optimum has to cover all copies: by symmetry the mean of
every weight is then zero, and with it all that was learnt. No reference visits every copy, so
compare predictions rather than weights.

The symmetries: A. M. Chen, H. Lu and R. Hecht-Nielsen (1993), "On the geometry of feedforward
neural network error surfaces", Neural Computation 5(6), 910–927,
https://doi.org/10.1162/neco.1993.5.6.910. The data are simulated: a sine wave with a gap.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

dims = {"weight": ["unit"], "bias": ["unit"], "output": ["unit"], "y": ["point"]}


def data():
    """Simulate thirty points of a sine wave, none of them between −0.5 and 0.5."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-2.0, -0.5, 15), rng.uniform(0.5, 2.0, 15)])
    return {"x": x, "y": np.sin(2 * x) + rng.normal(0.0, 0.2, 30)}


def model(x, y=None):
    """Draw all weights, run the network, and add noise of a known size."""
    with numpyro.plate("unit", 8):
        weight = numpyro.sample("weight", dist.Normal(0.0, 2.0))
        bias = numpyro.sample("bias", dist.Normal(0.0, 2.0))
        output = numpyro.sample("output", dist.Normal(0.0, 0.5))
    offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
    mean = numpyro.deterministic("mean", offset + jnp.tanh(x[:, None] * weight + bias) @ output)
    with numpyro.plate("point", len(x)):
        numpyro.sample("y", dist.Normal(mean, 0.2), obs=y)
