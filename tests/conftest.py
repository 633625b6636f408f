"""Double precision, and the runs that several tests look at, each made once."""

# Before JAX, which reads what is set there as it is imported.
import vi_demo  # isort: skip

import os
import shutil
from pathlib import Path

import jax
import pytest

from vi_demo import loading

# Workers and the processes that tests start compile much of the same: they keep it for each other.
CACHE = str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_enable_x64", True)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIETLY = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
BUDGET = 20.0  # seconds for a reference to grow in

# Files stay on one worker each, so that what their tests share is made once: longest first.
LONGEST = (
    *(
        "known_answers",
        "cli",
        "notebooks",
        "explorer",
        "fitting",
        "guides",
        "reference",
        "saved",
        "divergences",
    ),
    *("mesh", "processes", "checkpoints", "streamed", "report", "natural_gradient", "calibration"),
    *("target", "explorer_maths", "estimators", "applied", "panel"),
)


def pytest_collection_modifyitems(items):
    """Start with the longest files."""

    def rank(item):
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def bundled_run():
    """A function that runs a bundled model, once a session."""
    runs = {}

    def run(name):
        if name not in runs:
            loaded = loading.load(name)
            runs[name] = vi_demo.run(
                *(loaded.model, loaded.data),
                budget=BUDGET,
                name=name,
                coords=loaded.coords,
                dims=loaded.dims,
            )
        return runs[name]

    return run


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, for what only a browser can tell of a page."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        tell = pytest.fail if os.environ.get("CI") else pytest.skip
        tell(f"no browser on PATH ({', '.join(BROWSERS)})")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=QUIETLY)
        yield chromium
        chromium.close()
