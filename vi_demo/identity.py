"""What makes one run the same as another: where all of it is, they end in the same bits."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from pathlib import Path

import jax
import numpy as np

from vi_demo import loading
from vi_demo.target import Target

POINTS = 16  # at which a density is looked at, in one party that programs are compiled for


def identity(model, guide, data, target: Target, trusted) -> dict[str, str]:
    """What a run is of, by checksums: the text of the model, its data, what it computes.

    `model`, `guide` and `data` as `vi_demo.run` takes them; `trusted` are draws of the reference
    from a file, in any tree.
    """
    if isinstance(model, loading.Loaded):
        data = model.data
    return {
        "model": target.name,
        "source": checksum([source_of(model), source_of(guide)]),
        "data": checksum(data),
        "trusted": checksum(trusted),
        "density": checksum(values_of(target)),
    }


def values_of(target: Target):
    """A density by some of its values, to what rounding leaves of them: whatever a model imports
    or closes over shows there. Of draws, the draws.
    """
    if target.log_density is None:
        return target.draws
    points = np.random.default_rng(0).standard_normal((POINTS, target.dim))
    return [f"{value:.6g}" for value in target.log_densities(points)]


def source_of(function) -> str:
    """The text of a model's file, or of a function, where there is one."""
    place = function.source if isinstance(function, loading.Loaded) else function
    with contextlib.suppress(OSError, TypeError, UnicodeDecodeError):
        if not isinstance(place, str | Path):
            return inspect.getsource(place)
        return Path(place).read_text(encoding="utf-8")
    return ""


def checksum(tree) -> str:
    """Of arrays, numbers and words in a tree; of what else is in it the printed form counts."""
    told = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.asarray(leaf)
        told.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode())
        if array.dtype.kind == "O":
            told.update(re.sub(r"0x[0-9a-f]+", "", repr(leaf)).encode())
        else:
            told.update(np.ascontiguousarray(array).tobytes())
    return told.hexdigest()
