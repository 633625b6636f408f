"""Data for a model: read from a file, and checked before anything is compiled.

Readers are the ecosystem's own; what is checked here is what they let pass: text among numbers,
missing and infinite values, ragged rows, names that no argument of the model has.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vi_demo.errors import InputError, text_of


class Takes(NamedTuple):
    """What a model takes: how a call is written, its parameters, and whether any name will do."""

    call: str
    parameters: dict[str, inspect.Parameter]
    any_name: bool


def read(name: str, takes: Takes) -> dict:
    """All variables of a data file, by the reader of its extension."""
    file = Path(name).expanduser()
    if file.is_dir():
        raise InputError(f"{name} is a folder; give a data file, one of {', '.join(READERS)}.")
    if not file.is_file():
        close = close_to(file.name, [f.name for f in file.parent.glob("*.*")])
        hint = f"did you mean {file.with_name(close)}?" if close else "check the path."
        raise InputError(f"no such data file: {name!r}; {hint}")
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise InputError(
            f"{name} has no extension that says how to read it; save it as one of "
            f"{', '.join(READERS)}."
        )
    try:
        return reader(file, name, takes)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {text_of(error)}; check the file.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error


def _csv(file: Path, name: str, takes: Takes) -> dict:
    frame = _frame(file, name)
    matrices: dict[str, dict[int, str]] = {}
    values = {}
    for column in frame:
        base, index = _matrix_column(column)
        if base in takes.parameters:
            matrices.setdefault(base, {})[index] = column
        elif not (column in takes.parameters or takes.any_name):
            values[column] = None  # refused by its name, whatever it holds
            continue
        values[column] = _column(frame[column], f"{name}: column {column!r}")
    for base, members in matrices.items():
        first, last = min(members), max(members)
        if base in values or first > 1 or len(members) != last - first + 1:
            raise InputError(
                f"{name}: columns {listed(members.values())} do not make up the matrix {base!r}; "
                f"name them {base}[0], {base}[1] and so on, without a gap and without a "
                f"column {base!r}."
            )
        values[base] = np.column_stack([values.pop(members[i]) for i in sorted(members)])
    return values


def _matrix_column(column: str) -> tuple[str | None, int]:
    """The base and the index of a name like X[2] or X.2; (None, 0) for other names."""
    match = re.fullmatch(r"(.+)(?:\[(\d+)\]|\.(\d+))", column)
    return (match[1], int(match[2] or match[3])) if match else (None, 0)


def _frame(file: Path, name: str):
    """The table of a csv file, under the column names that stand in its first row."""
    import pandas as pd

    how = {"encoding": "utf-8-sig", "skipinitialspace": True}
    try:
        # The header is read by itself too, as pandas renames columns that share a name.
        top = pd.read_csv(file, header=None, nrows=1, dtype=str, keep_default_na=False, **how)
        header = [column.strip() for column in top.iloc[0]]
        _refuse_header(header, name)
        frame = pd.read_csv(file, float_precision="round_trip", low_memory=False, **how)
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{name} is empty; write column names and rows to it.") from error
    except pd.errors.ParserError as error:
        problem = text_of(error).removeprefix("Error tokenizing data. C error: ")
        raise InputError(f"{name}: {problem}; give each row one value a column.") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(
            f"{name}: rows hold more values than the header has names; name every column, row "
            "names too, or leave them out."
        )
    if frame.empty:
        raise InputError(f"{name} has column names but no rows; write the data below them.")
    frame.columns = header
    return frame


def _refuse_header(header: list[str], name: str) -> None:
    for sign, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and sign in header[0]:
            raise InputError(
                f"{name}: columns are separated by {word}; save it with commas, and with a point "
                "in decimal numbers."
            )
    if all(re.fullmatch(r"[-+.\deE]*\d[-+.\deE]*", column) for column in header):
        raise InputError(
            f"{name} begins with numbers ({header[0]}); put the names of the columns, which are "
            "arguments of the model, in its first row."
        )
    for i, column in enumerate(header):
        if not column:
            raise InputError(
                f"{name}: column {i + 1} has no name; name it, or leave row names out of the file."
            )
        if column in header[:i]:
            raise InputError(f"{name}: two columns are named {column!r}; rename one of them.")


def _column(column, where: str) -> np.ndarray:
    """One column as numbers; rows are counted from 1 below the header."""
    import pandas as pd

    missing = column.isna().to_numpy()
    if not pd.api.types.is_numeric_dtype(column):  # which holds for bool as well
        text = pd.to_numeric(column, errors="coerce").isna().to_numpy() & ~missing
        if text.any():
            row = int(np.argmax(text))
            raise InputError(
                f"{where}, row {row + 1} is {_short(column.iloc[row])}, not a number; recode the "
                "column as numbers or leave it out."
            )
    if missing.any():
        raise _missing(f"{where}, row {int(np.argmax(missing)) + 1}")
    return column.to_numpy()


def _json(file: Path, name: str, takes: Takes) -> dict:
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name}:{error.lineno}: not JSON at column {error.colno}: {error.msg}; correct it "
            "there."
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            f"{name} holds a {type(values).__name__}; write an object of arguments by name, "
            'such as {"y": [1, 2]}.'
        )
    return values


def _npz(file: Path, name: str, takes: Takes) -> dict:
    remedy = "write it anew with numpy.savez."
    if not zipfile.is_zipfile(file):
        raise InputError(f"{name} is not an npz archive; {remedy}")
    values = {}
    variable = None
    try:
        with np.load(file, allow_pickle=False) as archive:
            for variable in archive.files:
                values[variable] = archive[variable]
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error) or "Object arrays" in str(error):
            raise InputError(
                f"{name}: {variable!r} is an array of Python objects, which is not loaded as it "
                "could run code; save it as an array of numbers."
            ) from error
        raise InputError(f"{name} is damaged ({text_of(error)}); {remedy}") from error
    return values


def _netcdf(file: Path, name: str, takes: Takes) -> dict:
    """The variables of a plain file, or of an ArviZ file's constant and observed data."""
    import xarray as xr

    def variables(group):
        # Undecoded times: a column in "minutes" is a number to a model.
        with xr.open_dataset(file, group=group, decode_times=False) as dataset:
            wanted = {*dataset.data_vars, *(set(dataset.coords) & set(takes.parameters))}
            names = [k for k in dataset.variables if k in wanted]
            return {str(k): dataset[k].to_numpy() for k in names}

    try:
        values = variables(None)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name} cannot be read as netCDF; write it anew, for example with xarray's to_netcdf."
        ) from error
    if values:
        return values
    for group in ("constant_data", "observed_data"):
        with contextlib.suppress(OSError, ValueError):  # no such group
            values |= variables(group)
    if not values:
        raise InputError(
            f"{name} holds no variables, nor groups constant_data and observed_data; name its "
            "variables as the model's arguments."
        )
    return values


READERS = {".csv": _csv, ".json": _json, ".npz": _npz, ".nc": _netcdf}


# The values: numbers, all of them there and finite


def checked(value, where: str, own: bool):
    """One argument as the model gets it: arrays of finite numbers, or the user's own object."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float | complex | np.number):
        return _finite(value, where)
    if isinstance(value, list):
        return _numeric(_rectangular(value, where), value, where)
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
        numbers = _numeric(array, array, where)
        # A JAX array stays one: a model may index it by a traced value, a NumPy array it may not.
        return value if type(value).__module__.startswith("jax") else numbers
    if own:
        return value
    raise InputError(
        f"{where} is {_short(value)}, neither a number nor an array of them; replace it by "
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


def _numeric(array: np.ndarray, cells, where: str) -> np.ndarray:
    if array.dtype.kind in "biufc":
        array = array.astype(np.float64) if array.dtype.kind == "f" else array
        return _finite(array, where)
    if array.dtype.kind in "OUS":
        # From the cells as they were given: NumPy makes text of 1.0 beside "a".
        for index, cell in np.ndenumerate(np.asarray(cells, dtype=object)):
            if cell is None:
                raise _missing(_indexed(where, index))
            if not isinstance(cell, int | float | complex | np.number | np.bool_):
                raise InputError(
                    f"{_indexed(where, index)} is {_short(cell)}, not a number; recode it as a "
                    "number or leave it out."
                )
    raise InputError(
        f"{where} is an array of {array.dtype}, not of plain numbers; convert it, for example "
        "with .astype(float)."
    )


def _finite(value, where: str):
    bad = np.argwhere(~np.isfinite(value))
    if len(bad) == 0:
        return value
    index = tuple(int(i) for i in bad[0])
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    raise InputError(
        f"{_indexed(where, index)} is {np.asarray(value)[index]}{more}; drop or impute that row, "
        "or fill it in and mask it in the model."
    )


def _missing(where: str) -> InputError:
    return InputError(f"{where} is missing; drop or impute that row.")


def _indexed(where: str, index: tuple[int, ...]) -> str:
    return f"{where}[{', '.join(map(str, index))}]" if index else where


def _short(value) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def close_to(word: str, words: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, words, n=1)), None)


def listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
