"""A guide that the user wrote, beside their model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.inspect import get_dependencies
from numpyro.infer.util import compute_log_probs

from vi_demo.errors import InputError
from vi_demo.model import Model, traced
from vi_demo.refusals import refuse_misfit
from vi_demo.sites import innermost, parameters_of, transform_of


class Guide:
    """A guide that the user wrote, as functions on R^d: draws with their log density.

    Its parameters, and those of the model, are unconstrained and by name.
    """

    def __init__(self, model: Model, guide: Callable):
        if model.table:
            raise InputError(
                f"{model.name}: a guide of your own is given all rows, and those of "
                f"{model.table.name} stay on the disk; leave --guide own out, or hold fewer rows."
            )
        refuse_misfit(guide, model.data, f"{model.name}: guide")
        self.model, self._guide = model, guide
        trace = traced(self.called, model.key, f"{model.name}: guide")
        self.trace = trace
        self.parameters = parameters_of(trace)
        _refuse_mismatch(self)

    def called(self):
        """The guide run on the model's data, on all rows of every plate."""
        rows = {k: jnp.arange(n) for k, (n, _) in self.model.subsampled.items()}
        return self.model.on_rows(self._guide, rows)()

    def draw(self, parameters: Mapping, key: Array) -> tuple[Array, Array]:
        """A draw on R^d and its log density in nats."""
        guide = handlers.seed(self._with(parameters), key)
        trace = handlers.trace(guide).get_trace()
        values = {k: trace[k]["value"] for k in self.model.latent}
        z = self.model.unconstrain(values)
        return z, self.log_prob(parameters, z)

    def log_prob(self, parameters: Mapping, z: Array) -> Array:
        """The log density at a point of R^d in nats."""
        sites = self.model.unravel(z)
        values = self.model.constrain(z)
        values = {k: values[k] for k in self.model.latent}
        guide = handlers.seed(self._with(parameters), self.model.key)
        terms = compute_log_probs(guide, (), {}, values)[0]
        run = handlers.substitute(self.model.on_all_rows(), data=values)
        supports = {
            k: s["fn"].support for k, s in handlers.trace(run).get_trace().items() if k in values
        }
        jacobians = (
            biject_to(supports[k]).log_abs_det_jacobian(sites[k], values[k]).sum() for k in values
        )
        return sum(terms.values()) + sum(jacobians)

    def elbo(self, particles: int):
        """NumPyro's estimator: with closed forms of KL where no latent depends on another."""
        parents = get_dependencies(self.model.on_all_rows())["prior_dependencies"]
        apart = all(set(parents.get(k, ())) <= {k} for k in self.model.latent)
        return (TraceMeanField_ELBO if apart else Trace_ELBO)(num_particles=particles)

    def pair(self) -> tuple[Callable, Callable]:
        """Model and guide as NumPyro's SVI takes them, plates subsampled as they were written."""
        return self.model.called, lambda: self._guide(**self.model.data)

    def _with(self, parameters):
        values = {
            k: transform_of(self.trace[k])(v) for k, v in parameters.items() if k in self.trace
        }
        return handlers.substitute(self.called, data=values)


def _refuse_mismatch(guide: Guide) -> None:
    name, model = guide.model.name, guide.model
    drawn = {k: s for k, s in guide.trace.items() if s["type"] == "sample"}
    for k, site in drawn.items():
        if isinstance(innermost(site["fn"]), dist.Delta):
            raise InputError(
                f"{name}: guide: site '{k}' is a Delta, which has no density to compare with; "
                "use a distribution that has one, or --guide diagonal or full_rank."
            )
        if k not in model.latent:
            raise InputError(
                f"{name}: guide: site '{k}' is not a latent site of the model "
                f"({', '.join(model.latent)}); rename it, or leave it out."
            )
        if jnp.shape(site["value"]) != jnp.shape(model.latent[k]["value"]):
            raise InputError(
                f"{name}: guide: site '{k}' has shape {jnp.shape(site['value'])} and "
                f"{jnp.shape(model.latent[k]['value'])} in the model; give it the same."
            )
    missing = [k for k in model.latent if k not in drawn]
    if missing:
        raise InputError(
            f"{name}: guide: it draws no {', '.join(map(repr, missing))}, which the model has; "
            "add a numpyro.sample for it."
        )
    if model.discrete:
        raise InputError(
            f"{name}: guide: '{next(iter(model.discrete))}' is summed out of the model, which a "
            "guide of your own cannot do; use --guide full_rank."
        )
