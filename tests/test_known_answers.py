"""The bundled models end to end: what is known exactly of each, and what ArviZ makes of it."""

import json
import warnings

import arviz as az
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import vi_demo
from vi_demo import Target, loading, record


def fit(run, name):
    return vi_demo.summary(run)["fits"][name]


def moments(run, name):
    """Mean and sd of the fitted guide's first coordinate."""
    guide = run[f"{name}/guide"]
    return float(guide["mean"][0]), float(guide["covariance"][0, 0]) ** 0.5


# Deterministic quadrature of the best full-rank guides of ½N((−4, 0), I) + ½N((4, 0), I).
BIMODAL = {
    "reverse_kl": {"mean": 3.999602, "sd": 1.000796, "value": 0.693053, "modes": 1},
    "forward_kl": {"mean": 0.0, "sd": 4.123106, "value": 0.723553, "modes": 2},
    "jensen_shannon": {"mean": 0.0, "sd": 4.084809, "value": 0.200963, "modes": 2},
    "total_variation": {"mean": 3.518789, "sd": 1.924326, "value": 0.492519, "modes": 1},
}


@pytest.fixture(scope="module")
def other_fits():
    """Bimodal under the divergences that have no fitter of their own."""
    loaded = loading.load("bimodal")
    fits = ("jensen_shannon", "total_variation", "renyi:2")
    return vi_demo.run(loaded.model, loaded.data, name="bimodal", fits=fits)


@pytest.mark.parametrize("name", BIMODAL)
def test_bimodal_optima(bundled_run, other_fits, name):
    run, known = bundled_run("bimodal") if name.endswith("kl") else other_fits, BIMODAL[name]
    mean, sd = moments(run, name)
    kinked = name == "total_variation"
    assert abs(mean) == pytest.approx(known["mean"], abs=0.05 if kinked else 0.02)
    assert sd == pytest.approx(known["sd"], abs=0.05 if kinked else 0.02)
    found = fit(run, name)
    value = found["divergences"][name]["value"]
    assert value == pytest.approx(known["value"], abs=0.005 if kinked else 0.002)
    assert found["modes_covered"] == known["modes"]
    assert found["status"] == "converged"


def test_fits_with_a_number_are_measured_by_it(other_fits):
    """Rényi's of order 2 is log(1 + Pearson's χ²), so one guide is the best under both."""
    for found in vi_demo.summary(other_fits)["fits"].values():
        values = {k: v["value"] for k, v in found["divergences"].items()}
        chi_square = values["pearson_chi_square"]
        if chi_square is not None:
            assert values["renyi:2"] == pytest.approx(np.log1p(chi_square), abs=1e-6)
    fits = vi_demo.summary(other_fits)["fits"]
    least = min(f["divergences"]["renyi:2"]["value"] for f in fits.values())
    assert (
        fits["renyi:2"]["divergences"]["renyi:2"]["value"]
        == least
        == pytest.approx(0.876, abs=0.002)
    )


def test_divergences_infinite_for_every_guide_are_told():
    """Student-t tails are heavier than a Gaussian's: χ² has no least value."""
    p = dist.StudentT(3.0, jnp.zeros(1), 1.0).to_event(1)
    run = vi_demo.run(Target.from_log_density(p.log_prob, 1), fits="pearson_chi_square", draws=500)
    found = fit(run, "pearson_chi_square")
    assert found["status"] == "stopped"
    assert found["notes"][0].startswith("far out in the tails this divergence grows")
    assert found["divergences"]["pearson_chi_square"]["value"] is None


def test_bimodal_other_divergences(bundled_run):
    """KL the other way at each optimum: 15.28 and 2.098; sds of fits move the first by ±0.5."""
    run = bundled_run("bimodal")
    reverse, forward = fit(run, "reverse_kl"), fit(run, "forward_kl")
    assert reverse["divergences"]["forward_kl"]["value"] == pytest.approx(15.28, abs=0.6)
    assert forward["divergences"]["reverse_kl"]["value"] == pytest.approx(2.0976, abs=0.05)
    assert reverse["divergences"]["total_variation"]["value"] == pytest.approx(0.5, abs=0.005)


def test_bimodal_verdicts(bundled_run):
    run = bundled_run("bimodal")
    reverse, forward = fit(run, "reverse_kl"), fit(run, "forward_kl")
    assert reverse["verdict"] == "unreliable"
    assert reverse["reasons"][0] == "misses a mode that holds 50% of the posterior mass"
    # All of its draws are effective, which alone would have passed it; k-hat is noise then.
    assert reverse["ess"] > 3990
    assert forward["verdict"] == "correctable"
    assert reverse["sites"]["x"]["mean_error_in_sd"][0] == pytest.approx(0.97, abs=0.02)
    assert reverse["sites"]["x"]["sd_ratio"][0] == pytest.approx(0.243, abs=0.01)


def test_bimodal_reference(bundled_run):
    reference = vi_demo.summary(bundled_run("bimodal"))["reference"]
    assert reference["trusted"]
    assert reference["log_evidence"]["value"] == pytest.approx(0, abs=1e-6)
    assert [m["mass"] for m in reference["modes"]] == pytest.approx([0.5, 0.5], abs=1e-3)
    places = sorted(m["location"]["x"][0] for m in reference["modes"])
    assert places == pytest.approx([-4, 4], abs=1e-3)


def test_sandwich(bundled_run):
    """ELBO ≤ log evidence ≤ EUBO, and the two gaps are the two divergences."""
    for found in vi_demo.summary(bundled_run("bimodal"))["fits"].values():
        elbo, eubo = found["elbo"]["value"], found["eubo"]["value"]
        assert elbo < 0 < eubo
        assert -elbo == pytest.approx(found["divergences"]["reverse_kl"]["value"], abs=1e-3)
        assert eubo == pytest.approx(found["divergences"]["forward_kl"]["value"], abs=1e-3)


def test_old_faithful_has_two_label_orders(bundled_run):
    run = bundled_run("old_faithful")
    summary = vi_demo.summary(run)
    masses = summary["reference"]["modes"]
    assert len(masses) == 2
    for mode in masses:
        assert abs(mode["mass"] - 0.5) < 4 * mode["mcse"]
    order = [m["location"]["mu"][0] > m["location"]["mu"][1] for m in masses]
    assert sorted(order) == [False, True]
    # The Laplace approximation of one mode, doubled, gives −1046.70.
    assert summary["reference"]["log_evidence"]["value"] == pytest.approx(-1046.70, abs=0.2)
    assert fit(run, "forward_kl")["modes_covered"] == 2
    reverse = fit(run, "reverse_kl")
    assert reverse["modes_covered"] == 1
    assert reverse["verdict"] == "unreliable"
    assert "misses a mode that holds" in reverse["reasons"][0]
    # One of two equal modes: ELBO − log evidence is −log 2, less what skewness costs.
    assert reverse["divergences"]["reverse_kl"]["value"] == pytest.approx(np.log(2), abs=0.15)


def test_eight_schools_is_not_passed(bundled_run):
    run = bundled_run("eight_schools")
    summary = vi_demo.summary(run)
    assert len(summary["reference"]["modes"]) == 1
    evidence = summary["reference"]["log_evidence"]
    # −31.311 ± 0.001 by two million prior draws of (mu, tau), theta integrated out.
    assert abs(evidence["value"] + 31.311) < 4 * evidence["mcse"]
    better = min(summary["fits"].values(), key=lambda f: f["divergences"]["forward_kl"]["value"])
    estimate = better["importance_log_evidence"]
    error = np.hypot(evidence["mcse"], estimate["mcse"])
    assert abs(evidence["value"] - estimate["value"]) < 3 * error
    for found in summary["fits"].values():
        assert found["verdict"] != "reliable"
        assert found["elbo"]["value"] < evidence["value"] < found["eubo"]["value"]


def test_vote_is_reliable_both_ways(bundled_run):
    run = bundled_run("vote")
    for name in ("reverse_kl", "forward_kl"):
        found = fit(run, name)
        assert found["verdict"] == "reliable", found["reasons"]
        for site in found["sites"].values():
            assert np.max(site["mean_error_in_sd"]) < 0.1
            assert np.max(np.abs(np.log(site["sd_ratio"]))) < 0.05


class TestArviZ:
    """ArviZ's functions take each sub-tree as it is."""

    def test_summary_of_eight_schools(self, bundled_run):
        for name in ("reverse_kl", "forward_kl", "reference"):
            tree = bundled_run("eight_schools")[name]
            table = az.summary(tree, round_to="none")
            assert "theta[A]" in table.index
            assert table.loc["mu", "mean"] == pytest.approx(float(tree["posterior"]["mu"].mean()))

    def test_plot_forest_of_eight_schools(self, bundled_run):
        plot = az.plot_forest(bundled_run("eight_schools")["forward_kl"], backend="none")
        assert {"mu", "tau", "theta"} <= set(plot.viz.children) | set(plot.viz["trunk"].data_vars)

    def test_loo_approximate_posterior_of_vote(self, bundled_run):
        tree = bundled_run("vote")["reverse_kl"]
        stats = tree["sample_stats"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an influential row may be above 0.7 by chance
            loo = az.loo_approximate_posterior(tree, stats["log_p"], stats["log_q"])
        assert loo.n_data_points == 944
        assert loo.p == pytest.approx(7, abs=1.5)

    def test_weights_are_kept(self, bundled_run):
        stats = bundled_run("bimodal")["forward_kl/sample_stats"]
        assert stats["log_weights"].shape == (1, 4000)
        np.testing.assert_allclose(stats["log_weights"], stats["log_p"] - stats["log_q"])
        ess = fit(bundled_run("bimodal"), "forward_kl")["ess"]
        w = np.exp(stats["log_weights"].values)
        assert ess == pytest.approx(w.sum() ** 2 / (w**2).sum())


def test_a_run_is_saved_and_read_whole(bundled_run, tmp_path):
    run = bundled_run("bimodal")
    vi_demo.save(run, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["posterior.nc", "summary.json"]
    again = vi_demo.load(tmp_path / "run")
    for ours, theirs in zip(run.subtree, again.subtree, strict=True):
        assert ours.to_dataset().equals(theirs.to_dataset())
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == vi_demo.summary(again)


def test_every_start_is_kept(bundled_run):
    run = bundled_run("bimodal")
    restarts = run["reverse_kl/restarts"]
    assert restarts.sizes["restart"] == 2  # a start for each mode
    assert int(restarts["elbo"].values.argmax()) == restarts.attrs["best"]
    assert run["reverse_kl/history"]["elbo"].sizes["restart"] == 2


def test_json_holds_no_number_that_is_not_finite():
    text = record.to_json({"a": float("nan"), "b": [np.inf, np.float64(1.5)], "c": np.arange(2)})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": [0, 1]}
