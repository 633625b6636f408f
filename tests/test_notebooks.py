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
    "divergences": """
from math import inf, isfinite
from pytest import approx

log2, of = np.log(2), {f.__name__: f for f in F_DIVERGENCES}
for f in of.values():
    curve = np.asarray(f(jnp.linspace(-4, 4, 401)))
    assert curve[200] < 1e-12 and (np.delete(curve, 200) > 0).all()
forward = two_ways.loc["forward_kl", ["D(p, q)", "D(q, p)"]].tolist()
assert forward == approx([0.4190, 0.5403], abs=1e-4)
pearson = two_ways.loc["pearson_chi_square", ["D(p, q)", "D(q, p)"]].tolist()
assert pearson == approx([0.82, 1.8125], abs=1e-6)
for symmetric in ("jeffreys", "jensen_shannon", "total_variation", "squared_hellinger"):
    assert two_ways["D(p, q)"][symmetric] == approx(two_ways["D(q, p)"][symmetric], rel=1e-12)
for a, b in (("forward_kl", "reverse_kl"), ("pearson_chi_square", "neyman_chi_square")):
    assert two_ways["D(p, q)"][a] == approx(two_ways["D(q, p)"][b], rel=1e-12)
    assert two_ways["D(q, p)"][a] == approx(two_ways["D(p, q)"][b], rel=1e-12)
logarithms = two_ways.loc["renyi:2", ["D(p, q)", "D(q, p)"]].tolist()
assert logarithms == approx(np.log1p(pearson).tolist(), rel=1e-9)

assert (zeros["h(∞)"].map(isfinite) == zeros["D(p, q)"].map(isfinite)).all()
assert (zeros["h(−∞)"].map(isfinite) == zeros["D(q, p)"].map(isfinite)).all()
named_ones = zeros.loc[[
    "forward_kl", "reverse_kl", "jeffreys", "jensen_shannon", "total_variation",
    "squared_hellinger", "pearson_chi_square", "neyman_chi_square",
]]
assert set(named_ones.index[named_ones["D(p, q)"] == inf]) == {
    "forward_kl", "jeffreys", "pearson_chi_square"
}
assert set(named_ones.index[named_ones["D(q, p)"] == inf]) == {
    "reverse_kl", "jeffreys", "neyman_chi_square"
}
assert zeros["D(p, q)"]["reverse_kl"] == approx(0.7 * np.log(7 / 5), abs=1e-9)
assert remedies["KL(p‖q)"]["as it is"] == inf and (remedies["smallest q"][1:] > 0).all()
assert remedies["smallest q"].iloc[1] == approx(1 / 13, abs=1e-9)
assert remedies["KL(p‖q)"].iloc[2:4].tolist() == approx([0.21, 1.11], abs=0.005)
assert (remedies.iloc[1:, 2] > 0).all() and remedies.iloc[0, 2] == 0
assert np.diff(rising)[1:].tolist() == approx([0.6 * np.log(10)] * 3, abs=0.001)
assert 0.2 * np.log(10) == approx(0.46, abs=0.001)

assert read_back and bits["wasted"] == approx(0.875, abs=0.02)
assert cost.kl == approx(0.875, abs=1e-9) and cost.kl * log2 == approx(0.607, abs=5e-4)
assert bits["a message of p in the code for p"] == approx(1.75, abs=0.02)
assert bits["a message of p in the code for q"] == approx(2.625, abs=0.02)
assert cost.huffman == approx(1.75, abs=1e-9) and cost.huffman_wrong == approx(2.625, abs=1e-9)
shannon, huffman = over["Shannon's code"], over["Huffman's code"]
assert len(shannon) == 200
assert (kl_bits - 1e-9 <= shannon).all() and (shannon < kl_bits + 1).all()
assert 0.5 < (huffman < kl_bits).mean() < 1 and (huffman < kl_bits)[kl_bits > 4].all()
assert (kl_bits > 4).sum() == 6 and (kl_bits - huffman).max() == approx(4.45, abs=0.02)

assert gaussians["closed form"].tolist() == approx(
    [log2 - 0.25, 2 - log2], abs=1e-9
)
assert gaussians["quadrature"].tolist() == approx(gaussians["closed form"].tolist(), abs=1e-8)
off = (gaussians["Monte Carlo"] - gaussians["closed form"]).abs()
assert (off < 3 * gaussians["its error"]).all() and (gaussians["its error"] < 0.04).all()
assert gaussians["closed form"].iloc[1] / gaussians["closed form"].iloc[0] == approx(3, abs=0.1)
assert readouts["in log space"].tolist() == approx([33.911, 141.006, 47.331], abs=0.001)
assert readouts["with densities"].iloc[0] == approx(33.911, abs=0.01)
assert readouts["with densities"].iloc[1] == inf and readouts["with densities"].iloc[2] < 40
assert (readouts["with 10⁻¹² added"] < np.log(1e12)).all()
assert readouts["in log space"].iloc[1] / readouts["with 10⁻¹² added"].iloc[1] > 7

assert len(kl) == len(tv) == len(hellinger) == 1500
assert (tv <= np.sqrt(kl / 2) + 1e-12).all() and (tv <= np.sqrt(-np.expm1(-kl)) + 1e-12).all()
assert (hellinger <= tv + 1e-12).all()
assert (tv <= np.sqrt(hellinger * (2 - hellinger)) + 1e-12).all()
assert tv.min() < 0.05 and tv.max() > 0.95
assert (np.diff(list(renyi.values()), axis=1) > 0).all()
assert [values[3] for values in renyi.values()] == approx([float(e) for e in at_one])

at = {shift: ks.loc[shift] for shift in (0.1, 1.0, 2.0)}
for shift, found in at.items():
    assert found["exact"].iloc[0] == approx(shift**2 / 2, rel=1e-9)
    for name in ("k1", "k3"):
        assert found["estimate"][name] == approx(shift**2 / 2, abs=3 * found["its error"][name])
assert at[0.1]["its error"]["k1"] / 0.005 == approx(1 / 3, abs=0.05)
assert (at[0.1]["its error"]["k1"] > 10 * at[0.1]["its error"][["k2", "k3"]]).all()
for shift, wrong in ((1.0, 0.625), (2.0, 4.0)):
    found = at[shift].loc["k2"]
    assert found["estimate"] == approx(wrong, abs=3 * found["its error"])
assert at[2.0]["its error"]["k3"] / at[2.0]["its error"]["k1"] == approx(2, abs=0.4)

columns = ["estimate 1", "estimate 2", "estimate 3"]
k1s, neighbours, chi_squares = tables = [many.loc[name] for name in many.index.unique(0)]
assert k1s["exact"].tolist() == approx([0.2024, 1.0121, 5.0603], abs=1e-4)
assert chi_squares["exact"].tolist() == approx([1.53125, 102.914, 1.21165e10], rel=1e-4)
for d in (2, 10, 50):
    off = {t: table.loc[d, columns] - table["exact"][d] for t, table in enumerate(tables)}
    errors = [3 * table["stated error"][d] for table in tables]
    assert (abs(off[0]) < errors[0]).all()
    assert (off[1] < -errors[1]).all() and (off[2] < -errors[2]).all()
assert k1s["stated error"].is_monotonic_increasing
assert (neighbours.loc[10, columns] < 0).all()
assert (neighbours["exact"][50] - neighbours.loc[50, columns] > neighbours["exact"][50]).all()
assert neighbours["stated error"][50] == approx(0.1, abs=0.05)
assert (chi_squares["exact"][50] / chi_squares.loc[50, columns] > 1e7).all()

for name in ("reverse_kl", "neyman_chi_square"):
    assert optima.loc[name, ["mean", "sd"]].tolist() == approx([-3, 0.8], abs=0.005)
wide = optima.loc[
    ["jeffreys", "squared_hellinger", "jensen_shannon", "forward_kl", "pearson_chi_square"]
]
assert wide["sd"].is_monotonic_increasing and (wide["sd"] > 2.6).all()
assert (abs(wide["mean"]) < 0.4).all()
assert optima.loc["forward_kl", ["mean", "sd"]].tolist() == approx(
    [-0.3, (0.64 + 9 - 0.09) ** 0.5], abs=0.002
)
between = optima.loc["total_variation"]
assert between["mean"] == approx(-2.68, abs=0.05) and between["sd"] == approx(1.4, abs=0.05)
assert wide["sd"]["jensen_shannon"] == approx(3.06, abs=0.01)
assert wide["sd"]["squared_hellinger"] == approx(3.0, abs=0.01)

assert 0.4 <= jump[0] + 1e-9 and jump[1] < 0.45 and (better == (alphas <= jump[0])).all()
low, high = branches["reverse_kl"], branches["forward_kl"]
assert low[2][alphas < 0.65] == approx(0.8, abs=0.05) and (high[2] > 2.6).all()
assert low[1][better] == approx(-3, abs=0.01) and high[1][~better] == approx(-0.29, abs=0.02)
assert low[2][better] == approx(0.8, abs=0.01) and high[2][~better] == approx(3.03, abs=0.07)
gone = alphas[low[2] > 2][0]
assert 0.7 < gone < 0.75 and low[0][alphas > 0.73] == approx(high[0][alphas > 0.73], abs=1e-6)

for g in range(GROUPS):
    members = group == g
    arithmetic, geometric = p[members].mean(0), np.exp(np.log(p[members]).mean(0))
    for name, best in (("forward_kl", arithmetic), ("reverse_kl", geometric / geometric.sum())):
        for logits in students[name][members]:
            assert np.asarray(jax.nn.softmax(logits)) == approx(best, abs=1e-6)
            assert logits.argmax() == CONTEXTS + g
assert keeps["shared"]["forward_kl"] == approx(keeps["shared"]["teacher"], abs=1e-6)
assert keeps["shared"]["teacher"] == approx(0.329, abs=5e-4)
assert keeps["favourite"]["teacher"] == approx(0.6, abs=5e-4)
assert keeps["favourite"]["forward_kl"] == approx(0.15, abs=0.005)
assert keeps["favourite"]["reverse_kl"] == approx(0.037, abs=5e-4)
assert keeps["shared"]["reverse_kl"] == approx(0.75, abs=0.01)
assert 0.5 < keeps["tail"]["forward_kl"] < 0.53 and 0.2 < keeps["tail"]["reverse_kl"] < 0.25
others = sum(
    np.asarray(jax.nn.softmax(students["forward_kl"]))[c, np.flatnonzero(group == group[c])].sum()
    for c in range(CONTEXTS)
) / CONTEXTS - keeps["favourite"]["forward_kl"]
assert others > 0.8 * keeps["tail"]["forward_kl"]
assert keeps["head"].to_dict() == approx((1 - keeps["tail"]).to_dict(), abs=1e-9)
entropies = keeps["entropy"] - keeps["entropy"]["teacher"]
assert entropies["forward_kl"] == approx(0.77, abs=0.005)
assert entropies["reverse_kl"] == approx(0.146, abs=0.005)
assert (p.argmax(1) == np.arange(CONTEXTS)).all() and (head.sum(1) == 2).all()
middle = keeps.loc[["jensen_shannon", "adaptive_kl"]]
assert middle["shared"].tolist() == approx([0.495, 0.495], abs=0.002)
assert middle["entropy"].tolist() == approx([1.678, 1.678], abs=0.003)
for name in losses:
    assert judged[name].idxmin() == name
assert judged["total_variation"].idxmin() == "forward_kl"
assert judged["total_variation"].idxmax() == "reverse_kl"
assert judged["total_variation"].tolist() == approx([0.460, 0.565, 0.498, 0.498], abs=0.001)
""",
    "can_i_trust_this_fit": """
from pytest import approx

found = [set(verdicts(run)["verdict"]) for run in (one_kind, schools)]
assert found[0] == {"reliable"} and "reliable" not in found[1]  # reverse KL's is on an edge
assert verdicts(schools)["verdict"]["forward_kl"] == "correctable"
known = vi_demo.summary(one_kind)
for fit in known["fits"].values():
    assert fit["divergences"]["reverse_kl"]["value"] < 0.05
    assert fit["divergences"]["forward_kl"]["value"] < 0.05
assert of_theta["verdict"][["mean", "sd"]].tolist() == ["reliable"] * 2
one = of_tau.loc["mean"]
assert one["verdict"] == "correctable"
assert abs(one["corrected"] - one["reference"]) < 0.5 * abs(one["guide"] - one["reference"])

heights = {b.right: n for b, n in histogram.items()}
assert heights[55] > 2 * heights[70] < heights[80] and histogram.sum() == 272
assert evidence["two normals"] > evidence["one normal"] + 40
assert verdicts(geyser)["verdict"]["reverse_kl"] == "unreliable"
assert verdicts(geyser)["k-hat"]["reverse_kl"] < 0.7
assert (starts["places"], starts["rhat"] > 1.5) == (2, True)
assert starts["stacked_elbo"]["value"] - starts["elbos"][0] == approx(0.6931, abs=0.02)
assert ladder["passes"] and ladder["ends"].startswith("mixture:")
assert ladder["rungs"][-1]["divergences"]["reverse_kl"]["value"] < 0.01
assert share == approx(0.5, abs=0.05)
""",
    "inspect_a_run": """
from pytest import approx

tau = {name: rows[name] for name in FITS}
assert {fit["verdict"] for fit in vi_demo.summary(run)["fits"].values()} != {"reliable"}
ends = {k: t["posterior"]["tau"].quantile([0.055, 0.945]).values for k, t in trees.items()}
assert ends["reverse_kl"][0] > ends["reference"][0]
assert ends["reverse_kl"][1] < ends["reference"][1] < ends["forward_kl"][1]
heaviest = np.exp(run["reverse_kl/sample_stats"]["log_weights"].values.ravel())
assert 15 < 4000 * (heaviest / heaviest.sum()).max() < 60
assert run["reverse_kl/posterior"]["tau"].values.ravel()[heaviest.argmax()] < 0.4
assert {name: khat < 0.7 for name, khat in khats.items()} == dict.fromkeys(FITS, True)
assert tau["forward_kl"]["effective draws"] > tau["reverse_kl"]["effective draws"]
assert tau["forward_kl"]["sd"] > 1.6 * rows["reference"]["sd"]
for of in ("mean", "sd"):
    assert tau["forward_kl"][f"{of}, weighted"] == approx(rows["reference"][of], rel=0.06)
logs = {name: x.values for name, x in on_log_scale.items()}
assert logs["forward_kl"].mean() == approx(logs["reference"].mean(), abs=0.1)
assert logs["forward_kl"].std() == approx(logs["reference"].std(), rel=0.1)
assert logs["reverse_kl"].std() < 0.8 * logs["reference"].std()
height = {k: np.abs(np.sort(u.values.ravel()) - (np.arange(1000) + 0.5) / 1000).max()
          for k, u in uniform.items()}
assert height["mu, reverse_kl"] < 0.06 and height["mu, forward_kl"] < 0.06
assert height["tau, reverse_kl"] == approx(0.1, abs=0.03)
at = uniform["tau, reverse_kl"].values
assert (at < 0.1).mean() > 0.13 and (at > 0.9).mean() > 0.13
assert (loo["elpd"] - loo["elpd"]["reference"]).abs().max() < 0.15
assert loo["largest k-hat"].max() < 0.8
assert inside == 8
assert places["elbo"].dropna().tolist() == approx([-0.6931] * 2, abs=0.001)
assert sorted(places["x[0]"]) == approx([-4, -4, 4, 4], abs=0.01)
assert agreement["rhat"] > 1.5 and agreement["places"] == 2
assert agreement["stacked_elbo"]["value"] == approx(0, abs=0.001)
""",
    "your_own_model": """
from pytest import approx

assert "does not fall along" in improper and "prior: improper" in improper
assert "prior: proper" in proper and "finite at 64 of 64" in proper
fits = vi_demo.summary(run)["fits"]
assert "reliable" not in {f["verdict"] for f in fits.values()}
assert fits["reverse_kl"]["sites"]["slope"]["sd_ratio"] == approx(0.81, abs=0.03)
assert fits["forward_kl"]["sites"]["slope"]["sd_ratio"] == approx(1.0, abs=0.03)
exact = chances["reference"]
assert abs(chances["reverse KL, weighted"] - exact) < abs(chances["reverse KL, as it is"] - exact)
assert chances["reverse KL, weighted"] == approx(exact, abs=0.03)
assert vi_demo.summary(bent)["fits"]["reverse_kl"]["verdict"] == "reliable"
assert more["posterior"].sizes["draw"] == 20_000
truth = run["reference/posterior"]
odds = truth["base"].values.ravel() + truth["slope"].values.ravel() * days[:, None]
assert sold_out.values == approx((1 / (1 + np.exp(-odds))).mean(1), abs=0.03)
""",
    "two_directions": """
from pytest import approx

price = figures(run)
assert price.loc["reverse_kl", "KL(q‖p)"] == approx(np.log(2), abs=0.002)
assert price.loc["reverse_kl", "KL(p‖q)"] == approx(15.28, abs=0.6)
assert price.loc["forward_kl", "KL(p‖q)"] == approx(0.7236, abs=0.003)
assert price["modes covered"].to_dict() == {"reverse_kl": 1, "forward_kl": 2}
assert price["k-hat"]["forward_kl"] < 0.7
assert price["verdict"].to_dict() == {"reverse_kl": "unreliable", "forward_kl": "correctable"}

assert film.format in ("mp4", "gif") and len(film.data) > 20_000
assert ends["divergence"].tolist() == approx([0.693053, 0.723553], abs=2e-4)
means = dict(ends["mean of x[0], each start"])
assert set(means["reverse_kl"].round(2)) == {-4.0, 4.0}
assert abs(means["forward_kl"]).max() < 0.005
assert ends["sd of x[0], each start"]["forward_kl"].tolist() == approx([17**0.5] * 4, abs=0.01)
firsts = [run[n]["descent"]["divergence"][0].values for n in ("reverse_kl", "forward_kl")]
assert firsts[0].max() < 20 and firsts[1].min() > 60

sides = {n: narrow[n]["guide"]["covariance"].values for n in ("reverse_kl", "forward_kl")}
assert np.diag(sides["reverse_kl"]) ** 0.5 == approx([0.19**0.5] * 2, rel=0.01)
assert np.diag(sides["forward_kl"]) ** 0.5 == approx([1.0, 1.0], rel=0.02)
assert 2 * norm.cdf(1.96 * 0.19**0.5) - 1 == approx(0.61, abs=0.005)
assert float(by_likelihood["mean"][0]) == approx(float(sample[:, 0].mean()), abs=1e-6)
spread = float(by_likelihood["covariance"][0, 0]) ** 0.5
assert spread == approx(float(sample[:, 0].std()), rel=1e-3)

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
assert (reverse["k-hat"][3] > 0.7, np.isnan(reverse["k-hat"][4])) == (True, True)
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
