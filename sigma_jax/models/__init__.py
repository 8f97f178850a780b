"""The networks: the Qwen3 backbone, its Hugging Face folders, and the heads built on it."""
