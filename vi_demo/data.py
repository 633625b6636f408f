"""The values that a model is given: numbers, all of them there and finite."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

import numpy as np

from vi_demo.errors import InputError

LARGEST = 2**63  # an integer must be below


def checked(value, where: str, own: bool):
    """One argument as the model gets it: arrays of finite numbers, or the user's own object.

    Arrays of float64 come back as they are, without a copy. `own` is said of what the user's code
    gives, which may be more than numbers, and hold NaN where the model knows what to do with it.
    """
    if value is None or (isinstance(value, int) and (own or abs(value) < LARGEST)):
        return value
    if isinstance(value, int):
        raise _too_large(value, where)
    if isinstance(value, float | complex | np.number):
        return value if own else finite(value, where)
    if isinstance(value, list):
        return numbers(_rectangular(value, where), value, where, own)
    try:
        # Asked of the type, as a class such as np.float32 may be a value too.
        numeric = hasattr(type(value), "__array__") and not isinstance(value, str)
        array = np.asarray(value) if numeric else None
    except TypeError:  # a random key of JAX, a Dataset of xarray: not one array of numbers
        array = None
    if array is not None:
        if np.ma.is_masked(value):
            raise InputError(
                f"{where} has masked values, whose mask would be lost; fill them in and mask them "
                "in the model."
            )
        found = numbers(array, array, where, own)
        # A JAX array stays one: a model may index it by a traced value, a NumPy array it may not.
        return value if type(value).__module__.startswith("jax") else found
    if own:
        return value
    raise InputError(
        f"{where} is {short(value)}, neither a number nor an array of them; replace it by "
        "numbers, or give it from data()."
    )


def _rectangular(rows: list, where: str) -> np.ndarray:
    try:
        return np.asarray(rows)
    except ValueError as error:
        lengths = [len(row) if isinstance(row, list | tuple) else None for row in rows]
        odd = next((i for i, n in enumerate(lengths) if n != lengths[0]), None)
        detail = "" if odd is None else f", row {odd} is not as long as row 0"
        raise InputError(
            f"{where} is ragged{detail}; make all its rows equally long, or pad and mask them."
        ) from error


def numbers(array: np.ndarray, cells, where: str, own: bool) -> np.ndarray:
    """An array as numbers, reals in double precision; finite ones, unless it is the user's own."""
    if array.dtype.kind == "f":
        array = array.astype(np.float64, copy=False)
    if array.dtype.kind in "biufc":
        return array if own else finite(array, where)
    if array.dtype.kind in "OUST":
        # From the cells as they were given: NumPy makes text of 1.0 beside "a".
        for index, cell in np.ndenumerate(np.asarray(cells, dtype=object)):
            _refuse_no_number(cell, indexed(where, index))
    raise InputError(
        f"{where} is an array of {array.dtype}, not of plain numbers; convert it, for example "
        "with .astype(float)."
    )


def _refuse_no_number(cell, where: str) -> None:
    # By name, as pandas has its own and may not be there: what is missing is NA, NaT or None.
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        raise missing(where)
    if isinstance(cell, int) and abs(cell) >= LARGEST:
        raise _too_large(cell, where)
    if not isinstance(cell, int | float | complex | np.number | np.bool_):
        raise InputError(
            f"{where} is {short(cell)}, not a number; recode it as a number or leave it out."
        )


def indexed(where: str, index: tuple[int, ...]) -> str:
    """An entry of an array, as people write it."""
    return f"{where}[{', '.join(map(str, index))}]" if index else where


def finite(value, where: str, place: Callable[[str, tuple], str] = indexed):
    """A number or an array of them, if all are finite; else the first one's place is told.

    The extremes show in two passes, without an array of flags, whether all are finite.
    """
    array = np.asarray(value)
    if array.dtype.kind in "biu" or array.size == 0:
        return value
    parts = (array.real, array.imag) if array.dtype.kind == "c" else (array,)
    if all(np.isfinite(end) for part in parts for end in (part.min(), part.max())):
        return value
    bad = ~np.isfinite(array)
    index = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
    count = np.count_nonzero(bad) - 1
    raise InputError(
        f"{place(where, index)} is {array[index]}{f' (and {count} more)' if count else ''}; drop "
        "or impute that row, or fill it in and mask it in the model."
    )


def missing(where: str) -> InputError:
    """What is said of a value that is not there."""
    return InputError(f"{where} is missing; drop or impute that row.")


def _too_large(value: int, where: str) -> InputError:
    return InputError(
        f"{where} is an integer of {value.bit_length()} bits, too large for 64; write it as a "
        "decimal number, such as 1e30."
    )


def short(value) -> str:
    """A value as Python writes it, in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def close_to(word: str, words: Iterable[str]) -> str | None:
    """The one of some words that may have been meant."""
    return next(iter(difflib.get_close_matches(word, words, n=1)), None)


def listed(names: Iterable[str]) -> str:
    """Names in quotation marks, with commas."""
    return ", ".join(repr(name) for name in names)
