"""What people may hand in, and what they are told when it cannot be used."""

import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from handed_in import REGRESSION, assert_says, complaint, folder, write  # noqa: F401

from vi_demo import loading
from vi_demo.loading import bundled, load

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


# How a model takes its data

CALLS = [
    ("def model(x, y, /): return x, y", "{'y': 2, 'x': 1}", (1, 2)),
    ("def model(x, /, y=2, *, z): return x, y, z", "{'z': 3, 'x': 1}", (1, 2, 3)),
    ("def model(x, y, /, z=3): return x, y, z", "(1, 2)", (1, 2, 3)),
    ("def model(x, y=None): return x, y", "(1, 2)", (1, 2)),
    ("def model(x, *args): return x, args", "(1, 2, 3)", (1, (2, 3))),
    ("def model(x, *args): return x, args", "(1,)", (1, ())),
    ("def model(x, *args): return x, args", "{'x': 1}", (1, ())),
    ("def model(x, *args): return x, args", "{'x': 1, 'args': (2, 3)}", (1, (2, 3))),
    ("def model(*args, **kw): return args, kw", "{'x': 1}", ((), {"x": 1})),
    ("def model(x, /, **kw): return x, kw", "{'x': 1, 'y': 2}", (1, {"y": 2})),
    ("def model(x, y): return x, y", "collections.namedtuple('D', 'y x')(2, 1)", (1, 2)),
    (
        "def f(x, n, y): return x, n, y\nmodel = functools.partial(f, n=2)",
        "{'x': 1, 'y': 3}",
        (1, 2, 3),
    ),
    ("def f(n, x, /): return n, x\nmodel = functools.partial(f, 1)", "{'x': 2}", (1, 2)),
    ("class M:\n    def __call__(self, x, y=2): return x, y\nmodel = M()", "{'x': 1}", (1, 2)),
    ("class M:\n    def go(self, x, /): return x\nmodel = M().go", "{'x': 1}", 1),
    ("class M:\n    fn = abs\n    def __call__(self, x): return x\nmodel = M()", "{'x': 1}", 1),
    ("model = functools.lru_cache(lambda x: x)", "{'x': 1}", 1),
]


@pytest.mark.parametrize("text, data, result", CALLS)
def test_ways_to_take_data(text, data, result):
    write("way.py", f"import collections, functools\ndef data(): return {data}\n{text}")
    loaded = load("way.py")
    assert loaded.model(**loaded.data) == result
    inspect.signature(loaded.model).bind(**loaded.data)
    with pytest.raises(TypeError):
        inspect.signature(load("regression.py").model).bind(1, nothing=1)


def test_a_model_that_takes_its_data_by_name_is_left_as_it_is():
    write("plain.py", "def model(x=1.0, *, y=2.0): pass\nthe_same = model")
    model = load("plain.py").model
    assert model is sys.modules[model.__module__].the_same


NUMPYRO = """
import jax.numpy as jnp, numpyro, numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam
def data(): return jnp.ones(2), [0.5, 1.5]
def positional(sigma, /, *ys):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    for i, y in enumerate(ys):
        numpyro.sample(f"y{i}", dist.Normal(mu, sigma), obs=y)
model = handlers.mask(handlers.reparam(positional, config={"mu": LocScaleReparam(0)}), mask=True)
@handlers.reparam(config={"mu": LocScaleReparam(0)})
def decorated(sigma, y=None):
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 1.0)), sigma), obs=y)
"""


@pytest.mark.parametrize("function", ["model", "positional", "decorated"])
def test_numpyro_takes_the_model_as_it_is_loaded(function):
    from vi_demo import Target

    write("handled.py", NUMPYRO)
    loaded = load(f"handled.py:{function}")
    target = Target.from_numpyro(loaded.model, loaded.data, name=loaded.name)
    assert np.isfinite(target.log_density(np.zeros(target.dim)))


SEVERAL = """
def data(): return {"x": 1, "y": 2, "df": 3.0}
def model(x, y=None): numpyro.sample
def robust(x, df, y=None): return model(x, y)
def prior(): numpyro.factor
def plot(town): print
"""


def test_models_of_one_file_share_its_data():
    write("several.py", SEVERAL)
    assert load("several.py").data == {"x": 1, "y": 2}
    assert load("several.py:robust").data == {"x": 1, "y": 2, "df": 3.0}
    assert load("several.py:prior").data == {}
    assert load("several:robust").name == "several_robust"
    write("d.csv", "x,y,df\n1,2,3\n")
    assert list(load("several.py", "d.csv").data) == ["x", "y"]


@pytest.mark.parametrize("slip", ["d_f", "town"])
def test_what_no_model_of_the_file_takes_is_refused(slip):
    write("several.py", SEVERAL.replace('"df"', f'"{slip}"'))
    assert_says(complaint("several.py"), [rf"gives '{slip}'", r"not an argument of model\(x, y\)"])


def test_a_slip_is_told_though_another_model_takes_the_name():
    text = "def data(): return {'sigm': 1}\ndef model(sigma=2): sample\ndef other(sigm): sample"
    assert_says(complaint(write("slip.py", text)), [r"gives 'sigm'", r"did you mean 'sigma'\?"])


# The guide beside a model

GUIDES = [
    ("def guide(x): return 'own'", "", "own"),
    ("def guide(x, /): return 'own'", "", "own"),
    ("def guide(*args, **kwargs): return 'own'", "", "own"),
    ("def guide(x): return 'own'", ":robust", "own"),
    ("def guide(x): pass\ndef robust_guide(x): return 'robust'", ":robust", "robust"),
    ("def guide(z): pass", ":robust", None),
    ("def robust_guide(x): pass", "", None),
    ("guide = 'diagonal'", "", None),
    ("class guide: pass", "", None),
    ("", "", None),
]


@pytest.mark.parametrize("text, function, result", GUIDES)
def test_the_guide_beside_a_model(text, function, result):
    functions = "def data(): return {'x': 1}\ndef model(x): pass\ndef robust(x): pass"
    write("guided.py", f"{functions}\n{text}")
    loaded = load(f"guided.py{function}")
    assert (loaded.guide and loaded.guide(**loaded.data)) == result


# Files as people have them


@pytest.mark.parametrize("name", ["random", "jax", "numpyro", "model", "json", "vi_demo", "data"])
def test_a_file_may_have_any_name(name):
    before = sys.modules.get(name)
    write(f"{name}.py", f"import random, json\nname = {name!r}\ndef model(): return name")
    assert load(f"{name}.py").model() == name
    assert sys.modules.get(name) is before


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffdef model(): return 'é'",
        "# from Windows\r\ndef model():\r\n    return 'é'\r\n",
        b"# -*- coding: latin-1 -*-\ndef model(): return '\xe9'\n",
        "from __future__ import annotations\ndef model(x: nothing = 1): return 'é'",
        "def model(): return 'é'\nif __name__ == '__main__':\n    raise SystemExit",
    ],
)
def test_ways_to_write_a_file(content):
    assert load(write("wie immer.py", content)).model() == "é"


IMPORTS = [
    "import helper",
    "from . import helper",
    "from .helper import x as _; from . import helper",
]


@pytest.mark.parametrize("statement", IMPORTS)
def test_each_model_imports_what_lies_beside_it(statement):
    models = []
    for place in ("one", "two"):
        write(f"{place}/helper.py", f"x = {place!r}")
        write(f"{place}/main.py", f"{statement}\ndef model(): return helper.x")
        models.append(load(f"{place}/main.py").model)
    assert [model() for model in models] == ["one", "two"]
    assert load("one/main.py").model() == "one"


def test_helpers_import_one_another_and_packages():
    write("study/priors/__init__.py", "from .scale import x")
    write("study/priors/scale.py", "x = 3")
    write("study/helper.py", "import priors\nfrom priors.scale import x")
    write("study/main.py", "import helper\ndef model(): return helper.x + helper.priors.x")
    assert load("study/main.py").model() == 6


def test_a_file_beside_shadows_no_library():
    write("study/colorsys.py", "rgb_to_hsv = None")
    write("study/main.py", "import colorsys\ndef model(): return colorsys.rgb_to_hsv(0, 0, 0)")
    assert load("study/main.py").model() == (0.0, 0.0, 0)


@pytest.mark.parametrize("package", ["household", "json"])
def test_a_model_in_a_package(package):
    write(f"{package}/__init__.py", "hours = 24")
    write(f"{package}/shared.py", "x = 1")
    write(f"{package}/models/__init__.py", "")
    write(f"{package}/models/near.py", "y = 2")
    up = "from ..shared import x; from .. import hours" if package == "household" else "x = 1"
    write(f"{package}/models/main.py", f"{up}\nfrom .near import y\ndef model(): return x + y")
    assert load(f"{package}/models/main.py").model() == 3


def test_a_file_sees_itself_alone_on_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vi-demo", "run", "--seed", "3"])
    text = "import argparse, sys\nargparse.ArgumentParser().parse_args()\nargv = sys.argv\n"
    write(
        "script.py",
        f"{text}def data(): return dict(at=(sys.argv[:],))\ndef model(at): return argv",
    )
    loaded = load("script.py")
    assert loaded.model(**loaded.data) == loaded.data["at"][0] == ["script.py"]
    assert sys.argv == ["vi-demo", "run", "--seed", "3"]


def test_a_file_that_changes_the_folder():
    write("away/d.txt", "1")
    text = "import os\nos.chdir('away')\ndef data(): return {'x': int(open('d.txt').read())}\n"
    here = Path.cwd()
    write(
        "moving.py",
        text.replace("open('d.txt').read()", "os.path.exists('d.txt')") + "def model(x): pass",
    )
    assert load("moving.py").data == {"x": 1}
    assert Path.cwd() == here
    write("d.json", '{"x": 2}')
    assert load("moving.py", "d.json").data == {"x": 2}
    complaint(write("broken.py", "import os\nos.chdir('away')\n1 / 0"))
    assert Path.cwd() == here


def test_what_the_file_says_is_not_lost(capsys, caplog):
    text = "import logging, warnings\nprint('said')\nwarnings.warn('warned')\n"
    write("loud.py", f"{text}logging.warning('logged')\ndef model(): pass")
    with pytest.warns(UserWarning, match="warned"):
        load("loud.py")
    assert capsys.readouterr().out == "said\n"
    assert "logged" in caplog.text


def test_what_a_file_said_before_it_failed_is_not_lost(capsys):
    complaint(write("loud.py", "print('said')\n1 / 0"))
    assert capsys.readouterr().out.startswith("said\n")


SETTINGS = """
import numpyro
numpyro.enable_x64(False)
numpyro.set_platform("cpu")
numpyro.set_host_device_count(2)
def model(): pass
"""


def test_a_file_that_sets_numpyro():
    code = "from vi_demo.loading import load; load('settings.py').model()"
    write("settings.py", SETTINGS)
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# What cannot be used: the model

MODEL_FILES = [
    ("def modle(): pass", [r"no function 'model' \(it defines modle\)", r"bad file\.py:modle\?"]),
    ("x = 1", [r"bad file\.py", r"defines none", r"add def model\(\.\.\.\)"]),
    ("def fit(): pass\ndef plot(): pass", [r"fit, plot", r"as in .*bad file\.py:fit", r"add def"]),
    ("def read(): pass\ndef my_model(): pass", [r"did you mean .*bad file\.py:my_model\?"]),
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
    ("", [r"no function 'model'", r"defines none", r"add def model"]),
    (b"\x7fELF\x02\x01\x00\x00\x01", [r"SyntaxError", r"null bytes|decode|UTF-8"]),
    (b"\x89PNG\r\n\x1a\n", [r"SyntaxError at bad file\.py:1", r"correct it there"]),
    ("\ufeffx = 1".encode("utf-16"), [r"SyntaxError", r"correct it there"]),
    ("if 1:\n\tx = 1\n        y = 2\n", [r"TabError at bad file\.py:3", r"inconsistent use"]),
    ("class model:\n    def __call__(self): pass", [r"'model' is a class", r"or an instance"]),
    ("from .gone import x", [r"bad file\.py:1: No module named '\.gone'", r"beside the model"]),
    (
        "from . import gone",
        [r"ImportError at bad file\.py:1: cannot import name 'gone' from '\.'"],
    ),
    ("from ...up import x", [r"ImportError at bad file\.py:1", r"beyond top-level package"]),
    (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('n')\np.parse_args()",
        [r"SystemExit at bad file\.py:4", r"if __name__"],
    ),
    ("raise RecursionError('too deep')", [r"RecursionError at bad file\.py:1: too deep"]),
    (
        "def guide(x): pass\ndef model(): pass",
        [r"guide\(x\) cannot be called with the data of model: missing", r"the same arguments"],
    ),
    (
        "def data(): return {'x': 1}\ndef guide(): pass\ndef model(x): pass",
        [r"guide\(\) cannot be called .*unexpected keyword argument 'x'", r"the same arguments"],
    ),
]


@pytest.mark.parametrize("text, pieces", MODEL_FILES)
def test_unusable_model_files(text, pieces):
    write("broken_helper.py", "1 / 0")
    write("broken_syntax.py", "def :")
    assert_says(complaint(write("bad file.py", text)), [r"^bad file\.py", *pieces])


def test_a_file_that_fails_leaves_no_module_behind():
    complaint(write("failing.py", "1 / 0"))
    assert not [name for name in sys.modules if "failing" in name]


SPECS = [
    ("bimodel", [r"'bimodel'", r"did you mean bimodal\?"]),
    ("bimodal.py", [r"'bimodal\.py'", r"did you mean bimodal\?"]),
    ("regresion.py", [r"'regresion\.py'", r"did you mean regression\.py\?"]),
    ("regression", [r"'regression'", r"did you mean regression\.py\?"]),
    ("sub/lime.py:model", [r"'sub/lime\.py'", r"did you mean sub/line\.py\?"]),
    ("qqqqqq", [r"'qqqqqq'", r"bundled are .*bimodal, ", r"path/file\.py"]),
    ("", [r"no such model or file: ''", r"bundled are"]),
    ("gone/qqqq.py", [r"'gone/qqqq\.py'", r"bundled are"]),
    ("sub", [r"sub is a folder", r"such as sub/line\.py"]),
    ("book.ipynb", [r"book\.ipynb is a notebook", r"export .* \.py file", r"nbconvert"]),
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
    write("book.ipynb", "{}")
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
    ("x", "def data(): return 1, 2", [r"returns 2 values, .*model\(x\) takes 1", r"as many"]),
    ("x, /, *, y", "def data(): return 1, 2", [r"2 values, .*model\(x, y\) takes 1"]),
    ("x, /", "def data(): return ()", [r"data\(\) lacks 'x', which model\(x\) needs"]),
    ("x", "def data(): yield 1", [r"returns generator, not a dict"]),
    ("**kw", "def data(): return {1: 2}", [r"gives 1, .* not an argument"]),
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


def test_a_data_file_replaces_data_entirely():
    write("own.py", "def data(): raise ValueError\ndef model(x): pass")
    write("d.json", json.dumps({"x": 2}))
    assert load("own.py", "d.json").data == {"x": 2}


ASKS = """
def model(x, y=None, z=None, w=None):
    if y is not None:
        x = x * y
    log_z = None if z is None else np.log(z)
    sample("x", x, obs=x)
    sample("z", x, obs=log_z)
"""


def test_an_argument_that_the_model_does_without(tmp_path, monkeypatch):
    """Not one that it observes, under another name too, nor one that it never asks about."""
    monkeypatch.chdir(tmp_path)
    for given, lacks in (("x=1, z=2, w=3", None), ("x=1, y=2, w=3", "z"), ("x=1, z=2", "w")):
        body = f"import numpy as np{ASKS}def data(): return dict({given})"
        Path("own.py").write_text(body.replace("obs=x", "obs=1"))
        if lacks is None:
            assert set(load("own.py").data) == {"x", "z", "w"}
        else:
            with pytest.raises(ValueError, match=f"lacks '{lacks}', which .* a latent site"):
                load("own.py")
