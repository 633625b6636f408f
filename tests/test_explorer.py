"""The explorer: its page in a browser, its command, and the widget that a notebook shows."""

import contextlib
import io
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import html5lib
import nbconvert
import nbformat
import numpy as np
import pytest

import vi_demo
from vi_demo import cli, results, startup
from vi_demo.pictures import explorer

SOURCES = "default-src 'none'", "script-src 'unsafe-inline'", "style-src 'unsafe-inline'"
POLICY = "; ".join((*SOURCES, "img-src data: blob:"))
NAMES = "forward_kl", "reverse_kl", "jensen_shannon", "total_variation"
NAMED = (
    *("application", "button", "checkbox", "combobox", "radio", "slider"),
    *("spinbutton", "table", "textbox", "region"),
)


MODEL = """\"Two modes.\"
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def model():
    weights = dist.CategoricalProbs(jnp.array([0.55, 0.45]))
    modes = dist.Normal(jnp.array([-3.0, 3.0]), 0.8)
    numpyro.sample("x", dist.MixtureSameFamily(weights, modes))
"""


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """A folder with a model of one dimension that was explored at once, and what was printed."""
    home, out = tmp_path_factory.mktemp("line"), io.StringIO()
    (home / "twin.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(home)
        patch.setenv(startup.CACHE_SWITCH, "off")
        with pytest.raises(SystemExit) as end:
            cli.main(["explore", "twin.py", "--no-open"])
    assert end.value.code == 0
    return home, out.getvalue()


@pytest.fixture(scope="module")
def line_run(explored):
    """A run of one dimension, in its folder."""
    return explored[0] / "runs/twin"


@pytest.fixture(scope="module")
def plane_run(bundled_run, tmp_path_factory):
    """A run of two dimensions, in its folder."""
    return results.save(bundled_run("bimodal"), tmp_path_factory.mktemp("plane"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page without a run."""
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(explorer.page(), encoding="utf-8")
    return path


def until(page, expression, seconds=30):
    """Wait for an expression of a page; its policy lets nothing but the page itself do so."""
    for _ in range(20 * seconds):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {expression}")


class Watched:
    """A page, what it asked for and what it said."""

    def __init__(self, browser, path, fragment="", **context):
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, **context}
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.asked, self.said = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path.as_uri() + fragment)
        until(self.page, "document.querySelector('canvas').width > 300")

    def reads(self, panel="move"):
        """The four readouts, as shown."""
        outs = self.page.locator(f".{panel} .readings output")
        return dict(zip(NAMES, outs.all_inner_texts(), strict=True))

    def number(self, label, panel="move"):
        return self.page.locator(f".{panel}").get_by_label(label, exact=True)

    def pixels(self, board, x, y):
        """The place on the screen of a share of a board's width and height."""
        canvas = self.page.locator(f"canvas[data-board={board}]")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def copied(self, button):
        """What a button copies."""
        self.page.get_by_role("button", name=button, exact=True).click()
        return self.page.get_by_role("textbox", name="copied text").input_value()


@pytest.fixture
def opened(browser, written):
    """The page in a browser; at the end nothing was asked for and nothing complained of."""
    watched = Watched(browser, written)
    yield watched
    fetched = [url for url in watched.asked if not url.startswith("data:")]
    assert fetched == [written.as_uri()] and watched.said == []
    watched.context.close()


# The page.


def test_the_page_is_whole(written):
    page = written.read_text(encoding="utf-8")
    tree = html5lib.HTMLParser(strict=True).parse(page)
    html = "{http://www.w3.org/1999/xhtml}"
    (policy,) = [
        e.get("content") for e in tree.iter(f"{html}meta") if e.get("http-equiv") is not None
    ]
    assert policy == POLICY
    assert not re.search(r"""(src|href)=["'](?!data:)""", page.partition("<script")[0])
    module = explorer.MODULE.read_text(encoding="utf-8")
    assert not re.search(r"^import |fetch\(|Storage|XMLHttp", module, re.MULTILINE)
    assert explorer.MODULE.stat().st_size < 60_000


def test_names_of_a_run_cannot_break_out():
    page = explorer.filled("</title><b>", {"name": "</script><script>alert(1)</script>"})
    assert page.count("</script>") == 1 and "&lt;/title&gt;" in page


def test_a_drag_moves_q(opened):
    before = opened.reads()
    move, page = opened.page.mouse, opened.page
    mu = float(opened.number("μ").input_value())
    x, y = opened.pixels("move", 0.5, 0.4)
    canvas = page.locator("canvas[data-board=move]")
    span = canvas.bounding_box()["width"]
    lo, hi, *_ = map(float, canvas.get_attribute("data-view").split(","))
    u = x + (mu - (lo + hi) / 2) / (hi - lo) * span
    move.move(u, y), move.down(), move.move(u + 60, y, steps=6), move.up()
    moved = float(opened.number("μ").input_value())
    assert moved > mu + 0.5
    assert opened.reads() != before
    sigma = float(opened.number("σ").input_value())
    side = u + 60 + 1.3 * sigma / (hi - lo) * span
    move.move(side, y), move.down(), move.move(side + 30, y, steps=3), move.up()
    assert float(opened.number("σ").input_value()) > sigma
    assert float(opened.number("μ").input_value()) == moved


def test_a_mode_can_be_dragged_and_typed(opened):
    label = "mode 1"
    opened.number(label).fill("-2.5")
    assert opened.page.evaluate("document.activeElement.value") == "-2.5"
    reads = opened.reads()
    opened.number(label).fill("")
    assert opened.number(label).get_attribute("aria-invalid") == "true"
    assert opened.reads() == reads


def drag(opened, start, end):
    """Drag with the mouse from one place on the screen to another."""
    mouse = opened.page.mouse
    mouse.move(*start), mouse.down(), mouse.move(*end, steps=4), mouse.up()


def test_handles_of_the_ellipse(opened):
    canvas = opened.page.locator("canvas[data-board=plane]")
    x0, x1, y0, y1 = map(float, canvas.get_attribute("data-view").split(","))

    def value(label):
        return float(opened.number(label, "plane").input_value())

    def place(x, y):
        return opened.pixels("plane", (x - x0) / (x1 - x0), 1 - (y - y0) / (y1 - y0))

    turned = value("angle")
    along = np.array([math.cos(turned), math.sin(turned)])
    across = np.array([-along[1], along[0]])
    centre = np.array([value("mean x"), value("mean y")])
    end = centre + 2 * value("first sd") * along
    drag(opened, place(*end), place(*(end + 0.6 * along)))
    assert math.isclose(value("first sd"), 1.9, abs_tol=0.03)
    side = centre + 2 * value("second sd") * across
    drag(opened, place(*side), place(*(side - 0.4 * across)))
    assert math.isclose(value("second sd"), 0.7, abs_tol=0.03)
    drag(opened, place(*centre), place(*(centre + 0.5)))
    assert math.isclose(value("mean x"), 2.0, abs_tol=0.03)
    end = np.array(place(*(centre + 0.5 + 2 * value("first sd") * along)))
    middle = np.array(place(*(centre + 0.5)))
    handle = end + 26 * (end - middle) / np.linalg.norm(end - middle)
    drag(opened, handle, place(*(centre + 0.5 + np.array([0, 2.5]))))
    assert math.isclose(value("angle"), math.pi / 2, abs_tol=0.03)


def test_landscapes_alpha_and_modes_can_be_dragged(opened):
    mu, sigma = (float(opened.number(k).input_value()) for k in "μσ")
    for board in ("forward_kl", "reverse_kl"):
        drag(opened, opened.pixels(board, 0.6, 0.5), opened.pixels(board, 0.3, 0.3))
        moved = float(opened.number("μ").input_value()), float(opened.number("σ").input_value())
        assert moved[0] < mu and moved[1] > sigma
    strip = opened.pixels("strip", 0.2, 0.5), opened.pixels("strip", 0.75, 0.5)
    drag(opened, *strip)
    assert 0.7 < float(opened.page.locator(".optima").get_by_label("α,").input_value()) < 0.8
    canvas = opened.page.locator("canvas[data-board=move]")
    x0, x1, y0, y1 = map(float, canvas.get_attribute("data-view").split(","))
    height = canvas.bounding_box()["height"]
    at = opened.pixels("move", (-3 - x0) / (x1 - x0), 1 + y0 / (y1 - y0) + 8 / height)
    drag(opened, at, (at[0] + 40, at[1]))
    assert -3 < float(opened.number("mode 1").input_value()) < -1


def test_keys_move_q(opened):
    page = opened.page
    page.locator("canvas[data-board=move]").focus()
    mu, sigma = (float(opened.number(k).input_value()) for k in "μσ")
    page.keyboard.press("ArrowRight"), page.keyboard.press("ArrowUp")
    assert float(opened.number("μ").input_value()) > mu
    assert float(opened.number("σ").input_value()) > sigma
    page.locator("canvas[data-board=plane]").focus()
    for key, label in (("ArrowLeft", "mean x"), ("+", "first sd"), ("]", "angle")):
        before = opened.number(label, "plane").input_value()
        page.keyboard.press(key)
        assert opened.number(label, "plane").input_value() != before


def test_touch_moves_q(browser, written):
    size = {"width": 390, "height": 844}
    watched = Watched(browser, written, viewport=size, has_touch=True, is_mobile=True)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 390
    watched.page.locator("canvas[data-board=move]").scroll_into_view_if_needed()
    mu = float(watched.number("μ").input_value())
    x, y = watched.pixels("move", 0.58, 0.4)
    touch = watched.context.new_cdp_session(watched.page)
    for kind, at in (("touchStart", x), ("touchMove", x + 30), ("touchMove", x + 60)):
        points = [{"x": at, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert float(watched.number("μ").input_value()) > mu
    assert watched.said == []
    watched.context.close()


def test_what_is_shown_is_right(opened):
    """Far from p, where pages of this kind drop what is tiny."""
    opened.page.locator(".optima").get_by_label("modes").fill("2")
    for label, value in (("mode 1", "-4"), ("mode 2", "4"), ("μ", "4"), ("σ", "0.25")):
        opened.number(label).fill(value)
    shown = {k: float(v.replace("−", "-")) for k, v in opened.reads().items()}
    state = json.loads(decoded(opened.copied("Copy link")))
    weights = 0.55 ** np.arange(2)
    p = {"means": state["means"], "weights": weights.tolist(), "width": state["width"]}
    from test_explorer_maths import measured

    right = measured(p | {"mu": 4.0, "sigma": 0.25})
    for name in NAMES:
        assert math.isclose(shown[name], right[name], rel_tol=6e-4)
    assert shown["forward_kl"] > 300


def decoded(link):
    """The state in a link."""
    return urllib.parse.unquote(link.partition("#")[2])


def test_a_link_restores_everything(browser, written, opened):
    page = opened.page
    opened.number("μ").fill("0.30000000000000004")
    opened.number("σ").fill("1.2345678901234567")
    page.get_by_label("total variation").check()
    page.locator(".plane").get_by_label("target").select_option("banana")
    opened.number("angle", "plane").fill("0.1234567890123456")
    page.locator(".way").get_by_label("step size").fill("0.37")
    link = opened.copied("Copy link")
    again = Watched(browser, written, "#" + link.partition("#")[2])
    assert again.copied("Copy link") == link
    state = json.loads(decoded(link))
    assert (state["mu"], state["sigma"]) == (0.30000000000000004, 1.2345678901234567)
    assert again.reads() == opened.reads() and again.reads("plane") == opened.reads("plane")
    assert again.said == []
    again.context.close()
    until(page, "location.hash.length > 100")


def linked(state):
    """The end of a link that holds a state, or a part of one."""
    return "#" + urllib.parse.quote(json.dumps(state))


BAD_STATES = (
    *({"sigma": -1}, {"alpha": -0.5}, {"target": "own"}, {"modes": 1e9}),
    *({"means": [0]}, {"plane": {"target": "toString"}}, {"plane": {"s": [1, 0]}}),
)


def test_a_link_may_hold_a_part(browser, written):
    watched = Watched(browser, written, linked({"modes": 5, "spread": 2, "mu": 2, "means": None}))
    places = [watched.number(f"mode {k}").input_value() for k in range(1, 6)]
    assert places == ["-4", "-2", "0", "2", "4"] and watched.number("μ").input_value() == "2"
    assert watched.said == []
    watched.context.close()


@pytest.mark.parametrize("fragment", ["#nonsense", "#%", *map(linked, BAD_STATES)])
def test_a_bad_link_is_the_beginning(browser, written, fragment):
    watched = Watched(browser, written, fragment)
    assert watched.reads()["forward_kl"] == "2.525" and watched.said == []
    watched.context.close()


def test_the_ways_go_down(opened):
    page = opened.page
    page.locator(".way").get_by_role("button", name="Step").click()
    assert "1 steps" in page.locator(".way").inner_text()
    for panel in ("way", "plane"):
        page.locator(f".{panel}").get_by_label("gradient", exact=True).select_option("10")
        page.locator(f".{panel}").get_by_role("button", name="Play").click()
        until(page, f"parseInt(document.querySelector('.{panel} .quiet').textContent) > 2")
        page.locator(f".{panel}").get_by_role("button", name="Pause").click()
        page.locator(f".{panel}").get_by_role("button", name="Reset").click()
        assert "0 steps" in page.locator(f".{panel}").inner_text()


def test_reduced_motion_goes_at_once(browser, written):
    watched = Watched(browser, written, reduced_motion="reduce")
    watched.page.locator(".way").get_by_role("button", name="Play").click()
    assert "200 steps" in watched.page.locator(".way").inner_text()
    watched.context.close()


def test_every_control_has_a_name(opened):
    session = opened.context.new_cdp_session(opened.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    seen = set()
    for node in nodes:
        role = node.get("role", {}).get("value", "").lower()
        if not node["ignored"] and role in NAMED:
            seen.add(role)
            assert node["name"]["value"].strip(), node
    assert {"application", "button", "checkbox", "combobox", "radio", "slider"} <= seen


def test_guesses_are_answered(opened):
    for panel in ("optima", "move", "way", "plane"):
        box = opened.page.locator(f".{panel} fieldset")
        box.get_by_role("radio").first.check()
        assert re.match(r"(Yes|No)\. .*\d", box.locator("output").inner_text())


def test_files_can_be_saved(opened):
    for name, start in (("PNG", b"\x89PNG"), ("JSON", b"{")):
        with opened.page.expect_download() as download:
            opened.page.get_by_role("button", name=f"Download {name}").click()
        content = download.value.path().read_bytes()
        assert content.startswith(start)
    shown = {k: float(v) for k, v in opened.reads().items()}
    for key, value in json.loads(content)["divergences"].items():
        assert math.isclose(value, shown[key], rel_tol=6e-4)


def printed(script):
    """The numbers that a script prints, by their names."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(script, "copied", "exec"), {})
    return {k: float(v) for k, v in map(str.split, out.getvalue().splitlines())}


def assert_shown(watched, panel, numbers, tolerance=6e-4):
    for name, text in watched.reads(panel).items():
        right = numbers[name]
        assert math.isclose(float(text.replace("−", "-")), right, rel_tol=tolerance), (name, right)


def test_the_copied_script_prints_the_numbers(opened):
    assert_shown(opened, "move", printed(opened.copied("Copy as Python")))
    assert_shown(opened, "plane", printed(opened.copied("Copy the plane as Python")), 2e-3)


@pytest.mark.panel
@pytest.mark.parametrize("name", ["banana", "funnel"])
def test_the_copied_script_prints_the_numbers_of_the_plane(opened, name):
    opened.page.locator(".plane").get_by_label("target").select_option(name)
    assert_shown(opened, "plane", printed(opened.copied("Copy the plane as Python")), 2e-3)


WORK = """([board, kind, n]) => {
  const canvas = document.querySelector(`canvas[data-board=${board}]`);
  canvas.scrollIntoView();
  const box = canvas.getBoundingClientRect(), times = [];
  const send = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type,
    { clientX: box.left + x, clientY: box.top + y, pointerId: 1, bubbles: true }));
  send('pointerdown', box.width * kind[0], box.height * kind[1]);
  for (let i = 0; i < n; i++) {
    const start = performance.now();
    send('pointermove', box.width * kind[0] + 40 * Math.sin(i / 5), box.height * kind[1]);
    times.push(performance.now() - start);
  }
  send('pointerup', 0, 0);
  return times;
}"""
SLIDE = """() => {
  const input = document.querySelector('.optima input[type=range][max="8"]'), times = [];
  for (let i = 0; i < 30; i++) {
    input.value = 2 + i / 20;
    const start = performance.now();
    input.dispatchEvent(new Event('input', { bubbles: true }));
    times.push(performance.now() - start);
  }
  return times;
}"""


def test_work_of_a_move(opened, record_property):
    for label, code, given in (
        ("line", WORK, ["move", [0.58, 0.4], 60]),
        ("plane", WORK, ["plane", [0.6, 0.5], 60]),
        ("slider", SLIDE, None),
    ):
        times = opened.page.evaluate(code, given)
        record_property(label, statistics.median(times))
        print(f"{label}: {statistics.median(times):.1f} ms a move, at most {max(times):.1f}")
        assert statistics.median(times) < 500  # a frame or two, and far from what nobody notices


# A model of one's own.


@pytest.mark.parametrize("which", ["line_run", "plane_run"])
def test_a_run_brings_its_density_and_fits(browser, which, request, tmp_path):
    folder = request.getfixturevalue(which)
    path = tmp_path / "explorer.html"
    path.write_text(explorer.page(vi_demo.load(folder), folder=str(folder)), encoding="utf-8")
    watched = Watched(browser, path)
    panel, button = {
        "line_run": ("move", "Copy as Python"),
        "plane_run": ("plane", "Copy the plane as Python"),
    }[which]
    fits = vi_demo.summary(vi_demo.load(folder))["fits"]
    for name in ("forward_kl", "reverse_kl"):
        watched.page.locator(f".{panel}").get_by_role("button", name=name.split("_")[0]).click()
        assert_shown(watched, panel, printed(watched.copied(button)), 2e-3)
        shown = float(watched.reads(panel)[name])
        saved = fits[name]["divergences"][name]
        assert abs(shown - saved["value"]) < max(5 * saved["mcse"], 0.01)
        if which == "line_run":  # the page's own optimum is where the fit is
            with watched.page.expect_download() as download:
                watched.page.get_by_role("button", name="Download JSON").click()
            best = json.loads(download.value.path().read_bytes())["optima"][name]
            mu, sigma = (float(watched.number(k).input_value()) for k in "μσ")
            near = [abs(q["mu"] - mu) + abs(q["sigma"] - sigma) for q in best]
            assert min(near) < 0.02
    assert watched.said == []
    watched.context.close()


# The command.


def ended(capsys, *arguments):
    """The exit status of a command, and what it printed."""
    with pytest.raises(SystemExit) as end:
        cli.main(["explore", *map(str, arguments)])
    return end.value.code, capsys.readouterr()


def test_the_command_needs_no_jax(plane_run, tmp_path):
    code = (
        "import sys\nfrom vi_demo import cli\n"
        "try:\n    cli.main(['explore', *sys.argv[1:], '--no-open'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "for name in ('jax', 'numpyro', 'arviz', 'matplotlib.pyplot'):\n"
        "    assert name not in sys.modules, name\n"
    )
    for arguments, out in (
        ([], "explorer.html"),
        ([str(plane_run), "--out", "a/b.html"], "a/b.html"),
    ):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"Saved {out}\n"
        assert (tmp_path / out).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_one_site_or_two_of_a_run(plane_run, tmp_path, capsys):
    for sites, kind in ((["x[0]"], "line"), (["x[1]", "x[0]"], "plane")):
        data = explorer.tabulated(vi_demo.load(plane_run), sites)
        assert kind in data and data["names"] == sites
        found = explorer.readouts(data, **data["fits"]["forward_kl"])
        assert 0.4 < found["forward_kl"] < 0.9
        out = tmp_path / "one.html"
        options = [o for site in sites for o in ("--site", site)]
        assert ended(capsys, plane_run, *options, "--out", out, "--no-open")[0] == 0


def test_a_model_is_fitted_unless_it_was(explored, monkeypatch, capsys):
    home, out = explored
    monkeypatch.chdir(home)
    assert "Saved in runs/twin/; report.html there has all of it" in out
    assert out.endswith("\nSaved runs/twin/explorer.html\n")
    settings = vi_demo.summary(vi_demo.load("runs/twin"))["settings"]
    assert settings["command"] == "vi-demo run twin.py"
    page = (home / "runs/twin/explorer.html").read_text(encoding="utf-8")
    (values,) = re.findall(r"const values = (\{.*\});", page)
    (mean,) = json.loads(values)["data"]["fits"]["forward_kl"]["mean"]
    assert mean == pytest.approx(-0.3, abs=0.1)
    saved = (home / "runs/twin/posterior.nc").stat().st_mtime_ns
    for what, line in (
        ("twin.py", "Using the run in runs/twin/; vi-demo run twin.py makes it anew\n"),
        ("twin", ""),
        ("runs/twin", ""),
    ):
        code, said = ended(capsys, what, "--no-open")
        assert (code, said.out) == (0, f"{line}Saved runs/twin/explorer.html\n")
    assert (home / "runs/twin/posterior.nc").stat().st_mtime_ns == saved


BAD = {
    "no such thing": (["nothing"], r"no such model or file: 'nothing'"),
    "no such function": (["bimodal:nothing"], r"no function 'nothing'"),
    "an empty folder": (["{here}"], r"holds no posterior\.nc"),
    "no such site": (["{run}", "--site", "y"], r"no coordinate y; it has x\[0\], x\[1\]"),
    "a site of nothing": (["--site", "y"], r"give the run's folder"),
    "out is a folder": (["--out", "{here}"], r"is a folder; name a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_explored_is_told_in_a_line(case, plane_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, pattern = BAD[case]
    places = {"here": tmp_path, "run": plane_run}
    code, said = ended(capsys, *(a.format(**places) for a in arguments), "--no-open")
    assert code == 2
    *_, line = said.err.strip().splitlines()  # a model's file is imported before it is refused
    assert (
        "Traceback" not in said.err and line.startswith("vi-demo: ") and re.search(pattern, line)
    )


def test_it_opens_unless_told_not_to(tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(cli.click, "launch", lambda path: shown.append(path) or len(shown) - 1)
    out = tmp_path / "a.html"
    assert ended(capsys, "--out", out)[0] == 0 and shown == [str(out)]
    code, said = ended(capsys, "--out", out)
    assert code == 2 and "no browser could be started" in said.err
    assert ended(capsys, "--out", out, "--no-open")[0] == 0 and len(shown) == 2


def test_serve_is_for_this_machine_alone(tmp_path):
    command = [sys.executable, "-u", "-m", "vi_demo", "explore", "--serve", "--no-open"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            server.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())[0]
            with urllib.request.urlopen(address) as answer:
                assert answer.read() == (tmp_path / "explorer.html").read_bytes()
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(address + "../secret")
            error.value.close()
            assert error.value.code == 404
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


# In a notebook.

STUB = """
const listeners = {}, held = {{values}};
window.saved = [];
window.model = {
  get: (key) => held[key],
  set(key, value) { held[key] = value; },
  on(name, fn) { (listeners[name] ??= []).push(fn); },
  save_changes() { window.saved.push(structuredClone(held)); },
  tell(key, value) { held[key] = value; (listeners[`change:${key}`] ?? []).forEach((f) => f()); },
};
window.stop = render({ model, el: document.body });
"""


@pytest.mark.parametrize("which", ["none", "plane_run"])
def test_a_widget_follows_and_leads(browser, which, request, tmp_path):
    run = None if which == "none" else vi_demo.load(request.getfixturevalue(which))
    widget = vi_demo.explore(run)
    widget.mu, widget.mean = 0.4, [0.6, 0.7]  # before it is shown
    names = ("data", "text", "mu", "sigma", "mean", "covariance")
    values = {name: getattr(widget, name) for name in names}
    style = f"<style>{widget._css}</style>"
    module = explorer.MODULE.read_text(encoding="utf-8")
    script = module + STUB.replace("{{values}}", json.dumps(values))
    path = tmp_path / "widget.html"
    text = f"<!DOCTYPE html><title>w</title>{style}<script type=module>{script}</script>"
    path.write_text(text, encoding="utf-8")
    watched = Watched(browser, path)
    page = watched.page
    if run is None:
        assert watched.number("μ").input_value() == "0.4"
        page.evaluate("model.tell('mu', 0.25)")
        assert watched.number("μ").input_value() == "0.25"
        watched.number("σ").fill("0.7")
        until(page, "saved.at(-1)?.sigma === 0.7 && saved.at(-1).mu === 0.25")
    else:
        assert watched.number("mean x", "plane").input_value() == "0.6"
        page.evaluate("model.set('covariance', [[4, 0], [0, 1]]); model.tell('mean', [1, 2])")
        assert watched.number("mean x", "plane").input_value() == "1"
        assert watched.number("first sd", "plane").input_value() == "2"
        watched.number("mean y", "plane").fill("0.5")
        until(page, "saved.at(-1)?.mean[1] === 0.5")
        found = page.evaluate("saved.at(-1).covariance")
        np.testing.assert_allclose(found, [[4, 0], [0, 1]], atol=1e-12)
    assert page.url == path.as_uri()  # the address is the notebook's
    page.evaluate("stop()")
    assert watched.said == []
    watched.context.close()


def test_fits_on_a_line_in_the_plane_have_a_width():
    found = np.random.default_rng(0).beta(2, 3, 400)
    covariance = np.cov(np.stack([found, 1 - found])).tolist()
    ellipse = explorer.ellipse([0.4, 0.6], covariance)
    assert ellipse["s"][0] > ellipse["s"][1] > 0
    held = explorer.held({"mu": 0, "sigma": 1, "plane": ellipse})
    widget = vi_demo.explore()
    widget.covariance = held["covariance"]  # which refuses what is not positive definite
    np.testing.assert_allclose(widget.covariance, covariance, atol=1e-9)


def test_q_of_a_widget_is_checked(plane_run):
    widget = vi_demo.explore()
    widget.mu, widget.sigma = 1.5, 0.5
    for name, value in (("sigma", 0.0), ("covariance", [[1, 2], [2, 1]]), ("mean", [1.0])):
        with pytest.raises(Exception, match=name):
            setattr(widget, name, value)
    with pytest.raises(vi_demo.InputError, match="no coordinate z"):
        vi_demo.explore(vi_demo.load(plane_run), ["z"])


def test_without_anywidget_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(vi_demo.InputError, match=r"pip install 'vi-demo\[notebook\]'"):
        vi_demo.explore()


def test_an_exported_notebook_holds_the_page(browser, tmp_path):
    bundle, _ = vi_demo.explore()._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data=bundle)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])])
    page, _ = nbconvert.HTMLExporter(template_name="basic").from_notebook_node(book)
    path = tmp_path / "book.html"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8>{page}", encoding="utf-8")
    context = browser.new_context()
    tab, said = context.new_page(), []
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(path.as_uri())
    frame = tab.frame_locator("iframe")
    frame.get_by_label("μ", exact=True).fill("0.5")
    frame.get_by_role("button", name="Copy as Python").click()
    assert "dist.Normal(0.5, 1.2)" in frame.get_by_role("textbox", name="copied").input_value()
    assert said == []
    context.close()


@pytest.fixture
def laboratory(tmp_path):
    """JupyterLab's address, serving a folder with a notebook of three cells."""
    cells = ["import vi_demo\nw = vi_demo.explore()\nw", "w.mu = 0.25", "print(w.mu, w.sigma)"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel
    )
    nbformat.write(book, tmp_path / "a.ipynb")
    settings = ("ip=127.0.0.1", "port=0", "open_browser=False", "disable_check_xsrf=True")
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--IdentityProvider.token="]
    command += [f"--ServerApp.{s}" for s in (*settings, f"root_dir={tmp_path}")]
    homes = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "RUNTIME")}
    with (
        open(tmp_path / "log", "w+", encoding="utf-8") as log,
        subprocess.Popen(command, stderr=log, cwd=tmp_path, env=os.environ | homes) as server,
    ):
        try:
            for _ in range(300):
                found = re.search(r"http://127\.0\.0\.1:\d+/", (tmp_path / "log").read_text())
                if found or server.poll() is not None:
                    break
                time.sleep(0.2)
            yield found[0]
        finally:
            server.terminate()


def test_in_jupyterlab_q_is_read_and_set_from_python(browser, laboratory):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, said = context.new_page(), []
    page.set_default_timeout(180_000)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{laboratory}lab/tree/a.ipynb")
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    cells.first.locator(".jp-InputArea-editor").click()
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")
    page.keyboard.press("Shift+Enter")
    page.wait_for_selector(".vi-explorer canvas")
    field = page.locator(".vi-explorer .move")
    cells.nth(1).locator(".jp-InputArea-editor").click()
    page.keyboard.press("Shift+Enter")
    until(
        page, "document.querySelector('.vi-explorer .move input[aria-label=μ]').value === '0.25'"
    )
    field.get_by_label("σ", exact=True).fill("0.7")
    page.wait_for_timeout(500)  # what is typed is sent a tenth of a second later
    cells.nth(2).locator(".jp-InputArea-editor").click()
    page.keyboard.press("Shift+Enter")
    until(page, "document.body.innerText.includes('0.25 0.7')")
    assert said == []
    context.close()
