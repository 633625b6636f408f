"""Data files: all their variables by name, each by the ecosystem's own reader.

What the readers let pass is refused here: text among the numbers of a table, missing values,
columns that do not make up a matrix. The values are checked again with those of `data()`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from vi_demo.data import close_to, finite, indexed, listed, missing, numbers, short
from vi_demo.errors import InputError, text_of
from vi_demo.signatures import Takes
from vi_demo.streamed import PIECE, Table, columns, stamp, wanted

ROW_NAMES = re.compile(r"__index_level_\d+__")  # as pandas calls a nameless index in Parquet


def read(name: str, takes: Takes, stream: bool | None = None) -> dict:
    """All variables of a data file, by the reader of its extension.

    Rows of a large Parquet or zarr file stay on the disk, or those of any with `stream`.
    """
    file = Path(name).expanduser()
    ending = next((end for end in READERS if file.name.lower().endswith(end)), None)
    if file.is_dir() and ending not in FOLDERS:
        raise InputError(f"{name} is a folder; give a data file, one of {', '.join(READERS)}.")
    if not file.exists():
        close = close_to(file.name, [f.name for f in file.parent.glob("*.*")])
        hint = f"did you mean {file.with_name(close)}?" if close else "check the path."
        raise InputError(f"no such data file: {name!r}; {hint}")
    if ending is None:
        raise InputError(
            f"{name} has no extension that says how to read it; save it as one of "
            f"{', '.join(READERS)}."
        )
    reader, writer = READERS[ending]
    if stream and ending not in FOLDERS:
        raise InputError(
            f"{name}: it is {' and '.join(FOLDERS)} files that rows are read from as they are "
            "wanted; save it so, or leave --stream out."
        )
    how = {"stream": stream} if ending in FOLDERS else {}
    try:
        return reader(file, name, takes, **how)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    except Exception as error:  # no reader says what all a damaged file can make it raise
        raise InputError(
            f"{name} cannot be read ({text_of(error).partition('. ')[0]}); check the file, or "
            f"write it anew with {writer}."
        ) from error


# Tables: csv and Parquet


def _table(header: list[str], column: Callable[[str], np.ndarray], name: str, takes: Takes):
    """What `column` reads of each column that the model takes, X[0], X[1] and so on as one X."""
    matrices: dict[str, dict[int, str]] = {}
    values = {}
    for each in header:
        base, index = _matrix_column(each)
        if base in takes.parameters:
            matrices.setdefault(base, {})[index] = each
        else:  # what the model does not take is seen to by its name, whatever it holds
            values[each] = column(each) if takes.accepts(each) else None
    for base, members in matrices.items():
        first, last = min(members), max(members)
        if base in values or first > 1 or len(members) != last - first + 1:
            raise InputError(
                f"{name}: columns {listed(members.values())} do not make up the matrix {base!r}; "
                f"name them {base}[0], {base}[1] and so on, without a gap and without a "
                f"column {base!r}."
            )
        values[base] = np.column_stack([column(members[i]) for i in sorted(members)])
    return values


def _matrix_column(column: str) -> tuple[str | None, int]:
    """The base and the index of a name like X[2] or X.2; (None, 0) for other names."""
    match = re.fullmatch(r"(.+)(?:\[(\d+)\]|\.(\d+))", column)
    return (match[1], int(match[2] or match[3])) if match else (None, 0)


def _refuse_twice(names: Iterable[str], name: str, what: str) -> None:
    twice = next((each for each, number in Counter(names).items() if number > 1), None)
    if twice is not None:
        raise InputError(f"{name}: two {what} are named {twice!r}; rename one of them.")


def _row(where: str, index: tuple[int, ...], width: int = 1, first: int = 0) -> str:
    """A row of a column, counted from 1 below the header; `width` values make up one, and
    `first` rows came before.
    """
    return f"{where}, row {first + index[0] // width + 1}"


def _csv(file: Path, name: str, takes: Takes) -> dict:
    frame = _frame(file, name)
    return _table(
        list(frame), lambda each: _column(frame[each], f"{name}: column {each!r}"), name, takes
    )


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
    _refuse_empty(len(frame), name)
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
    if "" in header:
        raise InputError(
            f"{name}: column {header.index('') + 1} has no name; name it, or leave row names out "
            "of the file."
        )
    _refuse_twice(header, name, "columns")


def _refuse_empty(rows: int, name: str) -> None:
    if not rows:
        raise InputError(f"{name} holds no rows; write the data to it.")


def _column(column, where: str) -> np.ndarray:
    """One column of a csv file as numbers."""
    import pandas as pd

    absent = column.isna().to_numpy()
    if not pd.api.types.is_numeric_dtype(column):  # which holds for bool as well
        numbers = pd.to_numeric(column, errors="coerce")
        text = numbers.isna().to_numpy() & ~absent
        if text.any():
            row = int(np.argmax(text))
            raise _text(column.iloc[row], _row(where, (row,)))
        column = numbers
    if absent.any():
        raise missing(_row(where, (int(np.argmax(absent)),)))
    return finite(column.to_numpy(), where, _row)


def _text(value, where: str) -> InputError:
    return InputError(
        f"{where} is {short(value)}, not a number; recode the column as numbers or leave it out."
    )


def _parquet(file: Path, name: str, takes: Takes, stream: bool | None = None) -> dict:
    import pyarrow.parquet as parquet

    dataset = parquet.ParquetDataset(file)
    header = [each for each in dataset.schema.names if not ROW_NAMES.fullmatch(each)]
    _refuse_twice(header, name, "columns")
    groups = [group for part in dataset.fragments for group in part.split_by_row_group()]
    groups = [group for group in groups if group.row_groups[0].num_rows]
    ends = np.cumsum([group.row_groups[0].num_rows for group in groups])
    _refuse_empty(ends[-1] if len(ends) else 0, name)
    size = sum(g.row_groups[0].total_byte_size for g in groups) / max(1, len(header))
    taken = [each for each in header if takes.accepts(each) or _matrix_column(each)[0]]
    if wanted(ends[-1], len(taken) * max(size, 8 * ends[-1]), stream):
        return _table_on_disk(
            file, name, ends, partial(_parquet_piece, groups, dataset.schema, takes)
        )

    def column(each):
        # Column by column, so that only one is held twice while a matrix is put together.
        return _arrow(dataset.read(columns=[each])[each], f"{name}: column {each!r}")

    return _table(header, column, name, takes)


def _parquet_piece(groups: list, schema, takes: Takes, name: str, rows: range, k: int):
    """The columns of one row group."""
    base = lambda each: _matrix_column(each)[0]  # noqa: E731
    header = [each for each in schema.names if not ROW_NAMES.fullmatch(each)]
    names = [each for each in header if takes.accepts(each) or base(each) in takes.parameters]
    table = groups[k].to_table(columns=names, schema=schema, use_threads=False)
    place = partial(_row, first=rows.start)
    column = lambda each: _arrow(table[each], f"{name}: column {each!r}", place=place)  # noqa: E731
    return _table(header, column, name, takes)


def _table_on_disk(file: Path, name: str, ends: np.ndarray, piece: Callable) -> dict:
    """The columns of a table that stays on the disk; what the model does not take is None."""

    def read(begin, end, k):
        values = piece(name, range(begin, end), k)
        return {key: _in_double(v) for key, v in values.items() if v is not None}

    table = Table(name, ends, read, stamp(file))
    return dict.fromkeys(piece(name, range(int(ends[0])), 0)) | columns(table)


def _in_double(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64, copy=False) if values.dtype.kind == "f" else values


def _arrow(column, where: str, width: int = 1, place: Callable = _row) -> np.ndarray:
    """One column of Arrow's as numbers, a column of lists of one length as a matrix."""
    import pyarrow as pa

    kind, types = column.type, pa.types
    if types.is_dictionary(kind):
        return _arrow(column.cast(kind.value_type), where, width, place)
    absent = np.asarray(column.is_null()) if column.null_count else np.zeros(1, bool)
    if absent.all() or (absent.any() and not _is_text(kind)):
        raise missing(place(where, (int(np.argmax(absent)),), width))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _lists(column, where, width, place)
    if types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif _is_text(kind):
        row = int(np.argmin(absent))
        raise _text(column[row].as_py(), place(where, (row,), width))
    elif not (types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)):
        raise InputError(
            f"{where} is of type {kind}, not of numbers; recode it, dates and times for example "
            "as days since the first, or leave it out."
        )
    return finite(column.to_numpy(), where, lambda w, index: place(w, index, width))


def _is_text(kind) -> bool:
    from pyarrow import types

    return any(is_(kind) for is_ in (types.is_string, types.is_large_string, types.is_string_view))


def _lists(column, where: str, width: int, place: Callable) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(column).to_numpy()
    odd = int(np.argmax(lengths != lengths[0]))
    if odd:
        raise InputError(
            f"{place(where, (odd,), width)} is not as long as row 1; make all its rows equally "
            "long, or pad and mask them."
        )
    length = int(lengths[0])
    values = pa.chunked_array([chunk.flatten() for chunk in column.chunks])
    numbers = _arrow(values, where, width * length, place)
    return numbers.reshape(len(column), length, *numbers.shape[1:])


# Trees: JSON, npz, netCDF, zarr


def _json(file: Path, name: str, takes: Takes) -> dict:
    def once(pairs):
        _refuse_twice((key for key, _ in pairs), name, "values")
        return dict(pairs)

    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
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
    if not zipfile.is_zipfile(file):
        raise InputError(f"{name} is not an npz archive; write it anew with numpy.savez.")
    values = {}
    with np.load(file, allow_pickle=False) as archive:
        for variable in archive.files:
            try:
                values[variable] = archive[variable]
            except ValueError as error:
                if "pickle" not in str(error) and "Object arrays" not in str(error):
                    raise
                raise _objects(name, variable) from error
    return values


def _objects(name: str, variable: str) -> InputError:
    return InputError(
        f"{name}: {variable!r} is an array of Python objects, which is not loaded as it could run "
        "code; save it as an array of numbers."
    )


def _netcdf(file: Path, name: str, takes: Takes) -> dict:
    import xarray as xr

    return _dataset(lambda **how: xr.open_dataset(file, **how), name, takes)


def _zarr(file: Path, name: str, takes: Takes, stream: bool | None = None) -> dict:
    import xarray as xr
    import zarr

    def opened(**how):
        # Of version 2, xarray runs an event loop, which no thread may that has one as Jupyter's.
        with ThreadPoolExecutor(1) as thread:
            how |= {"engine": "zarr", "consolidated": False}
            return thread.submit(xr.open_dataset, store, **how).result()

    store = zarr.storage.ZipStore(file, mode="r") if file.is_file() else str(file)
    if file.is_dir() and (on_disk := _zarr_on_disk(file, name, takes, opened, stream)):
        return on_disk
    with contextlib.closing(store) if file.is_file() else contextlib.nullcontext():
        try:
            return _dataset(opened, name, takes)
        except KeyError:  # arrays without names of their dimensions, which xarray asks for
            arrays = zarr.open_group(store, mode="r").arrays()
            return {variable: array[...] for variable, array in sorted(arrays)}


def _zarr_on_disk(file: Path, name: str, takes: Takes, opened: Callable, stream: bool | None):
    """The variables of a zarr folder whose rows stay on the disk; None where it is small.

    Its rows are those of the variables that are longest.
    """
    import zarr

    try:
        dataset = opened(decode_times=False)
        known = {*dataset.data_vars, *(set(dataset.coords) & set(takes.parameters))}
        found = {str(k): dataset[k].variable for k in sorted(known)}
    except KeyError:  # arrays without names of their dimensions, which xarray asks for
        found = dict(zarr.open_group(str(file), mode="r").arrays())
    taken = [v for k, v in found.items() if v.shape and takes.accepts(k)]
    rows = max([v.shape[0] for v in taken], default=0)
    size = sum(v.dtype.itemsize * math.prod(v.shape) for v in taken)
    if not wanted(rows, size, stream):
        return None
    long = {k: v for k, v in found.items() if v.shape[:1] == (rows,) and takes.accepts(k)}

    def piece(name, here, _):
        def one(key):
            place = lambda where, at: indexed(where, (here.start + at[0], *at[1:]))  # noqa: E731
            values = np.asarray(long[key][here.start : here.stop])
            where = f"{name}: {key}"
            return finite(numbers(values, values, where, own=True), where, place)

        return {key: one(key) for key in long}

    ends = np.linspace(0, rows, -(-rows // PIECE) + 1).round().astype(int)[1:]
    others = {k: v for k, v in found.items() if k not in long}
    rest = {k: np.asarray(v[...]) if takes.accepts(k) else None for k, v in others.items()}
    return rest | _table_on_disk(file, name, ends, piece)


def _dataset(opened: Callable, name: str, takes: Takes) -> dict:
    """The variables of a plain file, or of an ArviZ file's constant and observed data."""

    def variables(dataset):
        with dataset:
            wanted = {*dataset.data_vars, *(set(dataset.coords) & set(takes.parameters))}
            return {str(k): dataset[k].to_numpy() for k in sorted(wanted)}

    def group(name):
        # Undecoded times: a column in "minutes" is a number to a model.
        return opened(group=name, decode_times=False)

    values = variables(group(None))
    for part in () if values else ("constant_data", "observed_data"):
        try:
            dataset = group(part)
        except (OSError, ValueError):
            continue  # no such group
        values |= variables(dataset)
    if not values:
        raise InputError(
            f"{name} holds no variables, nor groups constant_data and observed_data; name its "
            "variables as the model's arguments."
        )
    return values


TO_CSV, TO_ZARR = "pandas's to_csv", "xarray's to_zarr"
READERS: dict[str, tuple[Callable, str]] = {
    ".csv": (_csv, TO_CSV),
    ".json": (_json, "json.dump"),
    ".npz": (_npz, "numpy.savez"),
    ".nc": (_netcdf, "xarray's to_netcdf"),
    ".zarr": (_zarr, TO_ZARR),
    ".zarr.zip": (_zarr, TO_ZARR),
    ".parquet": (_parquet, "pandas's to_parquet"),
}
FOLDERS = (".zarr", ".parquet")
