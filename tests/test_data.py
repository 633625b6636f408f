"""The data files that people may hand in, and what they are told of those that cannot be used."""

import asyncio
import datetime
import json
import pickle
import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import zarr
from handed_in import assert_says, complaint, folder, write  # noqa: F401

from vi_demo.loading import load


def netcdf(**variables):
    import xarray

    return xarray.Dataset({k: (f"{k}_dim", v) for k, v in variables.items()})


def arviz_file(x, y):
    import xarray

    groups = {"constant_data": netcdf(x=x), "observed_data": netcdf(y=y), "posterior": netcdf(q=x)}
    return xarray.DataTree.from_dict(groups)


def bytes_of(table):
    import pyarrow.parquet as parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def minutes(x, y):
    dataset = netcdf(x=x, y=y)
    dataset["y"].attrs["units"] = "minutes"
    return dataset.assign_coords(x_dim=["a", "b"])


@pytest.mark.parametrize(
    "name, content",
    [
        ("d.csv", "x,y\n1,0.5\n2,1.5\n"),
        ("d é.CSV", "\ufeffy, x \n0.5, 1\n1.5, 2\n"),
        ("d.json", '{"x": [1, 2], "y": [0.5, 1.5]}'),
        ("d.npz", {"x": np.array([1, 2]), "y": np.array([0.5, 1.5], np.float32)}),
        ("d.nc", lambda: netcdf(x=[1, 2], y=[0.5, 1.5])),
        ("arviz.nc", lambda: arviz_file([1, 2], [0.5, 1.5])),
        ("minutes.nc", lambda: minutes([1, 2], [0.5, 1.5])),
        ("d.zarr", lambda: netcdf(x=[1, 2], y=[0.5, 1.5])),
        ("d.zarr.zip", lambda: netcdf(x=[1, 2], y=[0.5, 1.5])),
        ("arviz.zarr", lambda: arviz_file([1, 2], [0.5, 1.5])),
        ("arviz.zarr.zip", lambda: arviz_file([1, 2], [0.5, 1.5])),
        ("minutes.zarr", lambda: minutes([1, 2], [0.5, 1.5])),
        ("d.parquet", lambda: pa.table({"x": [1, 2], "y": [0.5, 1.5]})),
        ("d.PARQUET", lambda: bytes_of(pa.table({"x": [1, 2], "y": [0.5, 1.5]}))),
        (
            "named rows.parquet",
            lambda: pa.table({"x": [1, 2], "y": [0.5, 1.5], "__index_level_0__": ["a", "b"]}),
        ),
        ("folder.parquet/part-0.parquet", lambda: pa.table({"x": [1, 2], "y": [0.5, 1.5]})),
    ],
)
def test_each_format_of_data_file(name, content):
    name = write(name, content).removesuffix("/part-0.parquet")
    data = load("regression.py", name).data
    assert list(data) == sorted(data) or name == "d é.CSV"
    assert data["x"].dtype == np.int64
    assert data["y"].dtype == np.float64
    np.testing.assert_array_equal(data["x"], [1, 2])
    np.testing.assert_array_equal(data["y"], [0.5, 1.5])


def test_numbers_in_files_stay_numbers():
    write("scalars.json", '{"x": 3, "y": 0.5, "slope": true}')
    assert load("regression.py", "scalars.json").data == {"x": 3, "y": 0.5, "slope": True}
    write("scalars.npz", {"x": np.array(3), "y": np.array(0.5)})
    assert load("regression.py", "scalars.npz").data["x"].shape == ()


@pytest.mark.parametrize("header", ["X[0],y,X[1]", "X.0,y,X.1", "X.2,y,X.10", "X[1],y,X[2]"])
def test_matrix_columns(header):
    write("m.py", "def model(X, y): pass")
    write("d.csv", header.replace("X.2", "X.1").replace("X.10", "X.2") + "\n1,5,2\n3,6,4\n")
    data = load("m.py", "d.csv").data
    np.testing.assert_array_equal(data["X"], [[1, 2], [3, 4]])
    assert data["X"].dtype == np.int64


def test_matrix_columns_are_ordered_by_number():
    write("m.py", "def model(X): pass")
    write("d.csv", ",".join(f"X[{i}]" for i in range(11)) + "\n" + ",".join(map(str, range(11))))
    np.testing.assert_array_equal(load("m.py", "d.csv").data["X"], [np.arange(11)])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_without_names_of_dimensions(zarr_format):
    zarr.save_group("d.zarr", x=np.array([0, 1]), y=np.ones(2), zarr_format=zarr_format)

    async def within_a_loop():  # as a notebook's cell is
        return load("regression.py", "d.zarr").data

    with ThreadPoolExecutor(1) as thread:  # browser tests leave a loop running in the main one
        data = thread.submit(asyncio.run, within_a_loop()).result()
    np.testing.assert_array_equal(data["x"], [0, 1])
    np.testing.assert_array_equal(data["y"], [1, 1])


PARQUET = [
    (pa.array([1, 2, 3], pa.uint8()), [1, 2, 3], "u"),
    (pa.array([1, 2, 3], pa.float32()), [1, 2, 3], "f"),
    (pa.array([1, 2, 3], pa.float16()), [1, 2, 3], "f"),
    (pa.array([True, False, True]), [True, False, True], "b"),
    (pa.array([Decimal("1.25"), Decimal("2"), Decimal("3")]), [1.25, 2, 3], "f"),
    (pa.array([3, 3, 1]).dictionary_encode(), [3, 3, 1], "i"),
    (pa.array([[1, 2], [3, 4], [5, 6]]), [[1, 2], [3, 4], [5, 6]], "i"),
    (pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float64(), 2)), [[1, 2], [3, 4], [5, 6]], "f"),
    (pa.array([[[1], [2]], [[3], [4]], [[5], [6]]]), [[[1], [2]], [[3], [4]], [[5], [6]]], "i"),
    (pa.array([[], [], []], pa.list_(pa.float64())), np.zeros((3, 0)), "f"),
]


@pytest.mark.parametrize("column, values, kind", PARQUET)
def test_columns_of_parquet(column, values, kind):
    write("m.py", "def model(x): pass")
    found = load("m.py", write("d.parquet", pa.table({"x": column}))).data["x"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype.kind == kind
    assert found.dtype == np.float64 or kind != "f"


@pytest.mark.parametrize("name", ["X[{}]", "X.{}"])
def test_matrix_columns_of_parquet(name):
    write("m.py", "def model(X): pass")
    table = pa.table({name.format(i): [i, i, i + 0.5] for i in range(11)})
    found = load("m.py", write("d.parquet", table)).data["X"]
    np.testing.assert_array_equal(found[0], np.arange(11))
    np.testing.assert_array_equal(found[2], np.arange(11) + 0.5)


def test_columns_of_csv_become_numbers():
    write("m.py", "def model(x, y): pass")
    data = load("m.py", write("d.csv", "x,y\nTrue,99999999999999999999\nFalse,1\n")).data
    assert data["x"].dtype == bool
    np.testing.assert_array_equal(data["y"], [1e20, 1])


def test_data_of_pandas_become_numbers():
    frame = "pd.DataFrame({'a': [1, 2], 'b': [0.5, 1.5]})"
    series = "pd.Series([1, 2], dtype='Int64')"
    text = f"import pandas as pd\ndef data(): return {frame}, {series}\ndef model(X, n): pass"
    data = load(write("of_pandas.py", text)).data
    np.testing.assert_array_equal(data["X"], [[1, 0.5], [2, 1.5]])
    assert data["n"].dtype == np.int64


def test_large_arrays_are_not_copied():
    text = "import numpy as np\nX = np.ones((1000, 1000))\ndef data(): return {'X': X}\n"
    write("large.py", text + "def model(X): return X.base is None")
    load("large.py")
    tracemalloc.start()
    loaded = load("large.py")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded.model(**loaded.data)
    assert peak < 1.2 * loaded.data["X"].nbytes


@pytest.mark.parametrize(
    "hidden",
    [
        {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 4}]},
        {"dtype": "<f8", "filters": [{"id": "pickle", "protocol": 4}]},
        {"dtype": "<f8", "compressor": {"id": "pickle", "protocol": 4}},
    ],
)
def test_a_pickle_in_zarr_is_not_loaded(hidden):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (Path("touched"),)

    write("d.zarr/.zgroup", '{"zarr_format": 2}')
    about = {"zarr_format": 2, "shape": [1], "chunks": [1], "order": "C", "fill_value": None}
    about |= {"compressor": None, "filters": None, **hidden}
    for variable in ("x", "y"):
        write(f"d.zarr/{variable}/.zarray", json.dumps(about))
        write(f"d.zarr/{variable}/.zattrs", '{"_ARRAY_DIMENSIONS": ["i"]}')
        write(f"d.zarr/{variable}/0", pickle.dumps(np.array([Hostile()], object)))
    assert_says(complaint("regression.py", "d.zarr"), [r"^d\.zarr", r"pickle", r"to_zarr"])
    assert not Path("touched").exists()


def parquet_of(x, **more):
    return lambda: pa.table({"x": x, "y": [1] * len(x), **more})


DAY = datetime.date(2020, 1, 1)
DATA_FILES = [
    ("d.json", '{"x": 1, "y": 2, "x": 3}', [r"two values are named 'x'", r"rename"]),
    ("d.json", f'{{"x": 1{"0" * 30}, "y": 2}}', [r"x is an integer of 100 bits", r"1e30"]),
    ("d.json", f'{{"x": [1, -1{"0" * 30}], "y": 2}}', [r"x\[1\] is an integer of", r"1e30"]),
    ("d.json", f'{{"x": 1{"0" * 9999}, "y": 2}}', [r"cannot be read", r"4300", r"json\.dump"]),
    ("d.json", "[" * 100_000, [r"cannot be read \(maximum recursion", r"json\.dump"]),
    ("d.json", '{"x": -Infinity, "y": 1}', [r"x is -inf", r"drop or impute"]),
    ("d.json", '{"x": [1e999], "y": 1}', [r"x\[0\] is inf", r"drop or impute"]),
    ("d.json", '{"x": 1, "Y": 1}', [r"gives 'Y'", r"not an argument"]),
    ("d.json", "\ufeffx".encode("utf-16"), [r"not UTF-8", r"save it as UTF-8"]),
    ("d.csv", b"\x89PNG\r\n\x1a\n\x00", [r"not UTF-8", r"save it as UTF-8"]),
    ("d.csv", "x,y\n1,2\n2020-01-01,3\n", [r"column 'x', row 2 is '2020-01-01', not a num"]),
    ("d.csv", 'x,y\n"1,5",2\n', [r"column 'x', row 1 is '1,5', not a number"]),
    ("d.csv", "x,y[0],y[1]\n1,2,3\n2,3,inf\n", [r"column 'y\[1\]', row 2 is inf"]),
    ("d.csv", "x,y\n1,nan\n", [r"column 'y', row 1 is missing"]),
    ("d.npz", lambda: bytes_of(pa.table({"x": [1]})), [r"not an npz archive"]),
    ("d.npz", {"x": np.array(["2020"], "M8[Y]"), "y": 1}, [r"x .*datetime64", r"convert it"]),
    ("d.npz", {"x": np.zeros(2, [("a", "f8")]), "y": 1}, [r"x is an array of \[\('a'"]),
    ("d.npz", {"x": np.ones(1), "y": np.array([1 + 1j * np.inf])}, [r"y\[0\] is \(?.*inf"]),
    ("d.zarr", "nothing", [r"cannot be read \(File is not a zip file\)", r"to_zarr"]),
    ("d.zarr.zip", "nothing", [r"cannot be read \(File is not a zip file\)", r"to_zarr"]),
    ("d.zarr", lambda: netcdf(), [r"no variables", r"constant_data", r"name its"]),
    ("d.zarr", lambda: netcdf(x=[1.0, np.nan], y=[1]), [r"x\[1\] is nan", r"drop or impute"]),
    ("d.zarr", lambda: netcdf(x=["a"], y=[1]), [r"x\[0\] is 'a', not a number"]),
    ("d.zarr", lambda: netcdf(x=[1], yy=[1]), [r"gives 'yy'", r"did you mean 'y'\?"]),
    ("d.parquet", "nothing", [r"d\.parquet cannot be read", r"to_parquet"]),
    ("d.parquet", b"PAR1" + b"x" * 100 + b"PAR1", [r"cannot be read", r"to_parquet"]),
    ("d.parquet", parquet_of([1, 2], town=["a", "b"]), [r"'town'.* not an argument", "leave"]),
    ("d.parquet", lambda: pa.table([[1], [2]], ["x", "x"]), [r"two columns are named 'x'"]),
    ("d.parquet", parquet_of(pa.array([], pa.int64())), [r"holds no rows"]),
    ("d.parquet", parquet_of([1, 2, None]), [r"column 'x', row 3 is missing; drop"]),
    ("d.parquet", parquet_of([1.0, None, 2.0]), [r"column 'x', row 2 is missing; drop"]),
    ("d.parquet", parquet_of([True, None]), [r"column 'x', row 2 is missing; drop"]),
    ("d.parquet", parquet_of([None, None]), [r"column 'x', row 1 is missing; drop"]),
    ("d.parquet", parquet_of([1.0, 2.0, np.inf]), [r"column 'x', row 3 is inf; drop"]),
    ("d.parquet", parquet_of([None, "a"]), [r"column 'x', row 2 is 'a', not a number; recode"]),
    ("d.parquet", parquet_of(["1.5"]), [r"column 'x', row 1 is '1\.5', not a number"]),
    (
        "d.parquet",
        parquet_of(pa.array(["a", "b"]).dictionary_encode()),
        [r"column 'x', row 1 is 'a', not a number; recode"],
    ),
    ("d.parquet", parquet_of([DAY]), [r"column 'x' is of type date32", r"days since"]),
    (
        "d.parquet",
        parquet_of(pd.to_datetime(["2020"])),
        [r"column 'x' is of type timestamp", r"days since"],
    ),
    ("d.parquet", parquet_of([b"a"]), [r"column 'x' is of type binary", r"recode"]),
    ("d.parquet", parquet_of([{"a": 1}]), [r"column 'x' is of type struct", r"recode"]),
    ("d.parquet", parquet_of([[1, 2], [3]]), [r"column 'x', row 2 is not as long as row 1"]),
    ("d.parquet", parquet_of([[1, 2], None]), [r"column 'x', row 2 is missing"]),
    ("d.parquet", parquet_of([[1, 2], [3, None]]), [r"column 'x', row 2 is missing"]),
    ("d.parquet", parquet_of([[1.0, 2.0], [np.nan, 3.0]]), [r"column 'x', row 2 is nan"]),
    ("d.parquet", parquet_of([["a"]]), [r"column 'x', row 1 is 'a', not a number"]),
    ("d.csv", "x,y\n1,2\nthree,4\n", [r"column 'x', row 2 is 'three', not a number", "recode"]),
    ("d.csv", "x,y\n1,2\n3,\n", [r"column 'y', row 2 is missing; drop or impute"]),
    ("d.csv", "x,y\n1,2\n3\n", [r"column 'y', row 2 is missing"]),
    ("d.csv", "x,y\n1,NA\n3,no\n", [r"column 'y', row 2 is 'no', not a number"]),
    ("d.csv", "x,y\nTrue,1\n,2\n", [r"column 'x', row 2 is missing"]),
    ("d.csv", "x,y\n1,2\n3,inf\n", [r"column 'y', row 2 is inf; drop"]),
    ("d.csv", "x,y\n1,2\n3,4,5\n", [r"Expected 2 fields in line 3, saw 3", "one value a column"]),
    ("d.csv", "x,y\n1,2,3\n", [r"more values than the header", "name every column"]),
    ("d.csv", "", [r"d\.csv is empty", r"write"]),
    ("d.csv", "x,y\n", [r"no rows", r"write the data"]),
    ("d.csv", "x;y\n1,5;2\n", [r"separated by semicolons", r"commas"]),
    ("d.csv", "x\ty\n1\t2\n", [r"separated by tabs", r"commas"]),
    ("d.csv", "1,2.5\n3,4\n", [r"begins with numbers", r"names of the columns"]),
    ("d.csv", ",x,y\n1,2,3\n", [r"column 1 has no name", r"name it"]),
    ("d.csv", "x,y,x\n1,2,3\n", [r"two columns are named 'x'", r"rename"]),
    (
        "d.csv",
        "x,y,town\n1,2,Ulm\n",
        [r"'town'.* not an argument of model\(x, y, slope\)", "leave"],
    ),
    ("d.csv", "x,yy\n1,2\n", [r"gives 'yy'", r"did you mean 'y'\?"]),
    ("d.csv", "y\n1\n", [r"lacks 'x', which model\(x, y, slope\) needs; add it to the file"]),
    ("d.csv", "x\n1\n", [r"lacks 'y'", r"latent", r"add it to the file", r"y=None from data\(\)"]),
    ("d.csv", "x[0],x[2],y\n1,2,3\n", [r"'x\[0\]', 'x\[2\]'.* matrix 'x'", r"without a gap"]),
    ("d.csv", "x[0],x,y\n1,2,3\n", [r"'x\[0\]'.* matrix 'x'", r"without a column 'x'"]),
    ("d.csv", "x[0],y\none,3\n", [r"column 'x\[0\]', row 1 is 'one'"]),
    ("d.csv", b"x,y\n1,\xe9\n", [r"not UTF-8", r"save it as UTF-8"]),
    ("d.json", '{"x": [1,\n 2], "y": }', [r"d\.json:2: not JSON at column 11", r"correct it"]),
    ("d.json", "", [r"d\.json:1: not JSON at column 1", r"correct it"]),
    ("d.json", b'{"\xe9": 1}', [r"not UTF-8", r"save it"]),
    ("d.json", "[1, 2]", [r"holds a list", r"write an object"]),
    ("d.json", '{"x": [[1, 2], [3]], "y": 1}', [r"x is ragged, row 1 .* row 0", "equally long"]),
    ("d.json", '{"x": [1, null], "y": 1}', [r"x\[1\] is missing", r"drop or impute"]),
    ("d.json", '{"x": [1, "a"], "y": 1}', [r"x\[1\] is 'a', not a number"]),
    ("d.json", '{"x": [1, NaN], "y": 1}', [r"x\[1\] is nan", r"drop or impute"]),
    ("d.json", '{"x": "a", "y": 1}', [r"x is 'a', neither a number nor", r"replace it"]),
    ("d.json", '{"x": {"a": 1}, "y": 1}', [r"x is \{'a': 1\}, neither", r"replace it"]),
    ("d.npz", "nothing", [r"not an npz archive", r"numpy\.savez"]),
    (
        "d.npz",
        {"x": np.array([1, {}], object)},
        [r"'x' is an array of Python objects", "as an arr"],
    ),
    ("d.npz", {"x": np.array(["a"]), "y": 1}, [r"x\[0\] is 'a', not a number"]),
    ("d.npz", {"x": np.ones(2), "y": [1, np.nan]}, [r"y\[1\] is nan", r"drop or impute"]),
    ("d.nc", "nothing", [r"d\.nc cannot be read", r"to_netcdf"]),
    ("d.nc", lambda: netcdf(), [r"no variables", r"constant_data", r"name its"]),
    ("d.nc", lambda: netcdf(x=[1.0, np.nan], y=[1]), [r"x\[1\] is nan", r"drop or impute"]),
    ("d.nc", lambda: netcdf(x=["a"], y=[1]), [r"x\[0\] is 'a', not a number"]),
    ("d.tsv", "x\ty\n", [r"no extension that says", r"\.csv, \.json, \.npz, \.nc, \.zarr"]),
    ("data", "", [r"no extension that says", r"save it as one of \.csv"]),
]


@pytest.mark.parametrize("name, content, pieces", DATA_FILES)
def test_unusable_data_files(name, content, pieces):
    write(name, content)
    assert_says(complaint("regression.py", name), [rf"^{re.escape(name)}", *pieces])


def test_damaged_archive():
    write("d.npz", {"x": np.arange(1000), "y": np.arange(1000)})
    content = bytearray(Path("d.npz").read_bytes())
    content[500] ^= 0xFF
    write("d.npz", bytes(content))
    assert_says(complaint("regression.py", "d.npz"), [r"d\.npz cannot be read", r"numpy\.savez"])


def test_absent_data_files():
    write("points.csv", "x,y\n1,2\n")
    write("somewhere/points.csv", "x,y\n1,2\n")
    assert_says(
        complaint("regression.py", "point.csv"),
        [r"no such data file: 'point\.csv'", r"did you mean points\.csv\?"],
    )
    assert_says(
        complaint("regression.py", "q.json"), [r"no such data file: 'q\.json'", r"check the path"]
    )
    assert_says(
        complaint("regression.py", "somewhere"), [r"somewhere is a folder", r"\.csv, \.json"]
    )


def test_folders_that_hold_no_data():
    Path("d.zarr").mkdir()
    assert_says(complaint("regression.py", "d.zarr"), [r"d\.zarr cannot be read", r"to_zarr"])
    Path("d.csv").mkdir()
    assert_says(complaint("regression.py", "d.csv"), [r"d\.csv is a folder", r"\.zarr"])


def test_what_pandas_lacks_is_missing():
    text = (
        "import pandas as pd\ndef data(): return {'x': pd.Series([True, None], dtype='boolean')}"
    )
    write("of_pandas.py", f"{text}\ndef model(x): pass")
    assert_says(complaint("of_pandas.py"), [r"data\(\): x\[1\] is missing; drop or impute"])
