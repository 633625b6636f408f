"""Somebody's draws: read from an ArviZ file and laid out on R^d, or matched with a model's sites.

Any library's MCMC will do. Which support each variable has is guessed from its draws. JAX is not
imported before there is something to lay out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vi_demo.data import listed
from vi_demo.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

ENGINES = {".nc": "h5netcdf", ".zarr": "zarr"}
MOST_ENTRIES = 5_000  # of all variables together
LINEAR = 1e-4  # sds left of an entry, given those before, below which it is a function of them
BLOCK = 64  # entries looked at together
LARGEST_NAMED = 3


class Layout(NamedTuple):
    """Draws on R^d, with the way back to the variables they were of.

    `points` (S, d) are chain after chain. All entries of all variables, each mapped to R by
    its support, are u in R^D: `kept` (D,) marks those that z in R^d is made of, and the others
    are `offset` + `slope` z. `remarks` say what was left out, and each variable's support.
    """

    points: np.ndarray
    chains: int
    sites: dict[str, tuple[int, ...]]
    supports: dict[str, dict]
    linear: Linear
    remarks: tuple[str, ...]
    coords: dict
    dims: dict


class Linear(NamedTuple):
    """How u in R^D is put together from z in R^d: u[kept] = z, the others offset + slope z."""

    kept: np.ndarray
    offset: np.ndarray
    slope: np.ndarray


# Files


def is_file(name: str | Path) -> bool:
    """Whether this is the path of a file of draws, by its ending, that exists."""
    path = Path(name).expanduser()
    return path.suffix in ENGINES and path.exists()


def read(name: str | Path) -> xr.DataTree:
    """The posterior group of an ArviZ file, netCDF or zarr, in memory."""
    import xarray as xr

    from vi_demo import results

    path = Path(name).expanduser()
    if path.suffix not in ENGINES or not path.exists():
        raise InputError(
            f"no such file of draws: '{name}'; give ArviZ's netCDF (.nc) or zarr (.zarr)."
        )

    def taken(tree):
        check_posterior(tree, str(name))
        return tree["posterior"].to_dataset().load()

    remedy = "check the file, or write it anew with ArviZ's to_netcdf or to_zarr."
    posterior = results.read_tree(path, ENGINES[path.suffix], taken, remedy)
    return xr.DataTree(children={"posterior": xr.DataTree(posterior)})


def check_posterior(tree: xr.DataTree, name: str) -> None:
    """Refuse a tree without draws by chain in a group named posterior."""
    if "posterior" not in tree.children:
        found = f"it has {listed(tree.children)}" if tree.children else "it has no groups"
        raise InputError(
            f"{name}: no group named posterior to take draws from ({found}); save the draws with "
            "ArviZ's from_dict or a converter of its own."
        )
    posterior = tree["posterior"]
    for dim in ("chain", "draw"):
        if dim not in posterior.sizes:
            raise InputError(
                f"{name}: its posterior has no dimension '{dim}' (it has "
                f"{listed(posterior.sizes) or 'none'}); name the first two chain and draw."
            )
    if not posterior.data_vars:
        raise InputError(f"{name}: its posterior holds no variables; save the draws in it.")


def values_of(tree: xr.DataTree, name: str) -> dict[str, xr.DataArray]:
    """Each variable's draws, chain and draw first; a value that is missing is told."""
    found = {}
    for key, array in tree["posterior"].data_vars.items():
        if not {"chain", "draw"} <= set(array.dims):
            continue
        array = array.transpose("chain", "draw", ...)
        if array.dtype.kind == "f" and not np.isfinite(array.values).all():
            index = [int(i) for i in np.argwhere(~np.isfinite(array.values))[0]]
            value = array.values[tuple(index)]
            raise InputError(
                f"{name}: '{key}'{f' at {index[2:]}' if index[2:] else ''} is {value} in chain "
                f"{index[0]}, draw {index[1]}; drop that draw, or leave the variable out."
            )
        found[str(key)] = array
    return found


# Draws as a target


def lay_out(tree: xr.DataTree, name: str) -> Layout:
    """The draws of a tree on R^d: without whole numbers, constants and functions of others."""
    from vi_demo import supports

    check_posterior(tree, name)
    arrays = values_of(tree, name)
    flat = {
        k: v.values.reshape(-1, *v.shape[2:]) for k, v in arrays.items() if v.dtype.kind in "biuf"
    }
    guesses = {k: supports.guess(v) if v.size else None for k, v in flat.items()}
    found = {k: v for k, v in guesses.items() if v is not None}
    _refuse_too_few(flat, found, name)
    reals = {k: supports.to_reals(flat[k], found[k]).reshape(len(flat[k]), -1) for k in found}
    for k, values in reals.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"{name}: '{k}', which looks {said(found[k])}, is at the edge of its support in "
                "some draws; leave it out."
            )
    columns = np.concatenate(list(reals.values()), axis=1)
    owner = np.repeat(list(reals), [v.shape[1] for v in reals.values()])
    kept = independent(columns)
    if not kept.any():
        raise InputError(f"{name}: no variable varies over its draws; there is nothing to fit.")
    if kept.sum() >= len(columns) - 1:
        raise _too_few(len(columns), int(kept.sum()), owner, name)
    shapes = {k: flat[k].shape[1:] for k in found}
    return Layout(
        points=columns[:, kept],
        chains=next(iter(arrays.values())).sizes["chain"],
        sites=shapes,
        supports=found,
        linear=linear(columns, kept),
        remarks=remarks(arrays, found, owner, kept),
        **_labels({k: arrays[k] for k in found}),
    )


def independent(columns: np.ndarray) -> np.ndarray:
    """Which columns (S, D) are no linear function of those before them, a mask (D,).

    The diagonal of R in the QR factors of the standardised columns is what is left of each, in
    sds: QR by Gram–Schmidt, twice, in which a column that nothing is left of gives no direction.
    """
    count, number = columns.shape
    sd = columns.std(0)
    varies = sd > 1e-10 * np.maximum(np.abs(columns).max(0), 1e-300)
    unit = (columns - columns.mean(0)) / (np.where(varies, sd, 1.0) * np.sqrt(count))
    basis = np.empty((count, min(count, number)))
    kept, rank = np.zeros(number, bool), 0
    for start in range(0, number, BLOCK):
        block = unit[:, start : start + BLOCK]
        for _ in range(2):
            block = block - basis[:, :rank] @ (basis[:, :rank].T @ block)
        before = rank
        for i, left in enumerate(block.T, start):
            new = basis[:, before:rank]
            for _ in range(2):
                left = left - new @ (new.T @ left)
            size = np.linalg.norm(left)
            if varies[i] and size > LINEAR and rank < count - 1:
                basis[:, rank] = left / size
                kept[i], rank = True, rank + 1
    return kept


def linear(columns: np.ndarray, kept: np.ndarray) -> Linear:
    """The columns (S, D) that were not kept as functions of those that were."""
    mean, z = columns.mean(0), columns[:, kept]
    sd = z.std(0)
    slope = np.zeros((int((~kept).sum()), z.shape[1]))
    if len(slope):
        unit = (z - z.mean(0)) / sd
        slope = (np.linalg.lstsq(unit, columns[:, ~kept] - mean[~kept])[0].T) / sd
        slope[np.abs(slope) * sd < 1e-10] = 0.0
    return Linear(kept, mean[~kept] - slope @ mean[kept], slope)


def remarks(arrays: Mapping, found: Mapping, owner: np.ndarray, kept: np.ndarray):
    """What was made of each variable, and what was left out, in sentences."""
    lines = ["; ".join(f"{k}: {said(support)}" for k, support in found.items()) + ", by its draws"]
    whole = [k for k, v in arrays.items() if k not in found and v.dtype.kind in "biuf"]
    if whole:
        lines.append(f"left out, as they are whole numbers: {', '.join(whole)}")
    other = [k for k, v in arrays.items() if v.dtype.kind not in "biuf"]
    if other:
        lines.append(f"left out, as they are no real numbers: {', '.join(other)}")
    counts = {k: int((~kept)[owner == k].sum()) for k in found}
    rebuilt = [f"{k} ({n} of {(owner == k).sum()})" for k, n in counts.items() if n]
    if rebuilt:
        lines.append(
            f"entries that are constant or linear functions of others: {', '.join(rebuilt)}"
        )
    return tuple(lines)


def said(support: Mapping) -> str:
    """A support in words."""
    return support["support"].replace("corr_", "correlation_").replace("_", " ")


def _labels(arrays: Mapping) -> dict[str, dict]:
    """Dimensions and coordinates of these variables, as ArviZ takes them."""
    dims = {k: [str(d) for d in v.dims[2:]] for k, v in arrays.items() if v.ndim > 2}
    coords = {
        str(d): v.coords[d].values for v in arrays.values() for d in v.dims[2:] if d in v.coords
    }
    return {"coords": coords, "dims": dims}


def _refuse_too_few(flat: Mapping, found: Mapping, name: str) -> None:
    """Draws in which nothing can be told apart, before they are mapped anywhere."""
    if not found:
        raise InputError(
            f"{name}: its posterior has no variable of real numbers; a guide cannot be fitted to "
            "whole numbers alone."
        )
    count = len(next(iter(flat.values())))
    owner = np.repeat(list(found), [int(np.prod(flat[k].shape[1:])) for k in found])
    if len(owner) > MOST_ENTRIES:
        raise InputError(
            f"{name}: its variables have {len(owner):,} entries, more than {MOST_ENTRIES:,}; "
            f"leave out {_largest(owner)}."
        )
    if count < 4:
        raise InputError(f"{name}: {count} draws are too few to fit anything to.")


def _too_few(count: int, dim: int, owner: np.ndarray, name: str) -> InputError:
    return InputError(
        f"{name}: {count:,} draws are too few for {dim:,} dimensions or more; give more "
        f"draws, or leave out the largest variables, {_largest(owner)}."
    )


def _largest(owner: np.ndarray) -> str:
    names, counts = np.unique(owner, return_counts=True)
    order = np.argsort(-counts)[:LARGEST_NAMED]
    return ", ".join(f"'{names[i]}' ({counts[i]:,})" for i in order)


# Draws of a model's posterior


class Trusted(NamedTuple):
    """Draws of a model's latent sites, (S, *shape) each, chain after chain."""

    name: str
    chains: int
    values: dict[str, np.ndarray]


def matching(name: str | Path, sites: Mapping[str, tuple[int, ...]]) -> Trusted:
    """The draws in a file of a model's sites, named and shaped as they are in the model."""
    tree = read(name)
    arrays = values_of(tree, str(name))
    values = {}
    for site, shape in sites.items():
        array = arrays.get(site, arrays.get(stored(site)))
        if array is None:
            raise InputError(
                f"{name}: its posterior has no '{site}', a site of the model (it has "
                f"{listed(arrays)}); rename the variable, or give other draws."
            )
        if array.shape[2:] != tuple(shape):
            raise InputError(
                f"{name}: '{site}' has shape {array.shape[2:]} and {tuple(shape)} in the model; "
                "give draws of the same model and data."
            )
        if array.dtype.kind not in "biuf":
            raise InputError(f"{name}: '{site}' is not of numbers; give draws of it.")
        values[site] = array.values.reshape(-1, *shape)
    return Trusted(str(name), tree["posterior"].sizes["chain"], values)


def stored(name: str) -> str:
    """The name that a site goes by in a file: slashes would make groups, and ArviZ owns two."""
    name = name.replace("/", ".")
    return f"{name}_" if name in ("chain", "draw") else name
