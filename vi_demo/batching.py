"""Many points through a function of one: in slices of bounded memory, and on the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

TRIES = 3


def in_slices(fn: Callable, points, size: int):
    """`fn` of one point over a leading axis, at most `size` points at once.

    Slices are all of one length, the last filled up with its last point: `fn` is compiled once,
    where `jax.lax.map` compiles it again for what is left over.
    """
    number = len(jax.tree.leaves(points)[0])
    if number <= size:
        return jax.vmap(fn)(points)
    slices = -(-number // size)
    each = -(-number // slices)
    rows = jnp.minimum(jnp.arange(slices * each), number - 1).reshape(slices, each)
    values = jax.lax.map(lambda of: jax.vmap(fn)(jax.tree.map(lambda x: x[of], points)), rows)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:number], values)


def batched(fn: Callable, size: int) -> Callable:
    """A compiled `fn` of one point over a leading axis, in such slices."""
    return jax.jit(lambda points: in_slices(fn, points, size))


def clocked(program: Callable, points) -> float:
    """Seconds that a compiled program takes for these points, the least of a few tries."""
    seconds = []
    for _ in range(1 + TRIES):
        began = time.perf_counter()
        jax.block_until_ready(program(points))
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])  # the first one compiles
