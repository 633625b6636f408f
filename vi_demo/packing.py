"""Trees of arrays, numbers and words as JSON beside a list of arrays, and back again.

Nothing is pickled, and reading runs no code: a type is looked up by its name among the modules
that are loaded, has to be a named tuple or a dataclass of this package, and its values are put
into a bare one. Whatever else JAX knows as a node of trees, such as somebody's network, is its
leaves alone, which go back into a tree of the same structure where there is one at hand.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PLAIN = bool, int, float, str, type(None)
NUMBERS = "biufcV"  # kinds of NumPy types; V are JAX's small floats
OWN = __name__.partition(".")[0]


class Packed(NamedTuple):
    """A tree: what JSON can say of it, and the arrays that are told by their place in a list."""

    description: Any
    arrays: list[np.ndarray]


def packed(tree) -> Packed:
    """A tree as JSON and arrays; `TypeError` names what cannot be told so."""
    arrays: list[np.ndarray] = []
    return Packed(_described(tree, arrays), arrays)


def unpacked(packed: Packed, like=None):
    """The tree again, `like` being one of the same structure, for nodes that need it.

    Raises `ValueError` where it does not fit what is known here.
    """
    return _tree(packed.description, packed.arrays, like)


def _described(tree, arrays: list):
    if type(tree) in PLAIN:
        return tree
    if isinstance(tree, jax.Array) and jnp.issubdtype(tree.dtype, jax.dtypes.prng_key):
        data = _described(jax.random.key_data(tree), arrays)
        return {"kind": "key", "of": str(jax.random.key_impl(tree)), "data": data}
    if isinstance(tree, jax.Array | np.ndarray | np.generic):
        return _array(tree, arrays)
    if isinstance(tree, dict):
        keys = [_described(k, arrays) for k in tree]
        return {"kind": "dict", "keys": keys, "values": _each(tree.values(), arrays)}
    if type(tree) in (list, tuple):
        return {"kind": type(tree).__name__, "values": _each(tree, arrays)}
    fields, name = _fields(tree), f"{type(tree).__module__}:{type(tree).__qualname__}"
    if fields is not None and _type(name) is type(tree):
        values = _each(fields.values(), arrays)
        return {"kind": "fields", "of": name, "names": list(fields), "values": values}
    leaves, structure = jax.tree.flatten(tree)
    if jax.tree_util.treedef_is_leaf(structure):
        raise TypeError(f"nothing is known of {name}")
    return {"kind": "node", "of": str(structure), "values": _each(leaves, arrays)}


def _each(values, arrays: list) -> list:
    return [_described(value, arrays) for value in values]


def _array(value, arrays: list) -> dict:
    array = np.asarray(value)
    if array.dtype.kind not in NUMBERS:
        raise TypeError(f"an array of {array.dtype} is not numbers")
    arrays.append(array)
    told = {"kind": "numpy", "at": len(arrays) - 1}
    if isinstance(value, np.generic):
        return told | {"kind": "number"}
    if isinstance(value, jax.Array):
        # A weak type is part of what a program is compiled for.
        return told | {"kind": "jax", "weak": bool(value.aval.weak_type)}
    return told


def _tree(told, arrays: list, like):
    if not isinstance(told, dict):
        return told
    kind = told["kind"]
    if kind == "key":
        return jax.random.wrap_key_data(_tree(told["data"], arrays, None), impl=told["of"])
    if "at" in told:
        return _value(told, arrays[told["at"]])
    if kind == "node":
        leaves, structure = jax.tree.flatten(like)
        if str(structure) != told["of"]:
            raise ValueError(f"there is no tree like {told['of'][:80]} to put values into")
        values = zip(told["values"], leaves, strict=True)
        return jax.tree.unflatten(structure, [_tree(v, arrays, leaf) for v, leaf in values])
    if kind == "dict":
        keys = [_tree(k, arrays, None) for k in told["keys"]]
        likes = [like.get(k) if isinstance(like, dict) else None for k in keys]
    elif kind == "fields":
        keys, known = told["names"], _fields(like) or {}
        likes = [known.get(k) for k in keys]
    else:
        keys = range(len(told["values"]))
        fits = type(like) in (list, tuple) and len(like) == len(keys)
        likes = like if fits else [None] * len(keys)
    values = [_tree(v, arrays, x) for v, x in zip(told["values"], likes, strict=True)]
    if kind == "fields":
        return _filled(told["of"], dict(zip(keys, values, strict=True)))
    if kind == "dict":
        return dict(zip(keys, values, strict=True))
    return tuple(values) if kind == "tuple" else values


def _value(told: dict, array: np.ndarray):
    if told["kind"] == "number":
        return array[()]
    if told["kind"] == "numpy":
        return array
    value = jnp.asarray(array)
    if not told["weak"]:
        return value
    weak = jnp.full(array.shape, {"f": 0.0, "c": 0j}.get(array.dtype.kind, 0))
    return weak.at[...].set(value) if weak.dtype == array.dtype else value


def _filled(name: str, values: dict):
    of = _type(name)
    if of is None or _names(of) != list(values):
        raise ValueError(f"{name} is not known here, or has other fields")
    if issubclass(of, tuple):
        return tuple.__new__(of, values.values())
    bare = object.__new__(of)
    vars(bare).update(values)
    return bare


def _type(name: str) -> type | None:
    """The named tuple, or dataclass of our own, of that name in a module that is loaded."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    if not isinstance(found, type) or _names(found) is None:
        return None
    return found


def _names(of: type) -> list[str] | None:
    """The fields of a named tuple, or of a dataclass of our own."""
    if issubclass(of, tuple) and hasattr(of, "_fields"):
        return list(of._fields)
    if dataclasses.is_dataclass(of) and of.__module__.partition(".")[0] == OWN:
        return [field.name for field in dataclasses.fields(of)]
    return None


def _fields(value) -> Mapping | None:
    names = _names(type(value))
    return None if names is None else {name: getattr(value, name) for name in names}
