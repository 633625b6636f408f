"""How long this project and its peers take to the same optimum, side by side.

    uv run python benchmarks/race.py [MODELS...] [--rounds K] [--seconds S] [--cache DIR] [--table]

*Reverse KL*, a full-rank Gaussian from the same start for all, NumPyro's own (uniform in
(−2, 2)^d): time and gradients until the gap to the best known ELBO is below 0.01 nats and stays
there. One evaluation judges all of them, on the same whitened quasi-random draws that nobody was
fitted to.

- *natural*: this project's natural gradients from that one start. They stop by themselves, and
  all of their time counts.
- *vi_demo*: the same as `vi-demo run` does it, from climbs and a search for further modes, all of
  it counted.
- *SVI in a loop*: NumPyro's `SVI.update` in one compiled loop, the best of Adam 0.1, 0.01, 0.001
  times 1 and 8 particles, and only as many steps as hindsight says.
- *SVI.run*: the same steps, called as users call it.
- *BlackJAX*: `fullrank_vi`, 10 draws, sticking the landing, in one compiled loop, the best of the
  same rates, steps by hindsight; *Pathfinder*: multi-path, 8 paths, the Gaussian of its resampled
  draws' moments.

*Forward KL*, to KL(q*‖q) < 0.05 where q* has the target's moments: this project's moment matching
for that error, all of it counted; *NUTS*: NumPyro's, 4 chains in one program, 500 of warm-up, as
many draws as hindsight says; *tempered SMC*: BlackJAX's; *SNIS*: Adam on self-normalised
importance weights of the guide's draws, the best of three rates.

Each model is raced in a process of its own on 64-bit floats. Cold is a run after
`jax.clear_caches()`, with no cache on disk and imports left out; warm is one whose programs there
are, but none of the results. Rounds alternate between the racers, and times are medians of them.
A racer that has not arrived within `--seconds` is "not reached", and its ratio a lower bound.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from rich.console import Console
from rich.table import Table
from scipy import stats

from vi_demo import Target, guides, loading
from vi_demo.fitting import moment_matching, natural_gradient
from vi_demo.fitting.objectives import normal_noise

GAP, FORWARD_GAP = 0.01, 0.05  # nats
RATES, PARTICLES = (0.1, 0.01, 0.001), (1, 8)
MARKS = 60  # along the way where the gap is looked at
MOST_STEPS = 40_000
LOOKS = 2**25  # rows times draws that the gap is measured by, at most
FULL = guides.family("full_rank")
STARTED = "climbs", "evaluations"  # what of a target is a result, and no program


def bimodal():
    """Two equal modes."""
    return bundled("bimodal")


def banana():
    """A bent ridge."""
    return bundled("banana")


def eight_schools():
    """A hierarchy, centred: its best Gaussian is a poor one."""
    return bundled("eight_schools")


def eight_schools_noncentred():
    """The same hierarchy, non-centred."""
    return bundled("eight_schools_noncentred")


def bundled(name):
    """One of the models that come with the project."""
    loaded = loading.load(name)
    return loaded.model, loaded.data or {}


def logistic(rows, columns):
    """A logistic regression on correlated columns."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, columns)) + 0.5 * rng.normal(size=(rows, 1))
    x[:, 0] = 1.0
    beta = rng.normal(size=columns) / np.sqrt(columns)
    y = rng.random(rows) < 1 / (1 + np.exp(-x @ beta))

    def model(x, y=None):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    return model, {"x": x, "y": y.astype(float)}


def gaussian_100():
    """Condition number 1e4, in no particular direction."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(100, 100)))[0]
    factor = turn * np.sqrt(np.logspace(0, -4, 100))

    def model():
        numpyro.sample("x", dist.MultivariateNormal(jnp.ones(100), scale_tril=tril))

    tril = np.linalg.cholesky(factor @ factor.T)
    return model, {}


def poisson_200():
    """A hierarchy of 198 counts."""
    rng = np.random.default_rng(0)
    y = rng.poisson(np.exp(2 + 0.5 * rng.normal(size=198)))

    def model(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfNormal(1))
        with numpyro.plate("group", 198):
            effect = numpyro.sample("effect", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Poisson(jnp.exp(effect)), obs=y)

    return model, {"y": y}


def process_50():
    """Counts of a log-Gaussian process at 50 places, whitened."""
    rng, x = np.random.default_rng(0), np.linspace(0, 1, 50)
    kernel = np.exp(-0.5 * (x[:, None] - x) ** 2 / 0.1**2) + 1e-6 * np.eye(50)
    tril = np.linalg.cholesky(kernel)
    y = rng.poisson(np.exp(1 + tril @ rng.normal(size=50)))

    def model(y=None):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([50]).to_event(1))
        numpyro.sample("y", dist.Poisson(jnp.exp(1 + tril @ z)).to_event(1), obs=y)

    return model, {"y": y}


MODELS = {
    "bimodal": bimodal,
    "eight_schools": eight_schools,
    "eight_schools_noncentred": eight_schools_noncentred,
    "logistic_26": partial(logistic, 1_000, 26),
    "logistic_100": partial(logistic, 100_000, 100),
    "gaussian_100": gaussian_100,
    "poisson_200": poisson_200,
    "banana": banana,
    "process_50": process_50,
}
# Of the others q* has too many moments for any draws to know it to 0.05 nats in minutes, or NUTS
# does not find it: the neck of centred eight schools.
FORWARD = "bimodal", "eight_schools_noncentred", "logistic_26", "banana", "process_50"


class Problem:
    """A model, its flat density, and the evaluation of a gap that all are judged by."""

    def __init__(self, name, seed=0):
        self.model, self.data = MODELS[name]()
        self.target = Target.from_numpyro(self.model, self.data, name=name)
        self.dim, self.density = self.target.dim, self.target.log_density
        # NumPyro's guides have sites in the order of their names.
        self.order = np.asarray(
            ravel_pytree(self.target.unravel(jnp.arange(self.dim, dtype=float)))[0], dtype=int
        )
        number = int(np.clip(LOOKS // max(self.target.all_rows, 1), 256, 8192))
        self.noise = normal_noise(jax.random.key(7), number, self.dim)
        self.start = jax.random.uniform(jax.random.key(seed), (self.dim,), minval=-2, maxval=2)
        self.gradients = 0

    def elbo(self, mean, factor):
        """The ELBO of N(mean, factor factorᵀ), triangular, up to a constant."""
        if not (np.isfinite(mean).all() and np.isfinite(factor).all()):
            return -np.inf
        heights = self.target.log_densities(mean + self.noise @ factor.T)
        return float(heights.mean() + np.log(np.abs(np.diag(factor))).sum())

    def own(self, mean, factor):
        """A Gaussian in NumPyro's order as one in the target's; its factor stays a root."""
        back = np.argsort(self.order)
        covariance = (factor @ factor.T)[np.ix_(back, back)]
        return mean[back], np.linalg.cholesky(covariance)


def moments_of(guide):
    """Mean and triangular factor of a fitted guide."""
    return np.asarray(guide.loc), np.asarray(guide.scale_tril)


def by_natural(problem, seed, forget=True, **options):
    """This project's fit; what it was begun at is made again."""
    if forget:
        for name in STARTED:
            problem.target.programs.pop(name, None)
    return natural_gradient.fit(problem.target, FULL, jax.random.key(seed), **options)


def looped(step, state):
    """(state, first, last) -> state after steps, in one compiled loop."""
    return jax.jit(lambda s, first, last: jax.lax.fori_loop(first, last, step, s))


def numpyro_racer(problem, rate, particles):
    """NumPyro's SVI: the loop, its first state, how to read it, and gradients a step."""
    guide = AutoMultivariateNormal(problem.model)
    svi = SVI(problem.model, guide, numpyro.optim.Adam(rate), Trace_ELBO(particles))
    state = svi.init(jax.random.key(0), **problem.data)

    def read(state):
        params = svi.get_params(state)
        mean, factor = params["auto_loc"], params["auto_scale_tril"]
        return problem.own(np.asarray(mean), np.asarray(factor))

    step = lambda i, s: svi.update(s, **problem.data)[0]  # noqa: E731
    return looped(step, state), state, read, particles, svi


def blackjax_racer(problem, rate, number=10):
    """BlackJAX's full-rank VI likewise."""
    vi = blackjax.fullrank_vi(problem.density, optax.adam(rate), number)
    state = vi.init(problem.start)
    state = state._replace(mu=problem.start)

    def read(state):
        d = problem.dim
        factor = np.zeros((d, d))
        factor[np.tril_indices(d, -1)] = np.asarray(state.chol_params)[d:]
        return np.asarray(state.mu), factor + np.diag(np.exp(np.asarray(state.chol_params)[:d]))

    key = jax.random.key(0)
    step = lambda i, s: vi.step(jax.random.fold_in(key, i), s)[0]  # noqa: E731
    return looped(step, state), state, read, number, vi


def marks_of(seconds, each):
    """Steps after which the gap is looked at: evenly in their logarithm."""
    last = int(np.clip(seconds / each, 100, MOST_STEPS))
    return np.unique(np.geomspace(10, last, MARKS).astype(int))


def way_of(racer, seconds):
    """Means and factors along a racer's way, the marks they are of, and seconds a step."""
    go, state, read, *_ = racer
    go(state, 0, 2)
    began = time.perf_counter()
    jax.block_until_ready(go(state, 0, 50))
    each = (time.perf_counter() - began) / 50
    marks, ways, done = marks_of(seconds, each), [], 0
    for mark in marks:
        state = go(state, done, mark)
        done = mark
        ways.append(read(state))
    return marks, ways, each


def arrival(marks, gaps, gap=GAP):
    """The first mark from which on every gap is below, or None."""
    far = np.flatnonzero(~(np.asarray(gaps) < gap))
    if not len(far):
        return int(marks[0])
    return int(marks[far[-1] + 1]) if far[-1] + 1 < len(marks) else None


def timed(fn):
    """Seconds of a call, and what it returns."""
    began = time.perf_counter()
    found = jax.block_until_ready(fn())
    return time.perf_counter() - began, found


def pathfinder(problem, seed):
    """Multi-path Pathfinder, and the Gaussian that has its resampled draws' moments."""
    key = jax.random.key(seed)
    begin = jax.random.uniform(key, (8, problem.dim), minval=-2, maxval=2)
    found, _ = problem.pathfinder(key, begin)
    weights, _ = blackjax.vi.multipathfinder.psis_weights(found)
    log_weights = np.asarray(weights).ravel()
    points = np.asarray(found.samples).reshape(-1, problem.dim)
    w = np.exp(log_weights - log_weights.max())
    w /= w.sum()
    mean = w @ points
    covariance = (points - mean).T @ (w[:, None] * (points - mean))
    try:
        return mean, np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return mean, np.full_like(covariance, np.nan)


def race_reverse(problem, rounds, seconds):
    """Rows of all racers under reverse KL."""
    elbos, ways = {}, {}
    racers = {
        "SVI in a loop": {
            f"Adam {r:g}, {n} particles": partial(numpyro_racer, problem, r, n)
            for r in RATES
            for n in PARTICLES
        },
        "BlackJAX": {f"Adam {r:g}": partial(blackjax_racer, problem, r) for r in RATES},
    }
    for racer, settings in racers.items():
        for setting, make in settings.items():
            marks, way, each = way_of(make(), seconds)
            ways[racer, setting] = marks, each
            elbos[racer, setting] = [problem.elbo(*at) for at in way]
    fits = [by_natural(problem, s, begin=problem.start[None]) for s in range(rounds)]
    wholes = [by_natural(problem, s) for s in range(rounds)]
    ends = {
        "natural": [problem.elbo(*moments_of(f.guide)) for f in fits],
        "vi_demo": [problem.elbo(*moments_of(f.guide)) for f in wholes],
    }
    problem.pathfinder = jax.jit(
        lambda key, at: blackjax.vi.multipathfinder.multi_approximate(key, problem.density, at)
    )
    ends["Pathfinder"] = [problem.elbo(*pathfinder(problem, s)) for s in range(rounds)]
    best = max(max(map(max, elbos.values())), *map(max, ends.values()))
    rows = {}
    for racer, settings in racers.items():
        known = []
        for setting in settings:
            marks, each = ways[racer, setting]
            gaps = best - np.array(elbos[racer, setting])
            known.append((setting, arrival(marks, gaps), each, int(marks[-1]), gaps, marks))
        known.sort(key=lambda k: (k[1] is None, (k[1] or k[3]) * k[2]))
        setting, steps, each, last, gaps, marks = known[0]
        if steps is None:  # the nearest of them
            known.sort(key=lambda k: k[4][-1])
            setting, steps, each, last, gaps, marks = known[0]
            last = max(k[3] for k in known)
        rows[racer] = {
            "setting": setting,
            "reached": steps is not None,
            "steps": steps or last,
            "gap": float(gaps[-1]),
            "curve": [(m * each, float(g)) for m, g in zip(marks, gaps, strict=True)],
        }
    for racer, found in ends.items():
        gaps = best - np.array(found)
        rows[racer] = {"reached": bool((gaps < GAP).mean() > 0.5), "gap": float(np.median(gaps))}
        rows[racer]["seeds"] = [float(g) for g in gaps]
    # A path's draws are of one seed: its gaps are those of the guide after each step.
    history = fits[0].history
    path = [
        best - problem.elbo(*moments_of(FULL.distribution(params)))
        for params in ({k: v[i] for k, v in history.items() if k != "elbo"} for i in
                       range(len(history.get("loc", ()))))
    ]  # fmt: skip
    first = arrival(range(1, len(path) + 1), path)
    rows["natural"] |= {
        "gradients": int(np.median([f.evaluations["gradient"] for f in fits])),
        "steps": int(np.median([f.steps for f in fits])),
        "stops later": None if first is None else len(path) / first,
        "path": [float(g) for g in path],
    }
    rows["vi_demo"]["gradients"] = int(np.median([f.evaluations["gradient"] for f in wholes]))
    for racer in racers:
        each = racers[racer][rows[racer]["setting"]]
        rows[racer]["gradients"] = rows[racer]["steps"] * each()[3]
    clock_reverse(problem, rows, racers, rounds)
    return rows


def clock_reverse(problem, rows, racers, rounds):
    """Cold and warm seconds of all, in turns."""

    def of_loop(racer):
        make, steps = racers[racer][rows[racer]["setting"]], rows[racer]["steps"]
        go, state, *_ = made = make()
        return lambda: go(state, 0, steps), made

    def as_users_call():
        _, _, _, _, svi = racers["SVI in a loop"][rows["SVI in a loop"]["setting"]]()
        key, steps = jax.random.key(0), rows["SVI in a loop"]["steps"]
        return svi.run(key, steps, progress_bar=False, **problem.data).params

    calls = {
        "natural": lambda: by_natural(problem, 0, begin=problem.start[None]).params,
        "vi_demo": lambda: by_natural(problem, 0).params,
        "SVI in a loop": lambda: of_loop("SVI in a loop")[0](),
        "BlackJAX": lambda: of_loop("BlackJAX")[0](),
        "SVI.run": as_users_call,
        "Pathfinder": lambda: pathfinder(problem, 0),
    }
    rows["SVI.run"] = {k: v for k, v in rows["SVI in a loop"].items() if k != "curve"}
    cold = {racer: [] for racer in calls}
    warm = {racer: [] for racer in calls}
    for _ in range(2):
        for racer, call in calls.items():
            jax.clear_caches()
            problem.target.programs.clear()
            cold[racer].append(timed(call)[0])
    made = {racer: of_loop(racer)[0] for racer in ("SVI in a loop", "BlackJAX")}
    calls |= made
    for call in calls.values():
        timed(call)
    for _ in range(rounds):
        for racer, call in calls.items():
            warm[racer].append(timed(call)[0])
    for racer, row in rows.items():
        row |= {"cold": min(cold[racer]), "warm": float(np.median(warm[racer]))}
    # Sixty-four starts against one, from dispersed points.
    at = jax.random.uniform(jax.random.key(5), (64, problem.dim), minval=-2, maxval=2)
    many = lambda: by_natural(problem, 0, begin=at).params  # noqa: E731
    timed(many)
    both = [(timed(many)[0], timed(calls["natural"])[0]) for _ in range(rounds)]
    rows["natural"]["64 starts"] = float(np.median([a / b for a, b in both]))


def forward_gap(truth, mean, covariance):
    """KL(q*‖q) of Gaussians."""
    d = len(mean)
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
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


def truth_of(name, problem):
    """The moments of the target: exact, or of two million weighted draws."""
    if name == "bimodal":
        return np.zeros(2), np.diag([17.0, 1.0])
    runs = [
        moment_matching.fit(problem.target, FULL, jax.random.key(100 + s), tolerance=2e-3)
        for s in range(4)
    ]
    each = [moments_of(run.guide) for run in runs]
    mean = np.mean([m for m, _ in each], 0)
    second = np.mean([f @ f.T + np.outer(m, m) for m, f in each], 0)
    return mean, second - np.outer(mean, mean)


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


def snis_racer(problem, rate, number=1000):
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
    return looped(step, state), state, read


def race_forward(name, problem, rounds, seconds):
    """Rows of all racers under forward KL."""
    truth = truth_of(name, problem)

    def gap_of(mean, factor):
        return forward_gap(truth, mean, factor @ factor.T)

    def own(seed):
        for state in STARTED:
            problem.target.programs.pop(state, None)
        return moment_matching.fit(
            problem.target, FULL, jax.random.key(seed), tolerance=FORWARD_GAP
        )

    nuts, smc = Nuts(problem), tempered_smc(problem)
    rows = {"vi_demo": {}, "NUTS": {}, "tempered SMC": {}, "SNIS": {}}
    gaps = [gap_of(*moments_of(own(s).guide)) for s in range(rounds)]
    rows["vi_demo"] |= {"gap": float(np.median(gaps)), "seeds": [float(g) for g in gaps]}
    calls, gap = nuts.run(truth, 0, seconds)
    rows["NUTS"] |= {"gap": gap, "setting": f"4 × {500 * calls} draws"}
    gaps = [
        forward_gap(truth, *moments(np.asarray(smc(jax.random.key(s))))) for s in range(rounds)
    ]
    rows["tempered SMC"] |= {"gap": float(np.nanmedian(gaps)), "setting": "4,096 particles"}
    best = None
    for rate in RATES:
        marks, way, each = way_of(snis_racer(problem, rate), seconds / 3)
        ends = [gap_of(*at) for at in way]
        steps = arrival(marks, ends, FORWARD_GAP)
        known = steps is None, (steps or marks[-1]) * each, rate, steps or int(marks[-1]), ends[-1]
        best = known if best is None else min(best, known)
    rows["SNIS"] |= {"gap": best[4], "setting": f"Adam {best[2]:g}, {best[3]:,} steps"}
    go, state, _ = snis_racer(problem, best[2])
    run = {
        "vi_demo": lambda: own(0).params,
        "NUTS": lambda: nuts.run(truth, 0, seconds, calls) and None,
        "tempered SMC": lambda: smc(jax.random.key(0)),
        "SNIS": lambda: go(state, 0, best[3]),
    }
    warm = {racer: [] for racer in run}
    for i in range(1 + rounds):
        for racer, call in run.items():
            spent = timed(call)[0]
            if i:
                warm[racer].append(spent)
    for racer, row in rows.items():
        row["reached"] = bool(row["gap"] < FORWARD_GAP)
        row["warm"] = float(np.median(warm[racer]))
    return rows


def row_of(name, rounds, seconds):
    """All there is to say of one model."""
    problem = Problem(name)
    row = {"dim": problem.dim, "reverse": race_reverse(problem, rounds, seconds)}
    if name in FORWARD:
        row["forward"] = race_forward(name, problem, rounds, seconds)
    return row


def ratio_of(rows, peer, own, measure):
    """How many times as much a peer needs as we do, or None."""
    if peer not in rows or measure not in rows[peer] or not rows[own].get("reached"):
        return None
    return rows[peer][measure] / rows[own][measure]


def table_of(rows, direction, own, racers, measure, title):
    """Figures of every racer on every model, and the geometric mean of their ratios to ours."""
    table = Table(title=title)
    table.add_column("model")
    for racer in (own, *racers):
        table.add_column(racer, justify="right")
    ratios = {racer: [] for racer in racers}
    for name, row in rows.items():
        if direction not in row:
            continue
        cells = [name]
        for racer in (own, *racers):
            each = row[direction].get(racer, {})
            value = each.get(measure)
            text = "–" if value is None else f"{value:,.4g}"
            if value is not None and not each["reached"]:
                text = f"> {text}" if racer not in ("Pathfinder", own) else f"({text})"
            cells.append(text)
            if racer != own:
                ratio = ratio_of(row[direction], racer, own, measure)
                if ratio is not None:
                    ratios[racer].append(ratio)
        table.add_row(*cells)
    means = [f"{stats.gmean(r):.3g}×" if r else "–" for r in ratios.values()]
    if measure != "gap":
        table.add_row("geometric mean of ratios", "1×", *means)
    return table


def show(rows):
    """All tables."""
    console = Console(width=140)
    peers = "SVI in a loop", "SVI.run", "BlackJAX", "Pathfinder", "vi_demo"
    for measure, title in (
        ("warm", "reverse KL: warm seconds"),
        ("cold", "reverse KL: cold seconds"),
        ("gradients", "reverse KL: gradients"),
        ("gap", "reverse KL: gap at the end, nats"),
    ):
        console.print(table_of(rows, "reverse", "natural", peers, measure, title))
    for measure in ("warm", "gap"):
        racers = "NUTS", "tempered SMC", "SNIS"
        title = f"forward KL: {measure}"
        console.print(table_of(rows, "forward", "vi_demo", racers, measure, title))
    table = Table("model", "64 starts, times one", "stops later, times", "settings of SVI")
    for name, row in rows.items():
        own = row["reverse"]["natural"]
        later = own.get("stops later")
        table.add_row(
            name,
            f"{own['64 starts']:.2f}",
            "–" if later is None else f"{later:.2f}",
            f"{row['reverse']['SVI in a loop']['setting']}, "
            f"{row['reverse']['SVI in a loop']['steps']:,} steps",
        )
    console.print(table)


def figure(rows, path):
    """Curves of gap against time."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(3, 3, figsize=(10, 8), layout="constrained", sharey=True)
    for ax, (name, row) in zip(axes.ravel(), rows.items(), strict=False):
        for racer, style in (("SVI in a loop", "C1-"), ("BlackJAX", "C2--")):
            curve = np.array(row["reverse"][racer]["curve"])
            ax.plot(curve[:, 0], np.maximum(curve[:, 1], 1e-5), style, label=racer)
        own = row["reverse"]["natural"]
        if own["path"]:
            at = own["warm"] * np.arange(1, len(own["path"]) + 1) / len(own["path"])
            ax.plot(at, np.maximum(own["path"], 1e-5), "C0-", label="natural")
        ax.axhline(GAP, color="grey", linewidth=0.8)
        ax.set(xscale="log", yscale="log", title=f"{name}, d = {row['dim']}")
        ax.set(xlabel="seconds, warm", ylabel="gap, nats")
    axes[0, 0].legend(frameon=False)
    fig.savefig(path, dpi=150)


def main():
    """Race, or print what was raced."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODELS", help="all unless some are named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="that a racer may take")
    parser.add_argument("--cache", type=Path, default=Path("race"), help="a folder for the rows")
    parser.add_argument("--table", action="store_true", help="only print the rows in the cache")
    parser.add_argument("--one", action="store_true", help="race these here, in this process")
    given = parser.parse_args()
    names = given.models or list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"no model named {', '.join(unknown)}; there are {', '.join(MODELS)}")
    given.cache.mkdir(parents=True, exist_ok=True)
    if given.one:
        jax.config.update("jax_enable_x64", True)
        for name in names:
            row = row_of(name, given.rounds, given.seconds)
            (given.cache / f"{name}.json").write_text(json.dumps(row))
        return
    if not given.table:
        settings = "--rounds", str(given.rounds), "--seconds", str(given.seconds)
        settings += "--cache", str(given.cache), "--one"
        for name in names:
            subprocess.run([sys.executable, __file__, name, *settings], check=True)
            print(name, "done", flush=True)
    files = {name: given.cache / f"{name}.json" for name in MODELS}
    rows = {name: json.loads(f.read_text()) for name, f in files.items() if f.is_file()}
    show(rows)
    figure(rows, given.cache / "race.png")


if __name__ == "__main__":
    main()
