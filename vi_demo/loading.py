"""A model and its data, from the user's file, an import path or a bundled name.

This is where what people wrote enters the program, so it is checked here, before minutes are
spent on it. Every complaint is an `InputError` of one line: what is wrong, where, and the remedy.

JAX is not imported here; the user's file does that when it runs.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from vi_demo.errors import InputError


class Loaded(NamedTuple):
    """A model, the keyword arguments to call it with, and the file they came from."""

    name: str
    description: str
    model: Callable
    data: dict[str, Any]
    coords: dict
    dims: dict
    source: str


class Takes(NamedTuple):
    """What a model takes: how a call is written, its parameters, and whether any name will do."""

    call: str
    parameters: dict[str, inspect.Parameter]
    any_name: bool


class Given(NamedTuple):
    """Data before they are checked: what gives them, the values, how to speak of an absent one."""

    by: str
    values: dict[str, Any]
    lacks: str
    remedy: str
    own: bool = True  # from the user's own code, which may hand its model more than numbers


def load(spec: str, data_file: str | None = None) -> Loaded:
    """The model that `spec` names, with its data checked against the model's arguments.

    `spec` is `path/file.py[:function]`, `package.module:function` or a bundled name. The data
    are what the file's `data()` returns, or all of `data_file` instead, where one is given.
    Arrays and lists come back as NumPy arrays, reals as float64; whatever else `data()` returns
    is passed on as it is. Raises `InputError` for whatever cannot be used.
    """
    label, file, function = _find(spec)
    module = _import_file(file, label) if file else _import_path(label)
    model = _model(module, function, label)
    takes = _takes(model, function, label)
    given = _own_data(module, label) if data_file is None else _read(str(data_file), takes)
    _refuse_unknown(given, takes)
    _refuse_absent(given, takes)
    stem = file.stem if file else label.rpartition(".")[2]
    return Loaded(
        name=stem if function == "model" else f"{stem}_{function}",
        description=(module.__doc__ or "").strip().partition("\n")[0],
        model=model,
        data={k: _value(v, f"{given.by}: {k}", given.own) for k, v in given.values.items()},
        coords=_mapping(module, "coords", label),
        dims=_mapping(module, "dims", label),
        source=str(file or getattr(module, "__file__", None) or spec),
    )


def bundled() -> dict[str, Path]:
    """The models that come with the program: name -> file."""
    package = Path(__file__).parent
    inside = package / "models"  # in an installed wheel; a checkout has them beside the package
    folder = inside if inside.is_dir() else package.parent / "models"
    return {f.stem: f for f in sorted(folder.glob("*.py")) if not f.stem.startswith("_")}


# The model: finding and importing it


def _find(spec: str) -> tuple[str, Path | None, str]:
    """How messages call the model's home, its file (None: an import path), and the function."""
    place, colon, function = spec.rpartition(":")
    if not colon or "/" in function or function.endswith(".py"):
        place, function = spec, ""
    function = function or "model"
    if place in bundled():
        return place, bundled()[place].resolve(), function
    path = Path(place).expanduser()
    if path.is_file():
        if path.suffix != ".py":
            raise InputError(
                f"{place} is not a Python file; give the .py file that holds the model, "
                "and data with --data."
            )
        return place, path.resolve(), function
    dotted = all(part.isidentifier() for part in place.split("."))
    if colon and dotted and path.suffix != ".py":
        return place, None, function
    if place and path.is_dir():
        first = next(iter(sorted(path.glob("*.py"))), path / "file.py")
        raise InputError(f"{place} is a folder; name a model file in it, such as {first}.")
    raise _no_such_model(place, path)


def _no_such_model(place: str, path: Path) -> InputError:
    beside = {f.name: str(f) for f in path.parent.glob("*.py")}
    known = {**{name: name for name in bundled()}, **beside}
    close = _close(path.name, known) or _close(path.stem, known)
    hint = f"did you mean {known[close]}?" if close else f"bundled are {', '.join(bundled())}."
    return InputError(
        f"no such model or file: {place!r}; {hint} A model is path/file.py[:function], "
        "package.module:function or a bundled name."
    )


def _import_file(file: Path, label: str) -> ModuleType:
    """Run the file as a module under a name of its own, so that random.py shadows nothing."""
    _add_to_path(file.parent)
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
    name = f"{re.sub(r'\W', '_', file.stem)}_{digest}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)

    def run():
        # Compiled from the source each time: no __pycache__ beside the user's file, none stale.
        exec(spec.loader.source_to_code(file.read_bytes(), str(file)), vars(module))
        return module

    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        return _run(run, f"{label}: importing it")
    except BaseException:
        sys.modules.pop(name, None)
        raise


def _import_path(place: str) -> ModuleType:
    _add_to_path(Path.cwd())
    try:
        return _run(lambda: importlib.import_module(place), f"{place}: importing it")
    except InputError as error:
        cause = error.__cause__
        if not isinstance(cause, ModuleNotFoundError) or not f"{place}.".startswith(
            f"{cause.name}."
        ):
            raise
        # What is missing is the very module asked for: a bundled name or a file may be meant.
        close = _close(place, [*bundled(), *(f.name for f in Path.cwd().glob("*.py"))])
        hint = f"did you mean {close}?" if close else "install it, or give the path of its file."
        raise InputError(f"{place}: no module named {cause.name!r}; {hint}") from cause


def _add_to_path(folder: Path) -> None:
    """Let files beside the model be imported; last, so that they never shadow a library."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _run(call: Callable, doing: str):
    """Call the user's code; whatever stops it, except Ctrl-C, is told in one line."""
    try:
        return call()
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"{doing} stopped{_at(error)}: {_text(error)}; install it in the environment "
            "that vi-demo runs in, or put it beside the model's file."
        ) from error
    except SystemExit as error:
        raise InputError(
            f"{doing} stopped with SystemExit{_at(error)}; put what only a script should run "
            'under if __name__ == "__main__".'
        ) from error
    except Exception as error:
        raise InputError(
            f"{doing} stopped with {type(error).__name__}{_at(error)}: {_text(error)}; "
            "correct it there (--debug shows the traceback)."
        ) from error


def _at(error: BaseException) -> str:
    """The last line of the user's own code that an exception went through, as file:line."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f" at {Path(error.filename).name}:{error.lineno}"
    stdlib, packages = sysconfig.get_path("stdlib"), {"site-packages", "dist-packages"}
    theirs, installed = [], []
    for frame in traceback.extract_tb(error.__traceback__):
        if packages & set(Path(frame.filename).parts):
            installed.append(frame)
        elif not frame.filename.startswith(("<", stdlib)):
            theirs.append(frame)
    theirs = [f for f in theirs if f.filename != __file__]
    installed = [f for f in installed if f.filename != __file__]
    # A model that is itself installed, a bundled one say, is the first of the installed files.
    frames = theirs or installed[:1]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _text(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = (error.msg or "") if isinstance(error, SyntaxError) else str(error)
    return " ".join(text.split())[:300].rstrip(".;") or "no message"


def _model(module: ModuleType, function: str, label: str) -> Callable:
    model = getattr(module, function, None)
    if callable(model):
        return model
    if model is not None:
        raise InputError(
            f"{label}: {function!r} is of type {type(model).__name__}; make it a function, "
            f"def {function}(...)."
        )
    defined = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(_inner(value), "__module__", None) == module.__name__
        if name != "data" and not name.startswith("_") and not inspect.isclass(value)
    ]
    close = _close(function, defined) or (defined[0] if len(defined) == 1 else None)
    remedy = f"did you mean {label}:{close}?" if close else f"add def {function}(...) to it."
    raise InputError(
        f"{label} has no function {function!r} (it defines {', '.join(defined[:8]) or 'none'}); "
        f"{remedy}"
    )


def _inner(model: Callable) -> Callable:
    """The function inside NumPyro's handlers, as a decorating handler hides its signature."""
    while callable(getattr(model, "fn", None)):
        model = model.fn
    return model


def _takes(model: Callable, function: str, label: str) -> Takes:
    try:
        parameters = inspect.signature(_inner(model)).parameters.values()
    except ValueError:  # some compiled callables do not say
        return Takes(f"{function}(...)", {}, True)
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InputError(
                f"{label}: argument {parameter.name!r} of {function} is positional only, and "
                "data are given by name; take the / out of its definition."
            )
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {p.name: p for p in parameters if p.kind not in variable}
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return Takes(f"{function}({', '.join(named)})", named, any_name)


def _mapping(module: ModuleType, name: str, label: str) -> dict:
    value = getattr(module, name, {})
    if not isinstance(value, Mapping):
        raise InputError(
            f"{label}: {name!r} is of type {type(value).__name__}; make it a dict, as for ArviZ."
        )
    return dict(value)


def _close(word: str, words: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, words, n=1)), None)


# The data: who gives them, and whether the model takes them


def _own_data(module: ModuleType, label: str) -> Given:
    """What the file's own `data()` returns."""
    data = getattr(module, "data", None)
    if data is None:
        remedy = "return it from a function data(), or give a data file with --data"
        return Given(label, {}, f"{label} has no data for", remedy)
    if not callable(data):
        raise InputError(
            f"{label}: 'data' is of type {type(data).__name__}; make it a function, "
            "def data(): return {...}."
        )
    values = _run(data, f"{label}: data()")
    if not isinstance(values, Mapping):
        raise InputError(
            f"{label}: data() returns {type(values).__name__}, not a dict; return the arguments "
            'of the model by name, such as {"y": y}.'
        )
    return Given(f"{label}: data()", dict(values), f"{label}: data() lacks", "return it too")


def _refuse_unknown(given: Given, takes: Takes) -> None:
    for name in given.values:
        if name in takes.parameters or (takes.any_name and isinstance(name, str)):
            continue
        close = _close(str(name), takes.parameters)
        remedy = f"did you mean {close!r}?" if close else "rename it or leave it out."
        raise InputError(
            f"{given.by} gives {name!r}, which is not an argument of {takes.call}; {remedy}"
        )


def _refuse_absent(given: Given, takes: Takes) -> None:
    absent = {k: p.default for k, p in takes.parameters.items() if k not in given.values}
    needed = [k for k, default in absent.items() if default is inspect.Parameter.empty]
    if needed:
        raise InputError(
            f"{given.lacks} {_listed(needed)}, which {takes.call} needs; {given.remedy}."
        )
    # Left at None, an observed site would turn into a latent one without a word.
    silent = [k for k, default in absent.items() if default is None]
    if silent:
        nothing = ", ".join(f"{k}=None" for k in silent)
        raise InputError(
            f"{given.lacks} {_listed(silent)}, which {takes.call} would draw as a latent site; "
            f"{given.remedy}, or return {nothing} from data()"
            f"{'' if given.own else ', without --data,'} to leave it unobserved."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


# The values: numbers, all of them there and finite


def _value(value, where: str, own: bool):
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
        return _numeric(array, array, where)
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


# The data file: one reader a format


def _read(name: str, takes: Takes) -> Given:
    """All variables of a data file, by the reader of its extension."""
    file = Path(name).expanduser()
    if file.is_dir():
        raise InputError(f"{name} is a folder; give a data file, one of {', '.join(READERS)}.")
    if not file.is_file():
        close = _close(file.name, [f.name for f in file.parent.glob("*.*")])
        hint = f"did you mean {file.with_name(close)}?" if close else "check the path."
        raise InputError(f"no such data file: {name!r}; {hint}")
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise InputError(
            f"{name} has no extension that says how to read it; save it as one of "
            f"{', '.join(READERS)}."
        )
    try:
        values = reader(file, name, takes)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {_text(error)}; check the file.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    return Given(name, values, f"{name} lacks", "add it to the file", own=False)


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
                f"{name}: columns {_listed(members.values())} do not make up the matrix {base!r}; "
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
        problem = _text(error).removeprefix("Error tokenizing data. C error: ")
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
        raise InputError(f"{name} is damaged ({_text(error)}); {remedy}") from error
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
