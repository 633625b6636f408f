"""Approximations that fits are compared with: asked for by name, and no divergence's optimum.

Nothing here imports JAX, so help and errors need not wait for it. A new one is a line here and a
fitter of that name in `fitting`.
"""

APPROXIMATIONS = {
    "laplace": "Laplace: the best mode, and the inverse of −∇² log p there.",
    "pathfinder": "The Gaussian of greatest ELBO on quasi-Newton paths to the modes.",
    "ep": "Expectation propagation: KL(p‖q) locally, a factor for each row of the data.",
}
