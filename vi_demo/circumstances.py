"""When, in which precision and on which versions a run was made."""

from __future__ import annotations

import importlib.metadata
import sys
from datetime import UTC, datetime

import jax.numpy as jnp

PACKAGES = ("vi-demo", "numpyro", "jax", "arviz", "blackjax", "optax", "numpy")


def circumstances() -> dict:
    """When, in which precision and on which versions a run was made."""
    return {
        "precision": precision(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def precision() -> str:
    """The type that all is computed in."""
    return str(jnp.zeros(()).dtype)


def versions() -> dict[str, str]:
    """What this ran on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}
