"""Bijections of R^d that are closed forms both ways, and the identity until they are trained.

Each coordinate goes through an increasing rational-quadratic spline, then `couplings` move some
coordinates at a time by a small network of the others. NumPyro's own flows are closed forms one
way alone: `InverseAutoregressiveTransform` is undone a coordinate at a time, and
`BlockNeuralAutoregressiveTransform` not at all; fits need the density at draws of the target as
much as at the flow's own.

Parameters are scaled so that steps of 0.1, which suit a Gaussian's, suit them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

BINS = 8
REACH = 4.0  # sds, between which the knots of a spline lie
LEAST_WIDTH = 1e-3  # of a bin, in shares of the whole
HIDDEN = 16
LEAST_LAYERS = 4
MOST_STRETCH = 3.0  # of a coordinate by one coupling, as a logarithm
STEP = 0.1  # what a parameter is multiplied by


def identity(dim: int, dtype) -> dict:
    """Parameters of the identity on R^dim."""
    order = orders(dim)
    layers, seen, moved = len(order), -(-dim // 2), dim // 2
    kernel = jax.random.normal(jax.random.key(0), (layers, seen, HIDDEN), dtype) / STEP
    return {
        "knots": jnp.zeros((dim, 3 * BINS + 1), dtype),
        "kernel": kernel / seen**0.5,
        "bias": jnp.zeros((layers, HIDDEN), dtype),
        "out_kernel": jnp.zeros((layers, HIDDEN, 2 * moved), dtype),
        "out_bias": jnp.zeros((layers, 2 * moved), dtype),
    }


def forward(params: dict, z: Array) -> Array:
    """The points (..., d) that points z (..., d) are brought to."""
    z = spline(params["knots"], z)[0]
    return jax.lax.scan(lambda z, layer: (coupled(layer, z, 1)[0], None), z, layers_of(params))[0]


def backward(params: dict, x: Array) -> tuple[Array, Array]:
    """The points (..., d) that `forward` brings to x, and log |det ∂z/∂x| (...)."""

    def undo(carry, layer):
        x, log_det = carry
        z, more = coupled(layer, x, -1)
        return (z, log_det + more), None

    carry = x, jnp.zeros(x.shape[:-1], x.dtype)
    (y, log_det), _ = jax.lax.scan(undo, carry, layers_of(params), reverse=True)
    z, slopes = unspline(params["knots"], y)
    return z, log_det - jnp.log(slopes).sum(-1)


def layers_of(params: dict) -> tuple:
    """What each coupling is made of, its order of coordinates first, layers on a leading axis."""
    networks = (params[k] for k in ("kernel", "bias", "out_kernel", "out_bias"))
    return jnp.asarray(orders(params["knots"].shape[0])), *networks


def orders(dim: int) -> np.ndarray:
    """Of each coupling an order of the coordinates, of which it moves the last half.

    They are sorted by each binary digit of their index, upwards and downwards, so that nearly
    each of any two is moved by the other in some coupling.
    """
    digits = [np.arange(dim) >> b & 1 for b in range((dim - 1).bit_length())]
    each = [np.argsort(digit, kind="stable") for digit in digits]
    both = [order for up in each for order in (up, up[::-1])]
    repeats = -(-LEAST_LAYERS // len(both)) if both else 0
    return np.array(both * repeats, int).reshape(-1, dim)


def coupled(layer: tuple, x: Array, sign: int) -> tuple[Array, Array]:
    """Take x (..., d) through one coupling, or back where sign is −1; log |det| (...) of it.

    The last coordinates, in this layer's order, become b eˢ + t, with s and t a network of the
    first ones (Dinh, Sohl-Dickstein and Bengio 2017, arXiv 1605.08803).
    """
    order, kernel, bias, out_kernel, out_bias = layer
    seen, moved = jnp.split(x[..., order], [kernel.shape[0]], -1)
    hidden = jnp.tanh(STEP * (seen @ kernel + bias))
    log_stretch, shift = jnp.split(STEP * (hidden @ out_kernel + out_bias), 2, -1)
    log_stretch = MOST_STRETCH * jnp.tanh(log_stretch / MOST_STRETCH)
    if sign > 0:
        moved = moved * jnp.exp(log_stretch) + shift
    else:
        moved = (moved - shift) * jnp.exp(-log_stretch)
    whole = jnp.concatenate([seen, moved], -1)[..., jnp.argsort(order)]
    return whole, sign * log_stretch.sum(-1)


def grid_of(knots: Array) -> tuple[Array, Array, Array]:
    """Knots x and y (d, B + 1) of each coordinate's spline, and its slopes there."""
    widths, heights, slopes = jnp.split(STEP * knots, (BINS, 2 * BINS), -1)
    shares = LEAST_WIDTH + (1 - BINS * LEAST_WIDTH) * jax.nn.softmax(widths, -1)
    ends = []
    for steps in (2 * REACH * shares, 2 * REACH / BINS * jnp.exp(heights)):
        ends.append(
            jnp.pad(jnp.cumsum(steps, -1), ((0, 0), (1, 0))) - steps.sum(-1, keepdims=True) / 2
        )
    return *ends, jnp.exp(slopes)


def cell_of(at: Array, grid: tuple, axis: int) -> tuple:
    """Which bin of its coordinate's spline each number (..., d) lies in: corners and slopes.

    Numbers beyond the outer knots are given the outer bins.
    """
    inner = grid[axis][:, 1:-1]
    index = (at[..., None] >= inner).sum(-1)
    pick = lambda values, i: jnp.take_along_axis(values.T, i.reshape(-1, i.shape[-1]), 0)  # noqa: E731
    low, high = ([pick(v, index + k).reshape(at.shape) for v in grid] for k in (0, 1))
    return low, high


def spline(knots: Array, z: Array) -> tuple[Array, Array]:
    """Each coordinate of z (..., d) through its spline, and the slopes there.

    Between knots it is rational-quadratic (Durkan et al. 2019, arXiv 1906.04032), and linear
    beyond the outer ones.
    """
    grid = grid_of(knots)
    (x0, y0, d0), (x1, y1, d1) = cell_of(z, grid, 0)
    mean = (y1 - y0) / (x1 - x0)
    t = jnp.clip((z - x0) / (x1 - x0), 0.0, 1.0)
    below = mean + (d0 + d1 - 2 * mean) * t * (1 - t)
    inside = y0 + (y1 - y0) * (mean * t**2 + d0 * t * (1 - t)) / below
    slope = mean**2 * (d1 * t**2 + 2 * mean * t * (1 - t) + d0 * (1 - t) ** 2) / below**2
    beyond = d0 * jnp.minimum(z - x0, 0.0) + d1 * jnp.maximum(z - x1, 0.0)
    outside = (z < x0) | (z > x1)
    return inside + jnp.where(outside, beyond, 0.0), slope


def unspline(knots: Array, y: Array) -> tuple[Array, Array]:
    """The numbers z (..., d) that `spline` brings to y, and its slopes there."""
    grid = grid_of(knots)
    (x0, y0, d0), (x1, y1, d1) = cell_of(y, grid, 1)
    mean = (y1 - y0) / (x1 - x0)
    s = jnp.clip((y - y0) / (y1 - y0), 0.0, 1.0)
    # y is quadratic in t: a t² + b t = c.
    turn = s * (d0 + d1 - 2 * mean)
    a, b, c = mean - d0 + turn, d0 - turn, mean * s
    t = 2 * c / (b + jnp.sqrt(jnp.maximum(b**2 + 4 * a * c, 0.0)))
    below = mean + (d0 + d1 - 2 * mean) * t * (1 - t)
    slope = mean**2 * (d1 * t**2 + 2 * mean * t * (1 - t) + d0 * (1 - t) ** 2) / below**2
    beyond = jnp.minimum(y - y0, 0.0) / d0 + jnp.maximum(y - y1, 0.0) / d1
    outside = (y < y0) | (y > y1)
    return x0 + (x1 - x0) * t + jnp.where(outside, beyond, 0.0), slope
