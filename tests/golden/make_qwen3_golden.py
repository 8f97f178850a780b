"""Writes the folders qwen3_* and llama_* of this directory: tiny random models and their outputs.

    pip install torch "transformers>=5"
    python tests/golden/make_qwen3_golden.py

transformers saves each folder, one of them in shards. golden.npz has the inputs and outputs of the
modules of the first layer and of the model, float32, for a batch that is padded on both sides.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

SIZES = {"vocab_size": 19, "num_hidden_layers": 2, "intermediate_size": 14, "rms_norm_eps": 1e-5}
QWEN3 = {"hidden_size": 10, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
LLAMA = {"hidden_size": 12, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8}
MODELS = {  # rotary base, is tied, size of a shard
    "qwen3_tied": (Qwen3Config, Qwen3ForCausalLM, QWEN3, 1e6, True, "1GB"),
    "qwen3_untied": (Qwen3Config, Qwen3ForCausalLM, QWEN3, 1e4, False, "4KB"),
    "llama_tied": (LlamaConfig, LlamaForCausalLM, LLAMA, 1e5, True, "1GB"),
    "llama_untied": (LlamaConfig, LlamaForCausalLM, LLAMA, 500.0, False, "1GB"),
}
IS_TOKEN = np.array([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]], bool)
# The last row has large positions, which reveal a wrong rotary base or 16-bit angles.
POSITIONS = np.maximum(np.cumsum(IS_TOKEN, axis=1) - 1, 0) + np.array([[0], [0], [3000]])


def record(model, tokens):
    """Inputs and outputs of the modules of layer 0, by name."""
    layer, arrays = model.model.layers[0], {}
    modules = {
        "norm": layer.input_layernorm,
        "attention": layer.self_attn,
        "mlp": layer.mlp,
        "layer": layer,
        "rotary": model.model.rotary_emb,
    }

    def hook(name):
        def keep(module, args, kwargs, output):
            inputs = args[0] if args else kwargs["hidden_states"]
            if name == "rotary":
                arrays["cos"], arrays["sin"] = output
            else:
                arrays[f"{name}_in"] = inputs
                arrays[f"{name}_out"] = output[0] if isinstance(output, tuple) else output

        return keep

    for name, module in modules.items():
        module.register_forward_hook(hook(name), with_kwargs=True)
    output = model(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(IS_TOKEN.astype(np.int64)),
        position_ids=torch.tensor(POSITIONS),
        output_hidden_states=True,
        use_cache=False,
    )
    arrays["hidden"], arrays["logits"] = output.hidden_states[-1], output.logits
    return {name: value.detach().numpy() for name, value in arrays.items()}


def main():
    for seed, (name, made_of) in enumerate(MODELS.items()):
        config_class, model_class, sizes, theta, is_tied, shard = made_of
        torch.manual_seed(seed)
        config = config_class(
            **SIZES,
            **sizes,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            tie_word_embeddings=is_tied,
            attn_implementation="eager",
        )
        model = model_class(config).eval()
        with torch.no_grad():
            for path, weight in model.named_parameters():
                weight.normal_(1.0 if "norm" in path else 0.0, 0.4)
        folder = Path(__file__).parent / name
        model.save_pretrained(folder, max_shard_size=shard)
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokens = np.random.default_rng(seed).integers(0, 19, IS_TOKEN.shape)
        with torch.no_grad():
            values = record(model, tokens)
        inputs = {"tokens": tokens, "positions": POSITIONS, "is_token": IS_TOKEN}
        np.savez_compressed(folder / "golden.npz", **inputs, **values)


if __name__ == "__main__":
    main()
