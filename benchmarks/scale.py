"""Rows on the disk and over processes: memory, time a row, throughput.

`uv run python benchmarks/scale.py [--rows N] [--held N] [--folder DIR]` writes a zarr folder of N
rows by 20 columns, a logistic regression, and measures, each in a process of its own,

- the first `held` rows in memory and the same on the disk, on one core;
- all rows on the disk, on one core;
- all rows on the disk by two processes, each on a core of its own and with half of the rows.

`look` is the log density and its slope on all rows at several points at once, after compiling;
`steps` are a hundred steps of Adam from every start, with the comparison of candidates after them;
`fit` is all of a reverse KL fit, climbs included, compiling aside. A row of a look counts once for
each point. Resident memory is the most of the process.
"""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import zarr

import vi_demo  # noqa: F401  before JAX, which it has keep data out of programs

COLUMNS, PIECE, POINTS, TRIES = 20, 2**15, 8, 3
MODEL = """
import numpy as np, numpyro, numpyro.distributions as dist

def model(x, y=None):
    beta = numpyro.sample("beta", dist.Normal(np.zeros(20), 2.0).to_event(1))
    with numpyro.plate("rows", len(x), subsample_size=1000) as i:
        numpyro.sample("y", dist.Bernoulli(logits=x[i] @ beta), obs=y[i])
"""


def written(folder: Path, rows: int) -> Path:
    """A zarr folder of so many rows, written once."""
    place = folder / f"{rows}.zarr"
    if place.exists():
        return place
    rng, beta = np.random.default_rng(0), np.linspace(-0.5, 0.5, COLUMNS)
    group = zarr.open_group(str(place), mode="w")
    how = {"compressors": None}
    x = group.create_array("x", shape=(rows, COLUMNS), chunks=(PIECE, COLUMNS), dtype="f8", **how)
    y = group.create_array("y", shape=(rows,), chunks=(PIECE,), dtype="i1", **how)
    for begin in range(0, rows, PIECE):
        end = min(begin + PIECE, rows)
        values = rng.normal(size=(end - begin, COLUMNS))
        x[begin:end] = values
        y[begin:end] = rng.uniform(size=end - begin) < 1 / (1 + np.exp(-values @ beta))
    return place


def measured(model: str, data: str, stream: bool, others: list | None) -> dict:
    """What one process measures."""
    import jax

    from vi_demo import processes

    jax.config.update("jax_enable_x64", True)
    if others:
        processes.join(*others)
    from vi_demo import guides, loading, mesh, starts, streamed
    from vi_demo.fitting import svi
    from vi_demo.target import Target

    if not stream:
        streamed.LARGE = np.inf
    with mesh.using(f"rows={jax.device_count()}"):
        loaded = loading.load(model, data, stream=stream or None)
        target = Target.from_numpyro(loaded.model, loaded.data)
        look = mesh.program(jax.vmap(jax.value_and_grad(target.log_density)))
        points = 0.1 * np.random.default_rng(0).normal(size=(POINTS, target.dim))
        found = {"rows": target.all_rows, "look": clocked(lambda: look(points))}
        began = time.perf_counter()
        starts.climbs(target)
        found["climbs"] = time.perf_counter() - began
        family, key = guides.family("full_rank"), jax.random.key(0)
        fitter = svi.fitter(svi.of_family(target, family))
        state = fitter.init(key)
        found["steps"] = clocked(lambda: fitter.advance(state))
        fit = svi.fit(target, family, key)
    found |= {"fit": fit.seconds["run"], "taken": fit.steps, "status": fit.status}
    found["bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found), flush=True)
    if others:
        processes.leave()
    return found


def clocked(call) -> float:
    """Seconds of a call, the median of a few after one that compiles."""
    import jax

    seconds = []
    for _ in range(1 + TRIES):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def started(core: int, *arguments) -> subprocess.Popen:
    """A process that measures, on one core."""
    return subprocess.Popen(
        [sys.executable, __file__, "--one", json.dumps(arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"VI_DEMO_CACHE": "off"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def read(process: subprocess.Popen) -> dict:
    """What a process found."""
    return json.loads(process.communicate()[0].splitlines()[-1])


def shown(name: str, found: dict, rows: int) -> None:
    """One row of the table."""
    look = found["look"] / rows / POINTS * 1e9
    print(
        f"| {name} | {look:.1f} | {found['steps']:.2f} | {found['climbs']:.1f} | "
        f"{found['fit']:.1f} ({found['taken']}) | {found['bytes'] / 1e9:.2f} |",
        flush=True,
    )


@click.command()
@click.option("--rows", default=20_000_000, show_default=True)
@click.option("--held", default=2_000_000, show_default=True)
@click.option(
    "--folder", type=Path, help="Where the rows are written.  [default: a temporary one]"
)
@click.option("--one", hidden=True)
def main(rows, held, folder, one):
    """Measure, and print a table."""
    if one:
        measured(*json.loads(one))
        return
    with tempfile.TemporaryDirectory() as aside:
        folder = folder or Path(aside)
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "rows.py"
        model.write_text(MODEL)
        few, all_rows = written(folder, held), written(folder, rows)
        print("| | look, ns a row | steps, s | climbs, s | fit, s (steps) | resident, GB |")
        print("|-|-----------------|----------|-----------|----------------|--------------|")
        for name, place, stream in (("in memory", few, False), ("on the disk", few, True)):
            shown(f"{held:,} {name}", read(started(0, str(model), str(place), stream, None)), held)
        alone = read(started(0, str(model), str(all_rows), True, None))
        shown(f"{rows:,} on the disk", alone, rows)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{free.getsockname()[1]}"
        both = [started(k, str(model), str(all_rows), True, [where, 2, k]) for k in range(2)]
        two, _ = (read(process) for process in both)
        shown(f"{rows:,}, two processes", two, rows)
        for part in ("look", "steps", "climbs"):
            print(f"two processes, {part}: {alone[part] / two[part]:.2f} × the throughput of one")


if __name__ == "__main__":
    main()
