"""A variational autoencoder: one guide for 400 digits.

Each image is drawn from a code of two numbers by a decoder, and the file brings its own guide: an
encoder that reads an image and says where its code lies. Decoder and encoder are learnt together
by raising the ELBO, which is reverse KL, so the guide is too narrow wherever codes are ambiguous,
and the decoder adapts to what the guide can express. One encoder for all images falls short of the
best Gaussian for each by the amortisation gap (C. Cremer, X. Li and D. Duvenaud, 2018, "Inference
suboptimality in variational autoencoders", ICML, arXiv:1801.03558). Forward KL needs codes whose
images are known: it would fit the encoder to images dreamt up by the decoder, and err on the wide
side (G. E. Hinton, P. Dayan, B. J. Frey and R. M. Neal, 1995, "The wake-sleep algorithm for
unsupervised neural networks", Science 268, 1158–1161, https://doi.org/10.1126/science.7761831).

With `numpyro.infer.TraceMeanField_ELBO` the KL from the guide's Gaussians to the prior's is taken
in closed form, which leaves less noise than `Trace_ELBO`:

    SVI(model, guide, numpyro.optim.Adam(0.01), TraceMeanField_ELBO()).run(key, 2000, **data())

A pixel counts how many of 16 dots are black, hence the binomial.

Source: D. P. Kingma and M. Welling (2014), "Auto-encoding variational Bayes", ICLR,
arXiv:1312.6114. Data: E. Alpaydin and C. Kaynak (1998), "Optical recognition of handwritten
digits", UCI Machine Learning Repository, https://doi.org/10.24432/C50P49.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random

DOTS = 16  # behind each pixel
CODE = 2
HIDDEN = 32

dims = {"code": ["image", "axis"], "digits": ["image", "pixel"]}


def data():
    """Return 400 images of 8 × 8 pixels, a row each, with values from 0 to 16."""
    file = Path(__file__).parent / "data" / "digits.npz"
    return {"digits": np.load(file)["digits"].astype(int)}


def model(digits=None):
    """Draw a code for each image and decode it into the odds of a black dot, pixel by pixel."""
    with numpyro.plate("image", 400 if digits is None else len(digits)):
        code = numpyro.sample("code", dist.Normal(jnp.zeros(CODE), 1.0).to_event(1))
        hidden = jnp.tanh(dense("decoder_hidden", code, HIDDEN))
        logits = dense("decoder_logits", hidden, 64)
        numpyro.sample("digits", dist.Binomial(DOTS, logits=logits).to_event(1), obs=digits)


def guide(digits):
    """Read each image and place a Gaussian over its code."""
    hidden = jnp.tanh(dense("encoder_hidden", digits / DOTS, HIDDEN))
    loc = dense("encoder_loc", hidden, CODE)
    scale = jnp.exp(dense("encoder_log_scale", hidden, CODE))
    with numpyro.plate("image", len(digits)):
        numpyro.sample("code", dist.Normal(loc, scale).to_event(1))


def dense(name, x, width):
    """Apply an affine map, whose weights are learnt, to the last axis of x."""

    def start(key):
        return random.normal(key, (x.shape[-1], width)) / jnp.sqrt(x.shape[-1])

    weight = numpyro.param(f"{name}_weight", start)
    bias = numpyro.param(f"{name}_bias", jnp.zeros(width))
    return x @ weight + bias
