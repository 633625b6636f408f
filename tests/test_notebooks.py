"""Every notebook runs from its first cell to its last, and shows what its text says it shows."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
CELL_SECONDS = 300

# What a notebook's text claims, asked of its own variables in a last cell.
CLAIMS = {
    "two_directions": """
from pytest import approx

price = figures(run)
assert price.loc["reverse_kl", "KL(q‖p)"] == approx(np.log(2), abs=0.002)
assert price.loc["reverse_kl", "KL(p‖q)"] == approx(15.28, abs=0.6)
assert price.loc["forward_kl", "KL(p‖q)"] == approx(0.7236, abs=0.003)
assert price["modes covered"].to_dict() == {"reverse_kl": 1, "forward_kl": 2}
assert (price["k-hat"] < 0.7).all()
assert price["verdict"].to_dict() == {"reverse_kl": "unreliable", "forward_kl": "correctable"}

assert {tree["posterior"].sizes["draw"] for tree in trees.values()} == {4000}
errors = {name: fit["sites"]["x"] for name, fit in fits.items()}
assert errors["reverse_kl"]["mean_error_in_sd"][0] == approx(1, abs=0.05)
assert errors["reverse_kl"]["sd_ratio"][0] == approx(0.25, abs=0.02)
assert errors["forward_kl"]["mean_error_in_sd"][0] < 0.03
assert errors["forward_kl"]["sd_ratio"][0] == approx(1, abs=0.02)

assert (sandwich["ELBO"] < 0).all() and (sandwich["EUBO"] > 0).all()
assert (sandwich["log evidence"].abs() < 1e-6).all()
assert sandwich["EUBO − ELBO"].tolist() == approx(
    sandwich["KL(q‖p) + KL(p‖q)"].tolist(), abs=0.001
)
assert sandwich["ELBO"].idxmax() == "reverse_kl" and sandwich["EUBO"].idxmin() == "forward_kl"

reverse, forward = (table.xs(name, level="fit") for name in ("reverse_kl", "forward_kl"))
assert list(reverse.index) == [1, 2, 3, 4]
exact_sd = np.sqrt(1 + np.array(forward.index) ** 2)
assert forward["sd of x[0]"].tolist() == approx(exact_sd.tolist(), rel=0.02)
assert forward["modes covered"].tolist() == [1, 2, 2, 2]
assert reverse["modes covered"].tolist() == [1, 2, 1, 1]
assert (reverse["sd of x[0]"] < forward["sd of x[0]"]).all()
assert reverse["sd of x[0]"][2:].tolist() == approx([1, 1], abs=0.06)
assert (reverse["KL(q‖p)"] <= np.log(2) + 0.002).all()
assert (forward["KL(q‖p)"] > np.log(2)).tolist() == [False, False, True, True]
assert (reverse["KL(q‖p)"] < forward["KL(q‖p)"] + 0.002).all()
assert (reverse["KL(p‖q)"] > forward["KL(p‖q)"] - 0.002).all()
assert reverse["k-hat"][3] > 0.7 > reverse["k-hat"][4]
assert reverse["verdict"][1] == forward["verdict"][1] == "reliable"

answers = corrected.T
truth, asked = answers["exact"], ["P(x[0] > 0)", "P(|x[0]| < 2)"]
weighted = answers["forward_kl, weighted"]
assert weighted[asked].tolist() == approx(truth[asked].tolist(), abs=0.05)
assert weighted["mean"] == approx(0, abs=0.4) and weighted["sd"] == approx(17**0.5, abs=0.15)
assert 1000 < weighted["effective draws"] < 2000
assert answers["forward_kl, as it is"]["P(|x[0]| < 2)"] > 1 / 3
assert weighted["P(|x[0]| < 2)"] == approx(0.02275, abs=0.01)
lost = answers["reverse_kl, weighted"]
assert lost["effective draws"] > 3800
assert abs(lost["mean"]) == approx(4, abs=0.1) and lost["sd"] < 1.1
assert lost["P(|x[0]| < 2)"] == approx(0.02275, abs=0.01)
assert lost["P(x[0] > 0)"] in (approx(0, abs=0.01), approx(1, abs=0.01))
""",
}


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a folder of its own, by a kernel of the Python that runs the tests."""
    notebook = jupytext.read(path)
    notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS.get(path.stem, "")))
    # With no folder to look in, python3 is ipykernel in this very interpreter.
    kernels = KernelSpecManager(kernel_dirs=[])
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    client = NotebookClient(notebook, km=kernel, timeout=CELL_SECONDS)
    client.execute(cwd=str(folder), cleanup_kc=True)  # or the kernel would live on
    notebook.cells.pop()
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
    """One test a notebook, for it is run once: no error, no warning, figures and tables shown."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no settings of the user's
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # Of progress bars that no notebook here draws, for want of ipywidgets.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    notebook = execute(path, tmp_path)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
    data = [o.data for o in outputs if "data" in o]
    assert sum("image/png" in d for d in data) >= 2
    assert any("<table" in d.get("text/html", "") for d in data)
    for shown in data:
        # Where there is no picture, all that is seen of a figure is its name; and a legend or a
        # list of lines is nothing to see at all.
        bare = {"image/png", "text/html"}.isdisjoint(shown)
        assert not (bare and re.match(r"\[?<", shown["text/plain"])), shown["text/plain"]


def test_every_claim_belongs_to_a_notebook():
    assert set(CLAIMS) <= {path.stem for path in NOTEBOOKS}
