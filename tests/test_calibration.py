"""Calibration over data sets: known posteriors pass, known errors are found, others refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import kstest

import vi_demo
from vi_demo import InputError, Target, calibration, cli, guides, loading, ranks
from vi_demo.fitting import many

SIZE = 5


def normal_mean(y=None):
    """Conjugate: mu | y is N(Σy / (n + 1), 1 / (n + 1))."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)  # five values of one distribution


def ridge(y=None):
    """A sum is measured: the posterior of its two terms is a Gaussian of correlation −0.98."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x.sum(), 0.15), obs=y)


@pytest.fixture(scope="module")
def conjugate():
    """The conjugate model's calibration."""
    return vi_demo.calibrate(normal_mean, {"y": np.arange(SIZE) / 4}, refits=200)


def test_the_posterior_is_calibrated(conjugate):
    """The guide is the posterior: ranks are uniform, and the evidence is exact."""
    summary = vi_demo.summary(conjugate)
    assert summary["refits"] == {
        **{"asked": 200, "ranked": 200, "converged": 200},
        **{"not_converged": 0, "not_finite": 0},
    }
    assert summary["findings"] == [] and summary["doubts"] == []
    assert min(summary["entries"]["mu"]["p"].values()) > 0.01
    y = np.arange(SIZE) / 4
    covariance = np.eye(SIZE) + 1
    exact = dist.MultivariateNormal(np.zeros(SIZE), covariance).log_prob(y)
    assert summary["observed"]["elbo"] == pytest.approx(float(exact), abs=1e-6)


def test_it_agrees_with_a_loop_over_closed_forms(conjugate):
    """Its ranks have the distribution of those of an independent loop, without any of our code."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        mu = rng.normal()
        y = mu + rng.normal(size=SIZE)
        draws = y.sum() / (SIZE + 1) + rng.normal(size=99) / np.sqrt(SIZE + 1)
        found.append(((draws < mu).sum() + 0.5) / 100)
    ours = conjugate["prior_sbc"]["mu"].values.ravel()
    assert kstest(ours, found).pvalue > 0.01
    assert abs(np.mean(ours) - 0.5) < 3 / np.sqrt(12 * len(ours))


def test_each_fit_is_the_closed_form():
    """Reverse and forward KL of every data set, against the posterior of the same data."""
    target = Target.from_numpyro(normal_mean, {"y": np.zeros(SIZE)})
    simulation, family, key = target.simulation(), guides.full_rank(), jax.random.key(0)
    keys = jax.random.split(key, 20)
    truths, data = jax.vmap(simulation.draw)(keys)
    assert data["y"].shape == (20, SIZE) and np.std(data["y"] - truths) == pytest.approx(
        1, abs=0.3
    )
    mean = data["y"].sum(1) / (SIZE + 1)
    for fit, near in ((many.reverse_kl, 1e-6), (many.forward_kl, 0.01)):
        found = fit(simulation, family, 1, key)(data, keys)
        assert found.converged.all()
        np.testing.assert_allclose(found.params["loc"][:, 0], mean, atol=near)
        np.testing.assert_allclose(
            jnp.exp(found.params["log_scale"][:, 0]), (SIZE + 1) ** -0.5, rtol=2 * near
        )


def test_a_factorised_guide_is_found_too_narrow():
    """Its sds are √(1 − ρ²) of the posterior's, ρ = −0.98, and the words say so."""
    tree = vi_demo.calibrate(ridge, {"y": 0.3}, guide="diagonal", refits=100)
    for name, entry in vi_demo.summary(tree)["entries"].items():
        assert entry["adjusted"]["width"] < 1e-6, name
        assert "too narrow" in entry["findings"][-1]
        assert entry["coverage"] < 0.6


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (lambda n: n, None),
        (lambda n: 0.5 * n, "too wide"),
        (lambda n: 2 * n, "too narrow"),
        (lambda n: n + 0.6, "biased low"),
        (lambda n: n - 0.6, "biased high"),
    ],
)
def test_words_follow_the_ranks(shape, words):
    """Of ranks Φ(x), x the truth as the guide standardises it."""
    x = np.random.default_rng(3).normal(size=(200, 1))
    u = (np.floor(1000 * dist.Normal().cdf(shape(x))) + 0.5) / 1000
    (ranked,) = ranks.assess(np.clip(u, 5e-4, 1 - 5e-4))
    assert bool(ranked.findings) == bool(words)
    assert words is None or words in ranked.findings[0]


def test_holm():
    """The worked example: 0.01 × 4, 0.02 × 3, 0.03 × 2, then not less than before."""
    np.testing.assert_allclose(
        ranks.holm(np.array([0.03, 0.01, 0.04, 0.02])), [0.06, 0.04, 0.06, 0.06]
    )


def test_discrete_sites_are_summed_out():
    """Data come from drawn labels, the density sums over them."""

    def two(y=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 12):
            z = numpyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(mu + 3.0 * z, 0.5), obs=y)

    target = Target.from_numpyro(two, {"y": np.zeros(12)})
    simulation = target.simulation()
    truth, data = simulation.draw(jax.random.key(1))
    each = dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.array([0.5, 0.5])),
        dist.Normal(truth[0] + jnp.array([0.0, 3.0]), 0.5),
    )
    exact = each.log_prob(data["y"]).sum() + dist.Normal().log_prob(truth[0])
    assert simulation.given(data).log_density(truth) == pytest.approx(float(exact))


def test_what_is_not_finite_is_counted():
    """Data that overflow have no rank, and are told."""

    def wild(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1000.0))
        numpyro.sample("y", dist.Normal(jnp.exp(x), 1.0), obs=y)

    target = Target.from_numpyro(wild, {"y": np.array(1.0)})
    ok = np.array([True, True, False, *[True] * 30])
    found = calibration.Refits({"x": np.arange(33)}, np.zeros(33), ok, ok)
    settings = {"fit": "reverse_kl"}
    tree = calibration.as_tree(target, found, settings)
    summary = vi_demo.summary(tree)
    assert summary["refits"]["not_finite"] == 1 and summary["refits"]["ranked"] == 31
    assert "1 of 32 refits have no rank" in summary["doubts"][0]
    assert tree["refits"]["rank_x"].values[1] == calibration.NO_RANK
    assert tree["prior_sbc"].sizes["draw"] == 31


def flat(y):
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def unseen(y):
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def factor(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
    numpyro.factor("extra", -(x**2))


def batch(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y), subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y[rows])


def scaled(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.handlers.scale(scale=2.0):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def learned(y):
    s = numpyro.param("s", 1.0, constraint=dist.constraints.positive)
    x = numpyro.sample("x", dist.Normal(0.0, s))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def wider(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y[:1])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (flat, "'x' has no proper prior"),
        (unseen, "no site is observed"),
        (factor, "'extra' is a numpyro.factor"),
        (batch, "'rows' takes some of its rows"),
        (scaled, "'y' is scaled"),
        (learned, "numpyro.param 's' has no prior"),
        (wider, "have shape (3,), those observed (1,)"),
    ],
)
def test_models_that_cannot_be_simulated(model, words):
    """One line: what, where, the remedy."""
    with pytest.raises(InputError, match="; ") as told:
        vi_demo.calibrate(model, {"y": np.array([0.5, 1.0, 0.2, 0.1])})
    assert words in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (
            Target.from_draws(np.random.default_rng(0).normal(size=(50, 2))),
            {},
            "draws say nothing",
        ),
        (Target.from_log_density(lambda z: -z @ z, 2), {}, "no proper prior"),
        (normal_mean, {"guide": "own"}, "no guide of your own"),
        (normal_mean, {"guide": "mixture:2"}, "cannot refit 'mixture:2'"),
        (normal_mean, {"fit": "jeffreys"}, "reverse_kl or forward_kl"),
        (normal_mean, {"refits": 5}, "at least 20"),
    ],
)
def test_what_it_does_not_do(model, settings, words):
    """Told before anything is compiled."""
    with pytest.raises(InputError, match=words):
        vi_demo.calibrate(model, **settings)


def test_the_command(tmp_path, capsys):
    """Files, JSON and the exit status; an improper prior exits with 2 and one line."""
    file = tmp_path / "mean.py"
    file.write_text(
        '"""A mean."""\nimport numpyro, numpyro.distributions as dist\n'
        "def data():\n    return {'y': [0.1, 0.4]}\n"
        "def model(y):\n    x = numpyro.sample('x', dist.Normal(0.0, 1.0))\n"
        "    numpyro.sample('y', dist.Normal(x, 1.0), obs=y)\n"
    )
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as status:
        cli.main(
            ["calibrate", str(file), "--refits", "20", "--out", str(out), "--json", "--quiet"]
        )
    assert status.value.code == 0
    summary = json.loads(capsys.readouterr().out)
    assert {f.name for f in out.iterdir()} == {
        *("calibration.nc", "calibration.json", "calibration.png"),
    }
    assert json.loads((out / "calibration.json").read_text()) == summary
    file.write_text(
        file.read_text().replace(
            "dist.Normal(0.0, 1.0)", "dist.ImproperUniform(dist.constraints.real, (), ())"
        )
    )
    with pytest.raises(SystemExit) as status:
        cli.main(["calibrate", str(file), "--out", str(out)])
    told = capsys.readouterr().err.strip()
    assert status.value.code == 2
    assert told.splitlines()[-1].startswith("vi-demo: mean: site 'x' has no proper prior")


@pytest.mark.panel
def test_eight_schools():
    """Centred, its tau is found biased high and too narrow; the observed fit is that of a run."""
    loaded = loading.load("eight_schools")
    summary = vi_demo.summary(vi_demo.calibrate(loaded))
    tau = summary["entries"]["tau"]
    assert "biased high" in tau["findings"][0] and "too narrow" in tau["findings"][1]
    assert summary["refits"]["converged"] >= 190


@pytest.mark.panel
@pytest.mark.parametrize("name", ["eight_schools", "eight_schools_noncentred"])
@pytest.mark.parametrize("guide", ["full_rank", "diagonal"])
def test_the_refit_of_the_observed_data_is_that_of_a_run(name, guide):
    """ELBOs within 0.05 nats."""
    loaded = loading.load(name)
    refit = vi_demo.summary(vi_demo.calibrate(loaded, guide=guide, refits=20))["observed"]
    run = vi_demo.run(loaded, guide=guide, fits="reverse_kl", reference="none")
    elbo = vi_demo.summary(run)["fits"]["reverse_kl"]["elbo"]
    assert refit["elbo"] == pytest.approx(elbo["value"], abs=0.05)
