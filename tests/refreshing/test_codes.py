"""New items get codes from frozen codebooks, and their drift is measured."""

import numpy as np
from flax import nnx

from sigma_jax.models.rqvae import RqVae, RqVaeConfig
from sigma_jax.refreshing.codes import code_distances, codebook_map, measure
from sigma_jax.tokenizer.assign import assign_codes


def small_model(vectors):
    """A tokenizer without training whose codebooks are some of the vectors."""
    import dataclasses

    from sigma_jax.configs import tokenizer
    from sigma_jax.runtime.config import to_dataclass
    from sigma_jax.tokenizer.task import TokenizerConfig

    config = to_dataclass(TokenizerConfig, tokenizer.stage_fields("smoke")).model
    config = dataclasses.replace(config, levels=2, codebook_size=8)
    assert isinstance(config, RqVaeConfig)
    model = RqVae(config, vectors.shape[1], False, rngs=nnx.Rngs(0))
    shape = model.codebooks[...].shape
    model.codebooks[...] = np.stack([vectors[:8], 0.1 * vectors[8:16]]).reshape(shape)
    return model


def test_items_like_the_old_ones_do_not_drift_and_strange_ones_do():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 4)).astype(np.float32)
    model = small_model(vectors)
    for new, is_strange in ((vectors[:20], False), (vectors[:20] * 30, True)):
        every = np.concatenate([vectors, new])
        drift = measure(model, every, assign_codes(model, every, 100), 60, 0)
        assert drift.new_items == 20
        assert (drift.error_of_new > 2 * drift.error_of_old) == is_strange
        assert drift.is_large == is_strange and len(drift.lines) == 1 + is_strange
        if not is_strange:
            assert drift.collisions_of_new == 1
    nothing = measure(model, vectors, assign_codes(model, vectors, 100), 60, 0)
    assert nothing.error_of_new == 0 and not nothing.lines and nothing.code_distance == (0.0, 0.0)


def test_the_distance_of_codes_is_0_for_equal_shares_and_1_for_other_codes():
    old = np.array([[0, 1], [0, 1], [1, 2], [1, 2]])
    new = np.array([[0, 5], [1, 5]])
    assert code_distances(old, new, 8) == (0.0, 1.0)


def test_a_new_code_maps_to_the_old_code_of_most_of_its_items():
    before = np.array([[1, 0], [1, 0], [2, 1], [0, 1]], np.int32)
    after = np.array([[2, 1], [2, 1], [2, 0], [1, 0], [0, 0]], np.int32)
    assert codebook_map(before, after, 3).tolist() == [[-1, 0, 1], [1, 0, -1]]
