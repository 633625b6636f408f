"""The same numbers on every mesh of devices, and what moves between them."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from started import free_port, printed, started

from vi_demo import mesh
from vi_demo.errors import InputError

MESHES = ((1, 1), (8, 1), (1, 8), (4, 2))
MODEL = """
import numpy as np, numpyro, numpyro.distributions as dist

def model(x, y=None):
    beta = numpyro.sample("beta", dist.Normal(np.zeros(3), 2.0).to_event(1))
    with numpyro.plate("rows", len(x){subsample}) as i:
        numpyro.sample("y", dist.Bernoulli(logits=x[i] @ beta), obs=None if y is None else y[i])

def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=({rows}, 3))
    p = 1 / (1 + np.exp(-x @ np.array([1.0, -1.0, 0.5])))
    return {{"x": x, "y": (rng.uniform(size={rows}) < p).astype(int)}}
"""
FIGURES = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
import vi_demo
from vi_demo import processes
from vi_demo.target import Target
Target.seconds_each = 1e-6  # what the clock says must not decide here

found = []
if len(sys.argv) > 3:
    processes.join(sys.argv[3], 2, int(sys.argv[4]))
for asked in json.loads(sys.argv[2]):
    run = vi_demo.run(sys.argv[1], mesh=asked, draws=1000, budget=1000)
    found.append(vi_demo.summary(run) | {
        "guides": {k: run[k]["guide"].to_dataset().to_dict()["data_vars"]
                   for k in ("reverse_kl", "forward_kl")},
        "draws": run["reference/posterior"]["beta"].values.tolist(),
    })
print(json.dumps(found, default=str))
if len(sys.argv) > 3:
    processes.leave()
"""


def with_devices(code, *arguments, devices=8):
    return printed(started("-c", code, *arguments, devices=devices))


def leaves(tree, path=""):
    """Every figure of a summary, by where it is."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, tree


def assert_same(one, other):
    """All figures and words agree, but those of the clock and the mesh itself."""
    one, other = dict(leaves(one)), dict(leaves(other))
    assert one.keys() == other.keys() and len(one) > 500
    for path, value in one.items():
        if re.search("seconds|/made|/settings/mesh", path):
            continue
        if isinstance(value, float):
            assert other[path] == pytest.approx(value, rel=1e-9, abs=1e-9), path
        else:
            assert other[path] == value, path


def named(draws, rows):
    return f"draws={draws},rows={rows}"


def test_a_run_is_the_same_on_every_mesh_and_on_two_processes(tmp_path):
    file = tmp_path / "rows.py"
    file.write_text(MODEL.format(rows=160, subsample=""))
    first, *others = with_devices(FIGURES, file, json.dumps([named(*m) for m in MESHES]))
    where, asked = f"127.0.0.1:{free_port()}", json.dumps([named(4, 2)])
    pair = [started("-c", FIGURES, file, asked, where, k, devices=4) for k in (0, 1)]
    with ThreadPoolExecutor() as both:  # neither waits for what it prints to be read
        for found in both.map(printed, pair):
            assert_same(first, *found)
    assert first["settings"]["mesh"] == {"draws": 1, "rows": 1}
    for shape, other in zip(MESHES[1:], others, strict=True):
        assert tuple(other["settings"]["mesh"].values()) == shape
        assert_same(first, other)


LOOKS = """
import gc, json, re, sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from vi_demo import mesh
from vi_demo.inputs import as_target

found = []
for asked in json.loads(sys.argv[2]):
    with mesh.using(asked):
        target, _ = as_target(sys.argv[1])
        points = 0.9 + 0.1 * np.random.default_rng(0).normal(size=(16, 3))
        look = target.batched(jax.value_and_grad(target.log_density))
        program = look.lower(points).compile().as_text()
        values, slopes = look(points)
        curvature = jax.jit(jax.hessian(target.log_density))(points[0])
        held = sorted({s.data.shape[0] for v in jax.live_arrays() if v.shape == (40_000, 3)
                       for s in v.addressable_shards})
        found.append({
            "values": values.tolist(), "slopes": slopes.tolist(), "curvature": curvature.tolist(),
            "moved": re.findall(r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute)"
                                r"(?:-start)?\\(", program),
            "remarks": target.remarks, "held": held,
        })
    del target, look
    gc.collect()
print(json.dumps(found))
"""


def numbers_in(shapes):
    """How many numbers an instruction gives, read from `(f64[2]{0}, f64[2,3]{1,0})`."""
    sizes = re.findall(r"\[([0-9,]*)\]", shapes)
    return sum(int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes)


def test_long_data_lie_in_parts_and_only_sums_over_them_move(tmp_path):
    file = tmp_path / "long.py"
    file.write_text(MODEL.format(rows=40_000, subsample=", subsample_size=256"))
    whole, spread, both = with_devices(LOOKS, file, json.dumps(["draws=1", "rows=8", named(4, 2)]))
    for other, parts in ((spread, 8), (both, 2)):
        for name in ("values", "slopes", "curvature"):
            assert np.allclose(other[name], whole[name], rtol=1e-12, atol=0)
        assert other["held"][0] == 40_000 // parts
        # Of every point its log density and its slope, summed over the rows: no row moves.
        assert 0 < sum(map(numbers_in, other["moved"])) <= 16 * (1 + 3) * 2
    assert whole["moved"] == [] and whole["held"] == [40_000]


def test_rows_that_do_not_part_are_told(tmp_path):
    file = tmp_path / "odd.py"
    file.write_text(MODEL.format(rows=161, subsample=""))
    (found,) = with_devices(LOOKS, file, json.dumps(["rows=2"]), devices=2)
    assert found["remarks"] == ["rows of y do not part into 2: each device looks at all"]


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [("auto", (len(jax.devices()), 1)), ("draws=4", (4, 1)), ("draws=4,rows=2", (4, 2))],
)
def test_a_mesh_is_read(asked, sizes):
    assert mesh.sizes(asked) == sizes


@pytest.mark.parametrize("asked", ["", "4", "draws=0", "rows=2;draws=1", "draws=2,draws=2"])
def test_what_is_no_mesh_is_refused(asked):
    with pytest.raises(InputError, match=r"a mesh is auto, or like draws=4,rows=2, not '"):
        mesh.sizes(asked)


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(InputError, match=r"needs 4096 devices and there .* JAX_NUM_CPU_DEVICES"):
        mesh.made(2048, 2)
