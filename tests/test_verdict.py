"""What figures mean: one row a kind of fit."""

import numpy as np
import pytest
from scipy import stats

from vi_demo.diagnostics import Figures, importance
from vi_demo.divergences.estimators import Estimate
from vi_demo.verdict import judge, of_quantities
from vi_demo.weights import generalised_pareto, importance_evidence, pareto_khat


def site(error, ratio, corrected=(0.01, 1.01), mcse=0.01):
    """The figures of site x, the same correction for all its entries."""
    error, ratio = np.array(error), np.array(ratio)
    whole = lambda value: np.full(error.shape, value)  # noqa: E731
    return {
        "x": {
            "mean_error_in_sd": error,
            "sd_ratio": ratio,
            "corrected_mean_error_in_sd": whole(corrected[0]),
            "corrected_sd_ratio": whole(corrected[1]),
            **{
                f"{which}{name}": whole(mcse)
                for which in ("", "corrected_")
                for name in ("mean_mcse", "log_sd_mcse")
            },
        }
    }


GOOD = {
    "khat": 0.2,
    "khat_spread": 0.05,
    "khat_threshold": 0.7,
    "ess": 3800.0,
    "ess_share": 0.95,
    "modes_covered": 1,
    "mass_covered": 1.0,
    "divergences": {"total_variation": Estimate(0.02, 0.002)},
    "sites": site([0.01, 0.02], [1.0, 0.98]),
}


def figures(**changes):
    known = GOOD | changes
    labels = {"x": ["x[A]", "x[B]"] if np.ndim(known["sites"]["x"]["sd_ratio"]) else ["x"]}
    points = np.zeros((10_000, 2))
    return Figures(points=points, log_p=np.zeros(10), log_q=np.zeros(10), labels=labels, **known)


CASES = {
    "all is well": ({}, "reliable", "covers all the posterior mass"),
    "a missed mode behind a perfect k-hat": (
        {
            "missed": (0.5,),
            "khat": -1.8,
            "ess_share": 1.0,
            "mass_covered": 0.5,
            "divergences": {"total_variation": Estimate(0.5, 0.002)},
        },
        "unreliable",
        "misses a mode that holds 50% of the posterior mass",
    ),
    "two missed modes": (
        {
            "missed": (0.1, 0.2),
            "mass_covered": 0.7,
            "divergences": {"total_variation": Estimate(0.3, 0.002)},
        },
        "unreliable",
        "misses 2 modes that hold 30%",
    ),
    "a sliver is not a mode missed": ({"missed": (0.006,)}, "reliable", "covers"),
    "a small mode missed, and next to nothing else wrong": (
        {
            "missed": (0.03,),
            "sites": site([0.0, 0.2], [1.0, 0.8], corrected=(0.2, 0.8)),
            "divergences": {"total_variation": Estimate(0.03, 0.002)},
        },
        "correctable",
        "misses a mode that holds 3% of the posterior mass",
    ),
    "a mode on the edge of being too much": (
        {
            "missed": (0.0501,),
            "sites": site([0.0, 0.2], [1.0, 0.8], corrected=(0.2, 0.8)),
            "divergences": {"total_variation": Estimate(0.0495, 0.001)},
        },
        "correctable",
        "misses a mode that holds 5% of the posterior mass",
    ),
    "a small mode missed, and much else wrong": (
        {
            "missed": (0.03,),
            "sites": site([0.0, 0.2], [1.0, 0.8], corrected=(0.2, 0.8)),
            "divergences": {"total_variation": Estimate(0.2, 0.002)},
        },
        "unreliable",
        "with its weights the mean of x[A] is off by 0.20",
    ),
    "weights that do not correct it": (
        {
            "sites": site([0.4, 0.0], [1.0, 1.0], corrected=(0.01, 1.2)),
            "divergences": {"total_variation": Estimate(0.2, 0.002)},
        },
        "unreliable",
        "with its weights x[A] is too wide: 1.20",
    ),
    "corrected, and known to be": (
        {
            "sites": site([0.4, 0.0], [1.0, 1.0], corrected=(0.01, 1.03), mcse=0.02),
            "divergences": {"total_variation": Estimate(0.2, 0.01)},
        },
        "correctable",
        "mean of x[A] is off by 0.40",
    ),
    "not known to be corrected": (
        {
            "sites": site([0.4, 0.0], [1.0, 1.0], corrected=(0.01, 1.03), mcse=0.046),
            "divergences": {"total_variation": Estimate(0.2, 0.01)},
        },
        "unreliable",
        "with its weights the sd of x[A] is known to 5% only",
    ),
    "corrected, but not by enough": (
        {
            "sites": site([0.4, 0.0], [1.0, 1.0], corrected=(0.01, 1.06), mcse=0.02),
            "divergences": {"total_variation": Estimate(0.2, 0.01)},
        },
        "unreliable",
        "with its weights x[A] is too wide: 1.06",
    ),
    "k-hat too high": (
        {
            "khat": 0.9,
            "ess_share": 0.1,
            "divergences": {"total_variation": Estimate(0.4, 0.01)},
        },
        "unreliable",
        "k-hat 0.90 is above 0.70",
    ),
    "k-hat of nearly constant weights": (
        {"khat": 3.0, "ess_share": 0.984},
        "reliable",
        "k-hat 3.00 is passed over: the weights are nearly constant, 98% of the draws effective",
    ),
    "k-hat of nearly constant weights that correct a mean": (
        {"khat": 3.0, "ess_share": 0.984, "sites": site(0.4, 1.0)},
        "correctable",
        "k-hat 3.00 is passed over",
    ),
    "constant weights": (
        {"khat": None, "ess_share": 1.0, "reasons": {"khat": "constant"}},
        "reliable",
        "covers",
    ),
    "too narrow, but weights carry it": (
        {"sites": site([0.0, 0.0], [0.6, 1.0])},
        "correctable",
        "x[A] is too narrow: 0.60",
    ),
    "a shifted mean": ({"sites": site(0.4, 1.0)}, "correctable", "mean of x is off by 0.40"),
    "right moments, wrong shape": (
        {"divergences": {"total_variation": Estimate(0.5, 0.01)}},
        "correctable",
        "total variation from the posterior is 0.50",
    ),
    "close by total variation whatever k-hat reads": (
        {"khat": 6.0, "ess_share": 0.9},
        "reliable",
        "k-hat 6.00 is passed over: total variation from the posterior is only 0.02",
    ),
    "few effective draws": (
        {
            "ess_share": 0.005,
            "sites": site([0.5, 0.0], [1.0, 1.0]),
            "divergences": {"total_variation": Estimate(0.3, 0.01)},
        },
        "unreliable",
        "only 50 of 10,000 draws",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case):
    changes, expected, reason = CASES[case]
    verdict = judge(figures(**changes), "converged", "smc", (), "reverse_kl")
    assert verdict.verdict == expected
    assert any(reason in r for r in verdict.reasons), verdict.reasons
    assert verdict.advice


def test_confidence_is_how_often_the_verdict_holds():
    """A mean two errors inside of what is tolerated, and one on the edge of it."""
    inside = figures(sites=site([0.08, 0.0], [1.0, 1.0], mcse=0.01))
    edge = figures(sites=site([0.1, 0.0], [1.0, 1.0], mcse=0.01))
    sure, unsure = (judge(f, "converged", "smc", (), "reverse_kl") for f in (inside, edge))
    assert sure.confidence == pytest.approx(stats.norm.cdf(2), abs=0.05)
    assert unsure.confidence == pytest.approx(0.5, abs=0.15)


def test_each_quantity_has_a_verdict_of_its_own():
    entry = {"error": 0.02, "corrected_error": 0.01, "khat": 0.3}
    each = {"x": {"mean": entry, "sd": entry | {"error": 0.5}, "5%": entry | {"khat": 0.9}}}
    each["x"]["95%"] = entry | {"error": 0.4, "khat": 0.9}
    each["x"]["50%"] = entry | {"error": 0.4, "corrected_error": 0.3}
    found = of_quantities(figures(quantities=each), doubted=False)["x"]
    assert {name: e["verdict"] for name, e in found.items()} == {
        "mean": "reliable",
        "sd": "correctable",
        "5%": "reliable",
        "95%": "unreliable",
        "50%": "unreliable",
    }
    doubted = of_quantities(figures(quantities=each), doubted=True)["x"]
    assert {e["verdict"] for e in doubted.values()} == {"cannot tell"}


@pytest.mark.parametrize("fault", [{}, {"sites": site(9.0, 0.1)}, {"khat": 0.9}])
def test_a_doubtful_reference_passes_nothing_and_is_no_evidence(fault):
    """Not what was measured by it, nor a k-hat whose weights hardly differ."""
    doubted = figures(own_distance=0.05, **{"ess_share": 0.9, **fault})
    verdict = judge(doubted, "converged", "smc", ("SMC and NUTS differ",), "reverse_kl")
    assert verdict.verdict == "cannot tell"
    assert "not to be trusted: SMC and NUTS differ" in verdict.reasons[0]
    assert not any("off by" in reason for reason in verdict.reasons)


def test_a_guide_is_condemned_by_its_own_weights_whatever_the_reference():
    far = figures(khat=0.9, ess_share=0.1, own_distance=0.6)
    verdict = judge(far, "converged", "none", (), "reverse_kl")
    assert verdict.verdict == "unreliable"
    assert "k-hat 0.90 is above" in verdict.reasons[0]
    assert "there is no reference" in verdict.reasons[1]
    nowhere = figures(khat=None, ess=None, ess_share=None, reasons={"ess": "zero at every draw"})
    verdict = judge(nowhere, "converged", "none", (), "reverse_kl")
    assert (verdict.verdict, verdict.reasons[0]) == ("unreliable", "zero at every draw")


def test_a_fit_that_ran_out_of_steps_is_not_reliable():
    verdict = judge(figures(), "stopped", "smc", (), "reverse_kl")
    assert verdict.verdict == "correctable"
    assert "stopped before it settled" in verdict.reasons[0]


def test_a_failed_fit():
    assert judge(figures(), "failed", "smc", (), "reverse_kl").verdict == "unreliable"


def test_khat_of_pareto_weights():
    """Weights from a Pareto tail of shape k give k-hat near k."""
    rng = np.random.default_rng(0)
    for k in (0.3, 0.8):
        log_weights = -k * np.log(rng.uniform(size=20_000))
        assert pareto_khat(log_weights)[0] == pytest.approx(k, abs=0.12)


@pytest.mark.parametrize(
    ("log_weights", "reason"),
    [
        (np.zeros(1000), "constant"),
        (1e-4 * np.random.default_rng(0).standard_cauchy(size=1000), "constant"),
        (np.full(1000, -np.inf), "only 0 draws"),
        (np.concatenate([np.zeros(10), np.full(990, -np.inf)]), "only 10 draws"),
    ],
)
def test_khat_that_cannot_be_had_says_why(log_weights, reason):
    khat, why = pareto_khat(log_weights)
    assert khat is None
    assert reason in why


def test_importance_estimates_the_evidence():
    """Draws of N(0, 2²) for an unnormalised N(0, 1) of mass e³."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, 10_000)
    log_weights = 3 - 0.5 * x**2 + 0.5 * (x / 2) ** 2 + np.log(2)
    known = importance(log_weights, 4000, {})
    value, mcse = known["importance_log_evidence"]
    assert abs(value - 3) < 4 * mcse
    assert 0 < mcse < 0.02
    # ∫ p²/q for these two is 4 / √7.
    assert known["ess_share"] == pytest.approx(np.sqrt(7) / 4, abs=0.03)
    # ½ ∫ |p − q|: the two cross at ±√(8/3 · log 2).
    cross = np.sqrt(8 / 3 * np.log(2))
    apart = 2 * (stats.norm.cdf(cross) - stats.norm.cdf(cross / 2))
    assert known["own_distance"] == pytest.approx(apart, abs=0.01)


def test_generalised_pareto_fit():
    rng = np.random.default_rng(0)
    excess = np.sort(stats.genpareto.rvs(0.6, scale=2.0, size=5000, random_state=rng))
    k, sigma = generalised_pareto(excess)
    assert k == pytest.approx(0.6, abs=0.07)
    assert sigma == pytest.approx(2.0, rel=0.07)


@pytest.mark.parametrize("k", [0.2, 0.6, 0.8])
def test_heavy_tailed_evidence_has_an_honest_error(k):
    """Pareto weights of mean 1 / (1 − k): within three stated errors in 95 of 100 repeats."""
    rng = np.random.default_rng(1)
    within = 0
    for _ in range(100):
        found = importance_evidence(-k * np.log(rng.uniform(size=4000)))
        within += found is None or abs(found.value + np.log(1 - k)) < 3 * found.mcse
    assert within >= 95


def test_weights_without_a_mean_give_no_evidence():
    rng = np.random.default_rng(2)
    assert importance_evidence(-1.5 * np.log(rng.uniform(size=10_000))) is None


def test_chains_that_stay_apart_do_not_tell_what_a_mode_holds():
    """Modes of an untrusted NUTS reference condemn nothing; those of SMC do, without its draws."""
    half = figures(missed=(0.5,), own_distance=0.05)
    doubts = ("its chains do not mix",)
    assert judge(half, "converged", "nuts", doubts, "reverse_kl").verdict == "cannot tell"
    found = judge(half, "converged", "smc", doubts, "reverse_kl")
    assert found.verdict == "unreliable"
    assert "reference's draws" not in found.advice
