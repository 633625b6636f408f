"""Penguins in raw units: a line for each colony.

Body mass on flipper length, with a line of its own for each of five colonies, drawn from a common
population of lines. Nothing is centred or scaled: an intercept is the mass at a flipper of 0 mm,
thousands of grams and uncertain by hundreds, and a slope is tens of grams a millimetre, so the
coordinates differ in scale a hundredfold and each intercept is correlated with its slope beyond
−0.99. A diagonal guide is expected to be far too narrow under reverse KL, and too wide across the
ridges under forward KL. A full-rank one can follow the ridges; what is left are the population's
sds, which five colonies say little about.

Why a factorised guide cannot have variances and precisions both: C. C. Margossian,
L. Pillaud-Vivien and L. K. Saul (2024), "An ordering of divergences for variational inference with
factorized Gaussian approximations", arXiv:2403.13748.

Data: K. B. Gorman, T. D. Williams and W. R. Fraser (2014), "Ecological sexual dimorphism and
environmental variability within a community of Antarctic penguins (genus Pygoscelis)", PLoS ONE
9(3), e90081, https://doi.org/10.1371/journal.pone.0090081.
"""

from pathlib import Path

import numpy as np
import numpyro
import numpyro.distributions as dist

coords = {
    "colony": [
        "Adelie, Biscoe",
        "Adelie, Dream",
        "Adelie, Torgersen",
        "Chinstrap, Dream",
        "Gentoo, Biscoe",
    ]
}
dims = {"intercept": ["colony"], "slope": ["colony"], "mass": ["penguin"]}


def data():
    """Return each penguin's colony, by number, its flipper in millimetres and mass in grams."""
    file = Path(__file__).parent / "data" / "penguins.csv"
    table = np.genfromtxt(file, delimiter=",", names=True, dtype=None, encoding="utf-8")
    homes = [f"{species}, {island}" for species, island in table[["species", "island"]]]
    return {
        "colony": np.array([coords["colony"].index(home) for home in homes]),
        "flipper": table["flipper_length_mm"].astype(float),
        "mass": table["body_mass_g"].astype(float),
    }


def model(colony, flipper, mass=None):
    """Draw a line for each colony from a population of lines, then masses around it."""
    intercept_mean = numpyro.sample("intercept_mean", dist.Normal(0.0, 5000.0))
    intercept_sd = numpyro.sample("intercept_sd", dist.HalfNormal(1000.0))
    slope_mean = numpyro.sample("slope_mean", dist.Normal(0.0, 50.0))
    slope_sd = numpyro.sample("slope_sd", dist.HalfNormal(10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(500.0))
    with numpyro.plate("colony", 5):
        intercept = numpyro.sample("intercept", dist.Normal(intercept_mean, intercept_sd))
        slope = numpyro.sample("slope", dist.Normal(slope_mean, slope_sd))
    line = intercept[colony] + slope[colony] * flipper
    with numpyro.plate("penguin", len(flipper)):
        numpyro.sample("mass", dist.Normal(line, sigma), obs=mass)
