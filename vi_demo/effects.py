"""Effect handlers: what a model is made to do other than what it says, while it is run once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.primitives import Messenger

from vi_demo import mesh
from vi_demo.sites import is_array


class Rows(Messenger):
    """A handler under which subsampled plates look at these rows instead of drawing some.

    `sizes` are how many rows each has in all, whatever part of them the model is given.
    """

    def __init__(
        self, fn: Callable, rows: Mapping[str, Array], sizes: Mapping[str, int] | None = None
    ):
        self.rows, self.sizes = rows, sizes or {}
        self.seen: dict[str, int] = {}
        super().__init__(fn)

    def process_message(self, msg):
        """Give a plate its rows; NumPyro scales what is inside by size / number of rows."""
        if msg["type"] == "plate" and msg["name"] in self.rows:
            msg["value"] = self.rows[msg["name"]]
            self.seen[msg["name"]] = msg["args"][0]
            msg["args"] = (msg["args"][0], len(msg["value"]))
        elif msg["type"] == "sample":
            for frame in msg["cond_indep_stack"]:
                seen, size = (of.get(frame.name) for of in (self.seen, self.sizes))
                if seen and size is not None and not (isinstance(size, int) and seen == size):
                    msg["scale"] = size / seen * (1.0 if msg["scale"] is None else msg["scale"])


class Spread(Messenger):
    """A handler under which what was observed lies along the rows of the mesh."""

    def process_message(self, msg):
        """Lay an observed value out; what is computed from it follows."""
        if msg["type"] == "sample" and msg["is_observed"] and is_array(msg["value"]):
            msg["value"] = mesh.along(mesh.ROWS, jnp.asarray(msg["value"]))


class Unseen(Messenger):
    """A handler under which these sites do not count: what is left of the density is the prior."""

    def __init__(self, fn: Callable, sites):
        self.sites = sites
        super().__init__(fn)

    def process_message(self, msg):
        """Mask what was observed, factors too, but not NumPyro's own factors for Jacobians."""
        if msg["type"] == "sample" and msg["name"] in self.sites:
            msg["fn"] = msg["fn"].mask(False)


class Observed(Messenger):
    """A handler under which observed sites have these values in place of their own."""

    def __init__(self, fn: Callable, values: Mapping[str, Array]):
        self.values = values
        super().__init__(fn)

    def process_message(self, msg):
        """Give an observed site its value."""
        if msg["type"] == "sample" and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


class Drawn(Messenger):
    """A handler under which observed sites are drawn, in the shapes that they were observed in."""

    def __init__(self, fn: Callable, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = shapes
        super().__init__(fn)

    def process_message(self, msg):
        """Forget what was observed; entries that share one distribution are drawn one by one."""
        if msg["type"] == "sample" and msg["name"] in self.shapes:
            shape = self.shapes[msg["name"]]
            batch = shape[: len(shape) - msg["fn"].event_dim]
            msg["fn"] = msg["fn"].expand(np.broadcast_shapes(batch, msg["fn"].batch_shape))
            msg["value"], msg["is_observed"] = None, False
