"""What people may hand in, and what they are told when it cannot be used."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vi_demo import loading
from vi_demo.errors import InputError
from vi_demo.loading import bundled, load

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
    """Write a text, bytes, arrays (npz) or an object with to_netcdf."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        content.to_netcdf(path, engine="h5netcdf")
    return str(path)


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


# What can be used


def test_a_file_with_its_own_data():
    loaded = load("regression.py")
    assert loaded.name == "regression"
    assert loaded.description == "A line through points."
    assert loaded.model(**loaded.data) == "regression"
    assert loaded.data["x"].dtype == np.int64
    assert loaded.data["y"].dtype == np.float64
    np.testing.assert_array_equal(loaded.data["y"], [0.5, 1.5, 2.5])
    assert loaded.coords == {"point": [0, 1, 2]}
    assert loaded.dims == {"y": ["point"]}
    assert loaded.source == str(Path("regression.py").resolve())


def test_a_file_with_nothing_but_a_model():
    write("bare.py", "def model(scale=2.0): return scale")
    loaded = load("bare.py")
    assert (loaded.description, loaded.data, loaded.coords, loaded.dims) == ("", {}, {}, {})


@pytest.mark.parametrize("function, name", [("", "regression"), (":model", "regression")])
def test_the_function_is_model_unless_named(function, name):
    assert load(f"regression.py{function}").name == name


def test_another_function_of_the_file():
    write("two.py", REGRESSION + "\n\ndef robust(x, y=None): return 'robust'\n")
    loaded = load("two.py:robust")
    assert loaded.name == "two_robust"
    assert loaded.model(1) == "robust"


@pytest.mark.parametrize(
    "path", ["my models/große Brüder.py", "模型.py", "with:colon/model.py", "my.dotted.name.py"]
)
@pytest.mark.parametrize("function", ["", ":model"])
def test_odd_paths(path, function):
    write(path, REGRESSION)
    loaded = load(path + function)
    assert loaded.name == Path(path).stem
    assert loaded.source == str(Path(path).resolve())


def test_an_import_path():
    write("household/__init__.py", "")
    write("household/geyser.py", REGRESSION)
    assert load("household.geyser:model").name == "geyser"
    assert load("regression:model").source == str(Path("regression.py").resolve())


@pytest.mark.parametrize("place", ["vi_demo/models", "models"])
def test_bundled_models_of_a_wheel_and_of_a_checkout(place, monkeypatch):
    monkeypatch.setattr(loading, "__file__", str(Path("vi_demo/loading.py").resolve()))
    write(f"{place}/line.py", REGRESSION)
    write(f"{place}/_draft.py", REGRESSION)
    write(f"{place}/arch.py", REGRESSION)
    assert list(bundled()) == ["arch", "line"]
    assert load("line").name == "line"
    assert load("line:model").source == str(Path(place, "line.py").resolve())


HANDLED = """
class Handler:  # as NumPyro's handlers are, when they decorate
    def __call__(self, *args, **kwargs):
        if kwargs or not callable(args[0]):
            return self.fn(*args, **kwargs)
        self.fn = args[0]
        return self
def data(): return {"x": 1}
@Handler()
@Handler()
def model(x, y=None): pass
"""


def test_arguments_are_seen_through_handlers():
    assert_says(complaint(write("handled.py", HANDLED)), [r"lacks 'y', which model\(x, y\)"])
    assert_says(complaint("handled.py:modl"), [r"did you mean handled\.py:model\?"])


def test_the_models_that_come_along():
    assert {"bimodal", "eight_schools", "old_faithful", "vote"} <= set(bundled())
    assert all(file.is_file() for file in bundled().values())


def test_loading_does_not_import_jax():
    code = "import sys, vi_demo.loading; sys.exit('jax' in sys.modules)"
    repository = Path(loading.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == 0


def test_a_file_named_like_a_library_shadows_nothing():
    import random

    write("random.py", "import random as r, json\nbelow = r.random()\ndef model(): return 'mine'")
    assert load("random.py").model() == "mine"
    assert sys.modules["random"] is random


def test_files_beside_the_model_can_be_imported():
    write("study/beside_it.py", "LENGTH = 3")
    write("study/main.py", "import beside_it\ndef model(): return beside_it.LENGTH")
    assert load("study/main.py").model() == 3


def test_its_classes_can_be_pickled():
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Setting:\n    size: int\n"
        "def data(): return {'setting': Setting(2)}\ndef model(setting): pass\n"
    )
    write("with class.py", text)
    setting = load("with class.py").data["setting"]
    assert pickle.loads(pickle.dumps(setting)) == setting


def test_an_edited_file_is_read_anew():
    write("edited.py", "def model(): return 1")
    assert load("edited.py").model() == 1
    write("edited.py", "def model(): return 2")
    assert load("edited.py").model() == 2
    assert not Path("__pycache__").exists()


def test_what_the_file_prints_is_seen(capsys):
    write("chatty.py", "print('hello')\ndef data(): print('data'); return {}\ndef model(): pass")
    load("chatty.py")
    assert capsys.readouterr().out == "hello\ndata\n"


def test_ctrl_c_passes():
    write("stopped.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load("stopped.py")


OWN_OBJECTS = """
import numpy as np
link = np.log
table = np.ma.masked_array([1.0, 2.0], [False, False])
def data():
    return {"link": link, "kind": "probit", "sizes": (3, 4), "dtype": np.float32, "n": 3,
            "scale": np.float32(0.5), "y": None, "on": True, "options": {"a": [1, "b"]},
            "single": np.ones(2, np.float32), "flags": [True, False], "whole": np.int64(3),
            "table": table, "big": 10**30}
def model(**everything): pass
"""


def test_what_is_no_array_is_passed_on_as_it_is():
    write("objects.py", OWN_OBJECTS)
    data = load("objects.py").data
    assert data["link"] is np.log
    assert data["dtype"] is np.float32
    assert (data["kind"], data["sizes"], data["y"], data["on"]) == ("probit", (3, 4), None, True)
    assert (data["n"], data["scale"], data["options"]) == (3, 0.5, {"a": [1, "b"]})
    assert data["single"].dtype == np.float64
    assert data["flags"].dtype == bool


def test_an_observed_site_can_be_left_unobserved_on_purpose():
    write("prior.py", "def data(): return {'y': None}\ndef model(y=None): pass")
    assert load("prior.py").data == {"y": None}
    write("prior.json", '{"y": null}')
    assert load("prior.py", "prior.json").data == {"y": None}


def netcdf(**variables):
    import xarray

    return xarray.Dataset({k: (f"{k}_dim", v) for k, v in variables.items()})


def arviz_file(x, y):
    import xarray

    groups = {"constant_data": netcdf(x=x), "observed_data": netcdf(y=y), "posterior": netcdf(q=x)}
    return xarray.DataTree.from_dict(groups)


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
    ],
)
def test_each_format_of_data_file(name, content):
    data = load("regression.py", write(name, content() if callable(content) else content)).data
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


# What cannot be used: the model

MODEL_FILES = [
    ("def modle(): pass", [r"no function 'model' \(it defines modle\)", r"bad file\.py:modle\?"]),
    ("x = 1", [r"bad file\.py", r"defines none", r"add def model\(\.\.\.\)"]),
    ("def fit(): pass\ndef plot(): pass", [r"fit, plot", r"add def model"]),
    ("model = 3", [r"bad file\.py", r"'model' is of type int", r"make it a function"]),
    ("def model(:\n", [r"bad file\.py:1: invalid syntax", r"correct it there"]),
    ("a = 1\ndef model(\n", [r"SyntaxError", r"bad file\.py:2: '\(' was never closed"]),
    (b"x = '\xe9'\n", [r"bad file\.py:1", r"utf-8"]),
    ("a = 1\0", [r"bad file\.py", r"null bytes"]),
    ("\n1 / 0\n", [r"ZeroDivisionError at bad file\.py:2: division by zero", r"correct it"]),
    ("raise ValueError('one\\ntwo')", [r"ValueError at bad file\.py:1: one two"]),
    ("raise ValueError", [r"ValueError at bad file\.py:1: no message"]),
    ("import json\njson.loads('{')", [r"JSONDecodeError at bad file\.py:2", r"Expecting"]),
    ("import numpyroo", [r"bad file\.py:1", r"No module named 'numpyroo'", r"install it"]),
    ("from json import nothing", [r"ImportError at bad file\.py:1: cannot import name"]),
    ("import sys\nsys.exit(3)", [r"SystemExit at bad file\.py:2", r"if __name__ =="]),
    ("import broken_helper", [r"bad file\.py", r"ZeroDivisionError at broken_helper\.py:1"]),
    ("import broken_syntax", [r"bad file\.py", r"SyntaxError at broken_syntax\.py:1"]),
    (
        "coords = ['a']\ndef model(): pass",
        [r"bad file\.py", r"'coords'.* list", r"make it a dict"],
    ),
    ("def model(x, /): pass", [r"bad file\.py", r"'x'.* positional only", r"take the / out"]),
]


@pytest.mark.parametrize("text, pieces", MODEL_FILES)
def test_unusable_model_files(text, pieces):
    write("broken_helper.py", "1 / 0")
    write("broken_syntax.py", "def :")
    assert_says(complaint(write("bad file.py", text)), [r"^bad file\.py", *pieces])


def test_a_file_that_fails_leaves_no_module_behind():
    complaint(write("failing.py", "1 / 0"))
    assert not [name for name in sys.modules if name.startswith("failing_")]


SPECS = [
    ("bimodel", [r"'bimodel'", r"did you mean bimodal\?"]),
    ("bimodal.py", [r"'bimodal\.py'", r"did you mean bimodal\?"]),
    ("regresion.py", [r"'regresion\.py'", r"did you mean regression\.py\?"]),
    ("regression", [r"'regression'", r"did you mean regression\.py\?"]),
    ("sub/lime.py:model", [r"'sub/lime\.py'", r"did you mean sub/line\.py\?"]),
    ("qqqqqq", [r"'qqqqqq'", r"bundled are bimodal, ", r"path/file\.py"]),
    ("", [r"no such model or file: ''", r"bundled are"]),
    ("gone/qqqq.py", [r"'gone/qqqq\.py'", r"bundled are"]),
    ("sub", [r"sub is a folder", r"such as sub/line\.py"]),
    ("notes.txt", [r"notes\.txt is not a Python file", r"--data"]),
    (
        "regression.py:modell",
        [r"regression\.py has no .*'modell'", r"mean regression\.py:model\?"],
    ),
    ("qqqqqq:model", [r"no module named 'qqqqqq'", r"install it, or give the path"]),
    ("bimodel:model", [r"no module named 'bimodel'", r"did you mean bimodal\?"]),
    ("json.qqqqqq:model", [r"no module named 'json\.qqqqqq'", r"install it"]),
    ("json:dump_", [r"^json has no function 'dump_'", r"did you mean json:dump\?"]),
    ("needy:model", [r"^needy: importing it .*at needy\.py:1", r"'qqqqqq'", r"install it in"]),
]


@pytest.mark.parametrize("spec, pieces", SPECS)
def test_unusable_specs(spec, pieces):
    write("sub/line.py", REGRESSION)
    write("notes.txt", "")
    write("needy.py", "import qqqqqq")
    assert_says(complaint(spec), pieces)


# What cannot be used: the data

OWN_DATA = [
    (
        "x, y",
        "",
        [r"^own\.py has no data for 'x', 'y', which model\(x, y\)", r"data\(\)", "--data"],
    ),
    ("y=None", "", [r"no data for 'y'", r"latent", r"return y=None from data\(\)"]),
    ("x", "data = {'x': 1}", [r"'data' is of type dict", r"def data\(\)"]),
    (
        "x",
        "def data(): return 1 / 0",
        [r"data\(\) .*ZeroDivisionError at own\.py:1", "correct it"],
    ),
    ("x", "def data(): open('no.csv')", [r"FileNotFoundError at own\.py:1: .*'no\.csv'"]),
    ("x", "def data(): import qqqqqq", [r"own\.py:1: No module named 'qqqqqq'; install it"]),
    ("x", "def data(n): return {}", [r"data\(\) stopped with TypeError", r"missing 1 required"]),
    ("x", "def data(): exit(1)", [r"data\(\) stopped with SystemExit at own\.py:1"]),
    ("x", "def data(): return [1]", [r"data\(\) returns list, not a dict", r"by name"]),
    ("x", "def data(): return {}", [r"data\(\) lacks 'x', which model\(x\) needs; return it"]),
    ("x, y=None", "def data(): return {'x': 1}", [r"lacks 'y'", r"latent", r"y=None from data"]),
    ("sigma", "def data(): return {'sigm': 1}", [r"gives 'sigm'", r"\(sigma\); .* 'sigma'\?"]),
    ("x", "def data(): return {'x': 1, 'weights': 1}", [r"'weights'.* not an argument", "rename"]),
    ("**kw", "def data(): return {1: 2}", [r"gives 1, .* not an argument"]),
    (
        "x",
        "def data(): return {'x': [1, float('nan')]}",
        [r"own\.py: data\(\): x\[1\] is nan; drop"],
    ),
    ("x", "def data(): return {'x': float('inf')}", [r"x is inf; drop or impute", "mask it"]),
    ("x", "def data(): return {'x': [[1, 2], [3, 1e999]]}", [r"x\[1, 1\] is inf;"]),
    (
        "x",
        "def data(): return {'x': np.full((3, 2), np.nan)}",
        [r"x\[0, 0\] is nan \(and 5 more\)"],
    ),
    ("x", "def data(): return {'x': np.float64('nan')}", [r"x is nan;"]),
    ("x", "def data(): return {'x': [1.0, 'a']}", [r"x\[1\] is 'a', not a number", r"recode"]),
    ("x", "def data(): return {'x': np.array(['a\\nb'])}", [r"x\[0\] is 'a\\nb', not a number"]),
    (
        "x",
        "def data(): return {'x': np.array([1, {}], object)}",
        [r"x\[1\] is \{\}, not a number"],
    ),
    ("x", "def data(): return {'x': [1, None]}", [r"x\[1\] is missing; drop or impute"]),
    (
        "x",
        "def data(): return {'x': np.array([1], object)}",
        [r"x is an array of object", "astype"],
    ),
    ("x", "def data(): return {'x': np.array(['2020'], 'M8[Y]')}", [r"x .*datetime64", "convert"]),
    (
        "x",
        "def data(): return {'x': [[1, 2], [3]]}",
        [r"x is ragged, row 1 is not", "pad and mask"],
    ),
    ("x", "def data(): return {'x': [[[1], 2], [3, 4]]}", [r"x is ragged; make all"]),
    (
        "x",
        "def data(): return {'x': np.ma.masked_less([1, 2], 2)}",
        [r"x has masked", "fill them"],
    ),
]


@pytest.mark.parametrize("arguments, data, pieces", OWN_DATA)
def test_unusable_data_of_the_model_file(arguments, data, pieces):
    write("own.py", f"{data}\nimport numpy as np\ndef model({arguments}): pass")
    assert_says(complaint("own.py"), [r"^own\.py", *pieces])


DATA_FILES = [
    ("d.csv", "x,y\n1,2\nthree,4\n", [r"column 'x', row 2 is 'three', not a number", "recode"]),
    ("d.csv", "x,y\n1,2\n3,\n", [r"column 'y', row 2 is missing; drop or impute"]),
    ("d.csv", "x,y\n1,2\n3\n", [r"column 'y', row 2 is missing"]),
    ("d.csv", "x,y\n1,NA\n3,no\n", [r"column 'y', row 2 is 'no', not a number"]),
    ("d.csv", "x,y\nTrue,1\n,2\n", [r"column 'x', row 2 is missing"]),
    ("d.csv", "x,y\n1,2\n3,inf\n", [r"y\[1\] is inf; drop"]),
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
    ("d.nc", "nothing", [r"cannot be read as netCDF", r"to_netcdf"]),
    ("d.nc", lambda: netcdf(), [r"no variables", r"constant_data", r"name its"]),
    ("d.nc", lambda: netcdf(x=[1.0, np.nan], y=[1]), [r"x\[1\] is nan", r"drop or impute"]),
    ("d.nc", lambda: netcdf(x=["a"], y=[1]), [r"x\[0\] is 'a', not a number"]),
    ("d.tsv", "x\ty\n", [r"no extension that says", r"\.csv, \.json, \.npz, \.nc"]),
    ("data", "", [r"no extension that says", r"save it as one of \.csv"]),
]


@pytest.mark.parametrize("name, content, pieces", DATA_FILES)
def test_unusable_data_files(name, content, pieces):
    write(name, content() if callable(content) else content)
    assert_says(complaint("regression.py", name), [rf"^{re.escape(name)}", *pieces])


def test_damaged_archive():
    write("d.npz", {"x": np.arange(1000), "y": np.arange(1000)})
    content = bytearray(Path("d.npz").read_bytes())
    content[500] ^= 0xFF
    write("d.npz", bytes(content))
    assert_says(complaint("regression.py", "d.npz"), [r"d\.npz is damaged", r"numpy\.savez"])


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


def test_a_data_file_replaces_data_entirely():
    write("own.py", "def data(): raise ValueError\ndef model(x): pass")
    write("d.json", json.dumps({"x": 2}))
    assert load("own.py", "d.json").data == {"x": 2}
