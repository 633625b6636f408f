"""Can you trust this variational posterior, and which direction of KL should you have used?"""

import os

import lazy_loader

# Data become arguments of compiled programs rather than constants in them: millions of rows would
# take minutes to compile and many times their memory. JAX reads this once, when it is imported.
os.environ.setdefault("JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS", "1")

# JAX takes a second to import: names are fetched when they are used.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "calibration": ["calibrate"],
        "errors": ["InputError"],
        "results": ["load", "save", "summary"],
        "preflight": ["check"],
        "reuse": ["draw", "predict"],
        "startup": ["prepare"],
        "study": ["run"],
        "target": ["Target"],
        "widget": ["explore"],
    },
)
