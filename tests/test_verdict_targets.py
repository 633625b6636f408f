"""The truths that verdicts are measured by: draws, log evidence and masses that agree."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from verdict_targets import TARGETS

DRAWS = 40_000
# A normal reaches into the hollow of these, or beyond the walls of their necks.
HOLLOW = ("ring", "shell_8", "funnel_10", "eight_schools")
QUICK = ("skewed_5", "rates", "votes", "linear_regression", "equal_5", "labels_2")


def evidence_ratio(truth, points):
    """Z / stated Z and its standard error from draws of one mode (Gelfand and Dey 1994).

    E_p[q / p̃] is 1 / Z for any density q inside p; it is a normal around half of the draws, cut at
    its ellipsoid of half the mass.
    """
    at = truth.place(points)
    half = len(points) // 2
    fitted, (_, dim) = points[:half][at[:half] == 0], points.shape
    deviations = (fitted - np.median(fitted, 0)) ** 2
    far = (deviations / np.median(deviations, 0)).sum(1)
    core = fitted[far < np.median(far)]
    root = np.linalg.cholesky(np.cov(core.T).reshape(dim, dim))
    rest = points[half:]
    radius = (np.linalg.solve(root, (rest - core.mean(0)).T) ** 2).sum(0)
    log_q = -0.5 * (radius + dim * np.log(2 * np.pi)) - np.log(np.diag(root)).sum() + np.log(2)
    log_q[radius > stats.chi2.ppf(0.5, dim)] = -np.inf
    log_p = np.asarray(truth.target.log_densities(rest)) - truth.log_evidence
    ratio = np.exp(log_q - log_p)
    return ratio.mean(), ratio.std() / len(ratio) ** 0.5


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.panel) for n in TARGETS]
)
def test_a_truth_agrees_with_itself(name):
    truth = TARGETS[name]()
    points = truth.draw(np.random.default_rng(3), DRAWS)
    shares = np.bincount(truth.place(points), minlength=len(truth.masses)) / DRAWS
    assert shares == pytest.approx(truth.masses, abs=0.01)
    if name not in HOLLOW:
        ratio, error = evidence_ratio(truth, points)
        assert ratio == pytest.approx(1.0, abs=4 * error)
        assert error < 0.06


def test_there_are_enough():
    assert len(TARGETS) >= 50
