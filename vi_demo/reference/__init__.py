"""What the posterior really is: draws, log evidence and modes, by ways that never see a guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base import array_stats

from vi_demo import ascents, mesh, starts
from vi_demo import draws as drawn
from vi_demo.batching import in_slices
from vi_demo.divergences import integration
from vi_demo.divergences.estimators import Draws, Estimate, equal_weights, resample
from vi_demo.errors import InputError
from vi_demo.reference import agreement, evidence, modes, nuts, propriety, smc
from vi_demo.target import Target

RUNS = 4
LEAST_SECONDS = 30.0  # that SMC is given to reach the target, whatever the budget
NUTS_SHARE = 1.5  # times that, for NUTS at its slowest
WANTED_ERROR = 0.08  # nats of log evidence: more particles are tried above it
TOLERATED_ERROR = 0.15  # and no trust above this
MAPPED_BACK = 1e-4  # relative, by which a site's value may differ after a trip to R^d
LEAST_A_CHAIN = 4  # draws, for an R-hat
MOST_NAMED = 5
CHECKED = 1024  # draws, for how the density falls beyond them
TOLERATED_QUADRATURE = 1e-3  # relative, of the evidence

Report = Callable[[str, float, str], None]


@dataclass(frozen=True)
class Reference:
    """Draws of the target with what is known of it, and whether to trust them.

    `draws` live on R^d with `log_p` their log densities, unnormalised; `log_evidence` and
    `modes` are None where the method gives none; `routes` are the ways the evidence was come by.
    `reasons` say why it is not trusted, and `remarks` what else there is to know.
    """

    method: str
    trusted: bool
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    draws: Draws | None = None
    log_p: np.ndarray | None = None
    log_evidence: Estimate | None = None
    modes: modes.Modes | None = None
    routes: dict[str, Estimate] = field(default_factory=dict)
    evaluations: dict[str, int] = field(default_factory=dict)


def build(
    target: Target, method: str | Path, key: jax.Array, budget: float, report: Report
) -> Reference:
    """The reference of that name or file; `auto` is quadrature up to 2 dimensions, SMC above."""
    known(method)
    if target.log_density is None:
        return of_draws(target)
    if method not in METHODS:
        report("reference", 0.5, "weighing modes")
        return with_modes(target, from_file(target, method))
    if method == "auto":
        method = "quadrature" if target.dim <= 2 else "smc"
    if method == "quadrature" and target.dim > 2:
        raise InputError(
            f"{target.name}: quadrature works up to 2 dimensions and this target has "
            f"{target.dim}; choose smc, nuts or auto."
        )
    found = METHODS[method](target, key, budget, report)
    if target.prior is None and target.dim <= starts.MOST_CURVATURE:
        points = None if found.draws is None else resample(found.draws, CHECKED, seed=0)
        flat = propriety.does_not_fall(target, points)
        if flat:
            named = ", ".join(flat[:MOST_NAMED])
            why = f"the posterior may be improper: its density does not fall along {named}"
            return replace(found, trusted=False, reasons=(why, *found.reasons))
    return found


def known(method: str | Path) -> None:
    """Raise `InputError` for what is neither the name of a reference nor a file of draws."""
    if method not in METHODS and not drawn.is_file(method):
        raise InputError(
            f"no reference named '{method}'; choose from {', '.join(METHODS)}, or give a netCDF "
            "or zarr file of draws that exists."
        )


def of_draws(target: Target) -> Reference:
    """The draws that are all there is of the target: right if their chains agree, no evidence."""
    points = np.asarray(target.draws)
    chains = target.by_chain
    reasons = () if chains is None else do_not_mix(chains, target.coordinates)
    blocks = None if chains is None else np.repeat(np.arange(len(chains)), chains.shape[1])
    return Reference(
        method="draws",
        trusted=not reasons,
        reasons=reasons,
        remarks=target.remarks,
        draws=equal_weights(points, blocks),
    )


def from_file(target: Target, file: str | Path) -> Reference:
    """Draws of the model's sites by somebody else's MCMC, mapped to R^d: without evidence.

    Raises `InputError` for a site that is missing, of another shape or outside its support.
    """
    if target.unconstrain is None:
        raise InputError(
            f"{target.name}: a target of draws is its own reference; leave --reference out."
        )
    given = drawn.matching(file, target.sites)
    points = mapped(target, given)
    chains = points.reshape(given.chains, -1, target.dim)
    reasons = do_not_mix(chains, target.coordinates)
    log_p = target.log_densities(points)
    outside = int((~np.isfinite(log_p)).sum())
    if outside == len(points):
        raise InputError(
            f"{file}: the model's density is zero at all of its draws; give draws of the same "
            "model and data."
        )
    if outside:
        reasons += (f"the model's density is zero at {outside:,} of its {len(points):,} draws",)
    blocks = np.repeat(np.arange(len(chains)), chains.shape[1])
    return Reference(
        method="draws",
        trusted=not reasons,
        reasons=reasons,
        remarks=(f"{len(points):,} draws from {file}, chains: {given.chains}",),
        draws=equal_weights(points, blocks),
        log_p=log_p,
        evaluations={"log_density": len(points), "gradient": 0},
    )


def with_modes(target: Target, reference: Reference) -> Reference:
    """A reference with the modes that its draws lie in, and log evidence by a bridge to them."""
    inside = np.isfinite(reference.log_p)
    draws = equal_weights(reference.draws.points[inside], reference.draws.blocks[inside])
    factor = local_factor(target, resample(draws, 1024, seed=0))
    found = modes.find(target, draws, factor, seed=0)
    return replace(reference, modes=found, **bridged(target, draws, found))


def bridged(target: Target, draws: Draws, found: modes.Modes) -> dict:
    """Log evidence from draws that came without, where a bridge says it well enough."""
    log_z = evidence.bridge(target, draws, found.of_draws, smc.effective_draws(draws))
    if log_z is None or not log_z.mcse < evidence.USABLE:
        return {}
    return {"log_evidence": log_z, "routes": {"bridge": log_z}}


def mapped(target: Target, given: drawn.Trusted) -> np.ndarray:
    """Draws of the sites on R^d (S, d), if they come back the same from there."""
    values = {k: jnp.asarray(v, float) for k, v in given.values.items()}
    points = target.batched(target.unconstrain)(values)
    back = target.constrain_all(points)
    for name, wanted in values.items():
        axes = tuple(range(1, wanted.ndim))
        # What is outside comes back as no number, or as another point of the support.
        off = jnp.abs(back[name] - wanted) > MAPPED_BACK * (1 + jnp.abs(wanted))
        bad = np.flatnonzero((off | ~jnp.isfinite(back[name])).any(axes))
        if len(bad):
            each = len(wanted) // given.chains
            first = np.asarray(wanted[bad[0]]).ravel()
            value = f", {first[0]:g}," if first.size == 1 else ""
            raise InputError(
                f"{given.name}: '{name}'{value} is outside its support in the model in chain "
                f"{bad[0] // each}, draw {bad[0] % each}; give draws of the same model, on its "
                "own scale."
            )
    if not np.isfinite(points).all():
        draw = int(np.argwhere(~np.isfinite(points))[0, 0])
        raise InputError(
            f"{given.name}: draw {draw} is at the edge of a site's support, which R^d does not "
            "reach; drop it."
        )
    return np.asarray(points)


def do_not_mix(chains: np.ndarray, names: list[str]) -> tuple[str, ...]:
    """That chains (chain, draw, d) disagree in some coordinate, the worst one named, if so."""
    if len(chains) == 1:  # its halves
        half = chains.shape[1] // 2
        chains = chains[0, : 2 * half].reshape(2, half, -1)
    if chains.shape[1] < LEAST_A_CHAIN:
        return ()
    with np.errstate(divide="ignore", invalid="ignore"):
        rhat = np.atleast_1d(array_stats.rhat(chains, chain_axis=0, draw_axis=1))
    rhat = np.where(np.isnan(rhat), np.inf, rhat)  # of chains that never move
    worst = int(rhat.argmax())
    if rhat[worst] <= agreement.RHAT:
        return ()
    return (f"its chains do not agree in {names[worst]}: R-hat {rhat[worst]:.2f}",)


def none(target, key, budget, report) -> Reference:
    """No reference: what it would have measured stays unknown."""
    return Reference("none", False, ("no reference was asked for",))


def by_quadrature(target, key, budget, report) -> Reference:
    """Adaptive quadrature around the modes that climbing from dispersed points finds."""
    start_key, wide_key = jax.random.split(key)
    wide = starts.wide(target).draws(wide_key, 192)
    points = np.concatenate([starts.points(target, start_key, 64), wide])
    points = points[np.isfinite(points).all(1) & np.isfinite(target.log_densities(points))]
    factor = local_factor(target, points)
    report("reference", 0.2, "looking for modes")
    ends, heights = ascents.climb(target, points, factor)
    centres = modes.summits(target, ends[np.argsort(-heights)][::4], factor)
    scale = np.maximum(np.ptp(centres, axis=0), 3 * np.sqrt(np.diag(factor @ factor.T)))
    report("reference", 0.5, "integrating")
    try:
        integral = integration.integrate(target.log_densities, centres, scale)
    except ArithmeticError:
        why = "the posterior may be improper: quadrature found no bounds to its density"
        return Reference("none", False, (why,))
    factor = local_factor(target, resample(integral.nodes, 1024, seed=0))
    report("reference", 0.8, "weighing modes")
    found = modes.find(target, integral.nodes, factor, seed=0)
    reasons = []
    if not integral.log_total.mcse <= TOLERATED_QUADRATURE:
        reasons.append(
            f"the quadrature stopped at a relative error of {integral.log_total.mcse:.1g}"
        )
    return Reference(
        method="quadrature",
        trusted=not reasons,
        reasons=tuple(reasons),
        draws=integral.nodes,
        log_p=integral.log_p,
        log_evidence=integral.log_total,
        modes=found,
        evaluations={"log_density": integral.evaluations, "gradient": 0},
    )


def by_smc(target, key, budget, report) -> Reference:
    """Tempered SMC, grown until its evidence is known well enough, then checked by NUTS."""
    began, given = mesh.now(), max(budget, LEAST_SECONDS)
    smc_key, nuts_key = jax.random.split(key)
    particles = smc.number_of_particles(target, RUNS, given)
    wanted = smc.seconds(target, particles * RUNS)
    if wanted > 3 * given:
        why = f"SMC would take about {wanted:,.0f} seconds (see --budget)"
        return by_nuts_instead(target, nuts_key, given, report, why)
    while True:
        round_began = mesh.now()
        tempered = smc.temper(
            *(target, jax.random.fold_in(smc_key, particles), particles, RUNS),
            report=lambda share, text: report("reference", 0.7 * share, text),
            seconds=given,
        )
        if not tempered.finished:
            break
        by_weights = smc.pooled_evidence(tempered)
        now = mesh.now()
        if not by_weights.mcse > WANTED_ERROR or now - began + 2 * (now - round_began) > budget:
            break
        particles *= 2
    if not tempered.finished:
        stopped = f"SMC had not reached the target after {tempered.temperatures} temperatures"
        return by_nuts_instead(target, nuts_key, given, report, stopped)
    report("reference", 0.75, "chains of NUTS to check it by")
    deepest, too_long = nuts.affordable(target, NUTS_SHARE * given)
    chains = nuts.sample(target, nuts_key, deepest) if deepest else None
    report("reference", 0.9, "weighing modes")
    draws = smc.pooled(tempered)
    factor = local_factor(target, resample(draws, 1024, seed=0))
    others = None if chains is None else chains.points[:, ::50].reshape(-1, target.dim)
    found = modes.find(target, draws, factor, seed=0, others=others)
    begun = starts.evaluations(target)
    if chains is None:
        agreed = agreement.unchecked(f"NUTS would take about {too_long:,.0f} seconds")
    else:
        agreed = agreement.compare(target, draws, chains, found)
    by_bridge = second_route(target, draws, found, None if agreed.unchecked else chains)
    log_z = evidence.both(by_weights, by_bridge)
    reasons = []
    if not log_z.mcse <= TOLERATED_ERROR:
        reasons.append(f"its log evidence is uncertain by ±{log_z.mcse:.2g} nats")
    reasons += agreed.against
    if target.prior is None:
        # Every population began inside the same tails: without a check nobody saw beyond them.
        reasons += agreed.unchecked
    return Reference(
        method="smc",
        trusted=not reasons,
        reasons=tuple(reasons),
        remarks=tuple(agreed.unchecked) if target.prior is not None else (),
        draws=draws,
        log_p=target.log_densities(draws.points),
        log_evidence=log_z,
        modes=found,
        routes={"tempered weights": by_weights} | ({"bridge": by_bridge} if by_bridge else {}),
        evaluations={
            "log_density": begun["log_density"] + tempered.evaluations["log_density"],
            "gradient": begun["gradient"]
            + tempered.evaluations["gradient"]
            + (chains.gradients if chains else 0),
        },
    )


def second_route(target, draws: Draws, found: modes.Modes, chains) -> Estimate | None:
    """Log evidence by a bridge: from NUTS's draws where there is one mode, else from SMC's."""
    if chains is not None and len(found.masses) == 1:
        points = chains.points.reshape(-1, target.dim)
        mixed = equal_weights(points, np.repeat(np.arange(len(chains.points)), nuts.DRAWS))
        return evidence.bridge(
            target, mixed, np.zeros(len(points), int), smc.effective_draws(mixed)
        )
    return evidence.bridge(target, draws, found.of_draws, smc.effective_draws(draws))


def by_nuts_instead(target, key, budget, report, why: str) -> Reference:
    """What is left where SMC is out of reach: NUTS if there is time for it, never trusted."""
    deepest, too_long = nuts.affordable(target, NUTS_SHARE * budget)
    if not deepest:
        reasons = (why, f"NUTS would take about {too_long:,.0f} seconds (see --budget)")
        return Reference("none", False, reasons)
    found = by_nuts(target, key, budget, report, deepest)
    return replace(found, trusted=False, reasons=(why, *found.reasons))


def by_nuts(target, key, budget, report, deepest=nuts.DEEPEST) -> Reference:
    """NUTS alone: good draws of one mode, and no word on the mass of others."""
    report("reference", 0.1, "chains of NUTS")
    chains = nuts.sample(target, key, deepest)
    points = chains.points.reshape(-1, target.dim)
    draws = equal_weights(points, np.repeat(np.arange(len(chains.points)), nuts.DRAWS))
    factor = local_factor(target, points)
    found = modes.find(target, draws, factor, seed=0)
    reasons = agreement.divergences(chains)
    columns = zip(target.coordinate_names, np.moveaxis(chains.points, 2, 0), strict=True)
    stuck = [agreement.does_not_mix(name, x) for name, x in columns]
    reasons += agreement.the_worst([*filter(None, stuck)])
    if len(found.masses) > 1:
        reasons.append("NUTS chains sit in several modes, whose masses they cannot tell")
    return Reference(
        method="nuts",
        trusted=not reasons,
        reasons=tuple(reasons),
        draws=draws,
        log_p=target.log_densities(points),
        modes=found,
        evaluations={"log_density": 0, "gradient": chains.gradients},
        **(bridged(target, draws, found) if len(found.masses) == 1 else {}),
    )


METHODS = {
    "auto": None,
    "quadrature": by_quadrature,
    "smc": by_smc,
    "nuts": by_nuts,
    "none": none,
}


def local_factor(target: Target, points: np.ndarray) -> np.ndarray:
    """A square root of the local covariance at draws of a target."""

    @mesh.program
    def factor(points):
        gradients = in_slices(jax.grad(target.log_density), points, target.batch)
        return jnp.linalg.cholesky(smc.local_covariance(points, gradients))

    return np.asarray(factor(jnp.asarray(points)))
