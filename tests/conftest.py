"""Double precision, and the runs that several tests look at, each made once."""

import jax
import pytest

import vi_demo
from vi_demo import loading

jax.config.update("jax_enable_x64", True)


# The longest first; a group stays on one worker, so that what it shares is made once.
GROUPS = ("old_faithful", "notebooks", "cli", "vote", "reference", "fitting", "eight_schools")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Group tests by file, those of the bundled models by model, and start with the longest."""

    def group(item):
        if item.path.stem != "test_known_answers":
            return item.path.stem.removeprefix("test_")
        return next((name for name in GROUPS if name in item.name), "bimodal")

    def rank(item):
        name = group(item)
        return GROUPS.index(name) if name in GROUPS else len(GROUPS)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=rank)


@pytest.fixture(scope="session")
def bundled_run():
    """A function that runs a bundled model with its defaults, once a session."""
    runs = {}

    def run(name):
        if name not in runs:
            loaded = loading.load(name)
            runs[name] = vi_demo.run(
                *(loaded.model, loaded.data),
                name=name,
                coords=loaded.coords,
                dims=loaded.dims,
            )
        return runs[name]

    return run
