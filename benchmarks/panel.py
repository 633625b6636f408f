"""Dozens of models from end to end: each is fitted and judged, or refused with the right line.

    uv run python benchmarks/panel.py [NAMES...] [--quick] [--cache DIR]

The models are in `panel_models.py`. Of each posterior it is measured how far the full-rank guides'
means are from the truth: max |mean − mean of NUTS| / sd of NUTS over all entries of all sites on
the model's own scale, met below 0.3 (G. Baudart and L. Mandel, 2021, "Automatic guide generation
for Stan via NumPyro", arXiv:2110.11790). NUTS is NumPyro's own on the user's model, four chains of
1,500 + 2,500, and knows nothing of vi_demo's reference; where its R-hat is above 1.01 the
criterion is not counted. A *false pass* is the worst that can happen: a fit called reliable though
it misses the criterion.

Each model runs in a process of its own, so that none can stop the others. `--quick` leaves out
NUTS and only runs. In the folder of `--cache` the draws of NUTS and the rows are kept; `--table`
prints the rows in it without running anything, and `--prepare` only runs NUTS.
"""

import argparse
import inspect
import json
import multiprocessing
import sys
import time
import traceback
import warnings
import zlib
from pathlib import Path

import jax
import numpy as np
from arviz_stats.base import array_stats
from numpyro.infer import MCMC, NUTS, init_to_uniform, init_to_value
from panel_models import PANEL, Entry
from rich.console import Console
from rich.table import Table

import vi_demo

CRITERION = 0.3  # sds
RHAT = 1.01
CHAINS, WARMUP, DRAWS = 4, 1_500, 2_500
BUDGET = 20.0  # seconds, for vi_demo's reference
LIMIT = 600.0  # seconds for a model, NUTS and all
FITS = ("reverse_kl", "forward_kl")
FRAMES = 6  # of a traceback
SAMPLED = ("posterior", "feature")  # kinds that NUTS is run on


def settle() -> None:
    """Double precision and silence, in every process."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_use_simplified_jaxpr_constants", True)
    warnings.simplefilter("ignore")


def nuts(entry: Entry, cache: Path | None) -> dict:
    """NumPyro's NUTS on the model: {site: draws (chain, draw, ...)}, from the cache if it can be.

    The cache knows a model by its source, so that one that was changed is run again.
    """
    source = inspect.getsource(entry.make) + repr((entry.reference, entry.begin))
    file = cache and cache / f"{entry.name}-{zlib.crc32(source.encode()):08x}.npz"
    if file and file.is_file():
        with np.load(file) as kept:
            return dict(kept)
    model, data = entry.make()
    begin = init_to_value(values={k: np.asarray(v) for k, v in entry.begin.items()})
    kernel = NUTS(
        model,
        dense_mass=True,
        target_accept_prob=0.9,
        init_strategy=begin if entry.begin else init_to_uniform,
    )
    settings = {"num_warmup": WARMUP, "num_samples": DRAWS, "num_chains": CHAINS}
    chains = MCMC(kernel, chain_method="vectorized", progress_bar=False, **settings)
    began = time.perf_counter()
    chains.run(jax.random.key(0), **(data | entry.reference), extra_fields=("diverging",))
    draws = {k: np.asarray(v) for k, v in chains.get_samples(group_by_chain=True).items()}
    draws["_divergent"] = np.asarray(chains.get_extra_fields()["diverging"].sum())
    draws["_seconds"] = np.asarray(time.perf_counter() - began)
    if file:
        np.savez_compressed(file, **draws)
    return draws


def entries(draws: dict, names) -> dict[str, np.ndarray]:
    """Each entry of some sites by its name, (chain, draw)."""
    return {
        f"{name}{list(index) if index else ''}": draws[name][(..., *index)]
        for name in names
        for index in np.ndindex(draws[name].shape[2:])
    }


def compare(draws: dict, truth: dict) -> tuple[float, str]:
    """The greatest |mean − mean of the truth| / sd of the truth over entries, and at which."""
    worst = (0.0, "")
    for name, x in truth.items():
        if x.std() > 1e-12 * abs(x.mean()):  # what a constraint fixes has no sd
            error = abs(draws[name].mean() - x.mean()) / x.std()
            worst = max(worst, (float(error) if np.isfinite(error) else np.inf, name))
    return worst


def blank(entry: Entry) -> dict:
    """The row of a model about which nothing is known."""
    return {"name": entry.name, "kind": entry.kind, "gaussian": entry.gaussian, "status": "ok"}


def ran(entry: Entry, report) -> tuple[dict, object]:
    """Run a model: its row so far, and the run where there is one."""
    row = blank(entry)
    model, data = entry.make()
    began = time.perf_counter()
    try:
        run = vi_demo.run(model, data, budget=BUDGET, name=entry.name, report=report)
    except vi_demo.InputError as error:
        row |= {"seconds": time.perf_counter() - began, "text": str(error)}
        right = entry.words in str(error) and "\n" not in str(error)
        if entry.kind == "refused":
            return row | {"status": "refused" if right else "WRONG WORDS"}, None
        return row | {"status": "refused" if entry.kind == "improper" else "REFUSED"}, None
    row["seconds"] = time.perf_counter() - began
    if entry.kind == "refused":
        return row | {"status": "NOT REFUSED"}, None
    figures = vi_demo.summary(run)
    reference = figures["reference"]
    row |= {
        "dim": figures["model"]["dim"],
        "sites": list(figures["model"]["sites"]),
        "reference": {k: reference[k] for k in ("method", "trusted", "reasons", "remarks")},
        "fits": {
            k: {n: f[n] for n in ("verdict", "reasons", "status", "khat", "seconds")}
            for k, f in figures["fits"].items()
        },
    }
    return row, run


def judged(row: dict, run, draws: dict) -> dict:
    """The row with how far each fit, and vi_demo's reference, are from NUTS."""
    row["nuts"] = {k: float(draws[f"_{k}"]) for k in ("divergent", "seconds")}
    names = [k for k in row["sites"] if k in draws]
    truth = entries(draws, names)
    row["nuts"]["rhat"] = max(float(array_stats.rhat(x)) for x in truth.values() if x.std() > 0)
    for k, place in {**row["fits"], "reference": row["reference"]}.items():
        if k not in run.children:  # no reference was to be had in time
            continue
        posterior = {n: run[k]["posterior"][n].values for n in names}
        place["error"], place["worst"] = compare(entries(posterior, names), truth)
    return row


def counted(row: dict) -> bool:
    """Whether NUTS is good enough to judge a row by."""
    return "nuts" in row and row["nuts"]["rhat"] <= RHAT


def meets(row: dict, fit: str = FITS[0]) -> bool:
    """Whether a fit meets the criterion."""
    return row["fits"][fit]["error"] < CRITERION


def false_passes(row: dict) -> list[str]:
    """The fits called reliable that are not."""
    if row["kind"] == "improper":
        return [k for k, f in row.get("fits", {}).items() if f["verdict"] == "reliable"]
    if not counted(row):
        return []
    return [k for k in FITS if row["fits"][k]["verdict"] == "reliable" and not meets(row, k)]


def table_of(rows: list[dict]) -> Table:
    """One line a model."""
    columns = ("model", "d", "status", "reverse", "verdict", "forward", "verdict")
    table = Table(*columns, "reference", "R-hat", "s", title="means off by, in posterior sds")
    for row in rows:
        status = "FALSE PASS" if false_passes(row) else row["status"]
        cells = [row["name"], str(row.get("dim", "")), status]
        for k in FITS if "fits" in row else ():
            fit = row["fits"][k]
            cells += [f"{fit['error']:.2f}" if "error" in fit else "", fit["verdict"]]
        if "fits" in row:
            reference = row["reference"]
            off = f" {reference['error']:.2f}" if "error" in reference else ""
            trusted = "" if reference["trusted"] else ", not trusted"
            cells.append(f"{reference['method']}{off}{trusted}")
        else:
            cells += [""] * 5
        rhat = f"{row['nuts']['rhat']:.3f}" if "nuts" in row else ""
        table.add_row(*cells, rhat, f"{row.get('seconds', np.nan):.0f}")
    return table


def summary_of(rows: list[dict]) -> str:
    """How many of how many."""
    known = [row for row in rows if counted(row)]
    near = [row for row in known if row["gaussian"]]
    bad = [row for row in rows if row["status"] not in ("ok", "refused")]
    passes = [f"{r['name']} ({', '.join(found)})" for r in rows if (found := false_passes(r))]
    ok, refused = ([r for r in rows if r["status"] == s] for s in ("ok", "refused"))
    verdicts = [row["fits"]["reverse_kl"]["verdict"] for row in known]
    return "\n".join(
        [
            f"{len(ok)} ran, {len(refused)} were refused, {len(bad)} failed of {len(rows)}",
            f"reverse KL meets the criterion in {sum(map(meets, known))} of {len(known)}, "
            f"in {sum(map(meets, near))} of {len(near)} that are near enough to a Gaussian; "
            f"forward KL in {sum(meets(r, 'forward_kl') for r in known)} of {len(known)}",
            *(f"{verdicts.count(v)} {v}" for v in ("reliable", "correctable", "unreliable")),
            f"false passes: {len(passes)} {'; '.join(passes)}",
            *(f"{row['name']}: {row['status']}: {row.get('text', '')}" for row in bad),
        ]
    )


def child(pipe, name: str, quick: bool, cache: Path | None, prepare: bool) -> None:
    """One model in a process of its own, which sends where it is, and its row as far as known."""
    settle()
    began = time.monotonic()

    def report(phase, share, text):
        pipe.send(f"{time.monotonic() - began:.0f} s: {phase}: {text}")

    entry = PANEL[name]
    row = blank(entry)
    try:
        if not prepare:
            row, run = ran(entry, report)
        if (prepare or row["status"] == "ok") and not quick and entry.kind in SAMPLED:
            pipe.send(row | {"text": "NUTS did not end in time"})
            draws = nuts(entry, cache)
            row = row if prepare else judged(row, run, draws)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{f.filename}:{f.lineno} {f.name}" for f in frames]
        ours = [place for place in places if place.startswith(str(Path(vi_demo.__file__).parent))]
        known = list(dict.fromkeys(ours[-FRAMES:] + places[-FRAMES:]))
        row |= {"status": "ERROR", "text": one_line(error), "traceback": known}
    pipe.send(row)


def one_line(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def isolated(name: str, limit: float, *settings) -> dict:
    """The row of a model, whatever happens to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(there, name, *settings))
    process.start()
    there.close()
    end, row, place = time.monotonic() + limit, None, "start"
    how = f"not done in {limit:.0f} s"
    try:
        while here.poll(max(0.0, end - time.monotonic())):
            said = here.recv()
            row, place = (row, said) if isinstance(said, str) else (said, place)
    except EOFError:  # it is done, or dead
        how = "the process died"
    process.kill()
    process.join()
    return row or blank(PANEL[name]) | {"status": "ERROR", "text": f"{how}, last at {place}"}


def main() -> None:
    """Run the models and print the table."""
    parser = argparse.ArgumentParser(description="Dozens of models from end to end.")
    parser.add_argument("names", nargs="*", metavar="NAMES", help="all unless some are named")
    parser.add_argument("--quick", action="store_true", help="leave out NUTS")
    parser.add_argument("--cache", type=Path, help="a folder for NUTS and rows")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a model")
    parser.add_argument("--prepare", action="store_true", help="only run NUTS into the cache")
    parser.add_argument("--table", action="store_true", help="only print the rows in the cache")
    given = parser.parse_args()
    names = given.names or list(PANEL)
    if unknown := [name for name in names if name not in PANEL]:
        parser.error(f"no model named {', '.join(unknown)}")
    if given.prepare:
        names = [name for name in names if PANEL[name].kind in SAMPLED]
    if given.cache:
        given.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        file = given.cache and given.cache / f"{name}.json"
        if given.table:
            rows += [json.loads(file.read_text())] if file and file.is_file() else []
            continue
        row = isolated(name, given.limit, given.quick, given.cache, given.prepare)
        print(name, row["status"], row.get("text", ""), file=sys.stderr, flush=True)
        rows.append(row)
        if file and not given.prepare:
            file.write_text(json.dumps(row, indent=1))
    if not given.prepare:
        Console(width=120).print(table_of(rows))
        print(summary_of(rows))


if __name__ == "__main__":
    main()
