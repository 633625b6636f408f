"""A model and its data, from the user's file, an import path or a bundled name.

This is where what people wrote enters the program, so it is checked here, before minutes are
spent on it. Every complaint is an `InputError` of one line: what is wrong, where, and the remedy.

JAX is not imported here; the user's file does that when it runs.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from vi_demo.data import Takes, checked, close_to, listed, read
from vi_demo.errors import InputError, place_of, text_of


class Loaded(NamedTuple):
    """A model, the keyword arguments to call it with, and the file they came from."""

    name: str
    description: str
    model: Callable
    data: dict[str, Any]
    coords: dict
    dims: dict
    source: str


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
    given = _own_data(module, label) if data_file is None else _from_file(str(data_file), takes)
    _refuse_unknown(given, takes)
    _refuse_absent(given, takes)
    stem = file.stem if file else label.rpartition(".")[2]
    return Loaded(
        name=stem if function == "model" else f"{stem}_{function}",
        description=(module.__doc__ or "").strip().partition("\n")[0],
        model=model,
        data={k: checked(v, f"{given.by}: {k}", given.own) for k, v in given.values.items()},
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
    close = close_to(path.name, known) or close_to(path.stem, known)
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
        close = close_to(place, [*bundled(), *(f.name for f in Path.cwd().glob("*.py"))])
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
            f"{doing} stopped{place_of(error)}: {text_of(error)}; install it in the environment "
            "that vi-demo runs in, or put it beside the model's file."
        ) from error
    except SystemExit as error:
        raise InputError(
            f"{doing} stopped with SystemExit{place_of(error)}; put what only a script should run "
            'under if __name__ == "__main__".'
        ) from error
    except Exception as error:
        raise InputError(
            f"{doing} stopped with {type(error).__name__}{place_of(error)}: {text_of(error)}; "
            "correct it there (--debug shows the traceback)."
        ) from error


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
    close = close_to(function, defined) or (defined[0] if len(defined) == 1 else None)
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


def _from_file(name: str, takes: Takes) -> Given:
    """What a data file holds."""
    return Given(name, read(name, takes), f"{name} lacks", "add it to the file", own=False)


def _refuse_unknown(given: Given, takes: Takes) -> None:
    for name in given.values:
        if name in takes.parameters or (takes.any_name and isinstance(name, str)):
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
    silent = [k for k, default in absent.items() if default is None]
    if silent:
        nothing = ", ".join(f"{k}=None" for k in silent)
        raise InputError(
            f"{given.lacks} {listed(silent)}, which {takes.call} would draw as a latent site; "
            f"{given.remedy}, or return {nothing} from data()"
            f"{'' if given.own else ', without --data,'} to leave it unobserved."
        )
