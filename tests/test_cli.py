"""The command line as its users meet it: files, exit statuses, one line for each bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

import vi_demo
from vi_demo import cli, fitting, guides, loading, startup
from vi_demo import reference as references
from vi_demo.divergences.generators import F_DIVERGENCES
from vi_demo.errors import MixedPrecision

NORMAL = "import numpyro, numpyro.distributions as dist\n"


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A compilation cache that the commands of these tests share."""
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture
def command(cache, tmp_path):
    """Run vi-demo in an empty folder."""

    def run(*arguments, **options):
        return subprocess.run(
            [sys.executable, "-m", "vi_demo", *map(str, arguments)],
            cwd=tmp_path,
            env=cache,
            capture_output=True,
            text=True,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def finished(cache, tmp_path_factory):
    """A finished run of the bimodal model, small, as --json."""
    folder = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [sys.executable, "-m", "vi_demo", "run", "bimodal", "--draws", "500", "--json"],
        cwd=folder,
        env=cache,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_help_does_not_import_jax():
    code = "import sys, vi_demo.cli; print('jax' in sys.modules, 'numpyro' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_help_names_every_choice(command):
    text = command("run", "--help").stdout
    names = (*(f.__name__ for f in F_DIVERGENCES), "alpha:A", "renyi:A")
    for name in (*names, *guides.FAMILIES, *references.METHODS):
        assert name in text
    assert cli.FITS == fitting.DEFAULT
    assert tuple(g.partition(":")[0] for g in cli.GUIDES) == (*guides.FAMILIES, "own")
    assert {g[:-2] for g in cli.GUIDES if ":" in g} == set(guides.WITH_NUMBER)
    assert tuple(references.METHODS) == cli.REFERENCES


def test_check_says_what_can_be_fitted(command):
    done = command("check", "eight_schools")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "eight_schools: 10 dimensions"
    assert lines[2] == "  tau: latent, positive, prior HalfCauchy"
    assert lines[4] == "  y of shape [8]: observed, is argument y, Normal"
    assert lines[5].startswith("can be fitted: a density and no draws: reverse_kl at once; ")
    assert all(f.__name__ in lines[5] for f in F_DIVERGENCES)
    assert lines[6] == "log density finite at 64 of 64 draws of the prior, its gradient at 64"


def test_check_names_the_site_at_fault(command, tmp_path):
    (tmp_path / "half.py").write_text(
        NORMAL
        + "def model():\n    x = numpyro.sample('x', dist.Normal(0, 1))\n"
        + "    numpyro.factor('root', (x - 1.0) ** 0.5)\n"
    )
    text = command("check", "half.py").stdout
    assert re.search(r"log density finite at \d+ of 64", text)
    assert "not finite at site 'root'" in text
    assert command("check", "nowhere.py").returncode == 2


def test_another_divergence_and_the_path(command, tmp_path):
    done = command(
        *("run", "bimodal", "--fit", "alpha:.5", "--path", "3", "--guide", "diagonal"),
        *("--reference", "none", "--draws", "200", "--out", "here"),
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "α 0.5: cannot tell" in done.stdout
    assert done.stdout.splitlines()[-1] == "Saved in here/; report.html there has all of it"
    assert "Along alpha from reverse to forward KL, 3 steps" in " ".join(done.stdout.split())
    assert (tmp_path / "here/path.png").stat().st_size > 10_000
    run = vi_demo.load(tmp_path / "here")
    summary = vi_demo.summary(run)
    assert list(summary["fits"]) == ["alpha:0.5"]
    path = run["path"]
    assert list(path["alpha"].values) == summary["path"]["alpha"] == [0, 0.5, 1]
    # Ends are the two KLs: log 2, but for the little that modes overlap, and that of the moments.
    assert summary["path"]["divergence"][0] == pytest.approx(0.693, abs=0.003)
    assert summary["path"]["divergence"][2] == pytest.approx(0.7236, abs=0.003)
    assert abs(summary["path"]["mean"][0][0]) == pytest.approx(4, abs=0.02)
    assert summary["path"]["sd"][2][0] == pytest.approx(17**0.5, abs=0.02)
    (jump,) = summary["path"]["jumps"]
    assert 0 < jump < 1
    assert path["begins"].values[-1] == 1
    assert run["alpha:0.5/guide"].attrs["family"] == "diagonal"


def test_models_are_listed_with_their_first_line(command):
    lines = command("models").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(loading.bundled())
    assert "Two modes: half a Gaussian" in lines[1]


def unused(separation=4.0):
    """A model whose arguments are misspelt below."""


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({"model": unused, "data": {"sep": 1}}, r"'sep'.*keyword arguments of model"),
        ({"model": 3}, r"not of type int"),
        ({"model": "nowhere.py"}, r"no such model or file"),
        ({"model": unused, "fits": "reverse"}, r"'reverse'.*reverse_kl"),
        ({"model": unused, "guide": "full"}, r"'full'.*full_rank"),
        ({"model": unused, "draws": 1}, r"at least 100"),
    ],
)
def test_misuse_from_python_is_told_in_one_line(arguments, pattern):
    with pytest.raises(vi_demo.InputError, match=pattern):
        vi_demo.run(**arguments)


def test_every_public_name_is_there():
    for name in vi_demo.__all__:
        assert getattr(vi_demo, name) is not None


def test_a_run_leaves_its_folder(finished):
    folder, _ = finished
    files = sorted(p.name for p in (folder / "runs" / "bimodal").iterdir())
    assert files == ["evidence.png", "fit.png", "posterior.nc", "report.html", "summary.json"]


def test_a_run_keeps_its_command_and_tells_it(finished):
    folder, done = finished
    command = "vi-demo run bimodal --draws 500 --json"
    assert json.loads(done.stdout)["settings"]["command"] == command
    page = (folder / "runs/bimodal/report.html").read_text(encoding="utf-8")
    words = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert f"by this command: {command}" in words


def test_json_is_the_summary_and_nothing_else(finished):
    folder, done = finished
    summary = json.loads(done.stdout)
    assert summary == json.loads((folder / "runs/bimodal/summary.json").read_text())
    assert summary["schema"] == 1
    assert summary["settings"]["draws"] == 500
    assert set(summary["fits"]) == {"reverse_kl", "forward_kl"}


def test_the_same_seed_gives_the_same_bits(finished, command, tmp_path):
    folder, _ = finished
    assert command("run", "bimodal", "--draws", "500", "--quiet").returncode == 0
    one, other = vi_demo.load(folder / "runs/bimodal"), vi_demo.load(tmp_path / "runs/bimodal")
    for name in ("reverse_kl", "forward_kl", "reference"):
        for group in ("posterior", "sample_stats"):
            a, b = (t[f"{name}/{group}"].to_dataset() for t in (one, other))
            assert a.equals(b)


def test_timings_say_where_each_second_went(command, tmp_path):
    """On standard error beside --json, phase by phase, adding up."""
    done = command("run", "bimodal", "--draws", "500", "--json", "--timings")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    rows = re.findall(r"^(\w[\w ]*?) +([\d.]+) +([\d.]+) +([\d.]+)$", done.stderr, re.MULTILINE)
    found = {name: [float(x) for x in each] for name, *each in rows}
    assert {"start", "reference", "reverse KL", "measure", "forward KL", "save"} < set(found)
    whole = found.pop("all")
    assert whole == pytest.approx([sum(x) for x in zip(*found.values(), strict=True)], abs=0.5)
    assert whole[2] == pytest.approx(whole[0] + whole[1], abs=0.15)


def test_one_fit_without_reference_strictly(command, tmp_path):
    done = command(
        *("run", "bimodal", "--fit", "reverse_kl", "--guide", "diagonal", "--reference", "none"),
        *("--strict", "--out", "here"),
    )
    assert done.returncode == 3, done.stderr
    assert "reverse KL: cannot tell" in done.stdout
    assert "no reference" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    summary = json.loads((tmp_path / "here/summary.json").read_text())
    (name,) = summary["fits"]
    assert name == "reverse_kl"
    found = summary["fits"][name]
    assert found["eubo"] == {"value": None, "mcse": None, "reason": "there is no reference"}
    assert found["modes_covered"] is None
    assert found["verdict"] == "cannot tell"
    assert "a missed mode would go unseen" in found["reasons"][0]


def test_strict_exits_with_3_where_no_fit_is_usable(command):
    done = command(
        "run", "bimodal", "--fit", "reverse_kl", "--strict", "--draws", "200", "--quiet"
    )
    assert done.returncode == 3
    assert done.stdout == ""


BAD_MODELS = {
    "no model": ("x = 1\n", r"has no function 'model'.*add def model"),
    "syntax error": ("def model(:\n", r"SyntaxError at bad\.py:1"),
    "lacking argument": (
        "def data(): return {'sigma': 1.0}\ndef model(sigma, y): ...\n",
        r"data\(\) lacks 'y'.*return it too",
    ),
    "nan in data": (
        NORMAL
        + "def data(): return {'y': [1.0, float('nan')]}\ndef model(y):\n"
        + "    x = numpyro.sample('x', dist.Normal(0, 1))\n"
        + "    numpyro.sample('y', dist.Normal(x, 1), obs=y)\n",
        r"y\[1\] is nan.*drop or impute",
    ),
    "nothing latent": (
        NORMAL + "def model():\n    numpyro.sample('y', dist.Normal(0, 1), obs=1.0)\n",
        r"no continuous latent site.*without obs",
    ),
    "nan everywhere": (
        NORMAL
        + "def model():\n    x = numpyro.sample('x', dist.Normal(0, 1))\n"
        + "    numpyro.factor('bad', x * float('nan'))\n",
        r"finite at none of 512 starting points.*'bad'.*check",
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(command, tmp_path, case):
    source, pattern = BAD_MODELS[case]
    (tmp_path / "bad.py").write_text(source)
    refused(command("run", "bad.py"), r"bad.*" + pattern, tmp_path)


BAD_ARGUMENTS = {
    "no such file": (["nowhere.py"], r"nowhere\.py.*bundled are banana, bimodal"),
    "unknown fit": (["bimodal", "--fit", "reverse"], r"'reverse'.*reverse_kl.*forward_kl"),
    "fit without its number": (["bimodal", "--fit", "alpha"], r"'alpha' is not one of.*alpha:A"),
    "fit of no number": (["bimodal", "--fit", "renyi:two"], r"'renyi:two' is not.*renyi:A"),
    "order below 0": (["bimodal", "--fit", "renyi:-1"], r"order must be above 0, not -1"),
    "unknown guide": (["bimodal", "--guide", "full"], r"'full'.*diagonal.*full_rank"),
    "guide of no components": (["bimodal", "--guide", "mixture:0"], r"K is a number from 1 to 64"),
    "a path of one step": (["bimodal", "--path", "1"], r"--path.*1.*x>=3"),
    "unknown reference": (["bimodal", "--reference", "mcmc"], r"'mcmc'.*quadrature.*smc"),
    "negative draws": (["bimodal", "--draws", "-5"], r"--draws.*-5.*x>=100"),
    "a quantity that is no site": (
        ["bimodal", "--quantity", "y"],
        r"no site 'y' to measure; choose from x",
    ),
    "no budget": (["bimodal", "--budget", "0"], r"--budget.*x>0"),
    "missing data file": (["eight_schools", "--data", "no.csv"], r"no such data file.*no\.csv"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(command, tmp_path, case):
    arguments, pattern = BAD_ARGUMENTS[case]
    refused(command("run", *arguments), pattern, tmp_path)


def test_an_out_that_is_a_file_is_refused_at_once(command, tmp_path):
    (tmp_path / "taken").write_text("mine")
    done = command("run", "bimodal", "--out", "taken/here")
    refused(done, r"taken is a file, not a folder.*--out", tmp_path)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_text_column_where_numbers_are_needed(command, tmp_path):
    (tmp_path / "schools.csv").write_text("y,sigma\n1.0,2.0\nthree,4.0\n")
    done = command("run", "eight_schools", "--data", "schools.csv")
    refused(done, r"schools\.csv.*'y', row 2 is 'three'.*recode", tmp_path)


def refused(done, pattern, folder):
    """One line that says what, where and the remedy; exit 2; nothing left behind."""
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    said = [line for line in lines if line.startswith("vi-demo: ")]
    assert lines[-1:] == said, done.stderr
    assert re.search(pattern, said[0]), said[0]
    assert "Traceback" not in done.stderr
    assert not (folder / "runs").exists()


def test_what_a_file_makes_of_jax_is_in_double_precision(tmp_path):
    (tmp_path / "own.py").write_text(
        "import jax.numpy as jnp\nTOP = jnp.array(16777217.0)\n"
        "def data(): return {'x': jnp.array([0.1])}\ndef model(x): ...\n"
    )
    code = """
from vi_demo import loading, startup
startup.ask_for_double()
loaded = loading.load("own.py")
print(loaded.data["x"].dtype, float(loaded.model.__globals__["TOP"]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["float64", "16777217.0"]


def test_single_precision_where_a_model_asks_for_it(monkeypatch, capsys):
    """The work is done again, and it is said. The switch is a stand-in: others need doubles."""
    done = []
    monkeypatch.setattr(jax.config, "update", lambda *setting: done.append(setting))

    def work(number):
        done.append(number)
        if len(done) == 1:
            raise MixedPrecision("own: the model mixes 32-bit numbers with 64-bit ones; mend it.")
        return number

    assert startup.in_either_precision(cli.complain, work, 3) == 3
    assert done == [3, ("jax_enable_x64", False), 3]
    said = capsys.readouterr().err
    assert said.strip().endswith("64-bit ones: everything is computed in single precision.")


@pytest.mark.parametrize(("switch", "kept"), [("", "True"), ("off", "False")])
def test_the_compilation_cache_can_be_turned_off(tmp_path, switch, kept):
    code = """
import vi_demo.cli, jax
vi_demo.prepare()
jax.jit(lambda x: x + 1)(1.0)
"""
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "VI_DEMO_CACHE": switch}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert str(any(tmp_path.rglob("*-cache"))) == kept


@pytest.mark.parametrize(("switch", "kept"), [("", True), ("off", False)])
def test_bytecode_is_kept_in_the_cache_where_python_may_keep_none(tmp_path, switch, kept):
    # As on a machine whose packages were installed without bytecode: none is found beside them.
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "VI_DEMO_CACHE": switch}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(tmp_path / "none")}
    command = [sys.executable, "-m", "vi_demo.cli", "models"]
    subprocess.run(command, env=env, check=True, capture_output=True)
    assert any((tmp_path / "vi-demo" / "bytecode").rglob("*.pyc")) == kept
    assert not (tmp_path / "none").exists()


def test_debug_shows_where(command, tmp_path):
    (tmp_path / "bad.py").write_text("def model(:\n")
    done = command("run", "bad.py", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_what_a_model_prints_is_kept_out_of_json(command, tmp_path):
    source = NORMAL + "print('hello from the model')\n"
    source += "def model():\n    numpyro.sample('x', dist.Normal(0, 1))\n"
    (tmp_path / "chatty.py").write_text(source)
    done = command("run", "chatty.py", "--fit", "forward_kl", "--draws", "200", "--json")
    assert json.loads(done.stdout)["model"]["name"] == "chatty"
    assert "hello from the model" in done.stderr


def test_ctrl_c_leaves_nothing_and_exits_with_130(cache, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "vi_demo", "run", "eight_schools"],
        cwd=tmp_path,
        env=cache,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stderr:
            if line.startswith("reference:"):
                break
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stderr.strip().splitlines()[-1].startswith("vi-demo: interrupted")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_that_python_drops_comes_again(command, tmp_path, number):
    (tmp_path / "model.py").write_text(
        NORMAL + "import gc, signal, time\n"
        "def once(phase, facts):\n"
        "    gc.callbacks.remove(once)\n"
        f"    signal.raise_signal(signal.{number})\n"
        "def model():\n"
        "    numpyro.sample('x', dist.Normal(0, 1))\n"
        "    if once:\n"
        "        gc.callbacks.append(once)\n"
        "        gc.collect()\n"
        "        time.sleep(30)\n"
    )
    done = command("run", "model.py", "--checkpoint", "60", timeout=120)
    assert done.returncode == {"SIGINT": 130, "SIGTERM": 143}[number]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
