"""f-divergences between a target p and a guide q, from one function each."""
