"""How often the verdict tells the truth, on targets of which all is known.

    uv run python benchmarks/verdict.py [NAMES...] [--seeds K] [--cache DIR] [--table] [--no-nuts]

The targets are in `verdict_targets.py`: exact draws, exact log evidence and the mass of every
mode. Each is fitted and judged by `vi_demo.run` as a user calls it, and each fit is then compared
with the truth: its total variation from it, the mass of the modes it misses (those of which it
holds less than a tenth), and how far its means and sds are off, as they are and with its
importance weights. From that follows which verdicts are false:

- *missed unseen*: a fit misses modes of 5 % of the mass or more, and its verdict names none;
- *false pass*: called reliable, and yet total variation is above 0.1 or a mean off by 0.15 sd;
- *false alarm*: called unreliable, and yet total variation is below 0.05;
- *false correction*: called correctable, and yet its corrected means are off by more than 0.1 sd
  or its corrected sds by more than 5 %, by its weights or by `--correct`, as its advice says;
- *false ladder*: `--correct` called its last rung right, and its draws are off by as much, or,
  where it ended at a fit as it is, their sds by more than the 10 % that *reliable* allows.

Of the reference it is asked whether its log evidence is within three of its stated errors of the
truth, and within 0.1 nats. Its cost and the diagnostics' is compared with that of NumPyro's NUTS,
4 chains of 1,000 + 1,000 in the same process, compiling included on both sides. Rows are kept in
the folder of `--cache`; `--table` prints those there are.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
from arviz_stats.base import array_stats
from numpyro.infer import MCMC, NUTS
from rich.console import Console
from rich.table import Table
from scipy import stats
from verdict_targets import TARGETS, Truth

import vi_demo

EXACT = 100_000  # draws of the truth, and of each guide
COVERED = 0.1  # of a mode's mass
MISSED = 0.05
CLOSE, FAR = 0.05, 0.1  # total variation
MEAN_FAR, MEAN_WRONG, SD_WRONG = 0.15, 0.1, 0.05
SD_RELIABLE = 0.1  # that a fit may be off by which is used as it is
NOISE = 3.0  # standard errors
KEPT = "verdict", "reasons", "advice", "confidence", "khat", "modes_covered", "mass_covered"
NOTHING = {"mean": 0.0, "sd": 0.0}  # where the truth has no moments to compare with


class Gaussian:
    """A Gaussian in units of its own sds, whose covariance SciPy would take for singular else."""

    def __init__(self, mean, covariance):
        self.mean, self.sd = mean, np.sqrt(np.diag(covariance))
        correlation = covariance / np.outer(self.sd, self.sd)
        self.unit = stats.multivariate_normal(np.zeros(len(mean)), correlation, True)

    def rvs(self, number, random_state):
        """Draws (number, d)."""
        unit = self.unit.rvs(number, random_state=random_state).reshape(number, -1)
        return self.mean + self.sd * unit

    def logpdf(self, points):
        """Log density at points (n, d)."""
        return self.unit.logpdf((points - self.mean) / self.sd) - np.log(self.sd).sum()


def truth_of(truth: Truth, run, fit: str, rng) -> dict:
    """What is true of a saved fit, whose guide is Gaussian."""
    guide = run[fit]["guide"].to_dataset()
    q = Gaussian(guide["mean"].values, guide["covariance"].values)
    from_p, from_q = truth.draw(rng, EXACT), q.rvs(EXACT, random_state=rng).reshape(EXACT, -1)

    def excess(points, sign):
        log_p = np.asarray(truth.target.log_densities(points)) - truth.log_evidence
        ratio = sign * (q.logpdf(points) - log_p)
        return np.maximum(0.0, -np.expm1(np.minimum(ratio, 0.0))).mean()

    shares = np.bincount(truth.place(from_q), minlength=len(truth.masses)) / EXACT
    masses = np.array(truth.masses)
    return {
        "total_variation": float(excess(from_p, 1) + excess(from_q, -1)) / 2,
        "missed": float(masses[shares < COVERED * masses].sum()),
        "raw": off(truth, from_p, from_q, np.full(EXACT, 1 / EXACT)) if truth.moments else None,
        "corrected": corrected(truth, q, from_p) if truth.moments else None,
    }


def off(truth: Truth, from_p, points, weights) -> dict:
    """How far means (in sds) and sds (in logs) of weighted points are from those of exact draws.

    They are those of the sites' own values, as a user reads them.
    """
    right, found = told(truth, from_p), told(truth, points)
    spread = right.std(0)
    mean = weights @ found
    sd = np.sqrt(weights @ (found - mean) ** 2)
    moves = spread > 0  # not the zeros of a triangle
    return {
        "mean": float(np.max(np.abs(mean - right.mean(0))[moves] / spread[moves])),
        "sd": float(np.max(np.abs(np.log(sd[moves] / spread[moves])))),
    }


def told(truth: Truth, points) -> np.ndarray:
    """The values (n, ...) of all sites at points (n, d), side by side."""
    values = truth.target.constrain_all(points)
    return np.concatenate([values[k].reshape(len(points), -1) for k in truth.target.sites], 1)


def corrected(truth: Truth, q, from_p) -> dict:
    """The same with the Pareto-smoothed importance weights of fresh draws of the guide."""
    points = q.rvs(EXACT, random_state=np.random.default_rng(1)).reshape(EXACT, -1)
    log_weights = np.asarray(truth.target.log_densities(points)) - q.logpdf(points)
    log_weights = np.where(np.isfinite(log_weights), log_weights, -np.inf)
    if np.ptp(log_weights) > 1e-6:
        log_weights = array_stats.psislw(-log_weights)[0]
    weights = np.exp(log_weights - log_weights.max())
    return off(truth, from_p, points, weights / weights.sum())


def by_ladder(truth: Truth, run, rng) -> dict:
    """How far the draws of the ladder's last rung are off."""
    saved = run["corrected/posterior"].to_dataset()
    values = {k: np.asarray(v)[0] for k, v in saved.items() if k in truth.target.sites}
    points = np.asarray(jax.jit(jax.vmap(truth.target.unconstrain))(values))
    return off(truth, truth.draw(rng, EXACT), points, np.full(len(points), 1 / len(points)))


def ran(name: str, truth: Truth, seed: int) -> dict:
    """One run of a target, as a user has it, and what is true of it."""
    seconds, last = {}, ["model", time.perf_counter()]

    def report(phase, share, text):
        now = time.perf_counter()
        seconds[last[0]] = seconds.get(last[0], 0.0) + now - last[1]
        last[:] = ["measuring" if text == "measuring" else phase, now]

    run = vi_demo.run(truth.target, seed=seed, report=report, name=name, correct=True)
    figures = vi_demo.summary(run)
    rng = np.random.default_rng(seed)
    ladder = figures["correction"]
    reference, evidence = figures["reference"], figures["reference"]["log_evidence"]
    row = {
        "name": name,
        "seed": seed,
        "dim": truth.target.dim,
        "modes": len(truth.masses),
        "method": reference["method"],
        "trusted": reference["trusted"],
        "reasons": reference["reasons"],
        "evidence": None,
        "seconds": seconds,
        "ladder": {"ends": ladder["ends"], "passes": ladder["passes"]}
        | (by_ladder(truth, run, rng) if truth.moments else NOTHING),
        "fits": {
            k: {n: f[n] for n in KEPT} | truth_of(truth, run, k, rng)
            for k, f in figures["fits"].items()
        },
    }
    if evidence["value"] is not None:
        error = evidence["value"] - truth.log_evidence
        row["evidence"] = {"error": error, "stated": evidence["mcse"]}
    return row


def nuts_seconds(truth: Truth) -> float:
    """How long NumPyro's NUTS takes on the same density, compiling included."""
    jax.clear_caches()
    began = time.perf_counter()
    chains = MCMC(
        NUTS(potential_fn=lambda z: -truth.target.log_density(z)),
        num_warmup=1000,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    begin = jax.random.uniform(jax.random.key(0), (4, truth.target.dim), minval=-2.0, maxval=2.0)
    chains.run(jax.random.key(1), init_params=begin)
    jax.block_until_ready(chains.get_samples())
    return time.perf_counter() - began


def faults(row: dict) -> list[str]:
    """What is false in a row."""
    found = []
    for fit, f in row["fits"].items():
        names_modes = any("misses" in reason for reason in f["reasons"])
        if f["missed"] >= MISSED and not names_modes:
            found.append(f"{fit} missed unseen")
        raw, weighed = f["raw"] or NOTHING, f["corrected"] or NOTHING
        wrong = f["total_variation"] > FAR or raw["mean"] > MEAN_FAR
        if f["verdict"] == "reliable" and wrong:
            found.append(f"{fit} false pass")
        if f["verdict"] == "unreliable" and f["total_variation"] < CLOSE:
            found.append(f"{fit} false alarm")
        by = weighed if "importance weights" in f["advice"] else row["ladder"]
        if f["verdict"] == "correctable" and wrongly_corrected(by):
            found.append(f"{fit} false correction")
    allowed = SD_RELIABLE if row["ladder"]["ends"].endswith("as it is") else SD_WRONG
    if row["ladder"]["passes"] and wrongly_corrected(row["ladder"], allowed):
        found.append("its false ladder")
    evidence = row["evidence"]
    if evidence and abs(evidence["error"]) > NOISE * max(evidence["stated"], 1e-3):
        found.append("evidence beyond its error")
    if evidence and abs(evidence["error"]) > 0.1:
        found.append("evidence off by 0.1")
    return found


def wrongly_corrected(off: dict, sd_allowed: float = SD_WRONG) -> bool:
    """Whether means or sds are off by more than a correction may be."""
    return off["mean"] > MEAN_WRONG or off["sd"] > sd_allowed


def table_of(rows: list[dict]) -> Table:
    """One line a run."""
    table = Table(
        "target",
        "seed",
        "d",
        "evidence",
        *2 * ("verdict", "TV", "missed"),
        "ladder",
        "times NUTS",
        "false",
    )
    for row in rows:
        e = row["evidence"]
        cells = [row["name"], str(row["seed"]), str(row["dim"])]
        cells.append(f"{e['error']:+.3f} ± {e['stated']:.3f}" if e else row["method"])
        for f in row["fits"].values():
            cells += [f["verdict"], f"{f['total_variation']:.3f}", f"{f['missed']:.2f}"]
        cells.append(row["ladder"]["ends"])
        ratio = cost(row)
        table.add_row(*cells, f"{ratio:.1f}" if ratio else "", "; ".join(faults(row)))
    return table


def cost(row: dict) -> float | None:
    """The reference's seconds and the diagnostics', as a multiple of NUTS's."""
    if "nuts" not in row:
        return None
    return sum(row["seconds"].get(k, 0.0) for k in ("reference", "measuring")) / row["nuts"]


def summary_of(rows: list[dict]) -> str:
    """The rates."""
    fits = [f for row in rows for f in row["fits"].values()]
    false = [fault.split(" ", 1)[-1] for row in rows for fault in faults(row)]
    missing = sum(f["missed"] >= MISSED for f in fits)
    close = sum(f["total_variation"] < CLOSE for f in fits)
    correctable = sum(f["verdict"] == "correctable" for f in fits)
    reliable = sum(f["verdict"] == "reliable" for f in fits)
    known = [row["evidence"] for row in rows if row["evidence"]]
    within = sum(abs(e["error"]) <= NOISE * max(e["stated"], 1e-3) for e in known)
    near = sum(abs(e["error"]) <= 0.1 for e in known)
    ratios = [ratio for row in rows if (ratio := cost(row))]
    lines = [
        f"{len(rows)} runs of {len({row['name'] for row in rows})} targets",
        f"missed modes of 5 % or more: {missing - false.count('missed unseen')} of {missing} seen",
        f"false passes: {false.count('false pass')} of {reliable} called reliable",
        f"false alarms: {false.count('false alarm')} of {close} within total variation 0.05",
        f"false corrections: {false.count('false correction')} of {correctable} correctable",
        f"false ladders: {false.count('false ladder')} of "
        f"{sum(bool(row['ladder']['passes']) for row in rows)} that ended right",
        f"log evidence known in {len(known)}: within 3 errors in {within}, 0.1 nats in {near}",
    ]
    if ratios:
        lines.append(f"cost in NUTS runs, geometric mean: {stats.gmean(ratios):.2f}")
    return "\n".join(lines)


def main() -> None:
    """Run the targets and print the table."""
    parser = argparse.ArgumentParser(description="How often the verdict tells the truth.")
    parser.add_argument("names", nargs="*", metavar="NAMES", help="all unless some are named")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each")
    parser.add_argument("--cache", type=Path, help="a folder for the rows")
    parser.add_argument("--table", action="store_true", help="only print the rows in the cache")
    parser.add_argument("--no-nuts", action="store_true", help="leave out the cost of NUTS")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in TARGETS]:
        parser.error(f"no target named {', '.join(unknown)}")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    warnings.simplefilter("ignore")
    if given.cache:
        given.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in given.names or TARGETS:
        truth = None
        for seed in range(given.seeds):
            file = given.cache and given.cache / f"{name}-{seed}.json"
            if file and file.is_file():
                rows.append(json.loads(file.read_text()))
                continue
            if given.table:
                continue
            timed = {}
            if truth is None:
                truth = TARGETS[name]()
                if seed == 0 and not given.no_nuts:
                    timed = {"nuts": nuts_seconds(truth)}
                jax.clear_caches()  # as the first run is timed
            row = ran(name, truth, seed) | timed
            rows.append(row)
            print(name, seed, "; ".join(faults(row)) or "ok", file=sys.stderr, flush=True)
            if file:
                file.write_text(json.dumps(row, indent=1))
    Console(width=160).print(table_of(rows))
    print(summary_of(rows))


if __name__ == "__main__":
    main()
