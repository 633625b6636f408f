"""What a run looks like: figures and words from a saved run, without JAX."""
