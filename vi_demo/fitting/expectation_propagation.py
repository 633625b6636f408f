"""Expectation propagation: forward KL, one factor of the posterior at a time.

The posterior is a product of factors t, the likelihood of each row of the data and the prior of
each entry of a site; the guide q is one of Gaussian sites s. q t / s, the guide with one site
replaced by its factor, is projected on the Gaussians by its moments, the optimum of its forward
KL, and the site becomes what has changed: all sites at once, damped in natural parameters. Minka
(2001), arXiv 1301.2294; Gelman et al. (2020), arXiv 1412.4869, for factors that are rows of data.

What a factor depends on is seen from its gradients: they span a subspace of R^d, of one dimension
for a row of a generalised linear model. In all other directions q t / s is q. Within it there are
its moments by quadrature in one or two dimensions, and in more by quasi-random draws of q weighted
by t / s: nearly constant where sites fit, as weights of the whole posterior are not. A factor that
is Gaussian itself is its own site from the start.

The stopping rule. It has settled when the KL of the guides of two rounds, over the damping's
square, is at most `TOLERANCE` nats, or what the nodes' noise explains, and that noise at most
`NOISE`: a quarter of the KL of the guides made from either half of the nodes. Else draws become
more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.linalg import solve_triangular

from vi_demo import mesh, starts
from vi_demo.batching import in_slices
from vi_demo.divergences.exact import gaussian_kl
from vi_demo.errors import InputError
from vi_demo.fitting import laplace
from vi_demo.fitting.objectives import normal_noise
from vi_demo.fitting.runner import Assessment, Fit, Fitter, Report, run, silent
from vi_demo.guides import Family, nearest
from vi_demo.target import Target, finite_or_minus_inf

MOST_ROWS = 2_000  # each is looked at on nodes of its own, and every look is at all rows
MAX_ROUNDS = 60
SECONDS = 180.0  # after which no more rounds are begun; draws become more in a fifth of them
TOLERANCE = 1e-6  # nats
NOISE = 1e-4  # nats that the guide may be uncertain by
NOISE_TOLERATED = 1e-3  # where better is dear
LEAST_DAMPING = 1 / 64
SPREAD = 0.3  # of the points that gradients are looked at, on the scale of the climbs
LEAST_PRECISION = 0.1  # of the first sites' product, or it is the climb's Gaussian that begins
GRIDS = {1: (65, 65, 8.0), 2: (21, 61, 6.5)}  # by rank: nodes a side, and sds they reach
ON_THE_EDGE = 1e-3  # of the mass, and nodes did not see the whole of it
DRAWS = 512, 8_192  # for each factor at first, at least and at most
AT_FIRST = 2**18  # nodes for all factors of one rank
LEVELS = 2  # of four times as many draws each
EFFECTIVE = 10  # draws for each dimension at least


class Sites(NamedTuple):
    """Gaussian factors exp(ν·s − ½ s·T s) of s = A u: A (n, r, d), T (n, r, r) and ν (n, r)."""

    ways: Array
    precision: Array
    shift: Array

    @property
    def rank(self) -> int:
        """How many dimensions of R^d each depends on."""
        return self.shift.shape[1]

    def total(self) -> tuple[Array, Array]:
        """Precision (d, d) and shift (d,) of their product."""
        precision = jnp.einsum("nri,nrs,nsj->ij", self.ways, self.precision, self.ways)
        return precision, jnp.einsum("nri,nr->i", self.ways, self.shift)


class Nodes(NamedTuple):
    """Points (k, r) that stand for N(0, I): their log weights (3, k), all of them and either half,
    which are on the edge of a grid, and how many of them must count.
    """

    points: Array
    log_weights: Array
    edge: Array
    least: float


class Factors(NamedTuple):
    """Factors of one rank: which of all they are, and their compiled moments, see `proposals`."""

    which: Array
    moments: Callable


class State(NamedTuple):
    """The sites of each kind of factor, the guide in natural parameters and by its moments, on
    the scale of the climbs, and how the last round went.
    """

    sites: tuple[Sites, ...]
    precision: np.ndarray
    shift: np.ndarray
    mean: Array
    factor: Array
    seconds: float = 0.0  # that rounds have taken
    rounds: int = 0
    level: int = 0  # of draws: four times as many in each
    damping: float = 0.5  # 1 is the whole step
    change: float = np.inf
    noise: float = np.inf
    skipped: int = 0
    lately: int = 0  # those among them in the last round
    looks: int = 0
    failed: bool = False

    @property
    def guide(self) -> dist.MultivariateNormal:
        """The guide as it stands."""
        return dist.MultivariateNormal(self.mean, scale_tril=self.factor)


def refuse(target: Target) -> None:
    """Raise `InputError` where the posterior is not a product over rows that can be looked at."""
    others = "fit laplace, reverse_kl or forward_kl"
    what = f"{target.name}: ep takes the likelihood of each row apart, and"
    if target.estimate is not None:
        raise InputError(f"{what} this model subsamples its rows; {others}.")
    shapes = {}
    if target.log_likelihood is not None:
        shapes = jax.eval_shape(target.log_likelihood, jnp.zeros(target.dim))
    number = sum(leaf.shape[0] if leaf.shape else 1 for leaf in shapes.values())
    if not number:
        raise InputError(
            f"{what} there is none (observed sites without discrete latents); {others}."
        )
    if number > MOST_ROWS:
        raise InputError(f"{what} {number:,} are more than {MOST_ROWS:,}; {others}.")
    laplace.refuse(target)


def fit(target: Target, family: Family, key: Array, report: Report = silent) -> Fit:
    """The Gaussian whose sites agree with the prior and the likelihood of every row.

    `measured` has the `noise` in nats, 0 where all moments were by quadrature. Updates that are
    skipped, as their weights have no proper moments, are counted in a note.
    """
    return run(fitter(target, family, key), key, "ep", family, report)


def fitter(target: Target, family: Family, key: Array) -> Fitter:
    """Rounds of all sites at once, on the scale of the climbs."""
    frame, here = starts.to_scale(target, whole=True)
    out = jnp.diag(frame.factor) if frame.factor.ndim == 1 else frame.factor
    groups: list[Factors] = []

    @mesh.program
    def params_of(guide):
        return nearest(family, frame.shift + out @ guide.loc, out @ guide.scale_tril)

    def init(key):
        found, sites, (precision, shift) = beginning(here, key)
        groups.extend(found)
        sites = proper(sites, precision, shift)
        totals = [each.total() for each in sites]
        precision = precision + sum(np.asarray(total[0]) for total in totals)
        shift = shift + sum(np.asarray(total[1]) for total in totals)
        guide = gaussian(precision, shift)
        if guide is not None:
            return State(sites, precision, shift, guide.loc, guide.scale_tril)
        # The first round goes the whole way from the climb's Gaussian.
        return State(sites, precision, shift, jnp.zeros(here.dim), jnp.eye(here.dim), damping=1.0)

    def advance(state):
        began, guide = mesh.now(), state.guide
        parts, looks, skipped = [], 0, 0
        for factors, sites in zip(groups, state.sites, strict=True):
            nodes = nodes_of(sites, state.level, key)
            new, halves, bad = factors.moments(
                *(factors.which, sites, nodes),
                *(guide.loc, guide.covariance_matrix),
            )
            parts.append((new, halves))
            looks += len(bad) * len(nodes.points)
            skipped += int(bad.sum())
        state = state._replace(
            rounds=state.rounds + 1,
            looks=state.looks + looks,
            skipped=state.skipped + skipped,
            lately=skipped,
        )
        state = damped(state, parts)
        state = state._replace(seconds=state.seconds + mesh.now() - began)
        row = {"change": state.change, "noise": state.noise, "skipped": state.lately}
        return state, {k: np.asarray(v)[None] for k, v in (row | params_of(state.guide)).items()}

    def settled(state):
        return state.change <= max(TOLERANCE, min(state.noise, NOISE_TOLERATED))

    def wants_more(state):
        if state.noise <= NOISE and not state.lately:
            return False
        left = any(sites.rank not in GRIDS for sites in state.sites) and state.level < LEVELS
        return left and state.seconds < SECONDS / 5

    def assess(state):
        text = f"round {state.rounds}, {state.change:.1e} nats from the last"
        if state.failed:
            return Assessment("failed", 1.0, text)
        late = state.rounds >= MAX_ROUNDS or state.seconds > SECONDS
        if not late and (not settled(state) or wants_more(state)):
            return Assessment(None, state.rounds / MAX_ROUNDS, text)
        good = settled(state) and state.noise <= NOISE_TOLERATED and not state.lately
        return Assessment("converged" if good else "stopped", 1.0, text)

    def next_round(state):
        grows = settled(state) and wants_more(state)
        return advance(state._replace(level=state.level + grows))

    def finish(state):
        number = sum(len(sites.shift) for sites in state.sites)
        spent, probes = starts.evaluations(target), number_of_probes(target.dim)
        return {
            "params": params_of(state.guide),
            "steps": state.rounds,
            "evaluations": {
                "log_density": spent["log_density"] + state.looks,
                "gradient": spent["gradient"] + probes * (1 + here.dim),
            },
            "measured": {"noise": state.noise, "change": state.change},
            "notes": (*notes(state, number), *(() if family.turns else (laplace.MARGINAL,))),
        }

    return Fitter("expectation_propagation", init, next_round, assess, finish)


def damped(state: State, parts: list) -> State:
    """The state after a round, its step as long as leaves the guide a proper one."""
    steps = [tuple(map(np.asarray, new.total())) for new, _ in parts]
    step = [sum(each) for each in zip(*steps, strict=True)] or [0.0, 0.0]
    halves = []
    for half in range(2) if parts else ():
        moved = [sum(np.asarray(of[i][half]) for _, of in parts) for i in range(2)]
        halves.append(gaussian(state.precision + moved[0], state.shift + moved[1]))
    noise = np.inf if None in halves else float(gaussian_kl(*halves)) / 4 if halves else 0.0
    damping = state.damping
    while damping >= LEAST_DAMPING:
        precision, shift = state.precision + damping * step[0], state.shift + damping * step[1]
        guide = gaussian(precision, shift)
        if guide is not None:
            break
        damping /= 2
    else:
        return state._replace(failed=True, noise=noise)
    change = float(gaussian_kl(guide, state.guide)) / damping**2
    sites = tuple(
        old._replace(
            precision=old.precision + damping * new.precision,
            shift=old.shift + damping * new.shift,
        )
        for old, (new, _) in zip(state.sites, parts, strict=True)
    )
    swings = state.rounds > 2 and change > max(0.7 * state.change, TOLERANCE, noise)
    return state._replace(
        sites=sites,
        precision=precision,
        shift=shift,
        mean=guide.loc,
        factor=guide.scale_tril,
        damping=max(damping / 2, 4 * LEAST_DAMPING) if swings else min(1.0, 1.5 * damping),
        change=change,
        noise=noise,
    )


def notes(state: State, number: int) -> list[str]:
    """What to say of updates that were skipped, of noise, and of a guide that came apart."""
    said = []
    if state.skipped:
        said.append(
            f"{state.skipped:,} of {state.rounds * number:,} updates of a site were skipped, "
            f"{state.lately} of them in the last round: its factor, with the guide around it, had "
            "no proper moments"
        )
    if state.failed:
        said.append("no step of any length left the guide a proper Gaussian; it is the last one")
    elif state.noise > NOISE_TOLERATED:
        said.append(f"the draws of the last round leave {state.noise:.1g} nats uncertain")
    return said


def gaussian(precision: np.ndarray, shift: np.ndarray) -> dist.MultivariateNormal | None:
    """The Gaussian of natural parameters; None where the precision is not positive definite."""
    try:
        factor = np.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:
        return None
    # P = U Uᵀ with U upper triangular, so U⁻ᵀ is the covariance's Cholesky factor.
    triangle = np.linalg.inv(factor).T
    if not (np.isfinite(triangle).all() and np.isfinite(shift).all()):
        return None
    mean = triangle @ (triangle.T @ shift)
    return dist.MultivariateNormal(jnp.asarray(mean), scale_tril=jnp.asarray(triangle))


# The factors, and what they depend on.


def terms_of(here: Target, u: Array) -> Array:
    """The log factors (n,): the likelihood of each row, the prior of each entry of a site.

    Rows are along the leading axis of an observed site. What is left of the posterior without
    them, Jacobians and `numpyro.factor` above all, is a factor of its own.
    """
    terms = {k: jnp.atleast_1d(v) for k, v in here.site_log_probs(u, False).items()}
    rows = [t.reshape(len(t), -1).sum(1) for k, t in terms.items() if k in here.observed]
    return jnp.concatenate(rows + [terms[k].ravel() for k in here.sites])


def number_of_probes(dim: int) -> int:
    """Enough for gradients to span all that they can, and be whitened."""
    return 2 ** int(np.ceil(np.log2(2 * dim + 8)))


def beginning(here: Target, key: Array) -> tuple[list[Factors], tuple[Sites, ...], tuple]:
    """The factors that are not Gaussian with their first sites, and all that is Gaussian.

    Sites are what draws of the climb's Gaussian say of the mean slope and curvature (Stein's
    lemma), which is all there is to know of a Gaussian factor.
    """
    u = SPREAD * np.asarray(normal_noise(key, number_of_probes(here.dim), here.dim))
    of_terms, of_all = gradients(here, u)
    ways, ranks = spanned(of_terms, np.abs(of_terms).max(axis=(0, 2)))
    slopes, places = np.einsum("nri,kni->nkr", ways, of_terms), np.einsum("nri,ki->nkr", ways, u)
    shifts, precisions = quadratic(slopes, places)
    left = slopes - (shifts[:, None] - places @ precisions)
    curved = (np.abs(left) > rounding(np.abs(slopes).max((1, 2)))[:, None, None]).any((1, 2))
    ranks = ranks * curved
    of_rest = (of_all - of_terms.sum(1))[None]
    (shift,), (precision,) = quadratic(of_rest, u[None])
    known = ranks == 0
    gaussians = Sites(ways[known], precisions[known], shifts[known]).total()
    groups, sites = [], []
    for rank in np.unique(ranks[ranks > 0]):
        which = np.flatnonzero(ranks == rank)
        first = Sites(ways[which, :rank], precisions[which, :rank, :rank], shifts[which, :rank])
        sites.append(first)
        groups.append(factors_of(here, lambda u, i: terms_of(here, u)[i], which))
    left = of_rest[0] - (shift - u @ precision)
    bent, (rank,) = spanned(left[:, None], np.abs(of_all).max()[None])

    def rest(u, i):
        return here.log_density(u) - terms_of(here, u).sum() - shift @ u + 0.5 * u @ precision @ u

    if rank:
        groups.append(factors_of(here, rest, np.zeros(1, int)))
        sites.append(Sites(bent[:, :rank], np.zeros((1, rank, rank)), np.zeros((1, rank))))
    sites = tuple(jax.tree.map(jnp.asarray, each) for each in sites)
    return groups, sites, (precision + gaussians[0], shift + gaussians[1])


def proper(sites: tuple[Sites, ...], precision: np.ndarray, shift: np.ndarray):
    """First sites whose product is a Gaussian near the climb's, where they are not as they are.

    Their curvatures are made positive, and their shifts such that its mean is 0.
    """
    others = [each.total() for each in sites]
    if np.linalg.eigvalsh(precision + sum(t[0] for t in others)).min() > LEAST_PRECISION:
        return sites
    values, vectors = zip(*(jnp.linalg.eigh(each.precision) for each in sites), strict=True)
    made = [
        jnp.einsum("nik,nk,njk->nij", w, jnp.maximum(v, 0.0), w)
        for v, w in zip(values, vectors, strict=True)
    ]
    sites = tuple(s._replace(precision=t) for s, t in zip(sites, made, strict=True))
    curved = sum(each.total()[0] for each in sites)
    total = shift + sum(t[1] for t in others)
    back = jnp.asarray(np.linalg.lstsq(curved, total)[0])
    return tuple(
        each._replace(shift=each.shift - jnp.einsum("nrs,nsd,d->nr", *each[1::-1], back))
        for each in sites
    )


def quadratic(slopes: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (n, r) and precisions (n, r, r) of the Gaussians of slopes at places (n, k, r)."""
    size = SPREAD**2 * places.shape[1]
    return slopes.mean(1), -symmetric(np.swapaxes(slopes, 1, 2) @ places) / size


def factors_of(here: Target, value: Callable, which: np.ndarray) -> Factors:
    """These factors, with their compiled moments."""
    return Factors(jnp.asarray(which), mesh.program(partial(proposals, value, here.batch)))


def gradients(here: Target, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients (k, n, d) of every log factor, and (k, d) of the log density."""
    terms = partial(terms_of, here)
    jacobian = jax.jacrev(terms)
    with contextlib.suppress(TypeError, NotImplementedError):  # an ODE has no forward mode
        jax.make_jaxpr(jax.jacfwd(terms))(points[0])
        jacobian = jax.jacfwd(terms)
    both = mesh.program(
        partial(jax.lax.map, lambda u: (jacobian(u), jax.grad(here.log_density)(u)))
    )
    return tuple(np.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0) for g in both(points))


def spanned(slopes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal ways (n, r, d) that slopes (k, n, d) of n factors lie in, and how many do.

    Next to the sizes (n,), what is no larger than rounding is left out; r is the most of any.
    """
    _, values, ways = np.linalg.svd(np.swapaxes(slopes, 0, 1), full_matrices=False)
    ranks = (values > np.sqrt(len(slopes)) * rounding(sizes)[:, None]).sum(1)
    return ways[:, : int(ranks.max(initial=0))], ranks


def rounding(sizes: np.ndarray) -> np.ndarray:
    """What slopes of these sizes may be off by."""
    return np.finfo(sizes.dtype).eps ** 0.5 * sizes


def symmetric(matrix: np.ndarray) -> np.ndarray:
    """The symmetric part of matrices (..., d, d)."""
    return (matrix + np.swapaxes(matrix, -1, -2)) / 2


# The moments of a guide with one of its sites replaced by its factor.


def nodes_of(sites: Sites, level: int, key: Array) -> Nodes:
    """A grid in one or two dimensions, its halves its two colours; in more, draws."""
    rank = sites.rank
    if rank in GRIDS:
        least, most, reach = GRIDS[rank]
        each = (AT_FIRST / len(sites.shift)) ** (1 / rank)
        number = 2 * int(np.clip(each, least, most) / 2) + 1  # with one in the middle
        places = np.stack(np.meshgrid(*[np.arange(number)] * rank), -1).reshape(-1, rank)
        points = reach * (2 * places / (number - 1) - 1)
        half = places.sum(1) % 2
        edge = ((places == 0) | (places == number - 1)).any(1)
        weights, least = -0.5 * (points**2).sum(1), 2.0 * rank
    else:
        few, many = DRAWS
        number = int(np.clip(AT_FIRST // len(sites.shift), few, many)) * 4**level // 2
        number = 2 ** int(np.log2(number))  # as Sobol sequences have it
        points = np.concatenate([normal_noise(k, number, rank) for k in jax.random.split(key)])
        half = np.repeat([0, 1], number)
        weights, edge, least = np.zeros(2 * number), np.zeros(2 * number, bool), EFFECTIVE * rank
    in_part = np.stack([half < 2, half == 0, half == 1])
    log_weights = np.where(in_part, weights, -np.inf)
    return Nodes(*map(jnp.asarray, (points, log_weights, edge)), float(least))


def proposals(
    value: Callable,
    batch: int,
    which: Array,
    sites: Sites,
    nodes: Nodes,
    mean: Array,
    covariance: Array,
) -> tuple[Sites, tuple[Array, Array], Array]:
    """What is to be added to each site, the sum of it as either half of the nodes has it, in
    precision (2, d, d) and shift (2, d), and which sites (n,) are left as they are.
    """

    def one(of):
        i, ways, precision, shift = of
        factor = jnp.linalg.cholesky(ways @ covariance @ ways.T)
        inverse = solve_triangular(factor, jnp.eye(len(factor)), lower=True)
        # Where s = A u is A μ + L v, u is most likely μ + C Aᵀ L⁻ᵀ v.
        points = mean + nodes.points @ inverse @ ways @ covariance
        log_t = finite_or_minus_inf(in_slices(lambda u: value(u, i), points, batch))
        s = ways @ mean + nodes.points @ factor.T
        log_s = s @ shift - 0.5 * ((s @ precision) * s).sum(-1)
        weights = jax.nn.softmax(log_t - log_s + nodes.log_weights)
        means = weights @ nodes.points
        spread = jnp.einsum("hk,ki,kj->hij", weights, nodes.points, nodes.points)
        back = jnp.linalg.inv(spread - means[:, :, None] * means[:, None, :])
        shifts = jnp.einsum("hij,hj->hi", back, means) @ inverse
        precisions = inverse.T @ (back - jnp.eye(len(factor))) @ inverse
        shifts += precisions @ (ways @ mean)
        seen = (weights[0] @ nodes.edge < ON_THE_EDGE) & (
            1 / (weights[0] ** 2).sum() > nodes.least
        )
        good = seen & jnp.isfinite(precisions).all() & jnp.isfinite(shifts).all()
        return jnp.where(good, precisions, 0.0), jnp.where(good, shifts, 0.0), ~good

    each = (which, *sites)
    size = max(1, batch // len(nodes.points))
    precisions, shifts, bad = in_slices(one, each, size)
    halves = [Sites(sites.ways, precisions[:, h], shifts[:, h]).total() for h in (1, 2)]
    new = Sites(sites.ways, precisions[:, 0], shifts[:, 0])
    return new, tuple(map(jnp.stack, zip(*halves, strict=True))), bad
