"""A NumPyro model as functions of one point of R^d, found by running it once.

What stops a model is told by an `InputError` with the site and the remedy, see `refusals`.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from copy import copy
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.initialization import init_to_sample, init_to_uniform
from numpyro.infer.util import (
    compute_log_probs,
    constrain_fn,
    potential_energy,
    unconstrain_fn,
)

from vi_demo import mesh, streamed
from vi_demo.data import finite
from vi_demo.effects import Drawn, Observed, Rows, Spread, Unseen
from vi_demo.errors import InputError
from vi_demo.over_rows import CHUNK, batches, over_batch, over_rows, with_slope
from vi_demo.refusals import refuse_misfit, refuse_unusable, stopped_by, where
from vi_demo.sites import (
    brief,
    has_density,
    innermost,
    is_array,
    is_masked,
    parameters_of,
    stated,
    transform_of,
    unravel,
    words_of,
)

SPLIT = 64  # rows that tell whether devices can hold their own
EXCESS = 0.1  # nats above 0 of a log probability that rounding does not explain
FLAT_LOOKS = 3  # points at which a gradient of exactly zero means that nothing depends on it

# Where ArviZ was imported first, NumPyro was loaded through ArviZ's lazy stand-in, which leaves
# submodules of numpyro.distributions unbound; numpyro.factor looks one up and fails (NumPyro
# 0.22, ArviZ 1.3). Bind them, so that the order of a user's imports does not matter.
for _name, _module in list(sys.modules.items()):
    if _name.startswith("numpyro.distributions."):
        setattr(numpyro.distributions, _name.rpartition(".")[2], _module)


class Model:
    """A NumPyro model with its data; everything a target has, as functions of z in R^d.

    `latent` are its continuous latent sites in the order the model visits them, `discrete` those
    that are summed out by enumeration, `subsampled` the plates that take only some of their rows
    with (rows, rows taken), `sized_by` the arguments that say how many, `parameters` the
    unconstrained values of its numpyro.param sites, which every density takes as its second
    argument.
    """

    def __init__(self, model: Callable, data: Mapping, name: str, key: Array):
        refuse_misfit(model, data, name)
        self.name, self.key = name, key
        self.held: dict = {}  # parameters that were learned
        self.table = streamed.table_of(data)  # whose rows stay on the disk
        head = self.table.head if self.table else {}
        if self.table:  # every row is looked at once, by one of the processes
            self.table.check(jax.process_index(), jax.process_count())
        self.data = {k: _in_precision(head.get(k, v)) for k, v in data.items()}
        self._model = model
        self.walks: dict[tuple[int, int], streamed.Walk] = {}
        self.subsampled: dict[str, tuple[int, int]] = {}
        self.sized_by: dict[str, str] = {}
        trace = self._first_look()
        self.subsampled = {
            k: site["args"][:2]
            for k, site in trace.items()
            if site["type"] == "plate" and (site["args"][1] or site["args"][0]) < site["args"][0]
        }
        self.remarks: tuple[str, ...] = ()
        self.held_rows = {k: n for k, (n, _) in self.subsampled.items()}
        if self.table:
            self._know_of_all_rows()
        self.splits = False  # whether each device holds rows of its own
        if self.subsampled:  # rows are looked up by indices that JAX traces
            self.data = _on_device(self.data)
            trace = self._on_all_rows_or_one_batch()
        samples = {k: site for k, site in trace.items() if site["type"] == "sample"}
        hidden = {k: site for k, site in samples.items() if not site["is_observed"]}
        self.trace = trace
        self.discrete = {k: s for k, s in hidden.items() if s["fn"].support.is_discrete}
        self.latent = {k: s for k, s in hidden.items() if k not in self.discrete}
        self.given = {k: s for k, s in samples.items() if s["is_observed"]}
        refuse_unusable(name, trace, self.latent, self.discrete)
        self.parameters = parameters_of(trace)
        self.shapes = {
            k: jnp.shape(biject_to(site["fn"].support).inv(site["value"]))
            for k, site in self.latent.items()
        }
        self.dim = sum(int(np.prod(s, dtype=int)) for s in self.shapes.values())
        self._refuse_untraceable()
        self._refuse_missing()
        self.idle = self._idle()
        self.parameters = self._that_matter(self.parameters)
        if self.table:
            self._refuse_whole_tables()
        self.splits = self._splits()
        self._lay_out()

    def holding(self, parameters: Mapping) -> Model:
        """The same model with its parameters held at these unconstrained values."""
        held = copy(self)
        held.parameters, held.held = {}, {**self.held, **parameters}
        return held

    def observing(self, values: Mapping[str, Array]) -> Model:
        """The same model with these values of its observed sites, which JAX may trace."""
        other, model = copy(self), self._model
        other._model = lambda **data: Observed(partial(model, **data), values)()
        other.observed = dict(values)
        other.splits = False  # these rows are no arguments
        return other

    def _lay_out(self) -> None:
        """Have each device hold its part of the rows, where it can, and say where it cannot."""
        if mesh.size(mesh.ROWS) == 1:
            return
        if self.splits and not self.table:
            self.data |= {k: mesh.laid_out(mesh.ROWS, v) for k, v in self.row_data.items()}
        whole = [
            k
            for k, v in self.observed.items()
            if not (self.table or mesh.divides(mesh.ROWS, len(np.atleast_1d(v))))
        ]
        if self.chunked and not self.splits:
            whole = [self.chunked]
        if whole:
            number = mesh.size(mesh.ROWS)
            self.remarks += (
                f"rows of {', '.join(whole)} do not part into {number}: each device looks at all",
            )

    @property
    def learned(self) -> dict:
        """The parameters that are held, on the model's own scale."""
        return {k: transform_of(self.trace[k])(v) for k, v in self.held.items()}

    def called(self) -> None:
        """The model run on its data, as the user wrote it."""
        return self._model(**self.data)

    def all_rows(self) -> None:
        """The model run on all rows of every plate."""
        return self.some_rows({})()

    def on_all_rows(self) -> Callable:
        """The model to run on all rows, its parameters and its random key given."""
        return self._with(self.all_rows, None, seeded=True)

    def some_rows(self, rows: Mapping[str, Array]) -> Callable:
        """The model to run on these rows of some plates and on all of the others."""
        every = {k: jnp.arange(n) for k, n in self.held_rows.items()}
        return self.on_rows(self._model, {**every, **rows})

    def on_rows(self, fn: Callable, rows: Mapping[str, Array]) -> Callable:
        """The model or a guide of it to run on these rows, its argument for their number too."""
        sizes = {argument: len(rows[k]) for k, argument in self.sized_by.items() if k in rows}
        every = {k: n for k, (n, _) in self.subsampled.items()}
        return Rows(partial(fn, **{**self.data, **sizes}), rows, every)

    def unravel(self, z: Array) -> dict[str, Array]:
        """One point (d,) cut into its sites, unconstrained."""
        return unravel(z, self.shapes)

    def constrain(self, z: Array, parameters: Mapping | None = None) -> dict[str, Array]:
        """The latent and the deterministic sites at z, on the model's own scale."""
        model = self._with(self.all_rows, parameters, seeded=True)
        # Where discrete sites are summed out, what is computed from them is drawn with them.
        values = constrain_fn(
            model, (), {}, self.unravel(z), return_deterministic=not self.discrete
        )
        return {k: values[k] for k in self.trace if k in values and is_array(values[k])}

    def unconstrain(self, values: Mapping) -> Array:
        """The point of R^d at which the latent sites have these values."""
        z = unconstrain_fn(self.on_all_rows(), (), {}, dict(values))
        return jnp.concatenate([jnp.ravel(z[k]) for k in self.latent])

    def log_density(self, z: Array, parameters: Mapping | None = None) -> Array:
        """Log p(z, data) in nats; a long subsampled plate is walked through in chunks."""
        if self.chunked is None:
            return self.log_density_of(z, parameters, {})
        return with_slope(over_rows, self)(z, parameters)

    @property
    def row_data(self) -> dict[str, Array]:
        """The arguments that hold something for each row of the plate that is chunked."""
        rows = (self.held_rows[self.chunked],)
        return {k: v for k, v in self.data.items() if is_array(v) and jnp.shape(v)[:1] == rows}

    def _splits(self) -> bool:
        """Whether each device can hold rows of its own: all that has rows is among the arguments.

        The last device's first rows, taken from all and from its own, tell.
        """
        size = self.subsampled[self.chunked][0] if self.chunked else 0
        if not mesh.divides(mesh.ROWS, size):
            return False
        return bool(self.table) or self._comes_in_parts(size - size // mesh.size(mesh.ROWS))

    def _comes_in_parts(self, begin: int) -> bool:
        """Whether rows are the same where the model is given all, and those from `begin` on."""
        last, few = copy(self), jnp.arange(SPLIT)
        last.data = self.data | {k: v[begin:] for k, v in self.row_data.items()}
        z = 0.3 * jax.random.normal(self.key, (self.dim,))
        try:
            whole = self.log_density_of(z, None, {self.chunked: begin + few})
            part = last.log_density_of(z, None, {self.chunked: few})
        except (TypeError, ValueError):  # shapes that cannot be broadcast
            return False
        return bool(jnp.allclose(whole, part, rtol=1e-9, equal_nan=True))

    def _refuse_whole_tables(self) -> None:
        """What depends on rows of a table but by one plate that is walked through."""
        if self.chunked is None or self.subsampled[self.chunked][0] != len(self.table):
            raise InputError(
                f"{self.name}: rows that stay on the disk are looked at one by one, and a latent "
                "or discrete site of this model has entries for each; hold the rows in memory "
                "(--no-stream)."
            )
        if not self._comes_in_parts(self.held_rows[self.chunked] // 2):
            raise InputError(
                f"{self.name}: rows of {self.table.name} are given in parts, and something beside "
                f"plate '{self.chunked}' depends on them (another plate, a mean of a column); "
                "make it beforehand, or hold the rows in memory (--no-stream)."
            )

    def estimate(
        self,
        z: Array,
        key: Array,
        parameters: Mapping | None = None,
        number: int | None = None,
        batch: streamed.Batch | None = None,
    ) -> Array:
        """An unbiased estimate of `log_density` from as many rows as plates take, or `number`;
        of rows on the disk from those of a batch.
        """
        if batch is None:
            return self.log_density_of(z, parameters, self.some(key, number))
        return with_slope(over_batch, self)(z, parameters, batch, key)

    def batches(self, looks: int, seed: int) -> Callable[[int], streamed.Batch]:
        """Batches of the table's rows, by their place, of as many as so many estimates take."""
        return batches(self, looks, seed)

    def some(self, key: Array, number: int | None = None) -> dict[str, Array]:
        """Some rows of each subsampled plate, as many as it takes, or `number`.

        With replacement: a permutation of millions would cost more than looking at the rows.
        """
        keys = jax.random.split(key, len(self.subsampled))
        return {
            k: jax.random.randint(plate_key, (min(number or taken, size),), 0, self.held_rows[k])
            for plate_key, (k, (size, taken)) in zip(keys, self.subsampled.items(), strict=True)
        }

    def _know_of_all_rows(self) -> None:
        """Make the plate over the table's rows as long as that, of which it saw the head."""
        head = len(next(iter(self.table.head.values())))
        over = {k: taken for k, (n, taken) in self.subsampled.items() if n == head}
        if not over:
            raise InputError(
                f"{self.name}: {self.table.name} has {len(self.table):,} rows, which stay on the "
                "disk, to be read as they are wanted; give the plate over them the size of an "
                f"argument, as len(x), and a subsample_size below {head:,}, or hold them "
                "(--no-stream)."
            )
        self.subsampled |= {k: (len(self.table), taken) for k, taken in over.items()}

    def log_prior(self, z: Array) -> Array:
        """The log density of the prior at z, normalised where that is proper, in nats."""
        return self.log_density_of(z, None, {}, partial(Unseen, sites=self.given))

    def log_density_of(self, z, parameters, rows, seen=lambda model: model):
        """Log p(z, data) in nats, estimated by these rows of some plates."""
        model = self._with(seen(self.some_rows(rows)), parameters, seeded=True)
        if not rows:
            model = Spread(model)
        if self.discrete:
            from numpyro.contrib.funsor import config_enumerate, enum

            model = enum(config_enumerate(model), self._first_free_dim)
        sites = self._at_rows(self.unravel(z), rows)
        energy = potential_energy(model, (), {}, sites, enum=bool(self.discrete))
        return self._idle_density(z) - energy

    def _at_rows(self, sites, rows):
        """The sites with those inside a plate cut down to the rows that are looked at."""
        for k, site in self.latent.items() if rows else ():
            for frame in site["cond_indep_stack"]:
                if frame.name in rows:
                    axis = len(site["fn"].batch_shape) + frame.dim
                    sites[k] = jnp.take(sites[k], rows[frame.name], axis)
        return sites

    def _idle_density(self, z):
        if not self.idle.any():
            return 0.0
        return jnp.sum(jnp.where(self.idle, dist.Normal().log_prob(z), 0.0))

    def _with(self, model, parameters, seeded):
        """The model at these values of its parameters, else at those of the first run."""
        values = {k: s["value"] for k, s in self.trace.items() if s["type"] == "param"}
        for k, v in {**self.held, **(parameters or {})}.items():
            values[k] = transform_of(self.trace[k])(v)
        model = handlers.substitute(model, data=values) if values else model
        return handlers.seed(model, self.key) if seeded else model

    @cached_property
    def chunked(self) -> str | None:
        """The plate whose rows are looked at in chunks: the longest, if no latent is inside."""
        inside = {frame.name for s in self.latent.values() for frame in s["cond_indep_stack"]}
        long = {k: n for k, (n, _) in self.subsampled.items() if n > CHUNK and k not in inside}
        return max(long, key=long.get) if long and not self.discrete else None

    @property
    def _first_free_dim(self) -> int:
        dims = [f.dim for s in self.trace.values() for f in s.get("cond_indep_stack", ())]
        return min([0, *(d for d in dims if d is not None)]) - 1

    def log_probs(self, z: Array, whole: bool = True) -> dict[str, Array]:
        """The log density of every site at z, summed or entry by entry, discrete ones drawn."""
        values = {k: v for k, v in self.constrain(z).items() if k in self.latent}
        model = self.on_all_rows()
        return compute_log_probs(model, (), {}, values, whole)[0]

    @cached_property
    def observed(self) -> dict[str, np.ndarray]:
        """What was observed, a factor aside."""
        return {
            k: np.asarray(site["value"])
            for k, site in self.given.items()
            if not isinstance(innermost(site["fn"]), dist.Unit)
        }

    @property
    def rows(self) -> int:
        """How many numbers were observed."""
        held = max([1, *map(np.size, self.observed.values())])
        if not self.table:
            return held
        return held * len(self.table) // self.held_rows[self.chunked]

    def log_likelihood(self, z: Array) -> dict[str, Array]:
        """The log likelihood of each entry of each observed site at z."""
        terms = self.log_probs(z, whole=False)
        return {k: terms[k] for k in self.observed}

    @property
    def counts(self) -> tuple[str, ...]:
        """The observed sites whose log likelihood is that of a probability, so at most 0."""
        if self.discrete or self.chunked:
            return ()  # it is not to be had one by one
        supports = {k: self.given[k]["fn"].support for k in self.observed}
        return tuple(k for k, s in supports.items() if getattr(s, "is_discrete", False))

    def believable(self, z: Array) -> Array:
        """Whether no observation has a probability above 1 at z, as far out rounding may give it.

        There a term of size 1e16 may have swallowed another, and the density be anything.
        """
        terms = self.log_probs(z, whole=False)
        return jnp.all(jnp.array([jnp.all(terms[k] < EXCESS) for k in self.counts]))

    def about(self) -> dict[str, dict]:
        """Of each site what people want to know: its kind, shape, prior, support, argument."""
        found = {}
        for k, site in {**self.latent, **self.discrete}.items():
            kind = "latent" if k in self.latent else "discrete, summed out"
            found[k] = {"kind": kind, "support": words_of(site["fn"].support)}
        for k, value in self.observed.items():
            same = (a for a, v in self.data.items() if _same(v, value))
            found[k] = {"kind": "observed", "argument": next(same, None)}
        for k, entry in found.items():
            shape = jnp.shape(self.trace[k]["value"])
            frames = {frame.name for frame in self.trace[k]["cond_indep_stack"]}
            if self.table and self.chunked in frames:  # of which it saw the head
                shape = (len(self.table), *shape[1:])
            entry["shape"] = shape
            prior = type(stated(self.trace[k]["fn"])).__name__
            entry["prior"] = prior.removesuffix("Probs").removesuffix("Logits")
        return {k: found[k] for k in self.trace if k in found}

    @property
    def drawable(self) -> bool:
        """Whether NumPyro can draw the discrete sites again, as it cannot inside its own scan."""
        return not any(site.get("_control_flow_done") for site in self.trace.values())

    def draw_discrete(self, z: Array, key: Array) -> dict[str, Array]:
        """One draw of the discrete latents given the others at z and the data."""
        from numpyro.contrib.funsor import config_enumerate, infer_discrete

        values = {k: v for k, v in self.constrain(z).items() if k in self.latent}
        model = handlers.substitute(self.on_all_rows(), data=values)
        model = infer_discrete(config_enumerate(model), self._first_free_dim, rng_key=key)
        trace = handlers.trace(handlers.seed(model, key)).get_trace()
        computed = {k: s["value"] for k, s in trace.items() if s["type"] == "deterministic"}
        return {k: trace[k]["value"] for k in self.discrete} | computed

    def draw_prior(self, key: Array) -> Array:
        """One draw of the prior, on R^d."""
        return self._drawn(self.all_rows, key)[0]

    def draw_joint(self, key: Array) -> tuple[Array, dict[str, Array]]:
        """One draw of the prior, on R^d, and of the observed sites given it."""
        shapes = {k: value.shape for k, value in self.observed.items()}
        z, trace = self._drawn(Drawn(self.all_rows, shapes), key)
        return z, {k: trace[k]["value"] for k in shapes}

    def _drawn(self, model, key):
        run = handlers.seed(self._with(model, None, seeded=False), key)
        trace = handlers.trace(run).get_trace()
        values = {k: biject_to(trace[k]["fn"].support).inv(trace[k]["value"]) for k in self.latent}
        return jnp.concatenate([jnp.ravel(values[k]) for k in self.latent]), trace

    def inputs(self, z: Array, name: str) -> str:
        """The distribution at a site when the others are at z, with the values it is given."""
        with dist.distribution.validation_enabled(False):  # what is wrong is what is asked
            values = {k: v for k, v in self.constrain(z).items() if k in self.latent}
            model = handlers.substitute(self.on_all_rows(), data=values)
            site = handlers.trace(model).get_trace()[name]
        fn = stated(site["fn"])  # a LogNormal has parameters of its own, other transforms have not
        if not (isinstance(fn, dist.TransformedDistribution) and fn.arg_constraints):
            fn = innermost(fn)
        if isinstance(fn, dist.Unit):
            return f"a factor of {brief(fn.log_factor)}"
        given = {k: getattr(fn, k, None) for k in fn.arg_constraints}
        words = [f"{k}={brief(v)}" for k, v in given.items() if v is not None]
        return f"{type(fn).__name__}({', '.join(words)}) at {brief(site['value'])}"

    @cached_property
    def proper(self) -> bool:
        """Whether the prior is proper and can be drawn from, as far as can be told."""
        sites = self.latent.values()
        if any(site["scale"] is not None or not has_density(site["fn"]) for site in sites):
            return False
        try:
            jax.eval_shape(self.draw_prior, self.key)
        except NotImplementedError:
            return False
        return True

    def _refuse_untraceable(self):
        """A density that JAX cannot trace: data in the way are moved to the device, once."""
        for last in (False, True):
            try:
                self.idle = np.zeros(self.dim, bool)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of values outside a support: said later
                    return jax.eval_shape(self.log_density, jnp.zeros(self.dim))
            except InputError:
                raise
            except jax.errors.TracerArrayConversionError as error:
                if last:
                    raise self._untraceable(error) from error
                self.data = _on_device(self.data)
            except jax.errors.ConcretizationTypeError as error:
                raise self._untraceable(error) from error
            except Exception as error:
                raise stopped_by(error, self.name) from error

    def _untraceable(self, error):
        return InputError(
            f"{self.name}: the model cannot be traced by JAX, {where(error)}; what depends on "
            "the value of a site needs jnp.where or lax.cond in place of if."
        )

    def _first_look(self) -> dict:
        """The sites as the model is; data in the way of a scan are moved to the device."""
        try:
            return traced(self.called, self.key, self.name)
        except InputError as error:
            if not isinstance(error.__cause__, jax.errors.TracerArrayConversionError):
                raise
            self.data = _on_device(self.data)
            return traced(self.called, self.key, self.name)

    def _on_all_rows_or_one_batch(self) -> dict:
        """The sites on all rows of every plate; on those given, where the data are one batch.

        They are one where it makes no difference which rows a plate takes. A model that stops on
        all rows may have to be told of them, by the argument that is the number it takes.
        """
        try:
            return self._on_all_rows()
        except (InputError, ValueError) as error:  # shapes that cannot be broadcast
            k, (size, taken) = next(iter(self.subsampled.items()))
            for argument in self._integers_of(taken):
                self.sized_by = {k: argument}
                with contextlib.suppress(InputError, ValueError):
                    return self._on_all_rows()
            self.sized_by = {}
            held = self._held_rows()
            if held is None:
                why = str(error).removeprefix(f"{self.name}: ")
                raise InputError(
                    f"{self.name}: plate '{k}' takes {taken} of {size} rows, and given all of "
                    f"them {why}; see that the model runs with subsample_size={size}."
                ) from error
            model, self.subsampled, self.held_rows = self._model, {}, {}
            self._model = lambda **data: Rows(lambda: model(**data), held)()
            return traced(self.called, self.key, self.name)

    def _on_all_rows(self) -> dict:
        """The sites on all rows of every plate, their values as large as their distributions."""
        trace = traced(self.all_rows, self.key, self.name)
        for site in trace.values():
            if site["type"] == "sample":
                np.broadcast_shapes(jnp.shape(site["value"]), tuple(site["fn"].shape()))
        return trace

    def _integers_of(self, value: int) -> list[str]:
        """The arguments of the model that are this number."""
        takes = inspect.signature(self._model).parameters.values()
        given = {p.name: p.default for p in takes} | self.data
        return [k for k, v in given.items() if type(v) is int and v == value]

    def _held_rows(self) -> dict[str, Array] | None:
        """The first rows of each plate, if the density is the same at its last ones."""
        first = {k: jnp.arange(taken) for k, (_, taken) in self.subsampled.items()}
        last = {k: size - 1 - first[k] for k, (size, _) in self.subsampled.items()}
        heights = []
        for rows in (first, last):
            sites = traced(Rows(self.called, rows), self.key, self.name).values()
            seen = [s for s in sites if s["type"] == "sample" and s["is_observed"]]
            heights.append([np.asarray(s["fn"].log_prob(s["value"])) for s in seen])
        if not all(map(np.array_equal, *heights)):
            return None
        self.remarks += tuple(
            f"plate '{k}' takes {taken} of {size} rows, the same whichever they are: the data are "
            f"taken for one batch, each row counted {size / taken:.3g} times"
            for k, (size, taken) in self.subsampled.items()
        )
        return first

    def _refuse_missing(self) -> None:
        """Data that are not finite, unless the model knows what to do with them."""
        try:
            for k, v in self.data.items():
                if isinstance(v, float | np.ndarray | Array):
                    finite(v, f"{self.name}: {k}")
        except InputError as error:
            points = [0.3 * jax.random.normal(self.key, (self.dim,))]
            points += [self.draw_prior(self.key)] if self.proper else []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is said here
                heights = mesh.program(jax.vmap(self.log_density))(jnp.stack(points))
            if not jnp.isfinite(heights).any():
                raise
            self.remarks += (
                f"{str(error).partition('; ')[0]}: the model is trusted to impute or mask it",
            )

    def _idle(self) -> np.ndarray:
        """The coordinates (d,) that nothing depends on: what masks leave of latents.

        They are what obs_mask has no use for, or the padding of sequences. They are given N(0, 1)
        each, which changes no other. Any other site that nothing depends on is refused, as its
        posterior cannot be normalised.
        """
        if all(has_density(site["fn"]) for site in self.latent.values()):
            return np.zeros(self.dim, bool)
        points = 0.3 * jax.random.normal(self.key, (FLAT_LOOKS, self.dim))
        slopes = mesh.program(jax.vmap(jax.grad(self.log_density)))(points)
        flat = np.asarray((slopes == 0).all(0))
        for k, part in unravel(flat, self.shapes).items():
            imputed = k.endswith("_unobserved") and k.removesuffix("_unobserved") in self.trace
            padding = is_masked(self.latent[k]["fn"]) and not part.all()
            if part.any() and not imputed and not padding:
                raise InputError(
                    f"{self.name}: nothing depends on site '{k}', so its density is flat and "
                    "cannot be normalised; give it a proper prior, or leave it out."
                )
        return flat

    def _that_matter(self, parameters):
        """The parameters that the density depends on: those of a random network's template not."""
        if not parameters:
            return {}
        point = 0.3 * jax.random.normal(self.key, (self.dim,))
        slopes = mesh.program(jax.grad(self.log_density, 1))(point, parameters)
        moved = {
            k: any((leaf != 0).any() for leaf in jax.tree.leaves(v)) for k, v in slopes.items()
        }
        return {k: v for k, v in parameters.items() if moved[k]}


def _same(argument, value) -> bool:
    """Whether an argument of the model is what was observed."""
    same_shape = hasattr(argument, "shape") and jnp.shape(argument) == np.shape(value)
    return same_shape and np.array_equal(np.asarray(argument), value)


def _in_precision(value):
    """An array in the precision that JAX has it in, which it fails to see to itself in a scan.

    (JAX 0.12 under jax_use_simplified_jaxpr_constants: 64-bit constants in 32-bit programs.)
    """
    if not isinstance(value, np.ndarray | Array) or value.dtype.kind not in "iufc":
        return value
    dtype = jax.dtypes.canonicalize_dtype(value.dtype)
    return value if value.dtype == dtype else value.astype(dtype)


def _on_device(data: Mapping) -> dict:
    """NumPy arrays as JAX arrays, which indices that JAX traces can pick from."""
    return {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in data.items()}


def traced(model: Callable, key: Array, name: str, remedy: str = "") -> dict:
    """One run of a model: its sites, the latent ones drawn from their priors where that can be.

    Raises `InputError` with where in their code it stopped, and with `remedy`.
    """
    stopped = None
    # A draw of a very vague prior may overflow, which says nothing against the model.
    for begin in (init_to_sample, init_to_uniform):
        drawn = handlers.substitute(handlers.seed(model, key), substitute_fn=begin)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what matters of them is said below, once
                return handlers.trace(drawn).get_trace()
        except InputError:
            raise
        except Exception as error:
            stopped = stopped or error
    raise stopped_by(stopped, name, remedy) from stopped
