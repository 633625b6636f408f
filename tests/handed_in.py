"""What the tests of loading hand in, and what they are told."""

import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import zarr

from vi_demo.errors import InputError
from vi_demo.loading import load

REGRESSION = '''\
"""A line through points.

More words."""

coords = {"point": [0, 1, 2]}
dims = {"y": ["point"]}


def data():
    return {"x": [1, 2, 3], "y": [0.5, 1.5, 2.5]}


def model(x, y=None, slope=1.0):
    return "regression"
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder with regression.py; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    write("regression.py", REGRESSION)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(name, content):
    """Write text, bytes, arrays (npz), an Arrow table, a Dataset or what a function makes."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content() if callable(content) else content
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif name.endswith(".parquet"):
        parquet.write_table(content, path, row_group_size=2)
    elif ".zarr" in name:
        write_zarr(path, content)
    else:
        content.to_netcdf(path, engine="h5netcdf")
    return str(path)


def write_zarr(path, content):
    """Write a Dataset or a DataTree as zarr, zipped where the name ends so."""
    store = zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else path
    with warnings.catch_warnings(action="ignore"):  # of zip entries and of format 3
        content.to_zarr(store)
    if path.suffix == ".zip":
        store.close()


def complaint(spec, data_file=None):
    with pytest.raises(InputError) as caught:
        load(spec, data_file)
    message = str(caught.value)
    print(message)  # pytest -s shows them all as people see them
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def assert_says(message, pieces):
    for piece in pieces:
        assert re.search(piece, message), f"{piece!r} is not in: {message}"
