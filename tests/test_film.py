"""The ways down: where they end, what a film shows of them, and how it is asked for."""

import gzip
import io
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import xarray as xr
from matplotlib.image import imread
from matplotlib.patches import Ellipse
from PIL import Image

import vi_demo
from vi_demo import Target, cli, guides, landscapes, loading, record
from vi_demo.errors import InputError
from vi_demo.fitting import descent
from vi_demo.fitting.objectives import draws_of_target
from vi_demo.pictures import film

RUNS = Path(__file__).with_name("runs")
with_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="there is no ffmpeg here")


def stored(name, folder):
    """A run that was saved by an earlier version, in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "posterior.nc").write_bytes(gzip.decompress((RUNS / f"{name}.nc.gz").read_bytes()))
    return folder


@pytest.fixture(scope="module")
def watched(bundled_run, tmp_path_factory):
    """The bimodal run, saved and read again."""
    folder = tmp_path_factory.mktemp("bimodal")
    vi_demo.save(bundled_run("bimodal"), folder)
    return vi_demo.load(folder)


# Where the ways lead.


@pytest.mark.parametrize(
    ("name", "means", "sd", "value"),
    [
        ("reverse_kl", (-3.999602, 3.999602), 1.000796, 0.693053),
        ("forward_kl", (0.0,), 4.123106, 0.723553),
    ],
)
def test_the_classic_films_end_at_the_optima(watched, name, means, sd, value):
    way = watched[name]["descent"].to_dataset()
    last = way.isel(frame=-1, component=0)
    ends = last["mean"].values
    assert len(ends) == descent.STARTS
    nearest = np.abs(ends[:, :1] - np.array(means)).min(1)
    np.testing.assert_allclose(nearest, 0.0, atol=2e-3)
    np.testing.assert_allclose(ends[:, 1], 0.0, atol=1e-3)
    covariance = np.broadcast_to(np.diag([sd**2, 1.0]), (len(ends), 2, 2))
    np.testing.assert_allclose(last["covariance"].values, covariance, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(last["divergence"].values, value, atol=2e-4)
    # Both modes are found by reverse KL, from starts on both sides.
    assert len(set(np.sign(ends[:, 0].round(1)))) == len(means)


def test_both_ways_begin_at_the_same_narrow_guides(watched):
    first = [watched[n]["descent"].isel(frame=0) for n in ("reverse_kl", "forward_kl")]
    for what in ("mean", "covariance"):
        np.testing.assert_allclose(*(way[what].values for way in first))
    sds = np.sqrt(np.diagonal(first[0]["covariance"].values, axis1=-2, axis2=-1))
    wanted = np.broadcast_to(descent.NARROW * np.array([np.sqrt(17), 1.0]), sds.shape)
    np.testing.assert_allclose(sds, wanted, rtol=0.01)


def normal_target(mean, factor):
    """A Gaussian target with draws that have exactly its moments, and their log densities."""
    q = dist.MultivariateNormal(jnp.asarray(mean), scale_tril=jnp.asarray(factor))
    z = np.random.default_rng(0).normal(size=(4000, len(mean)))
    z -= z.mean(0)
    z = np.linalg.solve(np.linalg.cholesky(z.T @ z / len(z)), z.T).T
    points = np.asarray(mean) + z @ np.asarray(factor).T
    target = Target.from_log_density(lambda x: q.log_prob(x) + 3.0, len(mean))
    even = np.full(len(points), 1 / len(points))
    return target, q, draws_of_target(points, even, q.log_prob(points) + 3.0, 3.0)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jensen_shannon", "renyi:0.5"])
def test_every_divergence_falls_to_nothing_where_the_guide_can_match(name):
    target, q, draws = normal_target([500.0, -0.02], [[40.0, 0.0], [0.003, 0.004]])
    course = descent.course(target, guides.full_rank(), jax.random.key(1), draws)
    way = descent.ways(course, [name])[name]
    assert way.divergence[0].min() > 0.3
    np.testing.assert_allclose(way.divergence[-1], 0.0, atol=0.02)
    mean, covariance = way.mean[-1, :, 0], way.covariance[-1, :, 0]
    sds = np.sqrt(np.diag(q.covariance_matrix))
    np.testing.assert_allclose((mean - q.mean) / sds, 0.0, atol=0.05)
    np.testing.assert_allclose(
        covariance / np.outer(sds, sds),
        np.broadcast_to(q.covariance_matrix / np.outer(sds, sds), covariance.shape),
        atol=0.1,
    )


def test_draws_alone_are_watched_by_forward_kl():
    points = np.random.default_rng(0).normal([3.0, -1.0], [2.0, 0.5], size=(2000, 2))
    run = vi_demo.run(Target.from_draws(points))
    way = run["forward_kl"]["descent"].isel(frame=-1, component=0)
    np.testing.assert_allclose(way["mean"].values[0], points.mean(0), atol=0.02)
    assert film.animate(run, format="gif").data[:4] == b"GIF8"


def test_a_mixture_is_watched_by_its_components(watched):
    target = Target.from_log_density(two_modes, 2)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4000, 2)) + np.where(rng.random((4000, 1)) < 0.5, -4, 4) * [1, 0]
    draws = draws_of_target(points, np.full(4000, 1 / 4000), jax.vmap(two_modes)(points), 0.0)
    course = descent.course(target, guides.family("mixture:2"), jax.random.key(0), draws)
    way = descent.ways(course, ["forward_kl"])["forward_kl"]
    best = int(way.divergence[-1].argmin())
    np.testing.assert_allclose(np.sort(way.mean[-1, best, :, 0]), [-4, 4], atol=0.1)
    np.testing.assert_allclose(way.mass[-1, best], 0.5, atol=0.05)
    run = watched.copy()
    run["forward_kl"]["descent"] = record.descent_tree(target, way)
    made = film.scene(run, film.SIZE, (), best)
    made.move(made.frames - 1)
    panel = made.figure.axes[1]
    ellipses = [a for a in made.moving if isinstance(a, Ellipse) and a.axes is panel]
    assert len(ellipses) == 2 * descent.STARTS
    centres = sorted(a.get_center()[0] for a in ellipses[-2:])
    np.testing.assert_allclose(centres, [-4, 4], atol=0.1)


def two_modes(x):
    """Half N((-4, 0), I) and half N((4, 0), I)."""
    apart = jnp.logaddexp(-0.5 * (x[0] - 4) ** 2, -0.5 * (x[0] + 4) ** 2)
    return apart - 0.5 * x[1] ** 2 - jnp.log(4 * jnp.pi)


def model_of(name):
    """A bundled model and its data."""
    loaded = loading.load(name)
    return loaded.model, loaded.data


def test_what_is_too_slow_or_too_large_is_not_watched():
    target, _, draws = normal_target(np.zeros(2), np.eye(2))
    target.__dict__["seconds_each"] = 1.0  # as a million rows might take
    assert descent.course(target, guides.full_rank(), jax.random.key(0), draws) is None
    target = Target.from_log_density(lambda x: -0.5 * x @ x, 400, name="wide")
    with pytest.raises(InputError, match=r"wide: .* parameters are too many for a film of mix"):
        descent.refuse(target, guides.family("mixture:8"))
    descent.refuse(target, guides.full_rank())


def test_of_many_dimensions_those_asked_for_and_those_that_part_most_are_recorded():
    mean, sd = np.arange(30.0), np.ones(30)
    factor = np.diag(sd)
    factor[[21, 28], [20, 27]] = 3.0  # the diagonal guides part where others are correlated
    target, q, draws = normal_target(mean, factor)
    course = descent.course(target, guides.diagonal(), jax.random.key(0), draws)
    ways = descent.ways(course, ["reverse_kl", "forward_kl"], first=[7])
    kept = ways["forward_kl"].coordinates
    assert len(kept) == descent.KEPT and {7, 20, 21, 27, 28} <= set(kept)
    way = ways["forward_kl"]
    sds = np.sqrt(np.diagonal(way.covariance[-1, 0, 0]))
    wanted = np.sqrt(np.diag(q.covariance_matrix))[kept]
    np.testing.assert_allclose((way.mean[-1, 0, 0] - mean[kept]) / wanted, 0, atol=0.1)
    np.testing.assert_allclose(sds / wanted, 1, atol=0.1)
    tree = record.descent_tree(target, way)
    assert list(tree["coordinate"].values) == [f"x[{i}]" for i in kept]


def test_both_kls_of_a_normal_have_their_closed_forms():
    target, _, draws = normal_target([1.0], [[0.5]])
    course = descent.course(target, guides.full_rank(), jax.random.key(0), draws)
    ways = descent.ways(course, ["reverse_kl"])
    kls = landscapes.of_kls(target, draws, ways)
    mean, sd = np.meshgrid(kls["mean"], np.exp(kls["log_sd"]), indexing="ij")
    reverse = np.log(0.5 / sd) + (sd**2 + (mean - 1) ** 2) / (2 * 0.25) - 0.5
    forward = np.log(sd / 0.5) + (0.25 + (mean - 1) ** 2) / (2 * sd**2) - 0.5
    np.testing.assert_allclose(kls["reverse_kl"], reverse, rtol=1e-4, atol=1e-5)
    # Its mean log density is that of draws.
    np.testing.assert_allclose(kls["forward_kl"], forward, rtol=0.01, atol=0.02)


# What is seen.


def test_a_frame_shows_the_guide_where_it_was(watched):
    made = film.scene(watched, film.SIZE, (), 2)
    assert made.frames == descent.FRAMES + 1
    way = watched["forward_kl"]["descent"].to_dataset()
    for k in (0, 40, 200):
        made.move(k)
        panel = made.figure.axes[1]
        ours = [a for a in made.moving if a.axes is panel]
        ellipse = [a for a in ours if isinstance(a, Ellipse)][-1]
        mean, covariance = (way[v].values[k, 2, 0] for v in ("mean", "covariance"))
        np.testing.assert_allclose(ellipse.get_center(), mean)
        sizes = sorted([ellipse.get_width(), ellipse.get_height()])
        np.testing.assert_allclose(sizes, 4 * np.sqrt(np.linalg.eigvalsh(covariance)))
        assert ellipse.get_alpha() == 1.0  # the others are its companions
        (cross,) = [a for a in ours if getattr(a, "get_marker", str)() == "x"]
        np.testing.assert_allclose(np.ravel(cross.get_data()), mean)
        below = [a for a in made.moving if a.axes is made.figure.axes[3]]
        said = [a.get_text() for a in below if hasattr(a, "get_text")]
        assert said == [
            f"step {way['step'].values[k]:,}: {way['divergence'].values[k, 2]:.3f} nats"
        ]


def test_the_two_panels_have_one_scale(watched):
    figure = film.scene(watched, film.SIZE, (), 0).figure
    for ax in figure.axes[:2]:
        box = ax.get_window_extent()
        across, up = np.ptp(ax.get_xlim()) / box.width, np.ptp(ax.get_ylim()) / box.height
        assert across == pytest.approx(up, rel=0.02)


@with_ffmpeg
def test_mp4_has_every_frame_and_its_size(watched, tmp_path):
    made = film.animate(watched, size=(641, 361), fps=50)
    made.save(tmp_path / "fit.mp4")
    command = ["ffmpeg", "-loglevel", "error", "-i", "fit.mp4", "frame%03d.png"]
    subprocess.run(command, cwd=tmp_path, check=True)
    frames = sorted(tmp_path.glob("frame*.png"))
    assert len(frames) == descent.FRAMES + 1 + 50
    assert imread(frames[-1]).shape[:2] == (360, 640)
    assert "data:video/mp4;base64," in made._repr_html_()


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_pillow_films_move(watched, ending):
    made = film.animate(watched, format=ending, size=(400, 240), fps=20)
    with Image.open(io.BytesIO(made.data)) as picture:
        assert picture.size == (400, 240)
        assert picture.info["loop"] == 0
        assert descent.FRAMES < picture.n_frames <= descent.FRAMES + 21  # same ones may be one
        first = np.asarray(picture.convert("RGB"), float)
        picture.seek(picture.n_frames - 1)
        last = np.asarray(picture.convert("RGB"), float)
    assert np.abs(first - last).max() > 100
    assert f"data:image/{ending};base64," in made._repr_html_()


def test_two_coordinates_of_more(tmp_path):
    run = vi_demo.run(*model_of("eight_schools_noncentred"), film=True, budget=10.0, draws=500)
    vi_demo.save(run, tmp_path)
    made = film.scene(vi_demo.load(tmp_path), film.SIZE, ("z[2]", "tau"), 0)
    labels = [ax.get_xlabel() for ax in made.figure.axes[:2]]
    assert labels == ["z[2] (unconstrained)"] * 2
    assert made.figure.axes[0].get_ylabel() == "tau (unconstrained)"
    assert made.figure.axes[0].collections  # the reference's contours


# How it is asked for.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no way down was recorded to be watched; make the run anew with --film"),
        (("--size", "99x9"), "99x9 pixels are too few; at least 240 each way"),
        (("--size", "large"), "'large' is not a size in pixels such as 900x480"),
        (("--start", "7"), "there are 4 starts, 0 to 3, and no 7"),
        (("--site", "y"), "there is no y; choose two of x[0], x[1]"),
        (("--site", "x[0]"), "choose 2 of the coordinates, not 1"),
        (("--out", "film.avi"), "film.avi: a film of that ending cannot be made; choose mp4, gif"),
        (("--out", "a.gif", "--format", "webp"), "a.gif: a film of that ending cannot be made"),
        (("--fps", "0"), "0 is not in the range"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_line(arguments, says, tmp_path, capsys):
    folder = stored("version_1_ways" if arguments else "version_1", tmp_path / "run")
    with pytest.raises(SystemExit) as exit:
        cli.main(["animate", str(folder), *arguments])
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and not out
    assert says in err and err.count("\n") == 1
    assert [p.name for p in folder.iterdir()] == ["posterior.nc"]


def test_animate_never_imports_jax(tmp_path):
    folder = stored("version_1_ways", tmp_path / "run")
    code = (
        "import sys\nfrom vi_demo import cli\n"
        f"try: cli.main(['animate', {str(folder)!r}, '--format', 'gif'])\n"
        "except SystemExit as e: assert not e.code\n"
        "assert not {'jax', 'numpyro', 'blackjax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stdout == f"Saved {folder / 'fit.gif'}\n"
    assert (folder / "fit.gif").stat().st_size < 3_000_000


def test_a_run_that_is_asked_for_a_film_leaves_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["run", "models/bimodal.py", "--film", "--quiet", "--out", str(tmp_path)])
    assert exit.value.code == 0
    ending = "mp4" if shutil.which("ffmpeg") else "gif"
    assert (tmp_path / f"fit.{ending}").stat().st_size > 10_000
    assert isinstance(vi_demo.load(tmp_path)["forward_kl"]["descent"].to_dataset(), xr.Dataset)
