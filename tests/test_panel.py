"""The models of the panel of benchmarks: each can be read, or is refused in one line."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vi_demo import InputError, Target, starts

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from panel_models import PANEL

pytestmark = pytest.mark.filterwarnings("ignore")  # NumPyro's about odd models are not in question
REFUSED = [name for name, entry in PANEL.items() if entry.kind == "refused"]
READ = [name for name in PANEL if name not in REFUSED]


def read(name):
    """The target of a model."""
    model, data = PANEL[name].make()
    return Target.from_numpyro(model, data, name=name)


def test_there_are_enough():
    assert len(READ) >= 40


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name):
    with pytest.raises(InputError) as refusal:
        starts.points(read(name), jax.random.key(0), 2)
    assert PANEL[name].words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.panel
@pytest.mark.parametrize("name", READ)
def test_log_density_and_gradient_are_finite_at_a_start(name):
    target = read(name)
    # As `starts.points` tries them, but compiling one program a model and not three.
    around = jax.random.uniform(jax.random.key(0), (target.dim,), minval=-1.0, maxval=1.0)
    fn = jax.jit(lambda zs: jax.lax.map(jax.value_and_grad(target.log_density), zs))
    values, slopes = fn(np.multiply.outer(starts.RADII, around))
    finite = np.isfinite(values) & np.isfinite(slopes).all(1)
    assert finite.any()
    assert np.any(slopes[finite] != 0)


def test_climbs_keep_out_of_a_hierarchys_spike():
    """Thirty lines whose slopes' spread can vanish; log evidence −562.97 ± 0.05 by tempered SMC.

    A climb of the density itself ends where the spread has vanished, 400 nats below.
    """
    assert -563 - 3 < starts.climbs(read("rats")).elbos.max() < -562.8
