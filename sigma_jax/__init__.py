"""SIGMA, an instruction-following generative recommender, in JAX."""
