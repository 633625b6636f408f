"""Seconds by phase: spans that overlap count once, and phases that come back add up."""

import time

import jax
import jax.numpy as jnp
import pytest

from vi_demo.timings import Timings, compiling, covered


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0.0),
        ([(1.0, 2.0), (4.0, 4.5)], 1.5),
        ([(1.0, 4.0), (2.0, 3.0)], 3.0),  # one within another
        ([(1.0, 3.0), (2.0, 4.0)], 3.0),
        ([(-2.0, 0.5), (9.0, 12.0)], 1.5),  # beyond both ends
        ([(11.0, 12.0)], 0.0),
    ],
)
def test_covered(spans, seconds):
    assert covered(spans, 0.0, 10.0) == pytest.approx(seconds)


def test_a_phase_that_comes_back_adds_up():
    told, timed = [], Timings()
    report = timed.watching(lambda *said: told.append(said))
    with compiling() as spans:
        for phase in ("one", "two", "one"):
            report(phase, 0.0, "so")
            time.sleep(0.02)
            if phase == "two":
                jax.jit(lambda x: jnp.sin(x) + 41)(1.0)
        seconds = timed.seconds(spans)
    assert [phase for phase, _, _ in told] == ["one", "two", "one"]
    assert list(seconds) == ["one", "two"]
    assert seconds["one"]["compile"] == 0.0
    assert seconds["one"]["run"] >= 0.04
    assert seconds["two"]["compile"] > 0.0
