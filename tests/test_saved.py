"""Saved draws: a file of somebody's as target and as reference, and a fit without its model."""

import json
import os
import subprocess
import sys

import arviz_base as azb
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.distributions import constraints
from scipy import stats

import vi_demo
from vi_demo import InputError, Target, cli, draws, record, study, supports

CHAINS, DRAWS = 4, 500
CORRELATED = np.array([[1.0, 0.8], [0.0, 0.6]])  # columns of correlation 0.8


def tree_of(**variables):
    """An ArviZ tree of these draws."""
    return azb.from_dict({"posterior": variables})


@pytest.fixture(scope="module")
def normal():
    """Standard normal draws (chain, draw, 8)."""
    return np.random.default_rng(0).normal(size=(CHAINS, DRAWS, 8))


# Supports


@pytest.mark.parametrize(
    "constraint",
    [
        *supports.PLAIN.values(),
        constraints.interval(-2.0, 5.0),
        constraints.greater_than(3.0),
        constraints.less_than(np.array([1.0, 2.0])),
        constraints.zero_sum(1),
    ],
    ids=lambda c: type(c).__name__,
)
def test_a_support_comes_back_from_json(constraint):
    found = supports.describe(constraint)
    again = supports.constraint_of(json.loads(json.dumps(found)))
    assert type(again) is type(constraint)
    assert supports.describe(constraints.independent(constraint, 1)) == found
    z = np.array([0.3, -0.7, 1.1])[: 2 if found["support"] == "less_than" else 3]
    np.testing.assert_array_equal(
        *(dist.transforms.biject_to(c)(jnp.asarray(z)) for c in (constraint, again))
    )


@pytest.mark.parametrize(
    "description",
    [{}, {"support": "dependent"}, {"support": "__class__"}, {"support": "interval"}],
)
def test_a_support_that_is_none(description):
    with pytest.raises((ValueError, TypeError)):
        supports.constraint_of(description)


CHOLESKY = dist.LKJCholesky(3, 2.0)
SUGGESTED = {
    "corr_cholesky": CHOLESKY,
    "corr_matrix": dist.LKJ(3, 2.0),
    "positive_definite": dist.Wishart(5.0, scale_matrix=jnp.eye(2)),
    "simplex": dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])),
    "unit_interval": dist.Beta(2.0, 3.0),
    "positive": dist.Gamma(2.0, 1.0).expand([2]),
    "ordered_vector": dist.TransformedDistribution(
        dist.Normal(jnp.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()
    ),
    "real": dist.Normal(jnp.zeros(2), 1.0),
}


@pytest.mark.parametrize("name", SUGGESTED)
@pytest.mark.parametrize("precision", ["f8", "f4"])
def test_draws_suggest_their_support(name, precision):
    """Draws come back from R^d, whichever library rounded them."""
    values = np.asarray(SUGGESTED[name].sample(jax.random.key(0), (200,)), precision)
    assert supports.guess(values) == {"support": name}
    points = supports.to_reals(values, {"support": name})
    assert np.isfinite(points).all()
    back = supports.transform_of({"support": name})(points)
    np.testing.assert_allclose(back, values, atol=1e-5)
    number = int(np.prod(points.shape[1:]))
    labels = np.array([f"x{i}" for i in np.ndindex(values.shape[1:])], dtype=object)
    labels = labels.reshape(values.shape[1:])
    words = supports.coordinate_names({"support": name}, labels, number)
    assert len(set(words)) == number


def test_other_suggestions():
    factors = 2.0 * np.asarray(CHOLESKY.sample(jax.random.key(0), (50,)))
    assert supports.guess(factors) == {"support": "lower_cholesky"}
    assert supports.guess(np.arange(9)) is supports.guess(np.arange(9.0)) is None
    assert supports.guess(np.array([True, False])) is None
    assert supports.guess(np.array([0.0, 0.5])) == {"support": "real"}


# A target of draws


def test_known_moments_on_the_scale_they_are_known_on(normal):
    """Log-normal and correlated Gaussian: mean and sd of log tau and of x, exactly the draws'."""
    x = normal[..., :2] @ CORRELATED * [1.0, 2.0] + [5.0, -3.0]
    tau = np.exp(0.5 + 0.7 * normal[..., 2])
    run = vi_demo.run(Target.from_draws(tree_of(x=x, tau=tau), "mine"), draws=500)
    summary = vi_demo.summary(run)
    (name,) = summary["fits"]
    assert name == "forward_kl"
    guide = summary["fits"][name]["guide"]
    assert guide["coordinates"] == ["x[0]", "x[1]", "log tau"]
    flat = np.column_stack([x.reshape(-1, 2), np.log(tau).ravel()])
    np.testing.assert_allclose(guide["mean"], flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(guide["sd"], flat.std(0), rtol=1e-5)
    (pair,) = guide["correlations"]
    assert pair["between"] == ["x[0]", "x[1]"]
    assert pair["value"] == pytest.approx(0.8, abs=0.03)
    assert summary["reference"]["remarks"][0] == "x: real; tau: positive, by its draws"
    assert summary["model"]["draws"]["chains"] == CHAINS
    assert float(run["forward_kl/posterior"]["tau"].min()) > 0


def test_a_dirichlet_stays_on_its_simplex():
    p = np.random.default_rng(0).dirichlet([5, 8, 12], size=(CHAINS, DRAWS))
    target = Target.from_draws(tree_of(p=p))
    assert (target.dim, target.coordinates) == (2, ["stick p[0]", "stick p[1]"])
    run = vi_demo.run(target, draws=4000)
    found = run["forward_kl/posterior"]["p"].values[0]
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(found.mean(0), np.array([5, 8, 12]) / 25, atol=0.01)


def test_functions_of_others_are_left_out_and_rebuilt(normal):
    """A sum-to-zero vector, a linear predictor, a constant, a square and whole numbers."""
    effect = normal[..., :3] - normal[..., :3].mean(-1, keepdims=True)
    tau = np.exp(normal[..., 3])
    eta = 2 * normal[..., 4, None] - effect[..., :2] + 7
    tree = tree_of(
        effect=effect,
        tau=tau,
        mu=normal[..., 4],
        eta=eta,
        variance=3 * tau**2,
        one=np.full((CHAINS, DRAWS), 2.5),
        k=np.random.default_rng(0).poisson(3, (CHAINS, DRAWS)),
    )
    target = Target.from_draws(tree)
    assert target.coordinates == ["effect[0]", "effect[1]", "log tau", "mu"]
    assert "k" not in target.sites
    values = target.constrain_all(target.draws)
    for name, original in (("effect", effect), ("eta", eta), ("variance", 3 * tau**2)):
        original = original.reshape(-1, *original.shape[2:])
        np.testing.assert_allclose(values[name], original, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(values["one"], 2.5)
    whole, rebuilt = target.remarks[1:]
    assert whole == "left out, as they are whole numbers: k"
    assert rebuilt.endswith("effect (1 of 3), eta (2 of 2), variance (1 of 1), one (1 of 1)")


def test_labels_and_chains_are_kept(normal):
    tree = azb.from_dict(
        {"posterior": {"theta": normal[..., :2]}},
        coords={"school": ["A", "B"]},
        dims={"theta": ["school"]},
    )
    target = Target.from_draws(tree)
    assert target.coordinates == ["theta[A]", "theta[B]"]
    assert target.by_chain.shape == (CHAINS, DRAWS, 2)
    np.testing.assert_allclose(target.by_chain, normal[..., :2])


def test_effective_draws_know_their_chains(normal):
    """Draws of lag-one correlation 0.9 are worth (1 − 0.9) / (1 + 0.9) of their number."""
    assert Target.from_draws(normal).effective_draws > 0.8 * CHAINS * DRAWS
    slow = np.zeros_like(normal[..., 0])
    for i in range(1, DRAWS):
        slow[:, i] = 0.9 * slow[:, i - 1] + normal[:, i, 0]
    found = Target.from_draws(tree_of(x=slow)).effective_draws
    assert found == pytest.approx(CHAINS * DRAWS * 0.1 / 1.9, rel=0.5)
    assert Target.from_draws(normal.reshape(-1, 8)).effective_draws == CHAINS * DRAWS


def test_chains_that_disagree_are_told(normal):
    x = normal[..., 0] + 3 * np.arange(CHAINS)[:, None]
    found = study.references.of_draws(Target.from_draws(tree_of(x=x)))
    (reason,) = found.reasons
    assert not found.trusted
    assert reason.startswith("its chains do not agree in x: R-hat ")


NOTHING = np.zeros((2, 50))
WITH_NAN = np.random.default_rng(0).normal(size=(2, 50, 3))
WITH_NAN[1, 7, 2] = np.nan
UNUSABLE = {
    "nan": ({"a": WITH_NAN}, r"'a' at \[2\] is nan in chain 1, draw 7; drop that draw"),
    "whole": ({"k": NOTHING}, r"no variable of real numbers"),
    "constant": ({"c": NOTHING + 0.5}, r"no variable varies"),
    "log_lik": (
        {
            "mu": WITH_NAN[..., 0],
            "log_lik": np.random.default_rng(1).normal(size=(2, 50, 300)),
        },
        r"100 draws are too few for 99 dimensions.*'log_lik' \(300\), 'mu' \(1\)",
    ),
    "many": (
        {"y": np.random.default_rng(1).normal(size=(2, 5, 6000))},
        r"6,000 entries, more than 5,000; leave out 'y' \(6,000\)",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_draws_that_cannot_be_used(case):
    variables, pattern = UNUSABLE[case]
    one_line(pattern, Target.from_draws, tree_of(**variables), "mine")


def one_line(pattern, function, *arguments, **settings):
    """An InputError of one line."""
    with pytest.raises(InputError, match=pattern) as caught:
        function(*arguments, **settings)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_draws(tmp_path):
    one_line(r"no such file of draws: 'no\.nc'", draws.read, "no.nc")
    (tmp_path / "text.nc").write_text("no netCDF at all")
    one_line(r"text\.nc cannot be read", draws.read, tmp_path / "text.nc")
    (tmp_path / "empty.zarr").mkdir()
    one_line(r"empty\.zarr", draws.read, tmp_path / "empty.zarr")
    xr.Dataset({"x": ("n", [1.0, 2.0])}).to_netcdf(tmp_path / "flat.nc", engine="h5netcdf")
    one_line(r"no group named posterior.*no groups", draws.read, tmp_path / "flat.nc")
    group = xr.DataTree.from_dict({"posterior": xr.Dataset({"x": ("draw", [1.0, 2.0])})})
    group.to_netcdf(tmp_path / "chainless.nc", engine="h5netcdf")
    one_line(r"no dimension 'chain'.*'draw'", draws.read, tmp_path / "chainless.nc")


@pytest.fixture(scope="module")
def file(tmp_path_factory, normal):
    """A file of somebody's draws."""
    path = tmp_path_factory.mktemp("draws") / "mine.nc"
    tree_of(mu=normal[..., 0], tau=np.exp(normal[..., 1])).to_netcdf(path, engine="h5netcdf")
    return path


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_zarr_is_read_as_netcdf_is(file, tmp_path):
    tree = draws.read(file)
    tree.to_zarr(tmp_path / "mine.zarr")
    assert draws.read(tmp_path / "mine.zarr").equals(tree)


def test_the_command_line_fits_a_file_of_draws(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("run", str(file), "--draws", "200") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for piece in ("mine: 2 dimensions (mu, tau)", "2,000 draws in 4 chains", "log tau"):
        assert piece in text
    assert "ELBO" not in text
    summary = json.loads((tmp_path / "runs/mine/summary.json").read_text())
    assert list(summary["fits"]) == ["forward_kl"]
    assert summary["fits"]["forward_kl"]["guide"]["mean"] == pytest.approx([0, 0], abs=0.1)


def command(*arguments):
    """The exit status of `vi-demo`, in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments])
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--fit", "reverse_kl"], "mine: reverse_kl needs a log density"),
        (["--data", "y.csv"], "without data; leave --data out"),
        (["--guide", "own"], "no guide of its own; choose from diagonal"),
        (["--path", "5"], "a path needs a log density; leave --path out"),
    ],
)
def test_what_draws_cannot_be_given(file, tmp_path, monkeypatch, capsys, arguments, pattern):
    monkeypatch.chdir(tmp_path)
    assert command("run", str(file), *arguments) == 2
    assert pattern in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


# A reference from a file


def conjugate(y=None, sigma=1.0):
    """A mean of known variance, and a rate apart from it."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    numpyro.deterministic("twice", 2 * mu)
    numpyro.sample("y", dist.Normal(mu, sigma).expand([4]), obs=y)
    numpyro.sample("k", dist.Poisson(rate), obs=4 if y is not None else None)


DATA = {"y": np.array([1.0, 2.0, 1.5, 0.5]), "sigma": 1.0}
POSTERIOR = stats.norm(5.0 / 4.25, 4.25**-0.5), stats.gamma(7, scale=1 / 3)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """Independent draws of the conjugate model's posterior in a file."""
    rng = np.random.default_rng(0)
    mu, rate = (d.rvs((CHAINS, 1000), random_state=rng) for d in POSTERIOR)
    path = tmp_path_factory.mktemp("exact") / "exact.nc"
    tree_of(mu=mu, rate=rate, other=mu).to_netcdf(path, engine="h5netcdf")
    return path


@pytest.fixture(scope="module")
def saved(exact, tmp_path_factory):
    """The folder of a run of the conjugate model against exact draws."""
    run = vi_demo.run(conjugate, DATA, fits="reverse_kl", reference=exact, draws=1000)
    return vi_demo.save(run, tmp_path_factory.mktemp("saved") / "run")


def test_a_fit_is_measured_against_trusted_draws(saved):
    summary = vi_demo.summary(vi_demo.load(saved))
    reference, fit = summary["reference"], summary["fits"]["reverse_kl"]
    assert (reference["method"], reference["trusted"], reference["reasons"]) == ("draws", True, [])
    of_y = stats.multivariate_normal(np.zeros(4), np.eye(4) + 4.0).logpdf(DATA["y"])
    log_z = of_y + stats.nbinom(3, 2 / 3).logpmf(4)
    evidence = reference["log_evidence"]  # by a bridge to the draws
    assert abs(evidence["value"] - log_z) < 4 * evidence["mcse"] < 0.1
    assert [m["mass"] for m in reference["modes"]] == pytest.approx([1.0])
    assert fit["modes_covered"] == 1
    assert fit["divergences"]["forward_kl"]["value"] < 0.02
    assert fit["sites"]["mu"]["mean_error_in_sd"] < 0.06
    assert fit["sites"]["mu"]["sd_ratio"] == pytest.approx(1, abs=0.05)
    assert fit["eubo"]["value"] is not None
    assert "draws alone" not in " ".join(fit["reasons"])
    assert fit["guide"]["coordinates"] == ["mu", "log rate"]


WRONG = {
    "missing": ({"mu": NOTHING + 0.5}, r"no 'rate', a site of the model \(it has 'mu'\)"),
    "shape": ({"mu": WITH_NAN[..., :2], "rate": NOTHING}, r"'mu' has shape \(2,\) and \(\)"),
    "support": (
        {"mu": NOTHING, "rate": np.where(np.arange(50) == 3, -1.0, NOTHING + 1)},
        r"'rate', -1, is outside its support in the model in chain 0, draw 3",
    ),
    "edge": ({"mu": NOTHING, "rate": NOTHING}, r"draw 0 is at the edge of a site's support"),
    "nan": ({"mu": WITH_NAN[..., 2], "rate": NOTHING}, r"'mu' is nan in chain 1, draw 7"),
}


@pytest.mark.parametrize("case", WRONG)
def test_draws_of_something_else_are_refused(tmp_path, case):
    variables, pattern = WRONG[case]
    path = tmp_path / "wrong.nc"
    tree_of(**variables).to_netcdf(path, engine="h5netcdf")
    one_line(pattern, vi_demo.run, conjugate, DATA, reference=path)


def test_draws_where_the_model_has_no_density(tmp_path):
    path = tmp_path / "far.nc"
    tree_of(x=np.full((2, 50), 3.0)).to_netcdf(path, engine="h5netcdf")

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("cut", jnp.where(x > 2, -jnp.inf, 0.0))

    pattern = r"far\.nc: the model's density is zero at all of its draws"
    one_line(pattern, vi_demo.run, model, reference=path)
    target = Target.from_draws(np.random.default_rng(0).normal(size=(2, 50, 1)))
    one_line(r"is its own reference; leave", vi_demo.run, target, reference=path)


def test_a_reference_that_does_not_mix_is_not_trusted(tmp_path):
    rng = np.random.default_rng(0)
    mu, rate = (d.rvs((CHAINS, 100), random_state=rng) for d in POSTERIOR)
    path = tmp_path / "stuck.nc"
    tree_of(mu=mu + np.arange(CHAINS)[:, None], rate=rate).to_netcdf(path, engine="h5netcdf")
    target = Target.from_numpyro(conjugate, DATA)
    found = study.references.from_file(target, path)
    assert not found.trusted
    assert found.reasons[0].startswith("its chains do not agree in mu: R-hat ")


def test_a_reference_that_is_not_there(capsys):
    one_line(r"no reference named 'gone\.nc'.*netCDF", vi_demo.run, conjugate, reference="gone.nc")
    assert command("run", "bimodal", "--reference", "gone.nc") == 2
    assert "nor a .nc or .zarr file of draws that exists" in capsys.readouterr().err


# A fit without its model


def test_more_draws_are_of_the_guide(saved):
    run = vi_demo.load(saved)
    fresh = vi_demo.draw(run, "reverse_kl", 20_000, seed=3)
    assert fresh["posterior"].sizes == {"chain": 1, "draw": 20_000}
    guide = vi_demo.summary(run)["fits"]["reverse_kl"]["guide"]
    mu, rate = (fresh["posterior"][k].values[0] for k in ("mu", "rate"))
    for values, mean, sd in zip((mu, np.log(rate)), guide["mean"], guide["sd"], strict=True):
        assert values.mean() == pytest.approx(mean, abs=4 * sd / 141)
        assert values.std() == pytest.approx(sd, rel=0.03)
    covariance = run["reverse_kl/guide"]["covariance"].values
    q = stats.multivariate_normal(guide["mean"], covariance)
    expected = q.logpdf(np.column_stack([mu, np.log(rate)]))
    np.testing.assert_allclose(fresh["sample_stats"]["log_q"].values[0], expected, rtol=1e-6)


def test_a_fresh_process_draws_without_the_model(saved, tmp_path):
    code = """
import sys, vi_demo
fresh = vi_demo.draw(sys.argv[1], "reverse_kl", 2000)
print(float(fresh["posterior"]["mu"].mean()), float(fresh["posterior"]["rate"].min()))
"""
    command = [sys.executable, "-c", code, str(saved)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    mean, least = map(float, done.stdout.split())
    assert mean == pytest.approx(POSTERIOR[0].mean(), abs=0.05)
    assert least > 0


def test_what_was_left_out_is_rebuilt_in_new_draws(normal):
    effect = normal[..., :3] - normal[..., :3].mean(-1, keepdims=True)
    target = Target.from_draws(tree_of(effect=effect, tau=np.exp(normal[..., 3])))
    run = vi_demo.run(target, guide="diagonal", draws=200)
    fresh = vi_demo.draw(run, "forward_kl", 500)["posterior"]
    np.testing.assert_allclose(fresh["effect"].sum("effect_dim_0"), 0, atol=1e-6)
    assert float(fresh["tau"].min()) > 0


def test_predictions_of_what_was_observed(saved):
    """Those of y have mean E[mu], variance var(mu) + sigma²; twice is twice mu, draw by draw."""
    found = vi_demo.predict(saved, "reverse_kl", conjugate, {"sigma": 3.0})
    predicted = found["posterior_predictive"]
    assert predicted["y"].shape == (1, 1000, 4)
    assert float(predicted["y"].mean()) == pytest.approx(POSTERIOR[0].mean(), abs=0.25)
    sd = np.hypot(POSTERIOR[0].std(), 3.0)
    assert float(predicted["y"].std()) == pytest.approx(sd, rel=0.05)
    mu = vi_demo.load(saved)["reverse_kl/posterior"]["mu"].values
    np.testing.assert_allclose(predicted["twice"].values, 2 * mu, rtol=1e-5)
    assert float(predicted["k"].mean()) == pytest.approx(7 / 3, rel=0.1)


def test_predictions_by_the_models_own_data(tmp_path):
    """Coordinates of the file are kept; what data() holds of the observed is set aside."""
    (tmp_path / "own.py").write_text(
        "import numpyro, numpyro.distributions as dist, numpy as np\n"
        "coords, dims = {'row': ['a', 'b', 'c']}, {'y': ['row']}\n"
        "def data(): return {'x': np.arange(3.0), 'y': np.array([0.1, 1.2, 1.9])}\n"
        "def model(x, y):\n"
        "    slope = numpyro.sample('slope', dist.Normal(0, 1))\n"
        "    numpyro.sample('y', dist.Normal(slope * x, 0.1), obs=y)\n"
    )
    path = tmp_path / "own.py"
    run = vi_demo.run(path, fits="reverse_kl", guide="diagonal", reference="none", draws=200)
    found = vi_demo.predict(run, "reverse_kl", path)["posterior_predictive"]["y"]
    assert list(found["row"].values) == ["a", "b", "c"]
    np.testing.assert_allclose(found.mean(("chain", "draw")), [0, 1, 2], atol=0.1)
    longer = vi_demo.predict(run, "reverse_kl", path, {"x": np.arange(5.0)})
    assert longer["posterior_predictive"]["y"].shape == (1, 200, 5)


def other(y=None):
    """A model that was not run."""
    numpyro.sample("nu", dist.Normal(0, 1))


def stubborn(y=None):
    """A model that cannot do without its data."""
    numpyro.sample("mu", dist.Normal(0, 1))
    return y.shape


@pytest.mark.parametrize(
    ("function", "arguments", "pattern"),
    [
        ("draw", ("forward_kl", 10), r"no fit 'forward_kl'; it has reverse_kl"),
        ("draw", ("../reverse_kl", 10), r"no fit '\.\./reverse_kl'"),
        ("draw", ("reverse_kl", 0), r"number must be at least 1, not 0"),
        ("predict", ("reverse_kl", other), r"'mu' is not one of the model's \(nu\)"),
        ("predict", ("reverse_kl", stubborn), r"stubborn.*AttributeError"),
    ],
)
def test_misuse_is_told(saved, function, arguments, pattern):
    one_line(pattern, getattr(vi_demo, function), vi_demo.load(saved), *arguments)


def test_a_support_that_depends_on_other_sites_needs_the_model(saved):
    def model():
        top = numpyro.sample("top", dist.Uniform(1.0, 2.0))
        numpyro.sample("x", dist.Uniform(0.0, top))
        numpyro.sample("w", dist.Uniform(jnp.zeros(2), jnp.array([1.0, 2.0])))

    target = Target.from_numpyro(model)
    found = target.supports()
    assert found["top"] == {"support": "interval", "lower_bound": 1.0, "upper_bound": 2.0}
    assert found["x"] is None
    assert found["w"]["upper_bound"] == [1.0, 2.0]
    assert target.coordinates == ["logit top", "x on R", "logit w[0]", "logit w[1]"]
    sites = json.dumps(record.sites_described(target))
    run = changed(vi_demo.load(saved), sites=sites)
    one_line(r"support of 'x' depends on other sites", vi_demo.draw, run, "reverse_kl", 5)


def changed(run, **attrs):
    """A copy of a run with other attributes of its guide."""
    copy = run.copy(deep=True)
    copy["reverse_kl/guide"].attrs |= attrs
    return copy


def test_a_guide_that_was_tampered_with(saved):
    run = vi_demo.load(saved)
    site = {"shape": [], "support": {"support": "positive"}}
    for attrs, pattern in (
        ({"family": "own"}, r"one of the user's own"),
        ({"family": "../../etc"}, r"no guide named '\.\./\.\./etc'"),
        ({"sites": "not JSON"}, r"its sites are not described"),
        ({"sites": json.dumps([1])}, r"its sites are not described"),
        ({"sites": json.dumps({"x": site})}, r"parameter 'loc' is missing"),
        ({"sites": json.dumps({"x": {**site, "support": {"support": "os"}}})}, r"unknown \(no"),
    ):
        one_line(pattern, vi_demo.draw, changed(run, **attrs), "reverse_kl", 5)


def test_files_that_are_no_run_of_ours(saved, file, tmp_path):
    one_line(r"holds no posterior\.nc", vi_demo.load, tmp_path)
    one_line(r"is not a run; give a folder", vi_demo.load, file)
    (tmp_path / "posterior.nc").write_bytes((saved / "posterior.nc").read_bytes()[:5000])
    one_line(r"posterior\.nc cannot be read", vi_demo.load, tmp_path)
    later = xr.DataTree(xr.Dataset(attrs={"schema": 2, "summary": "{}"}))
    later.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    one_line(r"made by a later version of vi-demo \(form 2, here 1\)", vi_demo.load, tmp_path)
    later.attrs |= {"schema": 1, "summary": "not JSON"}
    later.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    one_line(r"summary is damaged", vi_demo.draw, tmp_path, "reverse_kl", 5)


@jax.tree_util.register_pytree_node_class
class Shift:
    """A network of one number, which is called as those of flax and Equinox are."""

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x + self.by

    def tree_flatten(self):
        """Its one parameter."""
        return (self.by,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        """Back from its parameter."""
        return cls(*leaves)


def shifted(n, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    move = numpyro.param("move", lambda key: Shift(jnp.zeros((), "float32")))
    numpyro.sample("y", dist.Normal(move(mu), 1).expand([n]), obs=y)


def test_parameters_are_saved_and_predicted_with(tmp_path):
    """The likeliest shift is the mean of y; what is left of mu given it is N(0, 1 / (n + 1))."""
    data = {"n": 8, "y": np.linspace(4.0, 6.0, 8)}
    settings = {"fits": "reverse_kl", "guide": "diagonal", "reference": "none"}
    run = vi_demo.run(shifted, data, **settings, draws=1000)
    vi_demo.save(run, tmp_path)
    run = vi_demo.load(tmp_path)
    (name,) = run["parameters"].data_vars
    assert float(run["parameters"][name]) == pytest.approx(5.0, abs=0.02)
    mu = run["reverse_kl/posterior"]["mu"].values
    assert (mu.mean(), mu.std()) == pytest.approx((0.0, 1 / 3), abs=0.04)
    predicted = vi_demo.predict(run, "reverse_kl", shifted, {"n": 8})["posterior_predictive"]["y"]
    assert float(predicted.mean()) == pytest.approx(5.0, abs=0.06)
    assert float(predicted.std()) == pytest.approx(np.hypot(1, 1 / 3), rel=0.05)
    one_line(r"learned a parameter 'move", vi_demo.predict, run, "reverse_kl", other)
