"""Many points through a function of one: in slices of bounded memory, and on the clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import subjaxprs

from vi_demo import mesh

TRIES = 3
PRIME = 104_729
SIZES = 4096, 256, 16, 1  # numbers of points that programs are compiled for


def in_slices(fn: Callable, points, size: int):
    """`fn` of one point over a leading axis, at most `size` points at once on each device.

    Slices are all of one length, the last filled up with its last point: `fn` is compiled once,
    where `jax.lax.map` compiles it again for what is left over. A slice holds as many points of
    each device, so that none has to move.
    """
    number = len(jax.tree.leaves(points)[0])
    devices = mesh.size(mesh.DRAWS)
    slices = -(-number // (size * devices))
    each = -(-number // (slices * devices))
    lay_out = partial(jax.tree.map, partial(mesh.along, mesh.DRAWS))
    if devices * slices * each > number:
        rows = jnp.minimum(jnp.arange(devices * slices * each), number - 1)
        points = jax.tree.map(lambda x: x[rows], points)
    points = lay_out(points)
    if slices == 1:
        values = jax.vmap(fn)(points)
    else:
        one = jax.tree.map(lambda x: swapped(x, devices, slices), points)
        values = jax.lax.map(
            jax.vmap(fn), jax.tree.map(lambda x: x.reshape(slices, -1, *x.shape[1:]), one)
        )
        values = jax.tree.map(
            lambda x: swapped(x.reshape(-1, *x.shape[2:]), slices, devices), values
        )
    return jax.tree.map(lambda x: x[:number], lay_out(values))


def swapped(x, outer: int, inner: int):
    """An array whose first axis is `outer` runs of `inner` runs, with inner runs outside."""
    return x.reshape(outer, inner, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def batched(fn: Callable, size: int) -> Callable:
    """A compiled `fn` of one point over a leading axis, in such slices."""
    return mesh.program(lambda points: in_slices(fn, points, size))


def in_sizes(program: Callable) -> Callable:
    """A function of points (n, d), called with few different n so that few programs compile.

    Points are handed to it in parties of `SIZES`, the last filled up with its last point where
    they are half a party or more, and what comes back is put together as NumPy arrays.
    """

    def call(points):
        points = np.asarray(points)
        parts, begin = [], 0
        while begin < len(points):
            left = len(points) - begin
            size = next(s for s in SIZES if 2 * left >= s)
            party = points[begin : begin + size]
            number = len(party)
            if number < size:
                party = np.concatenate([party, np.repeat(party[-1:], size - number, 0)])
            parts.append(jax.tree.map(lambda x, n=number: np.asarray(x)[:n], program(party)))
            begin += size
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    return call


def widest(fn: Callable, dim: int) -> int:
    """Numbers in the largest array that `fn` of one point (d,) computes from it on its way."""

    def within(jaxpr):
        arrays = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
        return [*arrays, *itertools.chain(*map(within, subjaxprs(jaxpr)))]

    # What many points make is as many times as large, and nothing else is by so large a prime.
    at = jax.ShapeDtypeStruct((PRIME, dim), float)
    sizes = within(jax.make_jaxpr(jax.vmap(fn))(at).jaxpr)
    return max((size // PRIME for size in sizes if size % PRIME == 0), default=1)


def clocked(program: Callable, points) -> float:
    """Seconds that a compiled program takes for these points, the least of a few tries."""
    seconds = []
    for _ in range(1 + TRIES):
        began = time.perf_counter()
        jax.block_until_ready(program(points))
        seconds.append(time.perf_counter() - began)
    return mesh.agreed(min(seconds[1:]))  # the first one compiles
