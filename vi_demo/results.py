"""A run in its folder: written whole or not at all, and read again without JAX."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from vi_demo.errors import InputError, is_full, text_of

USABLE = "reliable", "correctable"  # verdicts
SCHEMA = 1  # of what is written; whatever is older can be read

POSTERIOR = "posterior.nc"
SUMMARY = "summary.json"
REPORT = "report.html"
CALIBRATION = "calibration.nc"
CALIBRATION_SUMMARY = "calibration.json"


def summary(run: xr.DataTree) -> dict:
    """All figures of a run, as `summary.json` holds them; divergences in nats."""
    if "summary" not in run.attrs:
        raise InputError("this tree is not a whole run; pass what vi_demo.run or load returned.")
    try:
        return dict(json.loads(run.attrs["summary"]))
    except (TypeError, ValueError) as error:
        raise InputError(
            "the run's summary is damaged, it is not JSON; make the run anew with vi-demo run."
        ) from error


def note_command(run: xr.DataTree, command: str) -> None:
    """Keep the command that a run was made by with its settings."""
    known = summary(run)
    known["settings"]["command"] = command
    run.attrs["summary"] = json.dumps(known, indent=2, ensure_ascii=False, allow_nan=False)


def check_folder(folder: str | Path) -> None:
    """Refuse a place that no folder can be made at, before anything is computed."""
    nearest = Path(folder)
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"{nearest} is a file, not a folder; name another with --out.")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{nearest} cannot be written to; name another with --out.")


def save(
    run: xr.DataTree, folder: str | Path, pictures: dict[str, Callable] | None = None
) -> Path:
    """Write a run's files into a folder, each replaced only once its successor is whole.

    `pictures` are more files by name, each a function that writes to the path it is given.
    """
    return write(folder, files(run, POSTERIOR, SUMMARY) | (pictures or {}))


def files(run: xr.DataTree, tree: str, figures: str) -> dict[str, Callable]:
    """The writers of a tree, and of the summary that it holds, by the names of their files."""
    return {
        # By way of memory: where the disk is full, HDF5 ends the process as it closes its file.
        tree: lambda path: path.write_bytes(run.to_netcdf(engine="h5netcdf")),
        figures: lambda path: path.write_text(run.attrs["summary"] + "\n", encoding="utf-8"),
    }


def write(folder: str | Path, writers: dict[str, Callable]) -> Path:
    """Write files, each by a function of its path, and put them in place once all are whole."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as fresh:
            for name, write in writers.items():
                write(Path(fresh) / name)
            for name in writers:
                os.replace(Path(fresh) / name, folder / name)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder} is not a folder; name another with --out.") from error
    except PermissionError as error:
        raise InputError(f"{folder} cannot be written to; name another with --out.") from error
    except OSError as error:
        if not is_full(error):
            raise
        raise InputError(
            f"{folder}: no space is left on the disk; what was there before is as it was. Free "
            "some, or name another folder with --out."
        ) from error
    return folder


def load(folder: str | Path) -> xr.DataTree:
    """A saved run, all of it in memory."""
    file = Path(folder)
    file = file / POSTERIOR if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"{folder} holds no {POSTERIOR}; make a run with vi-demo run.")

    def whole(tree):
        check_version(tree, str(file))
        return tree.load()

    return read_tree(file, "h5netcdf", whole, "make the run anew with vi-demo run.")


def read_tree(file: Path, engine: str, take: Callable, remedy: str):
    """What `take` has of the tree in a file; a file that cannot be read is told in one line."""
    try:
        with xr.open_datatree(file, engine=engine) as tree:
            return take(tree)
    except InputError:
        raise
    except Exception as error:  # no reader says what all a damaged file can make it raise
        why = text_of(error).partition(". ")[0]
        raise InputError(f"{file} cannot be read ({why}); {remedy}") from error


def check_version(run: xr.DataTree, name: str) -> None:
    """Refuse a file that is not a run, or one of a later form than is known here."""
    schema = run.attrs.get("schema")
    if not isinstance(schema, int | np.integer) or "summary" not in run.attrs:
        raise InputError(f"{name} is not a run; give a folder that vi-demo run made.")
    if schema > SCHEMA:
        raise InputError(
            f"{name} was made by a later version of vi-demo (form {schema}, here {SCHEMA}); "
            "update vi-demo to read it."
        )
