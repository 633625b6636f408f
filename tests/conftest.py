"""Double precision, and the runs that several tests look at, each made once."""

import jax
import pytest

import vi_demo
from vi_demo import loading

jax.config.update("jax_enable_x64", True)


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
