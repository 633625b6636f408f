"""How often the stopping rule of reverse KL stops too early: converged, yet short of the optimum.

    uv run python benchmarks/false_stops.py [SEEDS] [OPTIMIZER]

The gap is ELBO* − ELBO of the reported guide, in nats. For Gaussian targets it is KL(q‖p) in
closed form. For the others the best guide is found by L-BFGS on 8,192 fixed quasi-random draws,
another method altogether, from the best of the fits, and both ELBOs are measured on 200,000
draws of their own. A stop is false where the gap is above 0.05 nats.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.table import Table
from scipy import optimize, stats
from scipy.stats import qmc

from vi_demo import fitting, guides, loading
from vi_demo.target import Target

GAP = 0.05
MEASURED = 200_000


def gaussian(name, covariance, mean=0.0):
    """A Gaussian target, for which a full-rank guide can be exact."""
    covariance = np.asarray(covariance, dtype=float)
    p = dist.MultivariateNormal(mean * jnp.ones(len(covariance)), covariance)
    return Target.from_log_density(p.log_prob, len(covariance), name=name), p


def equicorrelated(d, rho):
    """A covariance of ones with every correlation rho."""
    return (1 - rho) * np.eye(d) + rho * np.ones((d, d))


def banana():
    """N(0, 1) bent along x₂ = x₁²: no Gaussian is exact."""

    def log_density(z):
        return -0.5 * z[0] ** 2 - 2.0 * (z[1] - z[0] ** 2) ** 2

    return Target.from_log_density(log_density, 2, name="banana"), None


def two_modes(separation):
    """Two modes just near enough for one guide to cover both: the ELBO is nearly flat."""

    def log_density(z):
        left, right = (dist.Normal(m, 1.0).log_prob(z[0]) for m in (-separation, separation))
        return jnp.logaddexp(left, right) - jnp.log(2.0) + dist.Normal(0, 1).log_prob(z[1])

    return Target.from_log_density(log_density, 2, name=f"modes at ±{separation}"), None


def bundled(name):
    """One of the models that come with the project."""
    loaded = loading.load(name)
    return Target.from_numpyro(loaded.model, loaded.data, name=name), None


PANEL = (
    lambda: gaussian("standard normal, d=2", np.eye(2)),
    lambda: gaussian("far off: mean 30, d=2", np.eye(2), mean=30.0),
    lambda: gaussian("correlation 0.99, d=2", equicorrelated(2, 0.99)),
    lambda: gaussian("correlation 0.9, d=10", equicorrelated(10, 0.9)),
    lambda: gaussian("sds from 0.01 to 100, d=5", np.diag(np.logspace(-4, 4, 5))),
    lambda: gaussian("standard normal, d=30", np.eye(30)),
    banana,
    lambda: two_modes(2.5),
    lambda: bundled("bimodal"),
    lambda: bundled("eight_schools"),
    lambda: bundled("vote"),
)


def elbo(target, guide, key=1):
    """The ELBO on many draws."""
    draws = guide.sample(jax.random.key(key), (MEASURED,))
    return float(jnp.mean(target.log_densities(draws) - guide.log_prob(draws)))


def best_guide(target, family, params):
    """The guide of greatest ELBO near some parameters, on fixed quasi-random normal draws."""
    uniform = qmc.Sobol(target.dim, seed=0).random(8192)
    base = jnp.asarray(stats.norm.ppf(np.clip(uniform, 1e-9, 1 - 1e-9)))
    flat, back = ravel_pytree(params)

    def loss(flat):
        guide = family.distribution(back(flat))
        draws = guide.loc + base @ guide.scale_tril.T
        return -jnp.mean(jax.vmap(target.log_density)(draws) - guide.log_prob(draws))

    step = jax.jit(jax.value_and_grad(loss))
    found = optimize.minimize(
        lambda x: tuple(map(np.asarray, step(x))), flat, jac=True, method="L-BFGS-B"
    )
    return family.distribution(back(jnp.asarray(found.x)))


def gaps(target, family, exact, fits):
    """ELBO* − ELBO of each fit, in nats."""
    if exact is not None:
        return [float(dist.kl_divergence(fit.guide, exact)) for fit in fits]
    values = [elbo(target, fit.guide) for fit in fits]
    best = elbo(target, best_guide(target, family, fits[int(np.argmax(values))].params))
    return [best - value for value in values]


def main(seeds: int = 20, optimizer: str | None = None) -> None:
    """Print the table."""
    jax.config.update("jax_enable_x64", True)
    table = Table("target", "false stops", "out of steps", "median gap", "largest", "median steps")
    total = 0
    for make in PANEL:
        target, exact = make()
        family = guides.family("full_rank")
        keys = map(jax.random.key, range(seeds))
        fits = [
            fitting.fit("reverse_kl", target, family, key, optimizer=optimizer) for key in keys
        ]
        gap = np.array(gaps(target, family, exact, fits))
        converged = np.array([fit.status == "converged" for fit in fits])
        false = int((converged & ~(gap <= GAP)).sum())
        total += false
        table.add_row(
            target.name,
            f"{false} of {seeds}",
            str(int((~converged).sum())),
            f"{np.median(gap):.4f}",
            f"{gap.max():.4f}",
            f"{np.median([fit.steps for fit in fits]):,.0f}",
        )
        print(target.name, false, file=sys.stderr)
    Console(width=100).print(table)
    print(f"{total} false stops in {seeds * len(PANEL)} fits")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
