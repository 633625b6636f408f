"""Before a run: what a target is made of, whether it can be evaluated, and what can be fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from vi_demo import starts
from vi_demo.fitting.objectives import rule_of_thumb
from vi_demo.inputs import as_target
from vi_demo.loading import Loaded
from vi_demo.reference.propriety import does_not_fall
from vi_demo.target import Target

POINTS = 64
NEAR = 2.0
FAR_APART = 1e3  # ratio of sds from which scales are worth a word
MOST_NAMED = 5


def check(
    model: Target | Callable | str | Path | Loaded,
    data: Mapping | str | Path | None = None,
    *,
    seed: int = 0,
    name: str | None = None,
    coords: dict | None = None,
    dims: dict | None = None,
) -> str:
    """What there is to say of a model before it is fitted, a line each, to be printed.

    Its sites with shape, support and prior; whether density and gradient are finite at draws of
    the prior and around 0, where fits begin, and which site is not; scales that differ; whether
    the posterior is proper as far as can be told; what can be fitted. Arguments as of
    `vi_demo.run`. Raises `InputError` where the input cannot be used.
    """
    return "\n".join(lines(model, data, seed=seed, name=name, coords=coords, dims=dims))


def lines(model, data=None, *, seed: int = 0, **labels) -> Iterator[str]:
    """The lines of `check` as they become known: what takes longest to find out comes last."""
    target, _ = as_target(model, data, **labels)
    yield f"{target.name}: {target.dim} dimension{'s' * (target.dim > 1)}"
    if target.about:
        yield from (site_line(k, v) for k, v in target.about().items())
    if target.draws is not None:
        yield from draws_lines(target)
    yield from target.remarks
    works = rule_of_thumb(target.log_density is not None, target.draws is not None)
    yield f"can be fitted: {works}"
    if target.log_density is not None:
        yield from density_lines(target, jax.random.key(seed))


def site_line(name: str, site: dict) -> str:
    """A site in a line: its kind, its shape, its prior, and where it lies or what feeds it."""
    shape = f" of shape {list(site['shape'])}" if site["shape"] else ""
    if site["kind"] == "observed":
        fed = f"is argument {site['argument']}" if site["argument"] else "is made from the data"
        return f"  {name}{shape}: observed, {fed}, {site['prior']}"
    return f"  {name}{shape}: {site['kind']}, {site['support']}, prior {site['prior']}"


def draws_lines(target: Target) -> list[str]:
    """What a file of draws holds: its sites with their supports, and what its draws are worth."""
    known = target.supports()
    found = [
        f"  {k}{f' of shape {list(shape)}' if shape else ''}: draws, "
        f"{(known[k] or {}).get('support', 'real').replace('_', ' ')}"
        for k, shape in target.sites.items()
    ]
    chains = f" in {target.chains} chains" if target.chains else ""
    number = f"{len(target.draws):,} draws{chains}, worth {target.effective_draws:,.0f}"
    return [*found, number]


def density_lines(target: Target, key: jax.Array) -> Iterator[str]:
    """Whether density and gradient are finite, on what scales, and whether they fall outward."""
    if target.estimate is not None:
        yield "rows are subsampled: reverse KL by minibatches, the rest by all rows in turn"
    if target.parameters:
        yield f"parameters, learned by SVI first: {', '.join(target.parameters)}"
    look = target.batched(jax.value_and_grad(target.log_density))
    for words, points in looked_at(target, key).items():
        heights, slopes = look(points)
        finite = np.isfinite(heights)
        smooth = finite & np.isfinite(slopes).all(1)
        yield (
            f"log density finite at {finite.sum()} of {len(points)} {words}, "
            f"its gradient at {smooth.sum()}"
        )
        if not finite.all():
            at = target.not_finite_at(points)
            yield f"  not finite at site {at}" if at else "  though each site's is finite"
        elif not smooth.all():
            z = points[int(np.argmin(smooth))]
            yield f"  the gradient is not finite at {where(target, z)}"
    if target.prior is not None:
        yield "prior: proper, so the posterior is too, unless the likelihood is unbounded"
    yield from scale_lines(target)
    if target.prior is None:
        yield proper_line(target)


def looked_at(target: Target, key: jax.Array) -> dict[str, jax.Array]:
    """Draws of the prior, where there is one, and points such as NumPyro's own fits start at."""
    found = {}
    if target.prior is not None:
        found["draws of the prior"] = jax.vmap(target.prior.draw)(jax.random.split(key, POINTS))
    shape = (POINTS, target.dim)
    around = jax.random.uniform(key, shape, minval=-NEAR, maxval=NEAR)
    return found | {f"points of R^d within {NEAR:g} of 0": around}


def where(target: Target, z: jax.Array) -> str:
    """A point by its sites."""
    values = target.constrain(z)
    return ", ".join(f"{k} = {np.ravel(values[k])[:3]}" for k in list(target.sites)[:MOST_NAMED])


def scale_lines(target: Target) -> list[str]:
    """That coordinates differ by orders of magnitude, if they do."""
    found = starts.climbs(target)
    if found is None:
        return []
    best = int(np.argmax(found.elbos))
    sds = np.linalg.norm(np.asarray(found.factors[best]), axis=1)
    low, high = int(sds.argmin()), int(sds.argmax())
    if sds[high] < FAR_APART * sds[low]:
        return []
    names = target.coordinate_names
    return [
        f"scales differ: {names[low]} moves by {sds[low]:.1g}, {names[high]} by {sds[high]:.1g} "
        "on the unconstrained scale; fits step on the scale of each"
    ]


def proper_line(target: Target) -> str:
    """Whether a posterior without a proper prior is proper, as far as can be told from far out."""
    flat = does_not_fall(target)
    if flat:
        return (
            f"prior: improper; the posterior may be too: the density does not fall along "
            f"{', '.join(flat[:MOST_NAMED])}"
        )
    return "prior: improper; the posterior looks proper: its density falls in every direction"
