"""The explorer in a notebook: what is dragged there can be read and set from Python."""

from __future__ import annotations

import html
from collections.abc import Sequence

import xarray as xr

from vi_demo.errors import InputError
from vi_demo.pictures import explorer

HEIGHT = 640  # CSS pixels of the frame that stands in where no kernel runs


def explore(run: xr.DataTree | None = None, sites: Sequence[str] = ()):
    """The explorer as a widget, of a run or of mixtures of Gaussians.

    Its `mu` and `sigma`, or for two coordinates its `mean` and `covariance`, follow the q that is
    dragged and move it when they are set. `sites` are one or two coordinates of a larger run,
    such as theta[3]. Raises `InputError` where the run holds no density, or anywidget is missing.
    """
    try:
        import anywidget
        import traitlets
    except ModuleNotFoundError as error:
        raise InputError(
            f"the explorer in a notebook needs {error.name}: pip install 'vi-demo[notebook]', or "
            "write the page with vi-demo explore."
        ) from error
    try:
        data = None if run is None else explorer.tabulated(run, sites)
    except ValueError as error:
        raise InputError(f"this run cannot be explored: {error}.") from error

    text = explorer.text(data)

    class Explorer(anywidget.AnyWidget):
        """q over p, to be dragged."""

        _esm = explorer.MODULE
        _css = explorer.HERE / "explorer.css"
        data = traitlets.Dict(allow_none=True).tag(sync=True)
        text = traitlets.Dict().tag(sync=True)
        mu = traitlets.Float().tag(sync=True)
        sigma = traitlets.Float().tag(sync=True)
        mean = traitlets.List(traitlets.Float(), minlen=2, maxlen=2).tag(sync=True)
        covariance = traitlets.List().tag(sync=True)

        @traitlets.validate("sigma")
        def _positive(self, proposal):
            if not proposal["value"] > 0:
                raise traitlets.TraitError(f"sigma must be above 0, not {proposal['value']:g}.")
            return proposal["value"]

        @traitlets.validate("covariance")
        def _definite(self, proposal):
            try:
                (xx, xy), (yx, yy) = proposal["value"]
                sound = xx > 0 and xx * yy > xy * yx and abs(xy - yx) <= 1e-9 * (xx + yy)
            except (TypeError, ValueError):
                sound = False
            if not sound:
                raise traitlets.TraitError("covariance must be 2 by 2 and positive definite.")
            return [[float(xx), float(xy)], [float(yx), float(yy)]]

        def _repr_html_(self):
            kept = ("data", "text", "mu", "sigma", "mean", "covariance")
            values = {name: getattr(self, name) for name in kept}
            return frame(explorer.filled(explorer.TITLE, {"page": False, **values}))

        def _repr_mimebundle_(self, **options):
            """The widget's own view, and the frame for readers without a kernel."""
            bundle = super()._repr_mimebundle_(**options)
            kinds, more = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
            return {**kinds, "text/html": self._repr_html_()}, more

    return Explorer(data=data, text=text, **explorer.held(text["state"]))


def frame(page: str) -> str:
    """A page in a frame that needs no file of its own."""
    return (
        f'<iframe srcdoc="{html.escape(page)}" sandbox="allow-scripts allow-downloads" '
        f'title="{explorer.TITLE}" style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
    )
