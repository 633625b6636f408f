"""How long this project and its peers take to the same optimum, side by side.

    uv run python benchmarks/race.py [MODELS...] [--rounds K] [--seconds S] [--cache DIR] [--table]

*Reverse KL*, a full-rank Gaussian, all from starts of NumPyro's kind (uniform in
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
- *PyMC*: full-rank ADVI, the best of the same rates, on those of the models that are written for
  it; it is raced where it is installed (`uv run --group peers`).
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
A racer that has not arrived within `--seconds`, or 40,000 steps, is marked ">", and its ratio is
a lower bound; in brackets is what has not arrived and never will.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import blackjax
import jax
import numpy as np
import race_peers as peers
from race_models import FORWARD, MODELS, PYMC, Problem
from race_peers import FORWARD_GAP, FULL, forward_gap, moments, moments_of
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

from vi_demo.fitting import moment_matching, natural_gradient

GAP = 0.01  # nats
RATES, PARTICLES = (0.1, 0.01, 0.001), (1, 8)
MARKS = 40  # along the way where the gap is looked at
MOST_STEPS = 40_000
ONE_SHOT = "Pathfinder", "tempered SMC"  # whose time says nothing where they have not arrived
STARTED = "climbs", "evaluations"  # what of a target is a result, and no program


def own(fit, problem, seed, **options):
    """A fit of this project's; what it begins at is made again, and only programs are kept."""
    for name in STARTED:
        problem.target.programs.pop(name, None)
    return fit(problem.target, FULL, jax.random.key(seed), **options)


by_natural = partial(own, natural_gradient.fit)
by_moments = partial(own, moment_matching.fit, tolerance=FORWARD_GAP)


def marks_of(seconds, each):
    """Steps after which the gap is looked at: evenly in their logarithm."""
    last = int(np.clip(seconds / each, 100, MOST_STEPS))
    return np.unique(np.geomspace(10, last, MARKS).astype(int))


class Way(NamedTuple):
    """A racer's way: steps after which it was looked at, what it was then, seconds a step."""

    marks: np.ndarray
    each: float
    found: list

    @property
    def seconds(self):
        """When it was looked at."""
        return self.marks * self.each


def way_of(loop, seconds, measure):
    """A racer's way for so many seconds, `measure` of mean and factor at each mark."""
    state = loop.go(loop.state, 0, 2)
    began = time.perf_counter()
    jax.block_until_ready(loop.go(loop.state, 0, 50))
    each = (time.perf_counter() - began) / 50
    marks, found, done, state = marks_of(seconds, each), [], 0, loop.state
    for mark in marks:
        state = loop.go(state, done, mark)
        done = mark
        found.append(measure(*loop.read(state)))
    return Way(marks, each, found)


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


def loops_of(problem):
    """Racers that take steps, with their settings."""
    loops = {
        "SVI in a loop": {
            f"Adam {r:g}, {n} particles": partial(peers.svi, problem, r, n)
            for r in RATES
            for n in PARTICLES
        },
        "BlackJAX": {f"Adam {r:g}": partial(peers.full_rank_vi, problem, r) for r in RATES},
    }
    if problem.name in PYMC and importlib.util.find_spec("pymc"):
        loops["PyMC"] = {f"Adam {r:g}": partial(peers.advi, problem, r) for r in RATES}
    return loops


def race_reverse(problem, rounds, seconds):
    """Rows of all racers under reverse KL."""
    loops, measure = loops_of(problem), problem.elbo
    ways = {
        racer: {setting: way_of(make(), seconds, measure) for setting, make in settings.items()}
        for racer, settings in loops.items()
    }
    fits = [by_natural(problem, s, begin=problem.start[None]) for s in range(rounds)]
    wholes = [by_natural(problem, s) for s in range(rounds)]
    go = partial(blackjax.vi.multipathfinder.multi_approximate, logdensity_fn=problem.density)
    problem.pathfinder = jax.jit(lambda key, at: go(key, initial_positions=at))
    ends = {
        "natural": [measure(*moments_of(f.guide)) for f in fits],
        "vi_demo": [measure(*moments_of(f.guide)) for f in wholes],
        "Pathfinder": [measure(*peers.pathfinder(problem, s)) for s in range(rounds)],
    }
    best = max(
        *map(max, ends.values()), *(max(w.found) for r in ways.values() for w in r.values())
    )
    rows = {racer: row_of_loop(best, each) for racer, each in ways.items()}
    for racer, found in ends.items():
        gaps = best - np.array(found)
        rows[racer] = {"reached": bool((gaps < GAP).mean() > 0.5), "gap": float(np.median(gaps))}
        rows[racer]["seeds"] = gaps.tolist()
    for racer, each in (("natural", fits), ("vi_demo", wholes)):
        rows[racer]["gradients"] = int(np.median([f.evaluations["gradient"] for f in each]))
    for racer, settings in loops.items():
        rows[racer]["gradients"] = (
            rows[racer]["steps"] * settings[rows[racer]["setting"]]().gradients
        )
    rows["natural"] |= path_of(problem, best, fits[0])
    clock_reverse(problem, rows, loops, rounds)
    return rows


def row_of_loop(best, ways):
    """A racer by the setting that hindsight chooses: the first to arrive, else the nearest."""

    def rank(setting):
        way = ways[setting]
        steps = arrival(way.marks, best - np.array(way.found))
        late = best - way.found[-1] if steps is None else steps * way.each
        return steps is None, late

    setting = min(ways, key=rank)
    way = ways[setting]
    gaps = best - np.array(way.found)
    steps = arrival(way.marks, gaps)
    return {
        "setting": setting,
        "reached": steps is not None,
        "steps": int(way.marks[-1]) if steps is None else steps,
        "gap": float(gaps[-1]),
        "curve": np.stack([way.seconds, gaps], 1).tolist(),
    }


def path_of(problem, best, fit):
    """The gap after each step of a natural fit, and how late it stopped."""
    params = {k: v for k, v in fit.history.items() if k != "elbo"}
    guides = [FULL.distribution({k: v[i] for k, v in params.items()}) for i in
              range(len(params.get("loc", ())))]  # fmt: skip
    path = [best - problem.elbo(*moments_of(guide)) for guide in guides]
    first = arrival(range(1, len(path) + 1), path) if path else None
    return {"path": path, "stops later": None if first is None else len(path) / first}


def clock_reverse(problem, rows, loops, rounds):
    """Cold and warm seconds of all, in turns."""
    rows["SVI.run"] = {k: v for k, v in rows["SVI in a loop"].items() if k != "curve"}

    def made(racer):
        return loops[racer][rows[racer]["setting"]]()

    def as_users_call():
        key, steps = jax.random.key(0), rows["SVI.run"]["steps"]
        svi = made("SVI in a loop").svi
        return svi.run(key, steps, progress_bar=False, **problem.data).params

    def walk(loop, racer):
        return loop.go(loop.state, 0, rows[racer]["steps"])

    calls = {
        "natural": lambda: by_natural(problem, 0, begin=problem.start[None]).params,
        "vi_demo": lambda: by_natural(problem, 0).params,
        "SVI.run": as_users_call,
        "Pathfinder": lambda: peers.pathfinder(problem, 0),
    } | {racer: partial(lambda racer: walk(made(racer), racer), racer) for racer in loops}
    cold, warm = ({racer: [] for racer in calls} for _ in range(2))
    for _ in range(2):
        for racer, call in calls.items():
            jax.clear_caches()
            problem.target.programs.clear()
            cold[racer].append(timed(call)[0])
    calls |= {racer: partial(walk, made(racer), racer) for racer in loops}
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


def truth_of(problem):
    """The moments of the target: exact, or of two million weighted draws."""
    if problem.name == "bimodal":
        return np.zeros(2), np.diag([17.0, 1.0])
    runs = [
        moment_matching.fit(problem.target, FULL, jax.random.key(100 + s), tolerance=2e-3)
        for s in range(4)
    ]
    each = [moments_of(run.guide) for run in runs]
    mean = np.mean([m for m, _ in each], 0)
    second = np.mean([f @ f.T + np.outer(m, m) for m, f in each], 0)
    return mean, second - np.outer(mean, mean)


def race_forward(problem, rounds, seconds):
    """Rows of all racers under forward KL."""
    truth = truth_of(problem)

    def gap_of(mean, factor):
        return forward_gap(truth, mean, factor @ factor.T)

    nuts, smc = peers.Nuts(problem), peers.tempered_smc(problem)
    rows = {"vi_demo": {}, "NUTS": {}, "tempered SMC": {}, "SNIS": {}}
    gaps = [gap_of(*moments_of(by_moments(problem, s).guide)) for s in range(rounds)]
    rows["vi_demo"] |= {"gap": float(np.median(gaps)), "seeds": [float(g) for g in gaps]}
    calls, gap = nuts.run(truth, 0, seconds)
    rows["NUTS"] |= {"gap": gap, "setting": f"4 × {500 * calls} draws"}
    gaps = [
        forward_gap(truth, *moments(np.asarray(smc(jax.random.key(s))))) for s in range(rounds)
    ]
    rows["tempered SMC"] |= {"gap": float(np.nanmedian(gaps)), "setting": "4,096 particles"}
    ways = {r: way_of(peers.snis(problem, r), seconds / 3, gap_of) for r in RATES}
    arrived = {r: arrival(w.marks, w.found, FORWARD_GAP) for r, w in ways.items()}
    rate = min(ways, key=lambda r: (arrived[r] is None, (arrived[r] or 1) * ways[r].each))
    steps = arrived[rate] or int(ways[rate].marks[-1])
    rows["SNIS"] |= {"gap": ways[rate].found[-1], "setting": f"Adam {rate:g}, {steps:,} steps"}
    loop = peers.snis(problem, rate)
    run = {
        "vi_demo": lambda: by_moments(problem, 0).params,
        "NUTS": lambda: nuts.run(truth, 0, seconds, calls) and None,
        "tempered SMC": lambda: smc(jax.random.key(0)),
        "SNIS": lambda: loop.go(loop.state, 0, steps),
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
        row["forward"] = race_forward(problem, rounds, seconds)
    return row


def ratio_of(rows, peer, own, measure):
    """How many times as much a peer needs as we do, or None where that says nothing."""
    if measure == "gap" or not rows[own]["reached"] or measure not in rows.get(peer, {}):
        return None
    if peer in ONE_SHOT and not rows[peer]["reached"]:
        return None
    return rows[peer][measure] / rows[own][measure]


def table_of(rows, direction, own, racers, measure, title):
    """Figures of every racer on every model, and the geometric mean of their ratios to ours."""
    table = Table(title=title, box=box.MARKDOWN)
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
                text = (
                    f"({text})" if racer in (own, *ONE_SHOT) or measure == "gap" else f"> {text}"
                )
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
    others = "SVI in a loop", "SVI.run", "BlackJAX", "PyMC", "Pathfinder", "vi_demo"
    for measure, title in (
        ("warm", "reverse KL: warm seconds"),
        ("cold", "reverse KL: cold seconds"),
        ("gradients", "reverse KL: gradients"),
        ("gap", "reverse KL: gap at the end, nats"),
    ):
        console.print(table_of(rows, "reverse", "natural", others, measure, title))
    for measure in ("warm", "gap"):
        racers = "NUTS", "tempered SMC", "SNIS"
        title = f"forward KL: {measure}"
        console.print(table_of(rows, "forward", "vi_demo", racers, measure, title))
    columns = "model", "64 starts, times one", "stops later, times", "settings of SVI"
    table = Table(*columns, box=box.MARKDOWN)
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
    for ax in axes.ravel()[len(rows) :]:
        ax.set_visible(False)
    axes[0, 0].legend(frameon=False)
    fig.savefig(path, dpi=100)


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
            done = subprocess.run([sys.executable, __file__, name, *settings], check=False)
            print(name, "failed" if done.returncode else "done", flush=True)
    files = {name: given.cache / f"{name}.json" for name in MODELS}
    rows = {name: json.loads(f.read_text()) for name, f in files.items() if f.is_file()}
    show(rows)
    figure(rows, given.cache / "race.png")


if __name__ == "__main__":
    main()
