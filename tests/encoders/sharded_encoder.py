"""Checks a sentence encoder on four devices; test_sentence_encoder.py runs it."""

import sys
from pathlib import Path

import jax
import numpy as np

from sigma_jax.encoders import sentence_encoder

assert jax.device_count() == 4
folder, are_weights_sharded = Path(sys.argv[1]), sys.argv[2] == "sharded"
expected = np.load(folder / "vectors.npz")["plain"]
texts = ["green tea", "Soap for the cat", "", "candle " * 30, "unknown words here", "red"]
if are_weights_sharded:
    sentence_encoder.REPLICATED_BYTES = 0
    sentence_encoder.sharding.LARGE = 0
encoder = sentence_encoder.SentenceEncoder.load(folder)
is_replicated = [leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(encoder._state)]
assert all(is_replicated) != are_weights_sharded
for count in (len(texts), 1):
    np.testing.assert_allclose(encoder.encode(texts[:count]), expected[:count], atol=1e-5)
