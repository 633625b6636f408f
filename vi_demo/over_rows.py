"""A model's log density as a sum over the rows of a long plate, held in parts or on the disk.

Each device looks at rows of its own, in chunks, and sums over devices are all that moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from vi_demo import mesh, streamed

CHUNK = 8192  # rows of a subsampled plate that are looked at together


def with_slope(over: Callable, model) -> Callable:
    """A model's log density as a sum over rows, whose slope in z and parameters comes with it.

    `over(model, fn, z, parameters, *others)` adds up `fn(model, z, parameters, rows)`. Backwards,
    the slope would take a second walk through the rows, and a second sum over devices.
    """

    @jax.custom_jvp
    def summed(z, parameters, *others):
        return over(model, lambda here, *at: here.log_density_of(*at), z, parameters, *others)

    @summed.defjvp
    def both(at, directions):
        def value_and_slope(here, z, parameters, rows):
            return jax.value_and_grad(lambda at: here.log_density_of(*at, rows))((z, parameters))

        value, slope = over(model, value_and_slope, *at)
        products = jax.tree.map(lambda s, d: jnp.sum(s * d), slope, directions[:2])
        return value, sum(jax.tree.leaves(products))

    return summed


def over_rows(model, fn: Callable, z: Array, parameters: Mapping | None):
    """The sum of `fn(model, z, parameters, rows)` over chunks of all rows, the prior's share
    in each: `fn` is the log density or a slope of it.
    """
    everywhere, axis = PartitionSpec(), mesh.ROWS if model.splits else None
    program = jax.shard_map(
        partial(walked, model, fn, axis),
        mesh=mesh.current(),
        in_specs=(PartitionSpec(axis), everywhere, everywhere),
        out_specs=everywhere,
        # What is read from the disk is read by each device for itself.
        axis_names={mesh.ROWS, mesh.DRAWS} if model.table else {mesh.ROWS},
    )
    return program({} if model.table else model.row_data, z, parameters)


def walked(model, fn, axis, held, z, parameters):
    """The sum over the rows that one device holds or reads, in chunks, and over all devices.

    Each chunk holds the prior too; weighed by their shares of the rows they add up to the
    prior once and every row once.
    """
    plate, (size, _) = model.chunked, model.subsampled[model.chunked]
    own = size // (mesh.size(axis) if axis else 1)
    number, left = divmod(own, CHUNK)
    if axis:
        z, parameters = jax.lax.pcast((z, parameters), axis, to="varying")

    def part(begin, rows=CHUNK):
        data, numbers = read(model, begin, rows, own, axis) if model.table else (held, begin)
        here = copy(model)
        here.data = model.data | data
        summand = fn(here, z, parameters, {plate: numbers + jnp.arange(rows)})
        return jax.tree.map(lambda x: rows / size * x, summand)

    like = jax.eval_shape(lambda: part(0))
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    if axis:
        total = jax.lax.pcast(total, axis, to="varying")
    add = partial(jax.tree.map, jnp.add)
    begins = CHUNK * jnp.arange(number)
    again = jax.checkpoint(part)  # is computed, when it is asked for backwards
    total, _ = jax.lax.scan(lambda t, begin: (add(t, again(begin)), None), total, begins)
    if left:
        total = add(total, part(number * CHUNK, left))
    return mesh.added(total, axis) if axis else total


def read(model, begin: Array, rows: int, own: int, axis: str | None):
    """Rows of the table, of those that this device has to read, as JAX asks for them."""
    head = model.table.head
    shapes = {
        k: jax.ShapeDtypeStruct((rows, *v.shape[1:]), jax.dtypes.canonicalize_dtype(v.dtype))
        for k, v in head.items()
    }

    def called(device, begin):
        first = int(device) * own
        part = walk(model, first, first + own)(first + int(begin), first + int(begin) + rows)
        return {k: np.asarray(v, shapes[k].dtype) for k, v in part.items()}

    device = jax.lax.axis_index(axis) if axis else 0
    return jax.pure_callback(called, shapes, device, begin), 0


def walk(model, begin: int, end: int) -> streamed.Walk:
    """The way through a range of rows, which is prepared while one goes it."""
    if (begin, end) not in model.walks:
        model.walks[begin, end] = streamed.Walk(model.table, begin, end)
    return model.walks[begin, end]


def over_batch(model, fn: Callable, z, parameters, batch, key):
    """The mean of what each device finds by `fn` on some of its own rows of a batch."""
    axis = mesh.ROWS if model.splits else None
    devices, (size, taken) = mesh.size(mesh.ROWS), model.subsampled[model.chunked]

    def own(batch, z, parameters, key):
        here, rows, own_key, share = copy(model), model.some(key), key, 1.0
        here.data, number = model.data | batch.rows, taken
        here.subsampled = model.subsampled | {model.chunked: (size * batch.share[0], taken)}
        if axis:
            z, parameters = jax.lax.pcast((z, parameters), axis, to="varying")
            own_key = jax.random.fold_in(key, jax.lax.axis_index(axis))
            number, share = max(1, taken // devices), 1 / devices
        rows[model.chunked] = jax.random.randint(own_key, (number,), 0, batch.number[0])
        found = jax.tree.map(lambda x: share * x, fn(here, z, parameters, rows))
        return mesh.added(found, axis) if axis else found

    if not axis:
        return own(batch, z, parameters, key)
    everywhere = PartitionSpec()
    return jax.shard_map(
        own,
        mesh=mesh.current(),
        in_specs=(PartitionSpec(axis), everywhere, everywhere, everywhere),
        out_specs=everywhere,
        axis_names={axis},
    )(batch, z, parameters, key)


def batches(model, looks: int, seed: int) -> Callable[[int], streamed.Batch]:
    """Batches of the table's rows, each device's of those that are its own, of about as many
    as so many estimates take.
    """
    devices = mesh.size(mesh.ROWS) if model.splits else 1
    rows = looks * model.subsampled[model.chunked][1]
    own = len(model.table) // devices
    ranges = [(k * own, (k + 1) * own) for k in range(devices)]
    together = model.table.together(rows // devices, ranges)
    each_in_order = cache(lambda k: streamed.Batches(model.table, *ranges[k], together, seed))
    return lambda i: mesh.from_parts(mesh.ROWS, devices, lambda k: each_in_order(k)(i))
