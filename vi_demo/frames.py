"""Local scales: a target seen from where it is, as wide as it is there."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from vi_demo.target import Target

# What else of a target is a function of one point, and then of others.
POINTWISE = "unravel", "constrain", "site_log_probs", "log_likelihood", "believable", "inputs"


class Frame(NamedTuple):
    """A local scale: z = shift + factor u, factor (d, d), or (d,) for one scale a coordinate."""

    shift: Array
    factor: Array

    def out(self, u: Array) -> Array:
        """The points z of points u, (d,) or (n, d)."""
        return self.shift + (u * self.factor if self.factor.ndim == 1 else u @ self.factor.T)

    def inverse(self) -> Frame:
        """The scale that leads back: u = F⁻¹ (z − shift)."""
        if self.factor.ndim == 1:
            return Frame(-self.shift / self.factor, 1 / self.factor)
        back = jnp.linalg.inv(self.factor)
        return Frame(-back @ self.shift, back)

    def log_volume(self) -> Array:
        """Log |det factor|."""
        if self.factor.ndim == 1:
            return jnp.log(jnp.abs(self.factor)).sum()
        return jnp.linalg.slogdet(self.factor)[1]


def seen_from(target: Target, frame: Frame) -> Target:
    """The same target in u, where z = shift + factor u."""
    volume = frame.log_volume()

    def at(fn):
        return fn and (lambda u, *others: fn(frame.out(u), *others))

    def estimate(u, *others):
        return target.estimate(frame.out(u), *others) + volume

    return replace(
        target,
        log_density=lambda u: target.log_density(frame.out(u)) + volume,
        estimate=target.estimate and estimate,
        joint=lambda u, parameters: target.joint(frame.out(u), parameters) + volume,
        **{name: at(getattr(target, name)) for name in POINTWISE},
        prior=None,
        programs={},
    )
