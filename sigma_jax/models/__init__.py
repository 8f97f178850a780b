"""Neural networks: the Qwen3 backbone, its Hugging Face folders, encoders and heads."""
