"""The explorer's mathematics, run by node, against SciPy's adaptive quadrature and minimisers."""

import itertools
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, optimize, special

import vi_demo

MODULE = Path(vi_demo.__file__).parent / "pictures" / "explorer.js"
COPIED = MODULE  # each test has a copy
NAMES = "forward_kl", "reverse_kl", "jensen_shannon", "total_variation"
RELATIVE = 1e-4
FLOOR = 1e-6 * RELATIVE  # of what is below 1e-6 nobody reads four digits
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """The module under a name that every node takes for one."""
    copied = tmp_path / "explorer.mjs"
    copied.write_text(MODULE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setitem(globals(), "COPIED", copied)


def in_node(code, given):
    """What an expression of the module's exports and `given` is, in node."""
    node = shutil.which("node")
    if node is None:
        tell = pytest.fail if os.environ.get("CI") else pytest.skip
        tell("no node on PATH")
    script = (
        f"import * as m from {json.dumps(COPIED.as_uri())};"
        "let text = ''; for await (const part of process.stdin) text += part;"
        f"const given = JSON.parse(text); const answer = {code};"
        "process.stdout.write(JSON.stringify(answer));"
    )
    command = [node, "--no-warnings", "--input-type=module", "-e", script]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def states(number, seed=0):
    """Targets and guides of every sort: narrow, wide, far, overlapping, disjoint, lopsided."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(number):
        modes = int(rng.integers(1, 6))
        spread = rng.choice([0.3, 3.0, 12.0, 40.0], p=[0.25, 0.5, 0.2, 0.05])
        width = float(np.exp(rng.uniform(np.log(0.02 if i % 5 == 0 else 0.2), np.log(3.0))))
        means = spread * (np.arange(modes) - (modes - 1) / 2) + rng.normal(0, 0.2, modes)
        weights = rng.uniform(0.001, 1.0) ** np.arange(modes)
        if i % 7 == 0:
            weights = np.exp(rng.uniform(-30, 0, modes))
        reach = abs(means).max() + 2 * width
        sigma = float(np.exp(rng.uniform(np.log(0.02), np.log(3 * reach))))
        mu = float(rng.normal(0, 0.6 * reach))
        kind = i % 4
        if kind == 0:  # like one of the modes
            k = int(rng.integers(modes))
            mu, sigma = float(means[k] + 0.1 * width * rng.normal()), width * rng.uniform(0.9, 1.1)
        elif kind == 1 and i % 8 == 1:  # far away
            mu = float(np.sign(mu) * (reach + rng.uniform(0, 30)))
        found.append(
            {
                "means": means.tolist(),
                "weights": weights.tolist(),
                "width": width,
                "mu": mu,
                "sigma": sigma,
            }
        )
    return found


def logs(state):
    """Log p and log q of a state, at one point."""
    means, width = state["means"], state["width"]
    weights = np.log(state["weights"]) - special.logsumexp(np.log(state["weights"]))
    heights = (weights - math.log(width) - HALF_LOG_2PI).tolist()
    mu, sigma = state["mu"], state["sigma"]
    low = -math.log(sigma) - HALF_LOG_2PI

    def log_p(x):
        terms = [h - 0.5 * ((x - m) / width) ** 2 for h, m in zip(heights, means, strict=True)]
        top = max(terms)
        return top + math.log(sum(math.exp(t - top) for t in terms))

    return log_p, lambda x: low - 0.5 * ((x - mu) / sigma) ** 2


def log_mean(a, b):
    return max(a, b) + math.log1p(math.exp(-abs(a - b))) - math.log(2)


def measured(state):
    """All four, by SciPy's adaptive quadrature between points around every mode and crossing."""
    log_p, log_q = logs(state)
    p_spots = [m + s * state["width"] for m in state["means"] for s in (-12, -6, -3, 0, 3, 6, 12)]
    q_spots = [state["mu"] + s * state["sigma"] for s in (-12, -8, -5, -3, -1, 0, 1, 3, 5, 8, 12)]
    spots = np.unique(p_spots + q_spots)
    grid = np.unique(np.concatenate([np.linspace(a, b, 40) for a, b in itertools.pairwise(spots)]))
    r = [log_p(x) - log_q(x) for x in grid]
    roots = [
        optimize.brentq(lambda x: log_p(x) - log_q(x), a, b)
        for a, b, s, t in zip(grid, grid[1:], r, r[1:], strict=False)
        if s * t < 0
    ]

    def integral(fn, cuts):
        cuts = sorted(cuts)
        value = 0.0
        for a, b in itertools.pairwise(cuts):
            value += integrate.quad(fn, a, b, epsabs=1e-13, epsrel=1e-9, limit=200)[0]
        return value

    def forward(x):
        a = log_p(x)
        return math.exp(a) * (a - log_q(x))

    def reverse(x):
        b = log_q(x)
        return math.exp(b) * (b - log_p(x))

    def jensen_shannon(x):
        a, b = log_p(x), log_q(x)
        m = log_mean(a, b)
        return 0.5 * (math.exp(a) * (a - m) + math.exp(b) * (b - m))

    def total_variation(x):
        return 0.5 * abs(math.exp(log_p(x)) - math.exp(log_q(x)))

    inside = [x for x in p_spots if abs(x - state["mu"]) < 12 * state["sigma"]]
    return {
        "forward_kl": integral(forward, set(p_spots)),
        "reverse_kl": integral(reverse, {*q_spots, *inside}),
        "jensen_shannon": integral(jensen_shannon, {*spots, *roots}),
        "total_variation": integral(total_variation, {*spots, *roots}),
    }


def test_every_readout_is_scipys():
    given = states(2000)
    code = "given.map((s) => m.measure(m.mixture(s.means, s.weights, s.width), s))"
    worst = dict.fromkeys(NAMES, 0.0)
    for state, found in zip(given, in_node(code, given), strict=True):
        right = measured(state)
        for name in NAMES:
            error = abs(found[name] - right[name]) / max(abs(right[name]), FLOOR / RELATIVE)
            assert error < RELATIVE, (name, state, found[name], right[name])
            worst[name] = max(worst[name], error)
    print(worst)


TARGETS = {
    "unequal": ([-3, 3], [0.55, 0.45], 0.8),
    "equal": ([-4, 4], [0.5, 0.5], 1.0),
    "three": ([-3, 0, 3], [1, 0.55, 0.3], 0.8),
    "narrow": ([-6, -3, 0, 3, 6], [1, 0.55, 0.3, 0.166, 0.09], 0.3),
}


def valleys(values):
    """Places in a grid that are lower than all their neighbours."""
    inner = values[1:-1, 1:-1]
    low = np.ones_like(inner, bool)
    for i in range(3):
        for j in range(3):
            if (i, j) != (1, 1):
                shape = inner.shape
                low &= inner < values[i : i + shape[0], j : j + shape[1]]
    return np.argwhere(low) + 1


@pytest.mark.parametrize("name", TARGETS)
def test_every_local_optimum_is_found(name):
    means, weights, width = TARGETS[name]
    given = {"means": means, "weights": weights, "width": width}
    mu, log_sigma = np.linspace(-8, 8, 81), np.linspace(np.log(0.2), np.log(6), 49)
    given["qs"] = [{"mu": m, "sigma": s} for m in mu for s in np.exp(log_sigma)]
    code = (
        "(() => { const p = m.mixture(given.means, given.weights, given.width);"
        "return [m.optima(p), given.qs.map((q) => m.measure(p, q))]; })()"
    )
    found, grid = in_node(code, given)
    for divergence in NAMES:
        values = np.array([g[divergence] for g in grid]).reshape(81, 49)
        best = [q["value"] for q in found[divergence]]
        assert best == sorted(best) and best[0] <= values.min() + 1e-12
        spots = np.array([(q["mu"], np.log(q["sigma"])) for q in found[divergence]])
        for i, j in valleys(values):
            near = np.abs(spots - (mu[i], log_sigma[j])) < (0.45, 0.2)
            assert near.all(1).any(), (divergence, mu[i], np.exp(log_sigma[j]))

        # And each is where SciPy's minimiser ends that begins a little beside it.
        def value(at, divergence=divergence):
            state = given | {"mu": float(at[0]), "sigma": float(np.exp(at[1]))}
            return measured(state)[divergence]

        for q, spot in list(zip(found[divergence], spots, strict=True))[:2]:
            end = optimize.minimize(
                value, spot + 0.03, method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-10}
            )
            assert q["value"] < end.fun + 1e-7
            if end.fun < q["value"] + 1e-7:  # SciPy's may stop at a kink
                assert np.abs(end.x - spot).max() < 1e-3


def test_the_best_jumps_along_alpha():
    code = (
        "(() => { const p = m.mixture([-3, 3], [0.55, 0.45], 0.8);"
        "return m.alphaPath(p, m.optima(p)); })()"
    )
    path = in_node(code, {})
    (jump,) = path["jumps"]
    assert 0.4 < jump < 0.5
    first, last = (path["branches"][path["best"][k]][k] for k in (0, -1))
    assert abs(first["mu"] + 3) < 0.01 and abs(last["mu"] + 0.3) < 1e-6
    alive = [[k for k, q in enumerate(b) if q] for b in path["branches"]]
    assert len(alive) == 3 and all(b == list(range(b[0], b[-1] + 1)) for b in alive)


# In the plane.

FINE = np.linspace(-9, 9, 1501)


def bimodal(x, y):
    """Log p of half a Gaussian at (−4, 0) and half at (4, 0)."""
    return (
        np.logaddexp(-0.5 * (x + 4) ** 2, -0.5 * (x - 4) ** 2) - 0.5 * y**2 - math.log(4 * np.pi)
    )


def banana(x, y):
    """Log p of y around a parabola in x."""
    return -0.5 * (x**2 + ((y - 2 * (x**2 - 1)) / 0.5) ** 2) - math.log(np.pi)


def funnel(x, y):
    """Log p of x whose variance is exp(y)."""
    return -0.5 * ((y / 1.5) ** 2 + x**2 * np.exp(-y) + y) - math.log(3 * np.pi)


def ring(x, y):
    """Log p of a radius around 3."""
    return -0.5 * ((np.hypot(x, y) - 3) / 0.6) ** 2 - 3.3446022752084676


def spots_of(name):
    """Points all over p, and the area that each stands for."""
    u, v = np.meshgrid(FINE, FINE, indexing="ij")
    if name == "bimodal":
        x = np.linspace(-13, 13, 1501)[:, None] + 0 * v
        return x, v, 26 / 1500 * 18 / 1500 + 0 * v
    area = (18 / 1500) ** 2
    if name == "banana":
        return u, 2 * (u**2 - 1) + 0.5 * v, area * 0.5 + 0 * v
    if name == "funnel":
        return np.exp(0.75 * u) * v, 1.5 * u, area * 1.5 * np.exp(0.75 * u)
    r, angle = np.meshgrid(np.linspace(0, 8.5, 1501), 2 * np.pi * np.arange(1500) / 1500)
    return r * np.cos(angle), r * np.sin(angle), r * 8.5 / 1500 * 2 * np.pi / 1500


@pytest.mark.parametrize("name", ["bimodal", "banana", "funnel", "ring"])
def test_readouts_of_the_plane(name):
    log_p, rng = globals()[name], np.random.default_rng(0)
    qs = [
        {"m": rng.normal(0, 2, 2).tolist(), "s": np.exp(rng.uniform(-2.3, 1.6, 2)).tolist()}
        | {"angle": float(rng.uniform(0, 3))}
        for _ in range(20)
    ]
    code = "((p) => given.qs.map((q) => m.measurePlane(p, q)))(m.plane(given.name))"
    x, y, area = spots_of(name)
    at_p = log_p(x, y)
    mass = area * np.exp(at_p)
    assert abs(mass.sum() - 1) < 1e-6
    worst = dict.fromkeys(NAMES, 0.0)
    for q, found in zip(qs, in_node(code, {"qs": qs, "name": name}), strict=True):
        c, s = math.cos(q["angle"]), math.sin(q["angle"])
        axes = np.array([[c, -s], [s, c]]) * q["s"]
        white = np.linalg.inv(axes)

        def log_q(x, y, white=white, q=q):
            u = white @ np.stack([x.ravel() - q["m"][0], y.ravel() - q["m"][1]])
            low = -math.log(2 * np.pi * q["s"][0] * q["s"][1])
            return low - 0.5 * (u**2).sum(0).reshape(x.shape)

        z = np.stack(np.meshgrid(FINE, FINE, indexing="ij"))
        there = np.einsum("ij,jkl->ikl", axes, z) + np.array(q["m"])[:, None, None]
        masses = np.exp(-0.5 * (z**2).sum(0))
        masses /= masses.sum()
        r_p, r_q = at_p - log_q(x, y), log_p(*there) - log_q(*there)
        right = {
            "forward_kl": (mass * r_p).sum(),
            "reverse_kl": -(masses * r_q).sum(),
            "jensen_shannon": 0.5 * (mass * (math.log(2) - np.logaddexp(0, -r_p))).sum()
            + 0.5 * (masses * (math.log(2) - np.logaddexp(0, r_q))).sum(),
            # Over the narrower of the two, whose points lie closer.
            "total_variation": -(mass * np.expm1(np.minimum(-r_p, 0))).sum()
            if q["s"][0] * q["s"][1] > 1
            else -(masses * np.expm1(np.minimum(r_q, 0))).sum(),
        }
        for key in NAMES:
            worst[key] = max(worst[key], abs(found[key] / right[key] - 1))
    print(name, worst)
    assert max(worst.values()) < RELATIVE


# Ways down.


def test_gradients_are_those_of_the_divergences():
    means, weights, width = TARGETS["unequal"]
    given = {"means": means, "weights": weights, "width": width}
    qs = [{"mu": 0.5, "sigma": 1.3}, {"mu": -2.0, "sigma": 0.4}, {"mu": 1.0, "sigma": 5.0}]
    code = (
        "given.qs.map((q) => { const p = m.mixture(given.means, given.weights, given.width);"
        "const h = 1e-4, at = (mu, log) => m.measure(p, { mu, sigma: Math.exp(log) });"
        "return ['forward_kl', 'reverse_kl'].map((name) => { const l = Math.log(q.sigma);"
        "const slope = [(at(q.mu + h, l)[name] - at(q.mu - h, l)[name]) / (2 * h),"
        "(at(q.mu, l + h)[name] - at(q.mu, l - h)[name]) / (2 * h)];"
        "const drawn = { draws: 200000, rng: m.random(1) }, lifted = m.lifted(q);"
        "return [slope, ...[{ draws: 0 }, drawn].map((how) => {"
        "const g = m.gradient(p, lifted, name, how); return [g[0] / q.sigma, g[2]]; })];"
        "}); })"
    )
    for each in in_node(code, given | {"qs": qs}):
        for slope, exact, noisy in each:
            np.testing.assert_allclose(exact, slope, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(noisy, slope, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("natural", [True, False])
def test_ways_in_the_plane_end_at_optima(natural):
    """At the bimodal target's, which are known, exactly and through draws."""
    code = (
        "[0, 100].map((draws) => ['forward_kl', 'reverse_kl'].map((name) => {"
        "const p = m.plane('bimodal'), start = { m: [3, 0.5], s: [1.6, 0.9], angle: 0.5 };"
        "let q = m.factored(start);"
        "const how = { draws, rng: m.random(1), natural: given.natural, rate: given.rate };"
        "for (let k = 0; k < given.steps; k++) q = m.descend(p, q, name, how);"
        "return q; }))"
    )
    given = (
        {"natural": natural, "rate": 0.1, "steps": 150}
        if natural
        else {"natural": natural, "rate": 0.2, "steps": 1200}
    )
    exact, noisy = in_node(code, given)
    right = {"m": ([0, 0], [3.999602, 0]), "l": ([17**0.5, 0, 1], [1.000796, 0, 1])}
    for key, (forward, reverse) in right.items():
        np.testing.assert_allclose(exact[0][key], forward, atol=2e-3)
        np.testing.assert_allclose(exact[1][key], reverse, atol=2e-3)
        np.testing.assert_allclose(noisy[0][key], forward, atol=0.5)
        np.testing.assert_allclose(noisy[1][key], reverse, atol=0.25)
