"""One loop that drives every fitter.

A fitter is a named tuple of functions on a state: compiled chunks of steps go in a row, and
between two chunks the loop reports progress, keeps what there is to look at, and asks whether
to stop. What the next step needs is the state; what one only looks at is the info. Where
checkpoints are kept, a fit that was interrupted goes on from both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vi_demo import checkpoints
from vi_demo.fitting.objectives import TargetDraws
from vi_demo.frames import Frame
from vi_demo.guides import Family
from vi_demo.timings import compiling, covered

PATH_POINTS = 400  # of the way there that are kept

Report = Callable[[str, float, str], None]  # phase, share done, what to say


def silent(phase: str, share: float, text: str) -> None:
    """The report of a run that nobody watches."""


class Fitter(NamedTuple):
    """A way to fit a guide, as functions on a state of its own.

    `init(key)` gives the first state; `advance(state)` one chunk of steps, (state, info), info
    being a dictionary of arrays; `assess(state)` says how far it is; `finish(state)` gives
    the fields of `Fit` that only the fitter knows. Parameters are those of guides on `frame`,
    where the fitter steps on a scale of its own.
    """

    name: str
    init: Callable[[jax.Array], Any]
    advance: Callable[[Any], tuple[Any, dict]]
    assess: Callable[[Any], Assessment]
    finish: Callable[[Any], dict]
    frame: Frame | None = None


class Assessment(NamedTuple):
    """Between two chunks: the status, or None to go on; the share done; a word for the bar."""

    status: str | None
    share: float
    text: str


@dataclass(frozen=True)
class Fit:
    """A fitted guide and the record of how it was fitted.

    `params` are the best restart's, `restarts` everyone's: arrays with a leading axis of
    restarts, `elbo` among them where the fitter has several. `history` holds one row a recorded
    step, thinned: scalars of every restart, parameters of the best.
    `evaluations` counts log densities and gradients of the target, every particle of
    every restart included. `notes` are sentences about what went wrong on the way. `draws` are
    the target's weighted draws that it was fitted to, where there are some.
    """

    divergence: str
    fitter: str
    family: Family
    params: dict
    status: str
    steps: int
    evaluations: dict[str, int]
    seconds: dict[str, float]
    history: dict[str, np.ndarray] = field(default_factory=dict)
    restarts: dict[str, np.ndarray] = field(default_factory=dict)
    best: int = 0
    measured: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    draws: TargetDraws | None = None

    @property
    def guide(self):
        """The fitted distribution on R^d."""
        return self.family.distribution(self.params)


def run(
    fitter: Fitter, key: jax.Array, divergence: str, family: Family, report: Report = silent
) -> Fit:
    """Run a fitter until it says that it has converged, is out of steps, or has failed."""
    track = checkpoints.of_fit(f"{divergence} by {fitter.name}")
    with clock() as elapsed:
        # One that goes on begins as well: what sets up programs and fixed draws is no state.
        state, infos = track.taken_up(fitter.init(key))
        assessment = fitter.assess(state) if infos else None
        while assessment is None or assessment.status is None:
            state, info = fitter.advance(state)
            infos.append(jax.device_get(info))
            assessment = fitter.assess(state)
            report(divergence, assessment.share, assessment.text)
            track.keep(state, infos, elapsed())
        fields = fitter.finish(state)
        spent = elapsed()
    history = thinned({k: np.concatenate([i[k] for i in infos]) for k in infos[0]})
    track.keep(state, [history.copy()], spent)
    for k in fields["params"]:
        if k in history and fields.get("restarts"):
            history[k] = history[k][:, fields.get("best", 0)]
    if fitter.frame is not None:
        fields, history = on_target_scale(fitter.frame, family, fields, history)
    return Fit(
        divergence=divergence,
        fitter=fitter.name,
        family=family,
        status=assessment.status,
        seconds=track.in_all(spent),
        history=history,
        **fields,
    )


def thinned(history: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """At most `PATH_POINTS` rows of each."""
    return {k: v[:: max(1, -(-len(v) // PATH_POINTS))] for k, v in history.items()}


def on_target_scale(frame: Frame, family: Family, fields: dict, history: dict):
    """Parameters of guides on a fitter's own scale as those on the target's."""
    names = list(fields["params"])
    kept = []
    for rows in (fields.get("restarts", {}), history):
        if set(names) <= set(rows):
            kept.append(rows)
        else:  # one of them was too large to be recorded: the others mean nothing
            for k in names:
                rows.pop(k, None)
    # One program for all of them.
    one = {k: np.asarray(v)[None] for k, v in fields["params"].items()}
    every = {k: np.concatenate([one[k], *(rows[k] for rows in kept)]) for k in names}
    moved = jax.jit(partial(jax.lax.map, lambda params: family.moved(params, *frame)))(every)
    ends = np.cumsum([1, *(len(rows[names[0]]) for rows in kept)])[:-1]
    pieces = {k: np.split(np.asarray(v), ends) for k, v in moved.items()}
    for i, rows in enumerate(kept, 1):
        rows |= {k: v[i] for k, v in pieces.items()}
    return fields | {"params": {k: jnp.asarray(v[0][0]) for k, v in pieces.items()}}, history


def choose(condition: jax.Array, yes, no):
    """`jnp.where` over two trees of one structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


@contextmanager
def clock() -> Iterator[Callable[[], dict[str, float]]]:
    """Wall seconds in a block so far, split into tracing and compiling, and the rest."""
    start = time.perf_counter()

    def elapsed():
        now = time.perf_counter()
        compiled = covered(spans, start, now)
        return {"compile": compiled, "run": now - start - compiled}

    with compiling() as spans:
        yield elapsed
