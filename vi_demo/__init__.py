"""Can you trust this variational posterior, and which direction of KL should you have used?"""

import lazy_loader

# JAX takes a second to import: names are fetched when they are used.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["InputError"],
        "results": ["load", "save", "summary"],
        "study": ["run"],
        "target": ["Target"],
    },
)
