"""Noise drawn on the host, by NumPy: JAX would compile a program for every shape of it."""

from __future__ import annotations

import jax
import numpy as np
from jax import Array


def normal(key: Array, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise of that shape, the same for the same key of JAX's."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key))).standard_normal(shape)
