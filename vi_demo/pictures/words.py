"""How names and numbers are written, on the terminal and in pictures alike."""

from __future__ import annotations

import re

import numpy as np

PEOPLE = {
    "jensen_shannon": "Jensen–Shannon",
    "jeffreys": "Jeffreys",
    "squared_hellinger": "squared Hellinger",
    "pearson_chi_square": "Pearson χ²",
    "neyman_chi_square": "Neyman χ²",
    "laplace": "Laplace",
    "pathfinder": "Pathfinder",
    "ep": "EP",
    "smc": "SMC",
    "nuts": "NUTS",
}
SIGNS = {"reverse_kl": "KL(q‖p), reverse", "forward_kl": "KL(p‖q), forward"}


def spoken(name: str) -> str:
    """A fit's or a divergence's name as one says it: reverse KL, Rényi 2, α 0.5."""
    base, _, parameter = name.partition(":")
    if parameter:
        return f"{ {'alpha': 'α', 'renyi': 'Rényi'}.get(base, spoken(base)) } {parameter}"
    return PEOPLE.get(name, re.sub(r"\bkl\b", "KL", name.replace("_", " ")))


def measured(name: str) -> str:
    """A divergence as the row of a table: what is between what."""
    return SIGNS.get(name, spoken(name))


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: fixed digits, a true minus, a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    text = f"{value:,.{digits}f}" if abs(value) < 1e6 else f"{value:.2e}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.replace("-", "")


def with_error(estimate: dict | None) -> str:
    """A value with as many digits as its error leaves, and the error where it is not tiny."""
    if not estimate or estimate["value"] is None:
        return "–"
    error = estimate["mcse"]
    if error is None:
        return f"{number(estimate['value'])} ± ?"
    if error < 5e-4:
        return number(estimate["value"], 3)
    digits = int(np.clip(1 - np.floor(np.log10(error)), 0, 3))
    return f"{number(estimate['value'], digits)} ± {number(error, digits)}"
