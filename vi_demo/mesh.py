"""Many devices as one: a mesh of draws (particles, starts) by rows (of the data).

Whatever is evaluated at many points lies along the one axis, `batching.in_slices` sees to that;
what was observed lies along the other, `Model` does. XLA adds up what devices hold parts of, so
nothing else knows how many there are: one device is the mesh (1, 1).
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vi_demo.errors import InputError

DRAWS, ROWS = "draws", "rows"
AUTO = "auto"
BEGAN = time.perf_counter()
_used: list[Mesh] = []


@contextmanager
def using(asked: str | None) -> Iterator[None]:
    """A mesh for a block: `auto`, all devices along the draws, or so many of each axis.

    Raises `InputError` for what cannot be read, or where there are fewer devices.
    """
    if asked is not None:
        _used.append(made(*sizes(asked)))
    try:
        yield
    finally:
        if asked is not None:
            _used.pop()


def on_its_mesh(fn: Callable) -> Callable:
    """A function whose argument `mesh` says which one it is to work on."""

    @functools.wraps(fn)
    def call(*arguments, mesh: str | None = None, **settings):
        with using(mesh):
            return fn(*arguments, mesh=mesh, **settings)

    return call


def sizes(asked: str) -> tuple[int, int]:
    """How many devices lie along draws and along rows, read from `draws=4,rows=2` or `auto`."""
    if asked == AUTO:
        return len(jax.devices()), 1
    found = dict(re.findall(rf"({DRAWS}|{ROWS})=([1-9][0-9]*)", asked))
    if not found or ",".join(f"{k}={v}" for k, v in found.items()) != asked:
        raise InputError(f"a mesh is {AUTO}, or like {DRAWS}=4,{ROWS}=2, not '{asked}'.")
    return int(found.get(DRAWS, 1)), int(found.get(ROWS, 1))


def made(draws: int, rows: int) -> Mesh:
    """The mesh of the first so many devices."""
    devices = jax.devices()
    if draws * rows > len(devices):
        raise InputError(
            f"a mesh of {draws} by {rows} needs {draws * rows} devices and there "
            f"{'is' if len(devices) == 1 else 'are'} {len(devices)} ({devices[0].platform}); ask "
            "for fewer, or set JAX_NUM_CPU_DEVICES to divide a processor into several."
        )
    types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((draws, rows), (DRAWS, ROWS), types, devices=devices[: draws * rows])


def current() -> Mesh:
    """The mesh in use."""
    if not _used:
        _used.append(made(1, 1))
    return _used[-1]


def size(axis: str) -> int:
    """How many devices lie along an axis."""
    return current().shape[axis]


def divides(axis: str, number: int) -> bool:
    """Whether so many things can lie along an axis that has several devices."""
    return size(axis) > 1 and number > 0 and number % size(axis) == 0


def along(axis: str, x: Array) -> Array:
    """An array, in a program, with its first axis laid along one of the mesh, if it divides."""
    if not (x.ndim and divides(axis, x.shape[0])):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(current(), PartitionSpec(axis)))


def program(fn: Callable, **settings) -> Callable:
    """`jax.jit` of what several devices work on: all that comes out is whole on each of them,
    for any process to read. `settings` are `jax.jit`'s own.
    """
    whole = NamedSharding(current(), PartitionSpec()) if current().size > 1 else None
    return jax.jit(fn, out_shardings=whole, **settings)


def now() -> float:
    """Seconds on the clock of the first process, whichever asks: they have to decide alike."""
    return agreed(time.perf_counter() - BEGAN)


def agreed(number: float) -> float:
    """What the first process has for a number that another may have another for."""
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.broadcast_one_to_all(np.asarray(number, float)))


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return jax.process_index() == 0


def told(words: bytes) -> bytes:
    """What the first process says; what others would say is not heard."""
    if jax.process_count() == 1:
        return words
    number = int(agreed(len(words)))
    mine = np.frombuffer(words, np.uint8) if is_first() else np.zeros(number, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes() if number else b""


def laid_out(axis: str, x) -> Array:
    """An array held in parts: each device has its own along the axis, and no more."""
    return jax.device_put(x, NamedSharding(current(), PartitionSpec(axis)))


def from_parts(axis: str, number: int, part: Callable):
    """Arrays laid along an axis of so many devices, `part(k)` being what the k-th of them holds:
    each process is asked for its own.
    """
    spec = NamedSharding(current(), PartitionSpec(axis if number > 1 else None))
    mine = spec.addressable_devices_indices_map((number,)).values()
    parts = {k: part(k) for k in {rows.start or 0 for (rows,) in mine}}

    def joined(*held):
        own, length = dict(zip(parts, held, strict=True)), len(held[0])
        whole = number * length, *held[0].shape[1:]
        return jax.make_array_from_callback(
            whole, spec, lambda index: own[(index[0].start or 0) // length]
        )

    return jax.tree.map(joined, *parts.values())


def added(tree, axis: str):
    """The sum over an axis of the mesh, inside a `shard_map`: of all numbers at once, as each sum
    has the devices wait for each other.
    """
    numbers, whole = ravel_pytree(tree)
    return whole(jax.lax.psum(numbers, axis))


def shape() -> dict[str, int]:
    """The axes and how many devices each has."""
    return {axis: size(axis) for axis in (DRAWS, ROWS)}


def words() -> str:
    """The mesh as `--mesh` takes it."""
    return ",".join(f"{axis}={number}" for axis, number in shape().items())
