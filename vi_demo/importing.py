"""Running the user's file or module: as a script would, and with every failure told in one line.

A file becomes a module under a name of its own, so that random.py or jax.py shadows nothing. What
lies beside it can be imported, plainly or relatively.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from vi_demo.errors import InputError, place_of, text_of

OUR_PACKAGE = re.compile(r"\bmodel_folder_[0-9a-f]{12}\b\.?")

# Folders put on the path for the files beside a model, and what was imported before.
_lent: dict[str, frozenset[str]] = {}


def import_file(file: Path, label: str) -> ModuleType:
    """The module that a file makes, run anew each time."""
    return run(lambda: _executed(file), f"{label}: importing it")


def import_path(place: str) -> ModuleType:
    """The module of a dotted name, also from the working folder."""
    _lend(Path.cwd())
    return run(lambda: importlib.import_module(place), f"{place}: importing it")


@contextlib.contextmanager
def as_a_script(name: str) -> Iterator[None]:
    """The command line of the user's code is its name alone; the working folder is kept."""
    arguments, sys.argv = sys.argv, [name]
    try:
        with contextlib.chdir("."):
            yield
    finally:
        sys.argv = arguments


def run(call: Callable, doing: str):
    """Call the user's code; whatever stops it, except Ctrl-C, is told in one line."""
    try:
        return call()
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"{doing} stopped{place_of(error)}: {_words(error)}; install it in the environment "
            "that vi-demo runs in, or put it beside the model's file."
        ) from error
    except SystemExit as error:
        raise InputError(
            f"{doing} stopped with SystemExit{place_of(error)}; put what only a script should run "
            'under if __name__ == "__main__".'
        ) from error
    except Exception as error:
        raise InputError(
            f"{doing} stopped with {type(error).__name__}{place_of(error)}: {_words(error)}; "
            "correct it there (--debug shows the traceback)."
        ) from error


def _words(error: BaseException) -> str:
    """What an exception says, a model's folder being a dot as in a relative import."""
    return OUR_PACKAGE.sub(".", text_of(error))


def _executed(file: Path) -> ModuleType:
    name = f"{_package(file.parent)}.{re.sub(r'\W', '_', file.stem)}_{_digest(file)}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        # Compiled from the source each time: no __pycache__ beside the user's file, none stale.
        exec(spec.loader.source_to_code(file.read_bytes(), str(file)), vars(module))
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _package(folder: Path) -> str:
    """The package whose part a file in this folder is: a real one, or one of ours."""
    root, parts = folder, []
    while (root / "__init__.py").is_file() and root.name.isidentifier():
        root, parts = root.parent, [root.name, *parts]
    if parts:
        _lend(root)
    _lend(folder)
    if parts and _found(parts[0], root):
        return importlib.import_module(".".join(parts)).__name__
    # Not a package, or one whose name a library has: relative imports reach the files beside.
    spec = ModuleSpec(f"model_folder_{_digest(folder)}", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec)).__name__


def _found(package: str, root: Path) -> bool:
    """Whether a package's name leads to the folder of that name in `root`, or to a library."""
    spec = importlib.util.find_spec(package)
    places = (spec and spec.submodule_search_locations) or ()
    return (root / package) in [Path(place).resolve() for place in places]


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def _lend(folder: Path) -> None:
    """Let files in this folder be imported; after all else, so that they never shadow a library.

    Of the folders lent it comes first, and its helper.py is not the one an earlier model had.
    """
    _forget_namesakes(folder)
    importlib.invalidate_caches()
    place = str(folder)
    if place in _lent and place in sys.path:
        sys.path.remove(place)
    if place not in sys.path:
        first = next((i for i, p in enumerate(sys.path) if p in _lent), len(sys.path))
        sys.path.insert(first, place)
        _lent.setdefault(place, frozenset(sys.modules))


def _forget_namesakes(folder: Path) -> None:
    """Forget modules of other models' folders that have the name of one in this folder."""
    for name in [name for name in sys.modules if "." not in name]:
        if not ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
            continue
        home = _home(sys.modules[name])
        if home in _lent and home != str(folder) and name not in _lent[home]:
            for each in [n for n in sys.modules if f"{n}.".startswith(f"{name}.")]:
                del sys.modules[each]


def _home(module: ModuleType) -> str:
    """The folder that a module or a package lies in."""
    places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None) or ""]
    return str(Path(places[0]).parent)
