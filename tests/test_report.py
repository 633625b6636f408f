"""The report: what stands on the page, that it is whole by itself, and how a browser shows it."""

import io
import itertools
import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import html5lib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from PIL import Image

import vi_demo
from vi_demo import cli, loading, results
from vi_demo.pictures import figures, report, rows, sections

HTML = "{http://www.w3.org/1999/xhtml}"
SCRIPT = "<script>alert(1)</script>"
IMAGE = "\"'><img src=x onerror=alert(2)>"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MOST_BYTES = 3_000_000
RAW = re.compile(r"\b(nan|None|inf|Traceback|undefined)\b")


@pytest.fixture(scope="module")
def run():
    """A run whose model, site and labels would break a page that lets them."""

    def model():
        with numpyro.plate(IMAGE, 2):
            numpyro.sample(SCRIPT, dist.Normal(0.0, 1.0))

    return vi_demo.run(
        model,
        draws=500,
        path=3,
        quantity=SCRIPT,
        name=f"{SCRIPT} & 'sons'",
        coords={IMAGE: [IMAGE, SCRIPT]},
        dims={SCRIPT: [IMAGE]},
    )


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """That run, saved as the command line saves it."""
    return results.save(run, tmp_path_factory.mktemp("saved"), cli.pictures_of(run))


@pytest.fixture(scope="module")
def page(folder):
    """Its report."""
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(page):
    return parsed(page)


def parsed(page):
    """The page as a tree; a page that is not HTML to the letter is an error."""
    return html5lib.HTMLParser(strict=True).parse(page)


def text_of(tree):
    """All words of a page, without its style."""
    body = tree.find(f"{HTML}body")
    return " ".join(" ".join(body.itertext()).split())


def changed(run, change):
    """The report of a run, without pictures, whose summary was changed by a function."""
    summary = vi_demo.summary(run)
    change(summary)
    tree = xr.DataTree()
    tree.attrs["summary"] = json.dumps(summary)
    page = report.page(tree, {})
    assert not RAW.search(text_of(parsed(page)))
    return page, text_of(parsed(page))


def test_the_verdicts_come_first_and_in_words(run, tree):
    elements = list(tree.find(f"{HTML}body").iter())
    tags = [e.tag.removeprefix(HTML) for e in elements]
    before = " ".join(t for e in elements[: tags.index("figure")] for t in (e.text or "",))
    for fit in vi_demo.summary(run)["fits"].values():
        for words in (fit["verdict"], report.MEANING[fit["verdict"]], *fit["reasons"]):
            assert words in before
        assert fit["advice"] in text_of(tree)
    assert tags.index("article") < tags.index("figure") < tags.index("table")


def test_every_figure_that_can_be_drawn_is_there_once(run, tree):
    drawn = figures.drawn(run)
    assert {"fit", "evidence", "path"} <= set(drawn)
    found = [e.get("id") for e in tree.iter(f"{HTML}figure")]
    assert found == [f"figure-{name}" for name in drawn]
    for name, figure in zip(drawn, tree.iter(f"{HTML}figure"), strict=True):
        plate = figures.FIGURES[name]
        (image,) = figure.iter(f"{HTML}img")
        assert image.get("src").startswith("data:image/png;base64,")
        assert image.get("alt").startswith(f"{plate.title}, of {SCRIPT}")
        assert "reverse KL" in image.get("alt")
        assert figure.find(f"{HTML}h3").text == plate.title
        assert figure.find(f"{HTML}figcaption").text == plate.caption


def test_the_outline_has_no_gaps(tree):
    assert tree.get("lang") == "en"
    assert len(list(tree.iter(f"{HTML}main"))) == len(list(tree.iter(f"{HTML}h1"))) == 1
    levels = [int(e.tag[-1]) for e in tree.iter() if re.fullmatch(f"{HTML}h[1-6]", str(e.tag))]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    ids = [e.get("id") for e in tree.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    targets = [e.get("href") for e in tree.iter(f"{HTML}a")]
    assert targets and all(t.startswith("#") and t[1:] in ids for t in targets)


def test_tables_say_what_their_cells_are(tree):
    tables = list(tree.iter(f"{HTML}table"))
    assert len(tables) > 6
    for table in tables:
        assert table.find(f"{HTML}caption").text
        assert all(th.get("scope") for th in table.iter(f"{HTML}th"))
        *_, head = table.find(f"{HTML}thead")
        for row in table.find(f"{HTML}tbody"):
            assert len(row) == len(head)
            assert row[0].get("scope") == "row"


def test_the_table_is_the_terminals(run, tree):
    summary = vi_demo.summary(run)
    table = next(tree.iter(f"{HTML}table"))
    shown = {
        "".join(row[0].itertext()): ["".join(cell.itertext()) for cell in row[1:]]
        for row in table.find(f"{HTML}tbody")
    }
    for label, cell in rows.fit_rows(summary).items():
        assert shown[label] == [cell(fit) for fit in summary["fits"].values()]


def test_the_page_needs_nothing_else(page, tree):
    head = tree.find(f"{HTML}head")
    policies = [e.get("content") for e in head if e.get("http-equiv")]
    assert policies == [POLICY]
    sources = re.findall(r"<[^>]*\b(?:src|href|srcset|poster|action)=\"([^\"]*)\"", page)
    assert sources and all(s.startswith(("data:", "#")) for s in sources)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    assert not re.search(r"url\(|@import|expression", style)
    tags = {e.tag.removeprefix(HTML) for e in tree.iter() if isinstance(e.tag, str)}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "template", "svg"}
    assert len(page.encode()) < MOST_BYTES


def test_hostile_names_stay_words(page, tree):
    for element in tree.iter():
        assert not [k for k in element.attrib if k.startswith("on")]
    images, drawn = list(tree.iter(f"{HTML}img")), list(tree.iter(f"{HTML}figure"))
    assert len(images) == len(drawn)
    words = text_of(tree)
    assert SCRIPT in words and f"{SCRIPT}[{IMAGE}]" in words
    assert SCRIPT in next(tree.iter(f"{HTML}title")).text
    assert not RAW.search(words)


def test_what_cannot_be_read_is_replaced(run):
    """Controls, marks that turn text around, halves of characters."""

    def rename(summary):
        summary["model"]["name"] = "bell\x07 x\u202egnp.exe \ud800"

    page, words = changed(run, rename)
    assert words.startswith("bell� x�gnp.exe �")
    assert page.encode()


def test_numbers_come_with_units_and_errors(tree):
    words = text_of(tree)
    assert "nats, unless said otherwise" in words
    assert "posterior sds" in words
    assert re.search(r"\d\.\d+ ± \d", words)


def test_how_to_make_it_again(run):
    _, words = changed(run, lambda s: None)
    assert "Made on " in words and " UTC in Python." in words
    assert "vi-demo run MODEL --fit reverse_kl --fit forward_kl --guide full_rank" in words
    assert "--path 3 --quantity '<script>alert(1)</script>'" in words
    assert all(version in words for version in vi_demo.summary(run)["settings"]["versions"])

    def typed(summary):
        summary["settings"]["command"] = "vi-demo run 'my bus.py' --seed 3"

    _, words = changed(run, typed)
    assert "by this command: vi-demo run 'my bus.py' --seed 3" in words
    _, words = changed(run, lambda s: [s["settings"].pop(k) for k in ("made", "command")])
    assert "Made in Python." in words


def test_a_failed_fit_and_no_reference(run):
    """Nothing was measured: dashes, and the reason for each."""
    gone = {"value": None, "mcse": None, "reason": "there is no reference"}

    def fail(summary):
        summary["reference"] |= {
            "method": "none",
            "trusted": False,
            "reasons": ["none was asked for"],
            "log_evidence": gone,
            "modes": [],
        }
        fit = summary["fits"]["reverse_kl"]
        nothing = ("khat", "khat_spread", "ess", "forward_ess", "modes_covered", "mass_covered")
        fit |= dict.fromkeys(nothing) | {"elbo": gone, "eubo": gone, "sites": {}}
        fit |= {"divergences": dict.fromkeys(fit["divergences"], gone), "quantities": {}}
        fit |= {"status": "failed", "verdict": "unreliable", "confidence": None}
        fit["sites_reason"] = "there is no reference"
        fit["restarts"] = {"elbos": [None, None], "places": 1, "rhat": None}
        fit.pop("guide", None)
        summary["settings"]["quantity"] = []
        summary["fits"] = {"reverse_kl": fit}

    page, words = changed(run, fail)
    assert "No reference: what lies beyond the guide's own draws goes unseen." in words
    assert "of reverse KL: there is no reference" in words
    assert "none was asked for" in words
    assert 'id="sites"' not in page and 'id="quantities"' not in page


def test_a_number_without_an_error_says_so(run):
    def lose(summary):
        for fit in summary["fits"].values():
            fit["divergences"]["jeffreys"] = {"value": 1.25, "mcse": None}
            for site in fit["sites"].values():
                site["sd_ratio"][0] = None

    _, words = changed(run, lose)
    assert "1.250 ± ?" in words


@pytest.mark.parametrize(
    ("passes", "verdict", "advice"),
    [
        (True, "reliable", "Use the draws in corrected/posterior."),
        (False, "unreliable", "do not use any"),
        (None, "cannot tell", "No reference tells"),
    ],
)
def test_the_ladder(run, passes, verdict, advice):
    rung = {
        "passes": False,
        "why": "misses a mode",
        "worst_mean_error_in_sd": 0.97,
        "worst_sd_ratio": None,
        "divergences": {"reverse_kl": {"value": 0.693, "mcse": 1e-6}},
        "khat": None,
        "evaluations": {"log_density": 40_160, "gradient": 0},
        "seconds": 20.0,
    }
    rungs = [rung | {"name": "reverse_kl as it is"}, rung | {"name": "mixture:2", "why": "enough"}]
    correction = {"ends": "mixture:2", "passes": passes, "rungs": rungs}
    _, words = changed(run, lambda s: s.update(correction=correction))
    assert f"Corrected by mixture:2 {verdict} The ladder ends at mixture:2: enough." in words
    assert advice in words and words.count("misses a mode") == 1
    assert words.index("Corrected by") < words.index("What was measured")


@pytest.mark.parametrize(("entries", "shown"), [(100, 100), (1000, sections.MOST_ROWS)])
def test_long_tables_are_folded_and_very_long_ones_cut(run, entries, shown):
    def lengthen(summary):
        summary["model"]["labels"] = {"w": [f"w[{i}]" for i in range(entries)]}
        for fit in summary["fits"].values():
            errors = np.zeros(entries)
            errors[-1] = 0.5
            fit["sites"] = {"w": {k: errors.tolist() for k in ("mean_error_in_sd", "mean_mcse")}}
            fit["sites"]["w"] |= {"sd_ratio": [1.0] * entries, "log_sd_mcse": [0.0] * entries}

    page, words = changed(run, lengthen)
    section = page[page.index('id="sites"') : page.index('id="quantities"')]
    assert section.count("<details>") == 2
    assert section.count('<th scope="row">') == 2 * shown
    assert f"w[{entries - 1}]" in section  # which is the worst
    said = f"The worst {shown} of {entries:,}; all are in summary.json."
    assert (said in words) == (shown < entries)


def test_a_target_of_draws(run):
    def only_draws(summary):
        summary["model"]["draws"] = {"number": 2000, "chains": 4, "effective": 1826.2}
        summary["reference"] |= {"method": "draws", "modes": []}

    _, words = changed(run, only_draws)
    assert "2,000 draws in 4 chains, worth 1,826 independent ones. It is" in words


def test_learned_parameters(run):
    values = {"bias": ((), np.array(0.25)), "w": (("a", "b"), np.arange(20.0).reshape(4, 5))}
    tree = xr.DataTree(children={"parameters": xr.DataTree(xr.Dataset(values))})
    tree.attrs["summary"] = run.attrs["summary"]
    words = text_of(parsed(report.page(tree, {})))
    assert "bias one number 0.250" in words
    assert "w 4×5 0.000, 1.000, 2.000" in words and "and 12 more" in words


# The command.


def test_the_command_draws_it_without_jax(run, folder, tmp_path):
    code = (
        "import sys\nfrom vi_demo import cli\n"
        f"try:\n    cli.main(['report', {str(folder)!r}, '--out', 'there/page.html', "
        "'--figures', 'svg'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "for name in ('jax', 'numpyro', 'arviz', 'rich', 'matplotlib.pyplot'):\n"
        "    assert name not in sys.modules, name\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [f"{name}.svg" for name in figures.drawn(run)]
    assert done.stdout == f"Saved there/page.html and {', '.join(names)} beside it\n"
    page = (tmp_path / "there/page.html").read_bytes()
    assert page == (folder / "report.html").read_bytes()
    for name in names:
        ElementTree.parse(tmp_path / "there" / name)
    assert {p.name for p in (tmp_path / "there").iterdir()} == {"page.html", *names}


def written(run, folder, **attrs):
    """A saved run with other attributes."""
    other = run.copy()
    other.attrs |= attrs
    return results.save(other, folder)


BAD = {
    "no such run": (lambda run, here: here / "nowhere", r"nowhere holds no posterior\.nc"),
    "damaged": (
        lambda run, here: (here / "posterior.nc").write_bytes(b"\x89HDF junk") and here,
        r"posterior\.nc cannot be read .*make the run anew",
    ),
    "no JSON": (lambda run, here: written(run, here, summary="{"), r"summary is damaged"),
    "later": (lambda run, here: written(run, here, schema=99), r"later version.*update vi-demo"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_drawn_is_told_in_a_line(case, run, tmp_path, capsys):
    make, pattern = BAD[case]
    folder = make(run, tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["report", str(folder)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("vi-demo: ") and re.search(pattern, line)
    assert not (tmp_path / "report.html").exists()


def test_an_out_that_is_a_folder_is_refused(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["report", str(folder), "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "is a folder; name a file with --out" in capsys.readouterr().err


def test_open_shows_it(folder, tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(cli.click, "launch", lambda path: shown.append(path) or len(shown) - 1)
    for status in (0, 2):  # the second time no browser starts
        with pytest.raises(SystemExit) as end:
            cli.main(["report", str(folder), "--out", str(tmp_path / "a.html"), "--open"])
        assert end.value.code == status
    assert shown == [str(tmp_path / "a.html")] * 2
    assert "no browser could be started" in capsys.readouterr().err


# In a browser.


@pytest.mark.parametrize("scripts", [False, True])
def test_a_browser_asks_for_nothing_and_complains_of_nothing(browser, folder, scripts):
    context = browser.new_context(java_script_enabled=scripts)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    address = (folder / "report.html").as_uri()
    page.goto(address, wait_until="load")
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert said == []
    widths = page.evaluate("Array.from(document.images, i => [i.naturalWidth, i.width])")
    assert len(widths) >= 3
    assert all(shown > 300 and abs(natural - 2 * shown) <= 2 for natural, shown in widths)
    context.close()


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_nothing_overflows(browser, folder, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto((folder / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_light_and_dark(browser, folder):
    """Pictures too: seen on the screen, a figure's paper is as light or dark as the page."""
    looks, paper_of = {}, {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((folder / "report.html").as_uri())
        ask = "(e => [e.color, e.backgroundColor])(getComputedStyle(document.body))"
        looks[scheme] = [sum(map(int, re.findall(r"\d+", c)[:3])) for c in page.evaluate(ask)]
        seen = Image.open(io.BytesIO(page.locator("figure img").first.screenshot()))
        paper_of[scheme] = sum(seen.convert("RGB").getpixel((seen.width - 12, 12)))
        page.close()
    (ink, paper), (chalk, board) = looks["light"], looks["dark"]
    assert paper - ink > 400 and chalk - board > 400
    assert abs(paper_of["light"] - paper) < 12 and abs(paper_of["dark"] - board) < 12


@pytest.mark.panel
@pytest.mark.parametrize("name", loading.bundled())
def test_the_report_of_every_bundled_model(name, browser, tmp_path):
    """A page to the letter, whole by itself, and nothing that a browser complains of."""
    with pytest.raises(SystemExit) as exit:
        cli.main(["run", name, "--budget", "10", "--quiet", "--out", str(tmp_path)])
    assert exit.value.code == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    test_the_page_needs_nothing_else(page, parsed(page))
    assert not RAW.search(text_of(parsed(page)))
    test_a_browser_asks_for_nothing_and_complains_of_nothing(browser, tmp_path, False)
    test_nothing_overflows(browser, tmp_path, 390)
