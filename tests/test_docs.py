"""The documents: the API reference is that of the docstrings, and every link leads somewhere."""

import importlib
import inspect
import pkgutil
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import jax.numpy as jnp
import pytest

import vi_demo

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def loaded(file):
    """The module in a file that no package holds."""
    spec = spec_from_file_location(file.stem, file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = loaded(ROOT / "docs" / "make.py")
MODULES = ["vi_demo", *(m.name for m in pkgutil.walk_packages(vi_demo.__path__, "vi_demo."))]


def test_the_api_reference_is_that_of_the_docstrings():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert text == make.api(), "stale: uv run python docs/make.py api"
    assert " at 0x" not in text and "ForwardRef" not in text


def test_every_public_name_of_the_package_is_in_the_api_reference():
    assert set(vi_demo.__all__) <= set(make.PUBLIC["vi_demo"])


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_everything_public_has_a_docstring(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for label, value in make.defined(module):
        # A named tuple is given one where it has none, of its name and fields.
        assert value.__doc__ and not value.__doc__.startswith(f"{label}("), label
        methods = vars(value).items() if inspect.isclass(value) else ()
        for method, function in methods:
            if not method.startswith("_") and inspect.isfunction(function):
                assert function.__doc__, f"{label}.{method}"


def keys(summary):
    """The names of all figures in a summary."""
    if isinstance(summary, list):
        return set().union(*map(keys, summary))
    return set(summary).union(*map(keys, summary.values())) if isinstance(summary, dict) else set()


def test_every_figure_of_a_summary_is_in_the_glossary():
    """But names that are the model's, and packages."""
    two = vi_demo.Target.from_log_density(lambda z: -0.5 * jnp.abs(jnp.abs(z[0]) - 5) ** 2, 1)
    summary = vi_demo.summary(vi_demo.run(two, fits="reverse_kl", draws=100))
    del summary["settings"]["versions"], summary["model"]["labels"]
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    named = {"x", "x[0]", "5%", "50%", "95%"}
    listed = {key.removeprefix("corrected_").removesuffix("_reason") for key in keys(summary)}
    assert not {key for key in listed - named if key.removesuffix("_mcse") not in glossary}


def prose(page):
    """A page's text without code, in which brackets are no links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def headings(page):
    """The names by which links find a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return make.anchors(re.findall(r"^#{1,6} +(.*?) *#*$", text, re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"(?<!\\)\]\(([^)\s]+)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        file, _, heading = link.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists() and there.is_relative_to(ROOT), link
        if heading:
            assert heading in headings(there), link


def test_headings_of_one_name_are_told_apart():
    assert make.anchors(["A b", "a.B", "A b", "c_d, E"]) == ["a-b", "ab", "a-b-1", "c_d-e"]
