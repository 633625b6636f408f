"""The peers: each a loop of steps, or a call, on a problem of `race_models`."""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from race_models import PYMC, root_of

from vi_demo import guides

FORWARD_GAP = 0.05  # nats
FULL = guides.family("full_rank")


def moments_of(guide):
    """Mean and triangular factor of a fitted guide."""
    return np.asarray(guide.loc), np.asarray(guide.scale_tril)


class Loop(NamedTuple):
    """A racer that takes steps: `go(state, first, last)` those of a loop, from a first state;
    `read` the mean and the triangular factor of a state, `gradients` those of a step.
    """

    go: Callable
    state: Any
    read: Callable
    gradients: int
    svi: SVI | None = None


def compiled(step):
    """(state, first, last) -> state after steps, in one compiled loop."""
    return jax.jit(lambda state, first, last: jax.lax.fori_loop(first, last, step, state))


def svi(problem, rate, particles):
    """NumPyro's SVI with its own guide."""
    guide = AutoMultivariateNormal(problem.model)
    svi = SVI(problem.model, guide, numpyro.optim.Adam(rate), Trace_ELBO(particles))
    state = svi.init(jax.random.key(0), **problem.data)

    def read(state):
        params = svi.get_params(state)
        mean, factor = params["auto_loc"], params["auto_scale_tril"]
        return problem.own(np.asarray(mean), np.asarray(factor))

    step = lambda i, s: svi.update(s, **problem.data)[0]  # noqa: E731
    return Loop(compiled(step), state, read, particles, svi)


def full_rank_vi(problem, rate, number=10):
    """BlackJAX's full-rank VI, sticking the landing."""
    vi = blackjax.fullrank_vi(problem.density, optax.adam(rate), number)
    state = vi.init(problem.start)._replace(mu=problem.start)

    def read(state):
        d, numbers = problem.dim, np.asarray(state.chol_params)
        factor = np.zeros((d, d))
        factor[np.tril_indices(d, -1)] = numbers[d:]
        return np.asarray(state.mu), factor + np.diag(np.exp(numbers[:d]))

    key = jax.random.key(0)
    step = lambda i, s: vi.step(jax.random.fold_in(key, i), s)[0]  # noqa: E731
    return Loop(compiled(step), state, read, number)


def advi(problem, rate):
    """PyMC's full-rank ADVI, on its own model with sites in the target's order."""
    import pymc

    logging.getLogger("pymc").setLevel(logging.ERROR)
    with PYMC[problem.name](problem.data):
        inference = pymc.FullRankADVI(random_seed=0, start={})
        inference.fit(1, progressbar=False, obj_optimizer=pymc.adam(learning_rate=rate))

    lost = []

    def go(state, first, last):
        try:
            inference.refine(int(last - first), progressbar=False)
        except FloatingPointError:  # it stops at the first NaN
            lost.append(last)
        return state

    def read(_):
        if lost:
            return np.full(problem.dim, np.nan), np.full((problem.dim, problem.dim), np.nan)
        return inference.approx.mean.eval(), root_of(inference.approx.cov.eval())

    return Loop(go, jnp.zeros(()), read, 1)


def pathfinder(problem, seed):
    """Multi-path Pathfinder, and the Gaussian that has its resampled draws' moments."""
    key = jax.random.key(seed)
    begin = jax.random.uniform(key, (8, problem.dim), minval=-2, maxval=2)
    try:
        found, _ = problem.pathfinder(key, begin)
        weights, _ = blackjax.vi.multipathfinder.psis_weights(found)
        log_weights = np.asarray(weights).ravel()
    except jax.errors.JaxRuntimeError:  # out of memory: all draws see all rows at once
        return np.full(problem.dim, np.nan), np.full((problem.dim, problem.dim), np.nan)
    points = np.asarray(found.samples).reshape(-1, problem.dim)
    w = np.exp(log_weights - log_weights.max())
    w /= w.sum()
    mean = w @ points
    covariance = (points - mean).T @ (w[:, None] * (points - mean))
    return mean, root_of(covariance)


def forward_gap(truth, mean, covariance):
    """KL(q*‖q) of Gaussians."""
    d = len(mean)
    factor = root_of(covariance)
    if not np.isfinite(factor).all():
        return np.inf
    a = np.linalg.solve(factor, np.linalg.cholesky(truth[1]))
    b = np.linalg.solve(factor, truth[0] - mean)
    return 0.5 * float((a**2).sum() + b @ b - d) - float(np.linalg.slogdet(a)[1])


def moments(points):
    """Mean and covariance of draws."""
    return points.mean(0), np.atleast_2d(np.cov(points, rowvar=False))


class Nuts:
    """NumPyro's NUTS on the flat density, 4 chains in one program, 500 draws a call."""

    def __init__(self, problem):
        potential = lambda z: -problem.density(z)  # noqa: E731
        self.mcmc = MCMC(
            NUTS(potential_fn=potential),
            num_warmup=500,
            num_samples=500,
            num_chains=4,
            chain_method="vectorized",
            progress_bar=False,
        )
        self.problem = problem

    def run(self, truth, seed, seconds, most=None):
        """Calls until the moments of all draws are near; their number, and the gap."""
        key = jax.random.key(seed)
        begin = jax.random.uniform(key, (4, self.problem.dim), minval=-2, maxval=2)
        began, points, calls = time.perf_counter(), [], 0
        while True:
            self.mcmc.run(jax.random.fold_in(key, calls), init_params=begin)
            points.append(np.asarray(self.mcmc.get_samples()))
            self.mcmc.post_warmup_state = self.mcmc.last_state
            calls += 1
            gap = forward_gap(truth, *moments(np.concatenate(points)))
            late = time.perf_counter() - began > seconds
            if (most is None and (gap < FORWARD_GAP or late)) or calls == most:
                self.mcmc._warmup_state = None
                self.mcmc.post_warmup_state = None
                return calls, gap


def tempered_smc(problem, particles=4096):
    """BlackJAX's adaptive tempered SMC from N(0, 2²), HMC moves with the particles' own scale."""
    logprior = lambda z: dist.Normal(0, 2).log_prob(z).sum()  # noqa: E731
    loglikelihood = lambda z: problem.density(z) - logprior(z)  # noqa: E731

    @jax.jit
    def go(key):
        first, key = jax.random.split(key)
        begin = 2 * jax.random.normal(first, (particles, problem.dim))
        parameters = {
            "step_size": jnp.array([0.5]),
            "num_integration_steps": jnp.array([5]),
        }

        def advance(carry):
            key, state, scale = carry
            now, key = jax.random.split(key)
            smc = blackjax.adaptive_tempered_smc(
                logprior,
                loglikelihood,
                blackjax.hmc.build_kernel(),
                blackjax.hmc.init,
                parameters | {"inverse_mass_matrix": scale[None]},
                blackjax.smc.resampling.systematic,
                0.6,
                num_mcmc_steps=4,
            )
            state, _ = smc.step(now, state)
            return key, state, state.particles.var(0)

        state = blackjax.smc.tempered.init(begin)
        return jax.lax.while_loop(
            lambda c: c[1].tempering_param < 1, advance, (key, state, begin.var(0))
        )[1].particles

    return go


def snis(problem, rate, number=1000):
    """Adam on E_p[−log q] by self-normalised weights of q's own draws."""
    optimizer = optax.adam(rate)
    begin = FULL.init(problem.start, 1.0)
    key = jax.random.key(0)

    def loss(params, points, weights):
        return -weights @ FULL.distribution(params).log_prob(points)

    def step(i, carry):
        params, state = carry
        noise = jax.random.normal(jax.random.fold_in(key, i), (number, problem.dim))
        points = jax.lax.stop_gradient(FULL.draw(params, noise)[0])
        log_q = FULL.distribution(params).log_prob(points)
        weights = jax.nn.softmax(jax.vmap(problem.density)(points) - log_q)
        slope = jax.grad(loss)(params, points, jax.lax.stop_gradient(weights))
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state

    def read(carry):
        return moments_of(FULL.distribution(carry[0]))

    state = begin, optimizer.init(begin)
    return Loop(compiled(step), state, read, number)
