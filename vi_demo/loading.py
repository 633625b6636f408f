"""A model and its data, from the user's file, an import path or a bundled name.

This is where what people wrote enters the program, so it is checked here, before minutes are
spent on it. Every complaint is an `InputError` of one line: what is wrong, where, and the remedy.

JAX is not imported here; the user's file does that when it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from vi_demo.data import checked, close_to, listed
from vi_demo.errors import InputError
from vi_demo.importing import as_a_script, import_file, import_path, run
from vi_demo.reading import read
from vi_demo.signatures import Takes, by_name, function_of, states_a_model, takes_of
from vi_demo.streamed import Column


class Loaded(NamedTuple):
    """A model, the arguments to call it with, and the file they came from.

    `model(**data)` is a call of the model, whichever way it takes its arguments; so is
    `guide(**data)` of the guide beside it, where there is one.
    """

    name: str
    description: str
    model: Callable
    data: dict[str, Any]
    coords: dict
    dims: dict
    source: str
    guide: Callable | None = None


class Given(NamedTuple):
    """Data before they are checked: what gives them, the values, how to speak of an absent one."""

    by: str
    values: dict[str, Any]
    lacks: str
    remedy: str
    own: bool = True  # from the user's own code, which may hand its model more than numbers


def load(
    spec: str, data_file: str | None = None, *, bare: bool = False, stream: bool | None = None
) -> Loaded:
    """The model that `spec` names, with its data checked against the model's arguments.

    `spec` is `path/file.py[:function]`, `package.module:function` or a bundled name. The data
    are what the file's `data()` returns, or all of `data_file` instead, where one is given; with
    `bare` there are none, for a model that is called with others. Arrays and lists come back as
    NumPy arrays, reals as float64; whatever else `data()` returns is passed on as it is. Rows of a
    large Parquet or zarr file stay on the disk, of any with `stream`. Raises `InputError` for
    whatever cannot be used.
    """
    label, file, function = _find(spec)
    if stream and data_file is None:
        raise InputError(f"{label}: --stream is said of a data file; give one with --data.")
    with as_a_script(label):
        module = import_file(file, label) if file else _import_path(label)
        model = _model(module, function, label)
        takes = takes_of(model, function)
        given = _own_data(module, takes, label) if data_file is None and not bare else None
    if not bare:
        given = given or _from_file(str(data_file), takes, stream)
        given = _without_others(given, takes, module)
    data = {} if bare else _accepted(given, takes)
    return Loaded(
        name=_called(label, file, function),
        description=(module.__doc__ or "").strip().partition("\n")[0],
        model=by_name(model),
        data=data,
        coords=_mapping(module, "coords", label),
        dims=_mapping(module, "dims", label),
        source=str(file or getattr(module, "__file__", None) or spec),
        guide=None if bare else _guide(module, function, data, label),
    )


def name_of(spec: str) -> str:
    """The name of the model that `spec` names, which its runs bear; nothing is imported for it."""
    return _called(*_find(spec))


def _called(label: str, file: Path | None, function: str) -> str:
    stem = file.stem if file else label.rpartition(".")[2]
    return stem if function == "model" else f"{stem}_{function}"


def arguments(model: Callable, data_file: str | Path) -> dict[str, Any]:
    """What a data file gives a function for its arguments, checked as for `load`."""
    takes = takes_of(model, getattr(model, "__name__", "model"))
    return _accepted(_from_file(str(data_file), takes), takes)


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
        if path.suffix == ".ipynb":
            raise InputError(
                f"{place} is a notebook; export the cells of its model as a .py file, for example "
                "with jupyter nbconvert --to script."
            )
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
    close = close_to(path.name, known) or close_to(path.stem, known)
    hint = f"did you mean {known[close]}?" if close else f"bundled are {', '.join(bundled())}."
    return InputError(
        f"no such model or file: {place!r}; {hint} A model is path/file.py[:function], "
        "package.module:function or a bundled name."
    )


def _import_path(place: str) -> ModuleType:
    try:
        return import_path(place)
    except InputError as error:
        cause = error.__cause__
        if not isinstance(cause, ModuleNotFoundError) or not f"{place}.".startswith(
            f"{cause.name}."
        ):
            raise
        # What is missing is the very module asked for: a bundled name or a file may be meant.
        close = close_to(place, [*bundled(), *(f.name for f in Path.cwd().glob("*.py"))])
        hint = f"did you mean {close}?" if close else "install it, or give the path of its file."
        raise InputError(f"{place}: no module named {cause.name!r}; {hint}") from cause


def _model(module: ModuleType, function: str, label: str) -> Callable:
    model = getattr(module, function, None)
    if inspect.isclass(model):
        raise InputError(
            f"{label}: {function!r} is a class; make it a function, def {function}(...), or an "
            "instance that can be called."
        )
    if callable(model):
        return model
    if model is not None:
        raise InputError(
            f"{label}: {function!r} is of type {type(model).__name__}; make it a function, "
            f"def {function}(...)."
        )
    defined = list(_defined(module))
    alike = defined if len(defined) == 1 else [name for name in defined if function in name]
    close = close_to(function, defined) or next(iter(alike), None)
    remedy = f"add def {function}(...) to it."
    if close:
        remedy = f"did you mean {label}:{close}?"
    elif defined:
        remedy = f"name the one to use, as in {label}:{defined[0]}, or {remedy}"
    raise InputError(
        f"{label} has no function {function!r} (it defines {', '.join(defined[:8]) or 'none'}); "
        f"{remedy}"
    )


def _defined(module: ModuleType) -> dict[str, Callable]:
    """What can be called of what a module itself defines, but for data() and private names."""
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and not inspect.isclass(value)
        if getattr(function_of(value), "__module__", None) == module.__name__
        if name != "data" and not name.startswith("_")
    }


def _guide(module: ModuleType, function: str, data: dict, label: str) -> Callable | None:
    """The guide beside a model: robust_guide for the function robust, else guide."""
    own = "guide" if function == "model" else f"{function}_guide"
    for name in dict.fromkeys((own, "guide")):
        guide = getattr(module, name, None)
        if not callable(guide) or inspect.isclass(guide):
            continue
        try:
            inspect.signature(by_name(guide)).bind(**data)
        except TypeError as error:
            if name != own:  # another model's
                return None
            raise InputError(
                f"{label}: {takes_of(guide, name).call} cannot be called with the data of "
                f"{function}: {error}; give it the same arguments."
            ) from error
        except ValueError:  # some compiled callables do not say
            pass
        return by_name(guide)
    return None


def _mapping(module: ModuleType, name: str, label: str) -> dict:
    value = getattr(module, name, {})
    if not isinstance(value, Mapping):
        raise InputError(
            f"{label}: {name!r} is of type {type(value).__name__}; make it a dict, as for ArviZ."
        )
    return dict(value)


# The data: who gives them, and whether the model takes them


def _own_data(module: ModuleType, takes: Takes, label: str) -> Given:
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
    by = f"{label}: data()"
    values = run(data, by)
    values = values._asdict() if hasattr(values, "_asdict") else values  # a named tuple
    if isinstance(values, tuple):
        values = _placed(values, takes, by)
    if not isinstance(values, Mapping):
        raise InputError(
            f"{by} returns {type(values).__name__}, not a dict; return the arguments of the model "
            'by name, such as {"y": y}, or a tuple of them in order.'
        )
    return Given(by, dict(values), f"{by} lacks", "return it too")


def _placed(values: tuple, takes: Takes, by: str) -> dict[str, Any]:
    """Arguments given by position, by their names; those beyond belong to *args."""
    names = takes.by_position
    if len(values) > len(names) and takes.rest is None:
        raise InputError(
            f"{by} returns {len(values)} values, and {takes.call} takes {len(names)} by position; "
            "return as many, or a dict of them by name."
        )
    placed = dict(zip(names, values, strict=False))
    return placed if takes.rest is None else placed | {takes.rest: values[len(names) :]}


def _from_file(name: str, takes: Takes, stream: bool | None = None) -> Given:
    """What a data file holds."""
    return Given(name, read(name, takes, stream), f"{name} lacks", "add it to the file", own=False)


def _without_others(given: Given, takes: Takes, module: ModuleType) -> Given:
    """Without what only other models of the same file take, as models may share their data.

    A name much like an argument that is not given is kept, to be told as a slip.
    """
    if all(map(takes.accepts, given.values)):
        return given
    absent = [k for k in takes.parameters if k not in given.values]
    beside = (f for f in vars(module).values() if callable(f) and not inspect.isclass(f))
    models = [f for f in beside if not _is_numpyros(f) and states_a_model(f)]
    others = {name for model in models for name in takes_of(model, "").parameters}

    def anothers(name):
        return name in others and not takes.accepts(name) and not close_to(name, absent)

    return given._replace(values={k: v for k, v in given.values.items() if not anothers(k)})


def _accepted(given: Given, takes: Takes) -> dict[str, Any]:
    """The values, if they are what the model takes and can be computed with."""
    _refuse_unknown(given, takes)
    _refuse_absent(given, takes)
    return {name: _checked(name, given, takes) for name in given.values}


def _is_numpyros(function: Callable) -> bool:
    home = getattr(function_of(function), "__module__", None) or ""
    return home.partition(".")[0] == "numpyro"


def _checked(name: str, given: Given, takes: Takes):
    value, where = given.values[name], f"{given.by}: {name}"
    if isinstance(value, Column):  # is checked as it is read
        return value
    if name == takes.rest and isinstance(value, tuple):
        return tuple(checked(v, f"{where}[{i}]", given.own) for i, v in enumerate(value))
    return checked(value, where, given.own)


def _refuse_unknown(given: Given, takes: Takes) -> None:
    for name in given.values:
        if takes.accepts(name):
            continue
        close = close_to(str(name), takes.parameters)
        remedy = f"did you mean {close!r}?" if close else "rename it or leave it out."
        raise InputError(
            f"{given.by} gives {name!r}, which is not an argument of {takes.call}; {remedy}"
        )


def _refuse_absent(given: Given, takes: Takes) -> None:
    absent = {k: p.default for k, p in takes.parameters.items() if k not in given.values}
    needed = [k for k, default in absent.items() if default is inspect.Parameter.empty]
    if needed:
        raise InputError(
            f"{given.lacks} {listed(needed)}, which {takes.call} needs; {given.remedy}."
        )
    # Left at None, an observed site would turn into a latent one without a word.
    silent = [k for k, default in absent.items() if default is None and k not in takes.optional]
    if silent:
        nothing = ", ".join(f"{k}=None" for k in silent)
        raise InputError(
            f"{given.lacks} {listed(silent)}, which {takes.call} would draw as a latent site; "
            f"{given.remedy}, or return {nothing} from data()"
            f"{'' if given.own else ', without --data,'} to leave it unobserved."
        )
