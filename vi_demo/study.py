"""The main job: a target, a reference, fits in both directions, and what each got wrong."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import xarray as xr

from vi_demo import (
    checkpoints,
    correction,
    fitting,
    guides,
    landscapes,
    loading,
    quantities,
    record,
    restarts,
    starts,
)
from vi_demo import reference as references
from vi_demo.approximations import APPROXIMATIONS
from vi_demo.circumstances import circumstances, precision, versions
from vi_demo.diagnostics import measure
from vi_demo.divergences.estimators import resample
from vi_demo.divergences.generators import F_DIVERGENCES, named
from vi_demo.errors import InputError
from vi_demo.fitting import descent, moment_matching, svi
from vi_demo.fitting.descent import Descent
from vi_demo.fitting.objectives import TargetDraws, draws_of_target
from vi_demo.fitting.path import follow
from vi_demo.fitting.runner import Report, silent
from vi_demo.identity import identity
from vi_demo.inputs import as_target
from vi_demo.mesh import on_its_mesh
from vi_demo.mesh import shape as mesh_shape
from vi_demo.mesh import words as mesh_words
from vi_demo.results import SCHEMA
from vi_demo.target import Target
from vi_demo.verdict import Judged, judge, of_quantities

DRAWS = 4_000
LEAST_DRAWS = 100
LEAST_STEPS = 3  # of a path
BUDGET = 60.0  # seconds


@on_its_mesh
def run(
    model: Target | Callable | str | Path | loading.Loaded,
    data: Mapping | str | Path | None = None,
    *,
    fits: str | Sequence[str] | None = None,
    guide: str | Callable = "full_rank",
    reference: str | Path = "auto",
    seed: int = 0,
    draws: int = DRAWS,
    budget: float = BUDGET,
    path: int | None = None,
    quantity: str | Sequence[str] = (),
    correct: bool = False,
    optimizer: str | None = None,
    film: bool | None = None,
    mesh: str | None = None,
    report: Report = silent,
    name: str | None = None,
    coords: dict | None = None,
    dims: dict | None = None,
) -> xr.DataTree:
    """Fit a model in several ways and measure each fit against a reference.

    `model` is a NumPyro model with `data`, its keyword arguments or a file of them, a `Target`,
    or whatever `vi-demo run` takes, such as a file's path, which may be one of somebody's draws.
    `fits` are both directions of KL unless given, and forward KL of draws; any divergence's name,
    or an approximation's, `laplace`, `pathfinder` or `ep`. `reference` may be a
    file of trusted draws. `guide` names a family, or is a NumPyro guide of your own for the
    reverse fit, `own` being the one in the model's file. Returns an ArviZ
    DataTree with a sub-tree a fit, `run["reverse_kl"]`, which ArviZ's functions take as it is;
    `summary(run)` gives all figures, in nats. With `path`, the best guide is followed along
    alpha from reverse to forward KL in so many steps, into `run["path"]`. Of the sites named in
    `quantity`, deterministic ones too, each entry's mean, sd and quantiles get an error and a
    verdict of their own. With `correct`, a ladder of corrections is climbed until one is right,
    and its draws are `run["corrected"]`. Reverse KL goes by natural gradients where it can, and by
    Adam with the `optimizer` "adam". With `film`, the way down of each divergence from a few
    common starts is recorded for `vi-demo animate`, in the 24 coordinates that part most; up to
    two dimensions it is unless `film` is False. `mesh` lays the work over several devices:
    `draws=4,rows=2`, or `auto` for all of them along the draws. `report(phase, share, text)` is
    called as the work goes on. Raises
    `InputError` where the input cannot be used.
    """
    fits = (fits,) if isinstance(fits, str) else fits and tuple(fits)
    quantity = (quantity,) if isinstance(quantity, str) else tuple(quantity)
    check_settings(fits or (), reference, draws, budget, path)
    if isinstance(guide, str) and guide != "own":
        guides.family(guide)  # refused now, if there is none of that name
    report("model", 0.0, "reading the model")
    target, own = as_target(model, data, guide, name=name, coords=coords, dims=dims)
    fits = fits or (fitting.DEFAULT if target.log_density is not None else ("forward_kl",))
    family, remarks = family_for(target, guide if own is None else "full_rank")
    refuse(target, own, family, fits, path, correct, optimizer)
    if film:
        descent.refuse(target, None if own is not None else family)
    quantities.known(target, quantity)
    given = None if reference in references.METHODS else references.from_file(target, reference)
    settings = {
        "seed": seed,
        "draws": draws,
        "guide": family.name if own is None else "own",
        "reference": str(reference),
        "budget": budget,
        "quantity": list(quantity),
        "correct": correct,
        "optimizer": optimizer,
        "film": film,
        "path": path,
    }
    trusted = given and (given.draws.points, given.log_p)
    checkpoints.begin(
        lambda: {
            **identity(model, guide, data, target, trusted),
            **{"fits": fits, **settings, "precision": precision(), "versions": versions()},
            **{"mesh": mesh_words(), "processes": jax.process_count()},
        }
    )
    key = jax.random.key(seed)
    asked = target
    own_fit, target = first_learned(target, family, own, key, report)
    remarks += target.remarks[len(asked.remarks) :]  # of the learning
    if checkpoints.kept():
        keep_what_was_timed(target)
    given = given if target is asked else None  # was measured by the model before it learned
    truth = referred_to(target, given, reference, key, budget, report)
    points = None if truth.draws is None else resample(truth.draws, draws, seed)
    fit_once = each_once(target, family, key, report, own_fit, remarks, optimizer)
    judge_fit = judging(target, truth, key, draws, fits, quantity)
    judged = {name: fitted(name, fit_once, judge_fit, report) for name in fits}
    study = Study(target, family, key, truth, points, judged, judge_fit, draws, report)
    parts, summary = study.recorded(settings)
    if path is not None:
        ends = [fit_once(name) for name in fitting.DEFAULT]
        parts["path"], summary["path"] = study.followed(ends, path)
    if correct:
        parts["corrected"], summary["correction"] = study.corrected(budget)
    if target.dim <= 2 and target.log_density is not None:
        parts["landscape"] = study.landscape()
    if own is None and (film or (film is None and target.dim <= 2)):
        study.watch(parts, quantity)
    tree = xr.DataTree(children=parts)
    tree.attrs |= {"schema": SCHEMA, "summary": record.to_json(summary)}
    return tree


@dataclass(frozen=True)
class Study:
    """A target with its reference and its judged fits, and what can be made of them.

    `points` (S, d) are draws of the reference, of equal weight, where it has any.
    """

    target: Target
    family: guides.Family
    key: jax.Array
    truth: references.Reference
    points: np.ndarray | None
    judged: dict[str, Judged]
    judge_fit: Callable[[str, fitting.Fit], Judged]
    draws: int
    report: Report

    def recorded(self, settings: dict) -> tuple[dict, dict]:
        """The sub-trees of the fits and of the reference, and the summary of all figures."""
        target, truth, judged = self.target, self.truth, self.judged
        parts = {
            k: record.fit_tree(target, j.fit, j.figures, self.draws) for k, j in judged.items()
        }
        command = {"command": None}  # the command line writes its own there
        summary = {
            "schema": SCHEMA,
            "model": record.model_summary(target),
            "settings": {**settings, "mesh": mesh_shape(), **command, **circumstances()},
            "reference": record.reference_summary(target, truth),
            "fits": {k: entry_of(target, j, truth, parts[k]) for k, j in judged.items()},
        }
        if self.points is not None:
            parts["reference"] = record.reference_tree(target, truth, self.points)
        if target.learned:
            parts["parameters"] = record.parameters_tree(target)
        return parts, summary

    def followed(self, ends: Sequence[fitting.Fit], steps: int) -> tuple[xr.DataTree, dict]:
        """The best guide along alpha, from the fit by reverse KL to that by forward KL."""
        self.report("path", 0.0, "compiling")
        key = part(self.key, "path")
        way = partial(follow, self.target, self.family, *ends, key, steps, self.report)
        path = checkpoints.once("path", way)
        return record.path_tree(self.target, path), record.path_summary(path)

    def corrected(self, budget: float) -> tuple[xr.DataTree, dict]:
        """The ladder of corrections, and the draws it ends at."""
        self.report("correct", 0.0, "climbing the ladder")
        key = part(self.key, "correct")
        rungs = correction.climb(
            correction.Attempt(
                *(self.target, self.judged, self.truth, self.judge_fit, key, budget, self.report)
            )
        )
        self.report("correct", 1.0, rungs[-1].name)
        tree = record.corrected_tree(self.target, rungs[-1], self.draws)
        return tree, record.correction_summary(rungs)

    def landscape(self) -> xr.DataTree:
        """The target's log density wherever draws of any fit or of the reference are."""
        seen = [j.figures.points[: self.draws] for j in self.judged.values()]
        seen += [] if self.points is None else [self.points]
        return xr.DataTree(landscapes.density(self.target, np.concatenate(seen)))

    def watch(self, parts: dict, quantity: tuple[str, ...]) -> None:
        """Add what a film shows: the way down of each fit, and what it is seen over."""
        self.report("film", 0.0, "compiling")
        ways, kls = to_watch(self, quantity)
        for name, way in ways.items():
            parts[name]["descent"] = record.descent_tree(self.target, way)
        if ways and self.target.dim > 2 and self.points is not None:
            kept = next(iter(ways.values())).coordinates
            seen_over = record.unconstrained_tree(self.target, self.points, kept)
            parts["reference"]["unconstrained"] = seen_over
        if kls is not None:
            parts["kl_landscape"] = xr.DataTree(kls)
        self.report("film", 1.0, "recorded" if ways else "nothing to watch")


def keep_what_was_timed(target: Target) -> None:
    """Decide but once in a run what depends on the clock, as how many points are affordable."""
    if target.log_density is None:
        return
    vars(target)["seconds_each"] = checkpoints.once(
        "seconds of a density", lambda: target.seconds_each
    )
    found = checkpoints.once("climbs", lambda: (starts.climbs(target), starts.evaluations(target)))
    target.programs["climbs"], target.programs["evaluations"] = found


def to_watch(
    study: Study, quantity: tuple[str, ...]
) -> tuple[dict[str, Descent], xr.Dataset | None]:
    """The way down each divergence that was fitted, from the same starts; the KLs in between.

    Of many coordinates those of the sites in `quantity` are recorded first.
    """
    target, family, judged = study.target, study.family, study.judged
    draws = of_reference(study.truth)
    if draws is None:
        draws = next((j.fit.draws for j in judged.values() if j.fit.draws is not None), None)
    key = part(study.key, "film")
    course = None if draws is None else descent.course(target, family, key, draws)
    names = [name for name in judged if name not in APPROXIMATIONS]
    if course is None or not names:
        return {}, None
    of_site = [name.partition("[")[0] for name in target.coordinate_names]
    first = [i for i, site in enumerate(of_site) if site in quantity]
    ways = descent.ways(course, names, first)
    flat = target.dim == 1 and family.components == 1 and target.log_density is not None
    return ways, landscapes.of_kls(target, draws, ways) if flat else None


def of_reference(truth: references.Reference) -> TargetDraws | None:
    """Its draws as a fitter takes them; of a density only where its integral is known."""
    draws = truth.draws
    if draws is None or (truth.log_p is not None and truth.log_evidence is None):
        return None
    log_p = np.full(len(draws.points), np.nan) if truth.log_p is None else truth.log_p
    log_evidence = np.nan if truth.log_evidence is None else truth.log_evidence.value
    return draws_of_target(draws.points, draws.weights, log_p, log_evidence)


def refuse(
    target: Target,
    own: Callable | None,
    family: guides.Family,
    fits: Sequence[str],
    path: int | None,
    correct: bool,
    optimizer: str | None,
) -> None:
    """Refuse what cannot be done to this target before anything is compiled."""
    if correct and target.log_density is None:
        raise InputError(
            f"{target.name}: a correction needs a log density; leave --correct out for draws."
        )
    if path is not None and target.log_density is None:
        raise InputError(f"{target.name}: a path needs a log density; leave --path out for draws.")
    if path is not None and own is not None:
        raise InputError("a path needs a family of guides at both ends; leave --guide own out.")
    if own is not None and optimizer == "natural":
        raise InputError("your own guide is fitted by Adam; leave --optimizer out.")
    for name in fits if path is None else (*fits, *fitting.DEFAULT):
        fitting.refuse(name, target, family, optimizer)


def referred_to(
    target: Target,
    given: references.Reference | None,
    method: str,
    key: jax.Array,
    budget: float,
    report: Report,
) -> references.Reference:
    """The reference: trusted draws where they are given, else made by a method."""
    report("reference", 0.0, "compiling")
    if given is not None:
        build = partial(references.with_modes, target, given)
    else:
        reference_key = part(key, "reference")
        build = partial(references.build, target, method, reference_key, budget, report)
    truth = checkpoints.once("reference", build)
    report("reference", 1.0, truth.method)
    return truth


def first_learned(
    target: Target, family: guides.Family, own: Callable | None, key: jax.Array, report: Report
) -> tuple[fitting.Fit | None, Target]:
    """The fit of the user's own guide, if there is one, and the target with what was learned."""
    if own is not None:
        report("reverse_kl", 0.0, "compiling")
        own_key = part(key, "reverse_kl")
        return svi.fit_own(target, target.own_guide(own), own_key, report)
    if target.parameters:
        report("parameters", 0.0, "compiling")
        target = svi.learn(target, family, part(key, "parameters"), report)
    return None, target


def each_once(
    target: Target,
    family: guides.Family,
    key: jax.Array,
    report: Report,
    own_fit: fitting.Fit | None,
    remarks: tuple[str, ...],
    optimizer: str | None,
) -> Callable[[str], fitting.Fit]:
    """The fit of a name, made when it is first asked for.

    Others than the two directions of KL start from the forward fit and use its draws.
    """
    forward_key = part(key, "forward_kl")
    forward = functools.cache(partial(moment_matching.fit, target, family, forward_key, report))

    @functools.cache
    def fit_once(name):
        fitted = own_fit if name == "reverse_kl" else None
        if fitted is None:
            each_key = part(key, name)
            fitted = fitting.fit(name, target, family, each_key, report, forward, optimizer)
        return replace(fitted, notes=(*remarks, *fitted.notes))

    return fit_once


def judging(
    target: Target,
    truth: references.Reference,
    key: jax.Array,
    draws: int,
    fits: Sequence[str],
    quantity: tuple[str, ...],
) -> Callable[[str, fitting.Fit], Judged]:
    """How a fit of some name is measured and judged in this run."""
    asked = [named(name) for name in fits if name not in APPROXIMATIONS]
    measured = (*F_DIVERGENCES, *(f for f in asked if f not in F_DIVERGENCES))

    def judge_fit(name, fit):
        measure_key = part(key, f"measure {name}")
        figures = measure(target, fit.guide, truth, measure_key, draws, measured, quantity)
        return Judged(fit, figures, judge(figures, fit.status, truth.method, truth.reasons, name))

    return judge_fit


def fitted(name: str, fit_once: Callable, judge_fit: Callable, report: Report) -> Judged:
    """The fit of a name, judged."""
    report(name, 0.0, "compiling")
    fit = fit_once(name)
    report(name, 1.0, fit.status)
    report("measure", 1.0, name)
    judged = judge_fit(name, fit)
    report("measure", 1.0, f"{name}: {judged.verdict.verdict}")
    return judged


def entry_of(target: Target, judged: Judged, truth: references.Reference, tree) -> dict:
    """All figures of one fit, as `summary.json` has them."""
    fit, figures, verdict = judged
    each = of_quantities(figures, doubted=not truth.trusted)
    entry = record.fit_summary(fit, figures, verdict, each)
    entry |= record.guide_summary(target, tree["guide"].to_dataset())
    agreement = restarts.compared(target, fit) if target.log_density is not None else {}
    return entry | ({"restarts": agreement} if agreement else {})


def family_for(target: Target, guide: str) -> tuple[guides.Family, tuple[str, ...]]:
    """The family of that name, or a smaller one where it is out of reach, and a remark on that."""
    family = guides.family(guide)
    remarks = target.remarks if target.draws is None else ()  # of draws their reference tells
    if target.parameters:
        names = ", ".join(target.parameters)
        remarks += (f"learned by SVI first, and held in what follows: {names}",)
    if guide in guides.WITH_WHOLE_MATRIX and target.dim > guides.MOST_FULL_RANK:
        numbers = target.dim * (target.dim + 3) // 2
        remarks += (
            f"{guide} would have {numbers:,} numbers or more in {target.dim:,} dimensions: "
            "diagonal was fitted, and low_rank:5 can be",
        )
        family = guides.family("diagonal")
    return family, remarks


def check_settings(fits, reference, draws, budget, path) -> None:
    """Refuse settings that cannot be before anything is compiled."""
    for name in fits:
        fitting.known(name)
    references.known(reference)
    if draws < LEAST_DRAWS:
        raise InputError(f"draws must be at least {LEAST_DRAWS}, not {draws}.")
    if path is not None and path < LEAST_STEPS:
        raise InputError(f"path takes at least {LEAST_STEPS} steps, not {path}.")
    if not budget > 0:
        raise InputError(f"budget must be a positive number of seconds, not {budget:g}.")


def part(key: jax.Array, name: str) -> jax.Array:
    """A key for one part of the work, the same whichever other parts there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
