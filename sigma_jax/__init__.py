"""SIGMA, an instruction-following generative recommender, in JAX.

The public API is `load_recommender`, `train_recommender`, `evaluate_recommender` and
`RecommendOptions` (sigma_jax/api.py). They are imported when they are first used.
"""

from typing import Any

__all__ = [
    "LoadedRecommender",
    "RecommendOptions",
    "evaluate_recommender",
    "load_config",
    "load_recommender",
    "train_recommender",
]


def __getattr__(name: str) -> Any:
    """The public API, imported at its first use."""
    if name in __all__:
        from sigma_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'sigma_jax' has no attribute {name!r}")
