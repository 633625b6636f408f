"""Whatever stands for a model becomes a target: a function, a file, an import path, draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vi_demo import draws as drawn
from vi_demo import guides, loading
from vi_demo.errors import InputError
from vi_demo.target import Target


def as_target(model, data=None, guide=None, **labels) -> tuple[Target, Callable | None]:
    """The target of whatever stands for a model, and the user's own guide if that is asked for.

    `model` and `data` as `vi_demo.run` takes them; `labels` are `name`, `coords` and `dims`.
    """
    from_file = isinstance(data, str | Path)
    own = guide if callable(guide) else None
    if isinstance(model, Target):
        if data is not None:
            raise InputError(f"{model.name}: a Target has its data already; leave data out.")
        target = model
    elif isinstance(model, str | Path) and drawn.is_file(model):
        target = of_file(model, data, guide, labels.get("name"))
    elif isinstance(model, str | Path | loading.Loaded):
        loaded = model
        if not isinstance(model, loading.Loaded):
            loaded = loading.load(str(model), str(data) if from_file else None)
        data = loaded.data if data is None or from_file else data
        own = loaded.guide if guide == "own" else own
        named = {"name": loaded.name, "coords": loaded.coords, "dims": loaded.dims}
        labels = named | {k: v for k, v in labels.items() if v is not None}
        target = Target.from_numpyro(loaded.model, data, **labels)
    elif callable(model):
        data = loading.arguments(model, data) if from_file else data
        target = Target.from_numpyro(model, data, **labels)
    else:
        raise InputError(
            "a model is a function, a Target or the path of a file, not of type "
            f"{type(model).__name__}."
        )
    if guide == "own" and own is None:
        raise InputError(
            f"{target.name} has no guide of its own; define guide(...) beside the model, with the "
            f"same arguments, or choose from {', '.join(guides.names())}."
        )
    if own is not None and target.own_guide is None:
        raise InputError(f"{target.name}: a guide of your own needs a NumPyro model.")
    return target, own


def of_file(file: str | Path, data, guide, name: str | None) -> Target:
    """The target of a file of draws, which comes with no data and no guide."""
    if data is not None:
        raise InputError(f"{file}: draws are fitted as they are, without data; leave --data out.")
    if guide == "own" or callable(guide):
        raise InputError(
            f"{file}: a file of draws has no guide of its own; choose from "
            f"{', '.join(guides.names())}."
        )
    return Target.from_draws(drawn.read(file), name or Path(file).stem)
