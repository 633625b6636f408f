"""Rows on the disk: the same density, every row once an epoch, errors with their place."""

import json
import subprocess
import sys

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from started import printed, started

from vi_demo import loading, streamed
from vi_demo.errors import InputError
from vi_demo.identity import checksum
from vi_demo.streamed import Batches, Column, Table, Walk
from vi_demo.target import Target

ROWS = 70_000  # more than are looked at to know the model
MODEL = """
import numpy as np, numpyro, numpyro.distributions as dist

def model(x, y=None):
    beta = numpyro.sample("beta", dist.Normal(np.zeros(3), 2.0).to_event(1))
    with numpyro.plate("rows", len(x), subsample_size=200) as i:
        numpyro.sample("y", dist.Bernoulli(logits=x[i] @ beta), obs=None if y is None else y[i])
"""


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 3))
    p = 1 / (1 + np.exp(-x @ np.array([1.0, -1.0, 0.5])))
    return {"x": x, "y": (rng.uniform(size=ROWS) < p).astype(int)}


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """A model, and its rows as a Parquet file and as zarr, in pieces of odd lengths."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "line.py").write_text(MODEL)
    frame = pd.DataFrame({f"x[{j}]": data["x"][:, j] for j in range(3)} | {"y": data["y"]})
    frame.to_parquet(folder / "rows.parquet", row_group_size=9_973)
    tree = xr.Dataset({"x": (("row", "column"), data["x"]), "y": ("row", data["y"])})
    tree.to_zarr(folder / "rows.zarr", consolidated=False)
    return folder


def table(data, size=9_973):
    ends = np.append(np.arange(size, len(data["y"]), size), len(data["y"]))
    return Table("rows", ends, lambda b, e, k: {name: v[b:e] for name, v in data.items()}, "")


@pytest.mark.parametrize("ending", ["parquet", "zarr"])
def test_rows_come_back_as_they_were_written(ending, files, data):
    loaded = loading.load(str(files / "line.py"), str(files / f"rows.{ending}"), stream=True)
    column = loaded.data["x"]
    assert isinstance(column, Column) and column.shape == (ROWS, 3) and len(column) == ROWS
    walk = Walk(column.table, 0, ROWS)
    for begin, end in ((0, 10), (9_970, 30_000), (5, 9), (ROWS - 3, ROWS)):
        part = walk(begin, end)
        assert set(part) == {"x", "y"}
        np.testing.assert_array_equal(part["x"], data["x"][begin:end])
        np.testing.assert_array_equal(part["y"], data["y"][begin:end])


def test_density_slope_and_curvature_are_those_of_rows_in_memory(files, data):
    loaded = loading.load(str(files / "line.py"), str(files / "rows.parquet"), stream=True)
    on_disk = Target.from_numpyro(loaded.model, loaded.data)
    held = Target.from_numpyro(loaded.model, data)
    points = 0.3 * np.random.default_rng(1).normal(size=(4, 3))
    for of in (lambda f: f, jax.grad, jax.hessian):
        one, other = (jax.jit(jax.vmap(of(t.log_density)))(points) for t in (on_disk, held))
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert on_disk.all_rows == held.all_rows == ROWS
    assert on_disk.about()["y"]["shape"] == (ROWS,)


def test_an_epoch_has_every_row_once_and_each_an_order_of_its_own(data):
    numbered = {"x": data["x"], "y": np.arange(ROWS)}
    rows = table(numbered, 1_000)

    def epochs(seed):
        batches = Batches(rows, 0, ROWS, 10, seed)
        found = [batches(i) for i in range(1, 15)]
        joined = lambda some: np.concatenate([b.rows["y"][: b.number[0]] for b in some])  # noqa: E731
        return joined(found[:7]), joined(found[7:])

    first, second = epochs(3)
    assert set(first) == set(second) == set(range(ROWS))
    assert len(first) == len(second) == ROWS
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epochs(3)[0])
    assert not np.array_equal(first, epochs(4)[0])


def test_a_batch_is_the_same_whenever_it_is_asked_for_and_of_its_range(data):
    numbered = {"x": data["x"], "y": np.arange(ROWS)}
    batches = Batches(table(numbered), 20_000, 60_001, 1, 0)
    found = [batches(i) for i in range(6)]
    again = batches(4)
    assert found[0].number == max(batch.number for batch in found) == 9_973
    np.testing.assert_array_equal(again.rows["y"], found[4].rows["y"])
    seen = np.concatenate([b.rows["y"][: b.number[0]] for b in found[:5]])
    assert set(np.unique(seen)) <= set(range(20_000, 60_001))
    assert all(b.rows["y"].shape == found[0].rows["y"].shape for b in found)


def test_batches_estimate_the_density_without_bias(data):
    on_disk = Target.from_numpyro(model_of(200), streamed.columns(table(data, 17_000)))
    z = np.array([0.5, -0.5, 0.2])
    batch, keys = on_disk.batches(100, 0), jax.random.split(jax.random.key(0), 300)
    estimates = jax.jit(
        jax.vmap(lambda key, rows: on_disk.estimate(z, key, None, None, rows), (0, None))
    )
    # One of the five pieces is much shorter than the others, and counts for less.
    found = np.stack([estimates(keys, batch(i)) for i in range(1, 6)])
    exact = float(on_disk.log_density(z))
    error = (found.var(1) / found.shape[1]).sum() ** 0.5 / 5
    assert abs(found.mean() - exact) < 4 * error
    assert error < 0.005 * abs(exact)


def model_of(taken):
    def model(x, y=None):
        beta = numpyro.sample("beta", dist.Normal(np.zeros(3), 2.0).to_event(1))
        with numpyro.plate("rows", len(x), subsample_size=taken) as i:
            numpyro.sample("y", dist.Bernoulli(logits=x[i] @ beta), obs=y[i])

    return model


def test_without_minibatches_rows_on_the_disk_are_refused(data):
    with pytest.raises(
        InputError, match=r"rows has 70,000 rows, .* a subsample_size below 65,536"
    ):
        Target.from_numpyro(model_of(None), streamed.columns(table(data)))


@pytest.mark.parametrize("beside", ["mean", "plate", "whole plate"])
def test_what_depends_on_all_rows_at_once_is_refused(beside, data):
    def model(x, y=None):
        beta = numpyro.sample("beta", dist.Normal(np.zeros(3), 2.0).to_event(1))
        x = x - x.mean(0) if beside == "mean" else x
        with numpyro.plate("rows", len(x), subsample_size=200) as i:
            numpyro.sample("y", dist.Bernoulli(logits=x[i] @ beta), obs=y[i])
        if beside != "mean":
            taken = 100 if beside == "plate" else None
            with numpyro.plate("others", len(x), subsample_size=taken) as i:
                numpyro.sample("z", dist.Normal(x[i] @ beta, 1.0), obs=x[i, 0])

    with pytest.raises(InputError, match=r"given in parts, .* \(--no-stream\)"):
        Target.from_numpyro(model, streamed.columns(table(data)))


def test_files_of_a_folder_are_read_as_one_table(data, tmp_path):
    (tmp_path / "line.py").write_text(MODEL)
    folder = tmp_path / "rows.parquet"
    folder.mkdir()
    frame = pd.DataFrame({f"x[{j}]": data["x"][:, j] for j in range(3)} | {"y": data["y"]})
    frame[:50_000].to_parquet(folder / "a.parquet")
    frame[:0].to_parquet(folder / "b.parquet")
    frame[50_000:].to_parquet(folder / "c.parquet")
    loaded = loading.load(str(tmp_path / "line.py"), str(folder), stream=True)
    rows = loaded.data["x"].table
    assert list(rows.ends) == [50_000, ROWS]
    np.testing.assert_array_equal(Walk(rows, 0, ROWS)(0, ROWS)["x"], data["x"])


def test_a_guide_of_ones_own_is_refused(data):
    target = Target.from_numpyro(model_of(200), streamed.columns(table(data)))
    with pytest.raises(InputError, match="leave --guide own out"):
        target.own_guide(lambda **data: None)


def test_what_is_wrong_with_a_row_is_told_with_its_place(data, tmp_path):
    file = tmp_path / "line.py"
    file.write_text(MODEL)
    x = data["x"].copy()
    x[69_001, 1] = np.nan
    frame = pd.DataFrame({f"x[{j}]": x[:, j] for j in range(3)} | {"y": data["y"]})
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=9_973)
    tree = xr.Dataset({"x": (("row", "column"), x), "y": ("row", data["y"])})
    tree.to_zarr(tmp_path / "rows.zarr", consolidated=False)
    for ending, place in (("parquet", r"column 'x\[1\]', row 69002"), ("zarr", r"x\[69001, 1\]")):
        with pytest.raises(InputError, match=place):
            loaded = loading.load(str(file), str(tmp_path / f"rows.{ending}"), stream=True)
            Target.from_numpyro(loaded.model, loaded.data)


def test_only_files_that_rows_can_be_read_from_are_streamed(files):
    (files / "rows.csv").write_text("y\n1\n")
    with pytest.raises(InputError, match=r"\.zarr and \.parquet files .* leave --stream out"):
        loading.load(str(files / "line.py"), str(files / "rows.csv"), stream=True)
    with pytest.raises(InputError, match="give one with --data"):
        loading.load(str(files / "line.py"), stream=True)


def test_files_are_told_from_each_other(files):
    data = [
        loading.load(str(files / "line.py"), str(files / f"rows.{end}"), stream=True).data
        for end in ("parquet", "zarr", "parquet")
    ]
    sums = [checksum(d) for d in data]
    assert sums[0] == sums[2] != sums[1]


def test_a_run_of_rows_on_the_disk_is_that_of_rows_in_memory(files):
    how = ["--fit=reverse_kl", "--reference=none", "--no-film", "--json", "--draws=200"]

    def run(*options):
        command = ["run", "line.py", "--data", "rows.parquet", "--out", "out", *how, *options]
        command = [sys.executable, "-m", "vi_demo", *command]
        done = subprocess.run(command, cwd=files, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["fits"]["reverse_kl"]

    held, on_disk = run(), run("--stream")
    assert on_disk["status"] == held["status"] == "converged"
    elbos = [fit["elbo"] for fit in (held, on_disk)]
    assert abs(elbos[0]["value"] - elbos[1]["value"]) < 0.05


ON_A_MESH = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
from vi_demo import loading, mesh
from vi_demo.target import Target

found = []
for asked in sys.argv[3:]:
    with mesh.using(asked):
        loaded = loading.load(sys.argv[1], sys.argv[2], stream=True)
        target = Target.from_numpyro(loaded.model, loaded.data)
        points = 0.3 * np.random.default_rng(1).normal(size=(4, 3))
        look = mesh.program(jax.vmap(jax.value_and_grad(target.log_density)))
        batch = target.batches(50, 0)(1)
        steps = mesh.program(jax.vmap(
            lambda key, batch: target.estimate(points[0], key, None, None, batch), (0, None)
        ))
        keys = jax.random.split(jax.random.key(0), 500)
        estimates = np.concatenate([steps(keys, target.batches(50, 0)(i)) for i in range(4)])
        found.append([
            [np.asarray(x).tolist() for x in look(points)],
            [estimates.mean(), estimates.std() / 500**0.5], list(map(int, batch.number)),
            [str(walked) for walked in target.log_density.__wrapped__.__self__.walks],
        ])
print(json.dumps(found))
"""


def test_each_device_reads_its_own_rows(files):
    run = ["-c", ON_A_MESH, files / "line.py", files / "rows.zarr"]
    one, draws, rows, both = printed(
        started(*run, "draws=1", "draws=4", "rows=4", "draws=2,rows=2", devices=4)
    )
    for other in (draws, rows, both):
        for a, b in zip(one[0], other[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
        assert abs(other[1][0] - one[0][0][0]) < 5 * other[1][1]
    assert [len(x[2]) for x in (one, draws, rows, both)] == [1, 1, 4, 2]
    quarter = ROWS // 4
    assert sorted(rows[3]) == sorted(str((k * quarter, (k + 1) * quarter)) for k in range(4))
