"""Pictures of small runs built by hand: what is drawn, where, and that it is drawn the same."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.image import imread
from matplotlib.patches import Ellipse
from rich.console import Console

from vi_demo import results
from vi_demo.divergences.generators import F_DIVERGENCES
from vi_demo.pictures import (
    contents,
    drawing,
    figures,
    fit,
    measures,
    pairs,
    sandwich,
    terminal,
    ways,
    words,
)

COVARIANCE = np.array([[2.0, 0.9], [0.9, 0.7]])
BOTH = {"reverse_kl": ([2.0, 0.0], 0.5 * np.eye(2)), "forward_kl": ([0.0, 0.0], COVARIANCE)}


def posterior(draws, labels=None):
    """A posterior group of one site x, of draws (S, d) or (S,)."""
    dims = ("chain", "draw", "school")[: 1 + draws.ndim]
    coords = {"school": labels or range(draws.shape[1])} if draws.ndim > 1 else {}
    return xr.DataTree(xr.Dataset({"x": (dims, draws[None])}, coords=coords))


def fit_tree(mean, covariance, draws, labels=None, family="full_rank"):
    """The sub-tree of a fit, with its draws and its guide."""
    names = ["x"] if draws.ndim == 1 else [f"x[{i}]" for i in range(len(mean))]
    moments = {"mean": ("coordinate", np.array(mean, float))}
    moments["covariance"] = (("coordinate", "coordinate_2"), np.array(covariance, float))
    guide = xr.Dataset(moments, coords={"coordinate": names}, attrs={"family": family})
    return xr.DataTree(
        children={"posterior": posterior(draws, labels), "guide": xr.DataTree(guide)}
    )


def make_run(fits, reference=None, landscape=None, scale=lambda x: x, labels=None, scalar=False):
    """A run of Gaussian fits {name: (mean, covariance)}, with draws of the reference (S, d)."""
    rng = np.random.default_rng(0)
    shaped = (lambda x: scale(x)[:, 0]) if scalar else scale
    children = {
        name: fit_tree(*g, shaped(rng.multivariate_normal(*g, size=1500)), labels)
        for name, g in fits.items()
    }
    if reference is not None:
        children["reference"] = xr.DataTree(
            children={"posterior": posterior(shaped(reference), labels)}
        )
    if landscape is not None:
        names = [f"axis_{i}" for i in range(len(landscape[0]))]
        grid = xr.Dataset(
            {"log_p": (names, landscape[1])}, coords=dict(zip(names, landscape[0], strict=True))
        )
        children["landscape"] = xr.DataTree(grid)
    entry = {
        "verdict": "unreliable",
        "reasons": ["the mean of x[B] is off by 0.97 posterior sds", "and more"],
        "divergences": {
            "reverse_kl": {"value": 0.693, "mcse": 1e-9},
            "forward_kl": {"value": None, "mcse": None, "reason": "not measured"},
        },
    }
    summary = {
        "model": {
            "name": "hand-made",
            "dim": len(next(iter(fits.values()))[0]),
            "sites": {"x": []},
        },
        "reference": {"method": "smc", "trusted": False, "reasons": ["too few draws"]},
        "fits": dict.fromkeys(fits, entry),
    }
    tree = xr.DataTree(children=children)
    tree.attrs["summary"] = json.dumps(summary)
    return tree


def gaussian_grid(points=121, reach=6.0):
    """Log p of N(0, I) in the plane, off by a constant far too large to exponentiate."""
    x = np.linspace(-reach, reach, points)
    return [x, x], -0.5 * (x[:, None] ** 2 + x[None] ** 2) - 2000.0


def plane_run(fits=BOTH, **options):
    """A run in two dimensions, its target N(0, I)."""
    reference = np.random.default_rng(1).normal(size=(1500, 2))
    return make_run(fits, reference, gaussian_grid(), **options)


def line_run(**options):
    """A run in one dimension, of two modes."""
    x = np.linspace(-6, 6, 121)
    log_p = np.logaddexp(-2 * (x - 2) ** 2, -2 * (x + 2) ** 2) - 2000.0
    fits = {"reverse_kl": ([2.0], [[0.25]]), "forward_kl": ([0.0], [[4.25]])}
    reference = np.random.default_rng(1).normal(size=(1500, 1))
    return make_run(fits, reference, ([x], log_p), scalar=True, **options)


def wide_run(dim=5, reference=True, fits=("reverse_kl", "forward_kl"), **options):
    """A run in many dimensions, whose first fit is the narrower the higher the coordinate."""
    widths = [np.diag(np.linspace(1.0, 0.3, dim)) ** 2, np.eye(dim)]
    fits = {name: (np.zeros(dim), w) for name, w in zip(fits, widths, strict=False)}
    draws = np.random.default_rng(1).normal(size=(1500, dim))
    return make_run(fits, draws if reference else None, **options)


STORED = Path(__file__).with_name("runs")
RUNS = {
    "line": line_run,
    "plane": plane_run,
    "five": wide_run,
    "hundred": lambda: wide_run(100, labels=[f"a county of a long name, {i}" for i in range(100)]),
    "no reference": lambda: wide_run(reference=False),
    "one fit": lambda: wide_run(fits=["reverse_kl"]),
    "alone": lambda: wide_run(reference=False, fits=["forward_kl"]),
    "other names": lambda: wide_run(fits=["jensen_shannon", "total_variation"]),
}


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def fit_lines(ax):
    """The lines of fits in a panel by colour, without the target's own outline."""
    lines = {to_hex(line.get_color()): line.get_xydata() for line in ax.lines}
    lines.pop(drawing.COLOURS["target"].lower(), None)
    return lines


@pytest.mark.parametrize("name", RUNS)
def test_every_word_lies_inside_the_figure_and_is_legible(name):
    figure = figures.fit_figure(RUNS[name]())
    figure.draw_without_rendering()
    assert figure.get_figwidth() == 6.5
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_text() and text.get_visible():
            assert text.get_fontsize() >= 8
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1
    for ax in figure.axes:
        assert ax.get_tightbbox().y1 <= legend.y0


@pytest.mark.parametrize("mass", drawing.MASSES)
def test_levels_of_a_gaussian_are_its_highest_density_regions(mass):
    _, log_p = gaussian_grid(401)
    (level,) = drawing.density_levels(log_p, [mass])
    # In the plane, N(0, I) holds the mass 1 − exp(−h) where log p is within h of its peak.
    assert level - log_p.max() == pytest.approx(np.log1p(-mass), abs=0.01)
    density = np.exp(log_p - log_p.max())
    assert density[log_p >= level].sum() / density.sum() == pytest.approx(mass, abs=2e-3)


def test_letters_that_no_font_has_are_known(monkeypatch):
    monkeypatch.setattr(drawing, "INSTALLED", ["DejaVu Sans"])
    assert drawing.letters_without_font("β[é, 1] → 均值 均") == "均值"


def test_levels_ascend_and_pass_over_what_is_not_a_number():
    log_p = np.array([[np.nan, -np.inf], [np.log(0.75), np.log(0.25)]])
    np.testing.assert_allclose(
        np.exp(drawing.density_levels(log_p, [0.5, 0.9])), [0.25, 0.75], rtol=1e-12
    )


def test_an_ellipse_lies_two_sigma_from_its_mean():
    patch = drawing.ellipse(np.array([3.0, -1.0]), COVARIANCE)
    edge = patch.get_patch_transform().transform(patch.get_path().vertices) - [3.0, -1.0]
    on_curve = edge[::3]  # the others are the control points of its splines
    distance = np.einsum("ni,ij,nj->n", on_curve, np.linalg.inv(COVARIANCE), on_curve)
    np.testing.assert_allclose(distance, 4.0, rtol=1e-3)


def test_a_plane_shows_each_fit_as_cross_ellipse_and_two_marginals():
    figure = figures.fit_figure(plane_run())
    (ax,) = figure.axes
    ellipses = {to_hex(p.get_edgecolor()): p for p in ax.patches if isinstance(p, Ellipse)}
    crosses = {to_hex(line.get_color()): line.get_xydata() for line in ax.lines}
    assert len(ellipses) == 2
    for name, (mean, covariance) in BOTH.items():
        colour = drawing.COLOURS[name].lower()
        np.testing.assert_allclose(ellipses[colour].center, mean)
        width = 4 * np.sqrt(np.linalg.eigvalsh(covariance))
        np.testing.assert_allclose([ellipses[colour].width, ellipses[colour].height], width)
        np.testing.assert_allclose(crosses[colour], [mean])
        for i, panel in enumerate(ax.child_axes):
            curve = fit_lines(panel)[colour][:, [i, 1 - i]]
            peak = curve[curve[:, 1].argmax()]
            assert peak[0] == pytest.approx(mean[i], abs=0.03)
            assert peak[1] == pytest.approx(1 / np.sqrt(2 * np.pi * covariance[i, i]), rel=0.01)
    assert {p.get_linestyle() for p in ellipses.values()} == {"-", (0, (3.5, 1.4))}


def test_a_plane_is_cropped_to_the_mass_in_one_scale():
    figure = figures.fit_figure(plane_run())
    (ax,) = figure.axes
    assert ax.get_aspect() == 1.0
    radius = np.sqrt(-2 * np.log(0.01))  # of the target's 99%, further out than the fits
    assert ax.get_xlim()[0] == pytest.approx(-1.08 * radius, abs=0.25)
    lines = next(c for c in ax.collections if isinstance(c, matplotlib.contour.ContourSet))
    assert len(lines.levels) == len(drawing.MASSES) + 1  # and the peak
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x[0]", "x[1]")


def test_a_plane_says_where_it_is_not_the_models_own_scale():
    figure = figures.fit_figure(plane_run(scale=np.exp, labels=["A", "B"]))
    assert figure.axes[0].get_xlabel() == "x[A] (unconstrained)"


def test_a_plane_too_thin_for_one_scale_gives_it_up():
    x = np.linspace(-4, 4, 61)
    log_p = -0.5 * (x[:, None] ** 2 + x[None] ** 2)
    fits = {"reverse_kl": ([0.0, 0.0], np.diag([1.0, 1e-4]))}
    reference = np.random.default_rng(1).normal(size=(500, 2)) * [1, 0.01]
    run = make_run(fits, reference, ([x, 0.01 * x], log_p))
    (ax,) = figures.fit_figure(run).axes
    assert ax.get_aspect() == "auto" and np.ptp(ax.get_ylim()) < 0.1


def test_a_line_shows_normalised_densities():
    (ax,) = figures.fit_figure(line_run()).axes
    target = ax.lines[0].get_xydata()
    for x, density in (target.T, *(line.T for line in fit_lines(ax).values())):
        assert np.trapezoid(density, x) == pytest.approx(1.0, abs=5e-3)
    # Two modes of sd ½, half the mass each.
    assert target[:, 1].max() == pytest.approx(1 / np.sqrt(2 * np.pi), rel=0.01)
    assert ax.get_xlabel() == "x"


def test_a_guide_that_is_no_gaussian_is_drawn_from_its_draws():
    run = line_run()
    rng = np.random.default_rng(2)
    draws = rng.choice([-2.0, 2.0], 4000) + 0.5 * rng.normal(size=4000)
    run["forward_kl"] = fit_tree([0.0], [[4.25]], draws, family="mixture:2")
    (ax,) = figures.fit_figure(run).axes
    x, density = fit_lines(ax)[drawing.COLOURS["forward_kl"].lower()].T
    assert abs(x[density.argmax()]) == pytest.approx(2.0, abs=0.3)
    assert np.interp(0.0, x, density) < 0.1 * density.max()


def test_marginals_come_worst_first_by_the_models_labels():
    figure = figures.fit_figure(wide_run(8, labels=list("ABCDEFGH")))
    assert [ax.get_title(loc="left") for ax in figure.axes] == [f"x[{c}]" for c in "HGFEDC"]
    assert figure.get_supxlabel() == "6 of 8 coordinates, the worst fitted first."
    assert all(len(fit_lines(ax)) == 2 and len(ax.collections) == 1 for ax in figure.axes)


def test_marginals_leave_out_what_does_not_vary():
    labels = ["fixed", "free"]
    run = make_run(
        {"reverse_kl": (np.zeros(2), np.eye(2))},
        np.random.default_rng(1).normal(size=(1500, 2)),
        scale=lambda x: x * [0.0, 1.0],
        labels=labels,
    )
    assert [ax.get_title(loc="left") for ax in figures.fit_figure(run).axes] == ["x[free]"]


def test_without_a_reference_the_fits_are_compared_with_each_other():
    figure = figures.fit_figure(wide_run(reference=False))
    assert figure.axes[0].get_title(loc="left") == "x[4]"
    assert not any(ax.collections for ax in figure.axes)
    assert len(legend_texts(figure)) == 2
    assert "there is no reference" in figure.get_supxlabel()


def test_a_failed_fit_leaves_the_rest_of_the_picture():
    run = plane_run()
    nothing = np.full((1500, 2), np.nan)
    run["reverse_kl"] = fit_tree([np.nan] * 2, np.full((2, 2), np.nan), nothing)
    (ax,) = figures.fit_figure(run).axes
    assert len(ax.patches) == 1 and np.isfinite(ax.get_xlim()).all()
    assert ax.get_xlabel() == "x[0]"
    del run["landscape"]
    figure = figures.fit_figure(run)
    assert [len(fit_lines(ax)) for ax in figure.axes] == [1, 1]
    assert len(legend_texts(figure)) == 3


def test_a_fit_far_too_narrow_does_not_press_the_target_flat():
    run = make_run(
        {"reverse_kl": (np.zeros(3), 1e-6 * np.eye(3))},
        np.random.default_rng(1).normal(size=(1500, 3)),
    )
    top = figures.fit_figure(run).axes[0].get_ylim()[1]
    assert top == pytest.approx(drawing.HIGHEST / np.sqrt(2 * np.pi), rel=0.2)


def test_a_long_tail_does_not_press_the_target_flat():
    rng = np.random.default_rng(1)
    low, high = contents.view([rng.exponential(size=4000), np.exp(3 * rng.normal(size=4000))])
    assert -0.03 * high < low < 0 and 5 < high < 60


def test_words_say_what_became_of_each_fit():
    target, reverse, forward = legend_texts(figures.fit_figure(wide_run(labels=list("ABCDE"))))
    assert target == "target, by SMC — not to be trusted: too few draws"
    reason = "unreliable — the mean of x[B] is off by 0.97 posterior sds"
    assert reverse == f"reverse KL: {reason}\nKL(q‖p) = 0.693 nats"
    assert forward.startswith("forward KL: ")


@pytest.mark.parametrize(
    ("value", "mcse", "text"),
    [
        (0.6930627, 5e-9, "0.693"),
        (15.191, 1e-9, "15.2"),
        (1277.9, 31.5, "1278 ± 32"),
        (17.7325, 1.1157, "18 ± 1"),
        (0.0039988, 0.00078, "0.0040 ± 0.0008"),
        (-1e-9, None, "0.0000"),
        (0.0, 0.0, "0.00"),
    ],
)
def test_numbers_have_the_digits_that_are_known(value, mcse, text):
    assert fit.number(value, mcse) == text


def test_looks_have_one_meaning_and_differ_in_grey():
    for names in (["reverse_kl", "forward_kl"], ["total_variation", "forward_kl", "reverse_kl"]):
        styles = drawing.looks(names)
        assert styles["reverse_kl"].color == drawing.COLOURS["reverse_kl"]
        assert styles["forward_kl"].linestyle == "-"
        assert len({look.linestyle for look in styles.values()}) == len(names)
        assert len({look.color for look in styles.values()}) == len(names)


def test_a_density_does_not_leak_over_the_edge_of_its_support():
    draws = np.random.default_rng(0).exponential(size=4000)
    x, density = contents.smooth(draws, (-1.0, 20.0))
    assert x[0] == draws.min() and density[0] == 0.0
    assert density[1] == pytest.approx(1.0, abs=0.1)
    assert np.trapezoid(density, x) == pytest.approx(1.0, abs=0.01)


def test_narrow_modes_far_apart_are_not_smeared_out():
    rng = np.random.default_rng(0)
    draws = rng.choice([-20.0, 20.0], 4000) + rng.normal(size=4000)
    _, density = contents.smooth(draws, (-30.0, 30.0))
    assert density.max() == pytest.approx(0.5 / np.sqrt(2 * np.pi), rel=0.1)


def test_titles_are_cut_in_their_middle():
    assert contents.short("theta[A]") == "theta[A]"
    cut = contents.short("a county of a long name, number 17")
    assert len(cut) <= 26 and cut.startswith("a county") and cut.endswith("number 17")


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_run_gives_the_same_bytes(tmp_path, suffix):
    files = [tmp_path / f"{i}{suffix}" for i in (0, 1)]
    for file in files:
        drawing.save(figures.fit_figure(plane_run()), file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert matplotlib.__version__.encode() not in files[0].read_bytes()
    if suffix == ".png":
        assert imread(files[0]).shape[1] == 975


def test_drawing_changes_no_settings():
    before = dict(matplotlib.rcParams)
    figures.fit_figure(plane_run())
    assert dict(matplotlib.rcParams) == before


def test_figures_need_neither_jax_nor_the_rest_of_us():
    code = (
        "import sys, vi_demo.pictures.figures\n"
        "ours = {m for m in sys.modules if m.startswith('vi_demo')}\n"
        "assert all(m.startswith('vi_demo.pictures') for m in ours - {'vi_demo'}), ours\n"
        "for name in ('jax', 'numpyro', 'arviz', 'matplotlib.pyplot'):\n"
        "    assert name not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def path_run(jumps):
    """A run with two branches along alpha: one follows x = 2 and falls, one spreads over 0."""
    run, alpha = plane_run(), np.linspace(0, 1, 5)
    mean = np.stack([np.outer([2, 2, 2, 2, 0], [1, 0]), np.zeros((5, 2))])
    sd = np.stack([np.outer([1, 1, 1, 1, 2], [1, 1]), np.full((5, 2), 2.0)])
    divergence = np.array([[0.6, 0.7, 0.9, 1.2, 0.8], [1.5, 1.2, 1.0, 0.9, 0.8]])
    best = np.array([0, 0, 0, 1, 1])
    rows = {
        "divergence": (("branch", "alpha"), divergence),
        "mean": (("branch", "alpha", "coordinate"), mean),
        "sd": (("branch", "alpha", "coordinate"), sd),
        "begins": ("branch", [0.0, 1.0]),
    }
    coords = {"alpha": alpha, "coordinate": ["x[0]", "x[1]"]}
    run["path"] = xr.DataTree(xr.Dataset(rows, coords=coords))
    at = (best, np.arange(5))
    summary = json.loads(run.attrs["summary"])
    summary["path"] = {"divergence": divergence[at].tolist(), "jumps": jumps}
    summary["path"] |= {"mean": mean[at].tolist(), "sd": sd[at].tolist()}
    run.attrs["summary"] = json.dumps(summary)
    return run


def test_path_shows_branches_and_where_the_best_jumps():
    figure = figures.path_figure(path_run([0.6]))
    panels = figure.axes
    assert [ax.get_ylabel() for ax in panels] == ["divergence, nats", "mean of x[0]", "sd of x[0]"]
    reverse, forward, best, jump = panels[1].lines
    assert to_hex(reverse.get_color()) == drawing.COLOURS["reverse_kl"].lower()
    assert to_hex(forward.get_color()) == drawing.COLOURS["forward_kl"].lower()
    assert list(jump.get_xdata()) == [0.6, 0.6]
    # The best is not drawn across its jump.
    assert best.get_ydata() == pytest.approx([2, 2, 2, np.nan, 0, 0], nan_ok=True)
    labels = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert labels[-1] == "the best jumps, α = 0.60"
    calm = figures.path_figure(path_run([])).axes[0]
    assert len(calm.lines) == 3 and len(calm.get_legend().get_texts()) == 3


def test_words_of_another_divergence_give_its_value_without_nats():
    entry = {
        "verdict": "correctable",
        "reasons": [],
        "divergences": {
            "reverse_kl": {"value": 1.75, "mcse": 0.0},
            "total_variation": {"value": 0.49, "mcse": 0.0},
        },
    }
    text = fit.fit_words("total_variation", entry)
    assert text == "total variation: correctable\nKL(q‖p) = 1.75 nats; total variation = 0.490"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reverse_kl", "reverse KL"),
        ("jensen_shannon", "Jensen–Shannon"),
        ("pearson_chi_square", "Pearson χ²"),
        ("alpha:0.5", "α 0.5"),
        ("renyi:2", "Rényi 2"),
        ("le_cam", "le cam"),
    ],
)
def test_names_as_one_says_them(name, said):
    assert words.spoken(name) == said


def test_many_fits_take_several_tables_of_80_columns():
    """Each with all rows; every fit once."""
    estimate = {"value": 1.2345, "mcse": 0.0}
    fitted = {
        **dict.fromkeys(("elbo", "eubo"), estimate),
        "divergences": {"reverse_kl": estimate, "le_cam": estimate},
        "verdict": "reliable",
        "status": "converged",
        "steps": 1234,
        "seconds": {"compile": 12.0, "run": 3.0},
        "sites": {"x": {"mean_error_in_sd": 0.1, "sd_ratio": 1.0}},
        **dict.fromkeys(("khat", "ess", "modes_covered", "mass_covered"), 1),
    }
    names = [f.__name__ for f in F_DIVERGENCES]
    summary = {
        "model": {"labels": {"x": ["x"]}},
        "settings": {"draws": 4000},
        "reference": {"modes": [{}]},
        "fits": dict.fromkeys(names, fitted),
    }
    console = Console(width=80, file=io.StringIO())
    parts = list(terminal.tables(summary, 80))
    for part in parts:
        console.print(part)
    lines = console.file.getvalue().splitlines()
    assert 1 < len(parts) < len(names)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    heads = " ".join(line for line in lines if line.startswith("nats, unless"))
    assert all(heads.count(words.spoken(name)) == 1 for name in names)
    assert sum(line.startswith("le cam ") for line in lines) == len(parts)


def with_energies(run, evidence=-10.0):
    """The same run, whose fits have ELBO and EUBO around log evidence."""
    summary = json.loads(run.attrs["summary"])
    summary["reference"]["log_evidence"] = {"value": evidence, "mcse": 0.01}
    bounds = ((0.5, 20.0), (3.0, None))
    for entry, (below, above) in zip(summary["fits"].values(), bounds, strict=True):
        entry["elbo"] = {"value": -10.0 - below, "mcse": 0.02}
        entry["eubo"] = {"value": above and -10.0 + above, "mcse": above and 0.1}
    run.attrs["summary"] = json.dumps(summary)
    return run


def test_the_evidence_sandwich():
    """Each bar is as long as its divergence, on its side of log evidence; none where unknown."""
    figure = sandwich.sandwich_figure(with_energies(make_run(BOTH)))
    (ax,) = figure.axes
    bars = [line.get_xdata().tolist() for line in ax.lines if line.get_linewidth() == 7]
    assert bars == [pytest.approx(b) for b in ([0, -0.5], [0, 20], [0, -3])]
    assert [t.get_text() for t in ax.texts] == ["0.500", "20.000", "3.000", "unknown"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["reverse KL", "forward KL"]
    low, high = ax.get_xlim()
    assert low < -20 and high > 20
    assert sandwich.sandwich_figure(with_energies(make_run(BOTH), evidence=None)) is None


RUNGS = [
    {
        "name": "reverse_kl as it is",
        "passes": False,
        "why": "misses a mode",
        "worst_mean_error_in_sd": 0.97,
        "worst_sd_ratio": 0.24,
        "divergences": {"reverse_kl": {"value": 0.693, "mcse": 1e-6}},
        "khat": 0.15,
        "evaluations": {"log_density": 40_160, "gradient": 0},
        "seconds": 20.0,
    },
    {
        "name": "mixture:2",
        "passes": True,
        "why": "covers all",
        "worst_mean_error_in_sd": None,
        "worst_sd_ratio": None,
        "divergences": {},
        "khat": None,
        "evaluations": {"log_density": 1_000, "gradient": 1_200_000},
        "seconds": 2.7,
    },
]


@pytest.mark.parametrize(
    "passes, advice", [(True, "Use the draws"), (False, "do not use any"), (None, "No reference")]
)
def test_the_ladder_on_the_terminal(passes, advice):
    rungs = [RUNGS[0], RUNGS[1] | {"passes": passes}]
    correction = {"ends": "mixture:2", "passes": passes, "rungs": rungs}
    console = Console(width=80, file=io.StringIO())
    for part in terminal.ladder_parts(correction):
        console.print(part)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if "0.97" in line)
    assert row.split()[-7:] == ["0.97", "0.24", "0.15", "0.693", "40k", "20.0", "no"]
    assert "1.2M" in text
    assert "The ladder ends at mixture:2: covers all" in text
    assert advice in text


def test_starts_that_agree_are_not_told_of():
    one = {"elbos": [-1.0, -1.0], "places": 1, "rhat": 1.0, "rhat_at": "x[0]"}
    two = one | {"places": 2, "rhat": 1.83, "stacked_elbo": {"value": 0.0, "mcse": 0.001}}
    assert list(terminal.restart_lines(one)) == list(terminal.restart_lines(None)) == []
    (line,) = terminal.restart_lines(two)
    words = " ".join(line.plain.split())
    assert words.startswith("– its 2 starts ended at 2 places, R-hat 1.83 in x[0]")


# What was measured.


def with_entries(run, entries, **others):
    """The run with more in the summary's entry of each fit, or of the reference."""
    summary = json.loads(run.attrs["summary"])
    summary["fits"] = {k: fit | entries.get(k, {}) for k, fit in summary["fits"].items()}
    summary["reference"] |= others
    run.attrs["summary"] = json.dumps(summary)
    return run


def stored(name, folder):
    """A run that was saved by an earlier version."""
    file = folder / "posterior.nc"
    file.write_bytes(gzip.decompress((STORED / f"{name}.nc.gz").read_bytes()))
    return results.load(folder)


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("version_1", "fit evidence divergences ranks weights history"),
        ("version_1_ways", "fit evidence modes divergences ranks weights descent history path"),
    ],
)
def test_figures_of_a_run_of_long_ago(name, drawn, tmp_path):
    found = figures.drawn(stored(name, tmp_path))
    assert set(found) == set(drawn.split())
    for title, figure in found.items():
        figure.draw_without_rendering()
        inside = figure.bbox.padded(1)
        every = {t for t in figure.findobj(matplotlib.text.Text) if t.get_text()}
        # Ticks beyond the limits have labels too, which nobody sees.
        axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
        for text in every - {t for axis in axes for t in axis.get_ticklabels(which="both")}:
            assert text.get_fontsize() >= 8, (title, text)
            box = text.get_window_extent()
            assert inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1), title


def test_modes_are_bars_of_their_mass_and_of_what_fits_have_there():
    modes = [{"mass": m, "mcse": 0.01, "location": {"x": [4.0, 0.0]}} for m in (0.6, 0.4)]
    shares = {"reverse_kl": [0.98, 0.02], "forward_kl": [0.5, 0.5]}
    shares = {name: {"mode_shares": each} for name, each in shares.items()}
    run = with_entries(plane_run(), shares, modes=modes)
    (ax,) = measures.modes_figure(run).axes
    bars = [c for c in ax.containers if type(c).__name__ == "BarContainer"]
    widths = [[bar.get_width() for bar in each] for each in bars]
    assert widths == [[0.6, 0.4], [0.98, 0.02], [0.5, 0.5]]
    said = [text.get_text() for text in ax.texts]
    assert said == ["98%", "2%  missed", "50%", "50%"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["x = 4.00, …"] * 2
    assert measures.modes_figure(with_entries(plane_run(), shares, modes=modes[:1])) is None


def test_divergences_are_dots_at_their_values():
    rows = {
        "reverse_kl": {"value": 0.7, "mcse": 0.1},
        "forward_kl": {"value": None, "mcse": None, "reason": "too heavy-tailed: a few hold it"},
        "total_variation": {"value": 1e-5, "mcse": 1e-6},
    }
    other = rows | {"forward_kl": {"value": 20.0, "mcse": 0.0}}
    entries = {"reverse_kl": {"divergences": rows}, "forward_kl": {"divergences": other}}
    run = with_entries(plane_run(), entries)
    (ax,) = measures.divergences_figure(run).axes
    marks = [line for line in ax.lines if line.get_marker() in "o<"]
    least = measures.LEAST
    assert [m.get_xdata()[0] for m in marks] == [0.7, least, 0.7, 20.0, least]
    assert "".join(m.get_marker() for m in marks) == "o<oo<"
    bars = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(bars, [[0.6, 0.8]] * 2)
    said = [text.get_text() for text in ax.texts]
    first = ["0.70 ± 0.10", "too heavy-tailed", "0.000"]
    assert said == [*first, "0.70 ± 0.10", "20.000", "0.000"]
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels == ["KL(q‖p), reverse", "KL(p‖q), forward", "total variation"]


def with_weights(run, log_weights):
    """The run with log weights of every fit."""
    for name in BOTH:
        stats = xr.Dataset({"log_weights": (("chain", "draw"), log_weights[None])})
        run[name]["sample_stats"] = xr.DataTree(stats)
    return run


def test_the_pareto_tail_lies_over_weights_that_have_one():
    """Weights of a Pareto law: the dotted tail has its slope, −1/k, and lies on the curve."""
    k, rng = 0.5, np.random.default_rng(0)
    log_w = -k * np.log(rng.random(100_000))
    run = with_entries(plane_run(), {name: {"khat": k} for name in BOTH})
    ax = measures.weights_figure(with_weights(run, log_w)).axes[0]
    curve, tail = (line.get_xydata() for line in ax.lines)
    middle = tail[len(tail) // 2]
    on_curve = np.interp(-middle[0], -curve[:, 0], curve[:, 1])
    assert middle[1] == pytest.approx(on_curve, rel=0.15)
    late = tail[-30:]
    slope = np.polyfit(late[:, 0], np.log10(late[:, 1]), 1)[0]
    assert slope == pytest.approx(-1 / k, rel=0.1)
    assert ax.get_title(loc="left") == "reverse KL: k-hat 0.50"


def test_constant_weights_have_no_tail():
    entry = {"khat": None, "khat_reason": "the weights are all but constant"}
    run = with_entries(plane_run(), dict.fromkeys(BOTH, entry))
    ax = measures.weights_figure(with_weights(run, np.full(4000, -3.0))).axes[0]
    assert len(ax.lines) == 1 and np.ptp(ax.lines[0].get_xdata()) == 0
    assert ax.get_title(loc="left") == "reverse KL: constant weights"


def test_ranks_of_equal_draws_lie_inside_chance_and_narrow_ones_do_not():
    figure = measures.ranks_figure(wide_run(3, fits=["reverse_kl", "forward_kl"]))
    worst = figure.axes[0]  # reverse KL is 0.3 as wide there, forward KL as wide
    narrow, right = (line.get_ydata() for line in worst.lines if len(line.get_xdata()) > 2)
    band = drawing.CHANCE * np.sqrt(2 / 1500)
    assert np.abs(right).max() < 1.5 * band
    assert narrow[:90].max() > 0.2 and narrow[110:].min() < -0.2
    assert worst.get_title(loc="left") == "x[2]"


def test_pairs_show_the_worst_coordinates_against_each_other():
    figure = pairs.pairs_figure(wide_run(8, labels=list("ABCDEFGH")))
    figure.draw_without_rendering()
    assert [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()] == ["x[H]", "x[G]", "x[F]"]
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()] == ["x[G]", "x[F]"]
    joint = figure.axes[1]
    sets = [c for c in joint.collections if isinstance(c, matplotlib.contour.ContourSet)]
    colours = {to_hex(c.get_edgecolor()[0]) for c in sets if len(c.get_edgecolor())}
    assert {drawing.COLOURS[k].lower() for k in ("target", "reverse_kl", "forward_kl")} <= colours
    crosses = [line.get_xydata()[0] for line in joint.lines]
    np.testing.assert_allclose(crosses, 0.0, atol=0.1)
    assert pairs.pairs_figure(plane_run()) is None


def test_a_joint_density_holds_its_mass_inside_its_contours():
    draws = np.random.default_rng(0).multivariate_normal([0, 0], COVARIANCE, size=20_000)
    x, y, density = pairs.joint_density(*draws.T, ((-6, 6), (-4, 4)))
    (level,) = drawing.density_levels(np.log(density + 1e-300), [0.5])
    # The half of a Gaussian's mass lies within a distance of √(2 log 2).
    inside = np.log(density + 1e-300) >= level
    grid = np.stack(np.meshgrid(x, y, indexing="ij"), -1)[inside]
    distance = np.einsum("ni,ij,nj->n", grid, np.linalg.inv(COVARIANCE), grid)
    assert np.quantile(distance, 0.98) == pytest.approx(2 * np.log(2), rel=0.15)


def test_the_way_down_ends_where_the_path_does(tmp_path):
    run = stored("version_1_ways", tmp_path)
    figure = ways.descent_figure(run)
    top, mean, sd = figure.axes[:3]
    for name in BOTH:
        colour = drawing.COLOURS[name].lower()
        way = run[name]["descent"].to_dataset()
        lines = [ax.lines for ax in (top, mean, sd)]
        ours = [[each for each in some if to_hex(each.get_color()) == colour] for some in lines]
        values = [line[-1].get_ydata() for line in ours]
        np.testing.assert_allclose(values[0], way["divergence"].values[:, 0])
        np.testing.assert_allclose(values[1], way["mean"].values[:, 0, 0, 0])
        np.testing.assert_allclose(values[2], np.sqrt(way["covariance"].values[:, 0, 0, 0, 0]))
        assert all(len(line) == way.sizes["start"] for line in ours)


def test_both_kls_are_drawn_over_mean_and_sd_with_the_ways_through_them():
    grid = np.linspace(-1, 1, 21)
    kl = grid[:, None] ** 2 + grid**2  # least at mean 0, sd 1
    axes = ("mean", "log_sd")
    kls = xr.Dataset(dict.fromkeys(BOTH, (axes, kl + 0.3)), coords={"mean": grid, "log_sd": grid})
    run = line_run()
    run["kl_landscape"] = xr.DataTree(kls)
    dims = ("frame", "start", "component", "coordinate")
    mean = np.linspace(0.8, 0.0, 5).reshape(5, 1, 1, 1)
    rows = {"mean": (dims, mean)}
    rows |= {"covariance": ((*dims, "coordinate_2"), np.ones((5, 1, 1, 1, 1)))}
    rows |= {"mass": (dims[:3], np.ones((5, 1, 1))), "step": ("frame", np.arange(5))}
    for name in BOTH:
        run[name]["descent"] = xr.DataTree(xr.Dataset(rows))
    panels = ways.kl_landscape_figure(run).axes
    titles = [ax.get_title(loc="left") for ax in panels]
    assert titles == ["KL(q‖p), reverse: least 0.300 nats", "KL(p‖q), forward: least 0.300 nats"]
    for ax in panels:
        begin, end = (line for line in ax.lines if line.get_marker() in ("o", "x"))
        np.testing.assert_allclose(begin.get_xydata(), [[0.8, 1.0]])
        np.testing.assert_allclose(end.get_xydata(), [[0.0, 1.0]], atol=1e-12)


def test_the_evidence_keeps_the_sign_of_a_bound_that_is_on_the_wrong_side():
    run = with_energies(make_run(BOTH))
    summary = json.loads(run.attrs["summary"])
    summary["fits"]["reverse_kl"]["eubo"] = {"value": -10.05, "mcse": 0.1}
    run.attrs["summary"] = json.dumps(summary)
    (ax,) = sandwich.sandwich_figure(run).axes
    assert "−0.050" in [text.get_text() for text in ax.texts]
