"""Ways to fit a guide to a target, one for each divergence that can be asked for."""

from __future__ import annotations

from collections.abc import Callable

from vi_demo.errors import InputError
from vi_demo.fitting import moment_matching, svi
from vi_demo.fitting.runner import Fit
from vi_demo.target import Target

DEFAULT = ("reverse_kl", "forward_kl")
FITTERS: dict[str, Callable[..., Fit]] = {
    "reverse_kl": svi.fit,
    "forward_kl": moment_matching.fit,
}


def known(name: str) -> Callable[..., Fit]:
    """The fitter of that name; raises `InputError` for a name that is not one."""
    if name not in FITTERS:
        raise InputError(f"no fit named '{name}'; choose from {', '.join(FITTERS)}.")
    return FITTERS[name]


def fitter_for(name: str, target: Target) -> Callable[..., Fit]:
    """The fitter of that name, if the target can do what it needs."""
    if name == "reverse_kl" and target.log_density is None:
        raise InputError(
            f"{target.name}: reverse_kl needs a log density and this target is only draws; "
            "fit forward_kl, which is maximum likelihood on the draws."
        )
    return known(name)
